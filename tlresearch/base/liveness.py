"""Identities of processes that run trials, and whether such a process is gone, as far as this machine can tell."""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

CLOCK_STEP = 2.0  # seconds by which the start time of a process may seem to move when the clock is set


@dataclass(frozen=True)
class Identity:
    """A process that runs trials.

    Attributes:
        host: The machine, or the container: where process ids are unique.
        pid: Its process id there.
        started: When it was started, in seconds since 1970; distinguishes it from a later process with the same id.
        post: Name of its place in a cluster that starts another process in the place of one that died; else empty.
    """

    host: str
    pid: int
    started: float
    post: str = ""

    @classmethod
    def own(cls, post: str = "") -> Identity:
        """Returns the identity of this process."""
        return cls(_host(), os.getpid(), round(psutil.Process().create_time(), 2), post)

    def record(self) -> dict[str, Any]:
        """Returns the identity as plain values."""
        return asdict(self)

    def replaces(self, predecessor: Mapping[str, Any]) -> bool:
        """Whether this process was started in the place of one that died: it has the same post."""
        return bool(self.post) and predecessor["post"] == self.post and self.record() != dict(predecessor)


def is_gone(identity: Mapping[str, Any]) -> bool:
    """Whether a process has ended; ``False`` for a process of another machine, where we cannot know."""
    if identity["host"] != _host():
        return False
    try:
        process = psutil.Process(identity["pid"])
        reused = abs(process.create_time() - identity["started"]) > CLOCK_STEP  # its id belongs to a later process
        return reused or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@functools.cache
def _host() -> str:
    parts = [socket.gethostname()]
    boot = Path("/proc/sys/kernel/random/boot_id")
    if boot.exists():  # two machines may have one name, and two containers may share a machine: the namespace differs
        parts += [boot.read_text().strip()[:8], os.readlink("/proc/self/ns/pid").strip("pid:[]")]
    return " ".join(parts)
