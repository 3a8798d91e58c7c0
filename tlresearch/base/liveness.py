"""Which process runs a trial, and whether it still lives, as far as this machine can tell."""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

CLOCK_STEP = 2.0  # seconds by which a process's start may seem to move when the clock is set


@dataclass(frozen=True)
class Identity:
    """A process that runs trials.

    Attributes:
        host: Its machine, as far as process numbers are concerned: a container is one of its own.
        pid: Its number there.
        started: When it was started, seconds since 1970; tells it from a later process of the same number.
        post: What was to be done, where a cluster starts another process for one that died; empty without one.
    """

    host: str
    pid: int
    started: float
    post: str = ""

    @classmethod
    def own(cls, post: str = "") -> Identity:
        """This process."""
        return cls(_host(), os.getpid(), round(psutil.Process().create_time(), 2), post)

    def record(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    def replaces(self, other: Mapping[str, Any]) -> bool:
        """Whether this process was started for one that died: it has the same post."""
        return bool(self.post) and other["post"] == self.post and self.record() != dict(other)


def is_gone(identity: Mapping[str, Any]) -> bool:
    """Whether a process has ended; not known, and so ``False``, for one of another machine."""
    if identity["host"] != _host():
        return False
    try:
        process = psutil.Process(identity["pid"])
        other = abs(process.create_time() - identity["started"]) > CLOCK_STEP
        return other or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@functools.cache
def _host() -> str:
    parts = [socket.gethostname()]
    boot = Path("/proc/sys/kernel/random/boot_id")
    if boot.exists():  # two machines may have the same name, and two containers the same machine
        parts += [boot.read_text().strip()[:8], os.readlink("/proc/self/ns/pid").strip("pid:[]")]
    return " ".join(parts)
