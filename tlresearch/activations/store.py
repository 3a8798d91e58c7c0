"""Arrays on disk that are computed once: found by key, written in one step, checked on opening, bounded in size."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlresearch.config.paths import home
from tlresearch.finetuning.resume import replace

log = logging.getLogger(__name__)

Array = NDArray[np.float32]
CHUNK = 1 << 24  # bytes that are hashed at once


@dataclass(frozen=True)
class Entry:
    """One stored array.

    Attributes:
        key: Its key.
        path: Its folder.
        about: What it holds, in words, for `tlresearch cache ls`.
        size: Bytes on disk.
        used: When it was last opened, in seconds since the epoch.
    """

    key: str
    path: Path
    about: dict[str, Any]
    size: int
    used: float


class ActivationStore:
    """Float32 arrays by key, in memory-mapped files.

    An entry is a folder with ``data.bin`` and ``meta.json``; the folder gets its name by one rename when both are
    complete, so that a killed process leaves nothing that is taken for an entry. Several processes that want the
    same entry wait for the one that computes it.

    Args:
        root: Folder of all entries.
        max_bytes: Bound on their sum; the least recently used go first.
    """

    def __init__(self, root: Path, max_bytes: int) -> None:
        self.root = root
        self.max_bytes = max_bytes
        self.computed = 0
        self.reused = 0

    def get(self, key: Mapping[str, Any], shape: tuple[int, ...], fill: Callable[[Array], None]) -> Array | None:
        """Returns an array, computed by `fill` unless it is stored already.

        Args:
            key: What the array depends on; equal keys mean equal content.
            shape: Its shape.
            fill: Writes the content into an array of that shape.

        Returns:
            The array, read-only; ``None`` where it cannot be stored: too large, disk full, folder read-only. The
            reason is logged, and the caller goes on without.
        """
        size = int(np.prod(shape)) * 4
        if size > self.max_bytes:
            log.warning(
                "cache: %s needs %.1f GB, more than cache.max_gb allows; going on without", _words(key), size / 1e9
            )
            return None
        name = _name(key)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with self._lock(name):
                found = self._open(name, shape)
                if found is None:
                    self._make_room(size)
                    self._write(name, key, shape, fill)
                    found = self._open(name, shape)
                    self.computed += 1
                else:
                    self.reused += 1
                os.utime(self.root / name)
            return found
        except OSError as error:
            log.warning("cache: %s cannot be stored (%s); going on without", _words(key), error.strerror or error)
            return None

    def peek(self, key: Mapping[str, Any], shape: tuple[int, ...]) -> Array | None:
        """Returns an array if it is stored, without computing it."""
        name = _name(key)
        return self._open(name, shape) if (self.root / name).is_dir() else None

    def entries(self) -> list[Entry]:
        """All entries, least recently used first."""
        found = []
        for path in self.root.glob("*"):
            try:
                about = json.loads((path / "meta.json").read_text())["about"]
                size = sum(file.stat().st_size for file in path.iterdir())
                found.append(Entry(path.name, path, about, size, path.stat().st_mtime))
            except (OSError, ValueError, KeyError):
                continue
        return sorted(found, key=lambda entry: entry.used)

    def verify(self, entry: Entry) -> bool:
        """Whether the content still has the hash it was written with; an entry that has not is removed."""
        try:
            meta = json.loads((entry.path / "meta.json").read_text())
            sound = _checksum(entry.path / "data.bin") == str(meta["checksum"])
        except (OSError, ValueError, KeyError):
            sound = False
        if not sound:
            shutil.rmtree(entry.path, ignore_errors=True)
        return sound

    def _open(self, name: str, shape: tuple[int, ...]) -> Array | None:
        """Opens an entry; one that is damaged is removed. The whole content is checked once per process."""
        path = self.root / name
        try:
            meta = json.loads((path / "meta.json").read_text())
            state = (path / "data.bin").stat()
            seen = (str(path), state.st_size, state.st_mtime_ns)
            if seen not in _verified:
                if state.st_size != int(np.prod(shape)) * 4 or _checksum(path / "data.bin") != meta["checksum"]:
                    raise ValueError("its content has changed")
                _verified.add(seen)
            return np.memmap(path / "data.bin", dtype=np.float32, mode="r", shape=shape)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError) as error:
            log.warning("cache: entry %s is damaged (%s) and is computed again", name, error)
            shutil.rmtree(path, ignore_errors=True)
            return None

    def _write(self, name: str, key: Mapping[str, Any], shape: tuple[int, ...], fill: Callable[[Array], None]) -> None:
        temporary = self.root / f".{name}.{os.getpid()}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            array = np.memmap(temporary / "data.bin", dtype=np.float32, mode="w+", shape=shape)
            # Reserved now: a disk that runs full while a mapped page is written kills the process instead.
            with (temporary / "data.bin").open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, array.nbytes)
            fill(array)
            array.flush()
            meta = {"about": dict(key), "shape": shape, "checksum": _checksum(temporary / "data.bin")}
            replace(temporary / "meta.json", json.dumps(meta).encode())
            shutil.rmtree(self.root / name, ignore_errors=True)
            temporary.rename(self.root / name)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise

    def _make_room(self, size: int) -> None:
        entries = self.entries()
        total = sum(entry.size for entry in entries)
        for entry in entries:
            if total + size <= self.max_bytes:
                break
            shutil.rmtree(entry.path, ignore_errors=True)
            total -= entry.size
        for left in self.root.glob(".*.*"):  # what killed processes were writing
            if left.is_dir() and time.time() - left.stat().st_mtime > 24 * 3600:
                shutil.rmtree(left, ignore_errors=True)

    @contextlib.contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        folder = self.root / ".locks"
        folder.mkdir(exist_ok=True)
        with (folder / name).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def default_store(max_bytes: int = 0) -> ActivationStore:
    """Returns the store that runs use, under the home folder."""
    return ActivationStore(home() / "cache" / "activations", max_bytes)


_verified: set[tuple[str, int, int]] = set()
"""Files this process has hashed: path, size, time of change."""


def _checksum(path: Path) -> str:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            value = zlib.crc32(chunk, value)
    return f"{value:08x}"


def _name(key: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]


def _words(key: Mapping[str, Any]) -> str:
    return f"{key.get('split', '')} activations at boundary {key.get('boundary', '')}"
