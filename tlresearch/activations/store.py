"""The activation cache on disk: entries by key, written in one step, checked when opened, limited in size."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tlresearch.activations import entry as entries_on_disk
from tlresearch.activations.entry import Stored, TooLargeError
from tlresearch.base.files import locked
from tlresearch.base.paths import home
from tlresearch.modality.values import Value

log = logging.getLogger(__name__)

ABANDONED = 24 * 3600  # seconds after which an incomplete entry of a killed process is removed


@dataclass(frozen=True)
class Entry:
    """One stored entry.

    Attributes:
        name: Hash of the key, and name of the folder.
        path: Its folder.
        key: What its values depend on, for `tlresearch cache ls`.
        size: Bytes on disk.
        used: When it was last opened, in seconds since 1970.
    """

    name: str
    path: Path
    key: dict[str, Any]
    size: int
    used: float


class ActivationStore:
    """The values of splits by key: activations at a boundary, or decoded inputs.

    An entry is a folder of memory-mapped files. It gets its name by one rename when it is complete, so what a killed
    process leaves is never taken for an entry. Processes that need the same entry wait for the one that computes it.

    Args:
        root: Folder of all entries.
        max_bytes: Bound on the size of all entries; the least recently used are removed first.

    Attributes:
        computed: Number of entries that this process computed; `reused`: that it read.
    """

    def __init__(self, root: Path, max_bytes: int) -> None:
        self.root = root
        self.max_bytes = max_bytes
        self.computed = 0
        self.reused = 0

    def get(
        self, key: Mapping[str, Any], samples: int, compute: Callable[[], Iterable[Sequence[Value]]]
    ) -> Stored | None:
        """Returns an entry; computes it if it is not stored.

        Args:
            key: What the values depend on; equal keys mean equal content.
            samples: Number of samples.
            compute: Yields the values in order, some samples at a time.

        Returns:
            The entry; ``None`` if it cannot be stored (too large, disk full, folder read-only). The reason is logged,
            and the caller goes on without an entry.
        """
        name = _name(key)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with locked(self.root / ".locks" / name):
                stored = self._open(name)
                if stored is None:
                    self._write(name, key, samples, compute)
                    stored = self._open(name)
                    self.computed += 1
                else:
                    self.reused += 1
                os.utime(self.root / name)  # the time of last use, by which `_make_room` chooses
            return stored
        except TooLargeError as size:
            log.warning("cache: %s would take %s, more than cache.max_gb; going on without", _words(key), size)
        except OSError as error:
            log.warning("cache: %s cannot be stored (%s); going on without", _words(key), error.strerror or error)
        return None

    def peek(self, key: Mapping[str, Any]) -> Stored | None:
        """Returns an entry if it is stored; ``None`` otherwise."""
        name = _name(key)
        return self._open(name) if (self.root / name).is_dir() else None

    def entries(self) -> list[Entry]:
        """Lists all entries, least recently used first."""
        entries = []
        for path in self.root.glob("[!.]*"):
            try:
                key = entries_on_disk.read_meta(path)["about"]
                size = sum(file.stat().st_size for file in path.iterdir())
                entries.append(Entry(path.name, path, key, size, path.stat().st_mtime))
            except (OSError, ValueError):  # damaged, or removed by another process at this moment
                continue
        return sorted(entries, key=lambda entry: entry.used)

    def verify(self, entry: Entry) -> bool:
        """Returns whether every file still has its checksum; removes an entry that is damaged."""
        try:
            entries_on_disk.check(entry.path, entries_on_disk.read_meta(entry.path))
        except (OSError, ValueError):
            shutil.rmtree(entry.path, ignore_errors=True)
            return False
        return True

    def _open(self, name: str) -> Stored | None:
        """Opens an entry, and removes it if it is damaged. The checksums are compared once per process."""
        path = self.root / name
        try:
            meta = entries_on_disk.read_meta(path)
            # Sizes and times are part of the state, so an entry that changed is checked again.
            state = (
                str(path),
                *((f.name, s.st_size, s.st_mtime_ns) for f in sorted(path.iterdir()) for s in [f.stat()]),
            )
            if state not in _verified:
                entries_on_disk.check(path, meta)
                _verified.add(state)
            return entries_on_disk.open_entry(path, meta)
        except FileNotFoundError:
            if path.is_dir():  # an entry that lost a file
                shutil.rmtree(path, ignore_errors=True)
            return None
        except (OSError, ValueError, KeyError, AttributeError) as error:
            log.warning("cache: entry %s is damaged (%s) and is computed again", name, error)
            shutil.rmtree(path, ignore_errors=True)
            return None

    def _write(
        self, name: str, key: Mapping[str, Any], samples: int, compute: Callable[[], Iterable[Sequence[Value]]]
    ) -> None:
        temporary = self.root / f".{name}.{os.getpid()}"  # the dot keeps it out of `entries`
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            entries_on_disk.write(temporary, compute(), samples, dict(key), max_bytes=self.max_bytes)
            self._make_room(sum(file.stat().st_size for file in temporary.iterdir()))
            shutil.rmtree(self.root / name, ignore_errors=True)  # a folder can only replace an empty one
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
        for incomplete in self.root.glob(".*.*"):  # the temporary folders of `_write`; some belong to killed processes
            if incomplete.is_dir() and time.time() - incomplete.stat().st_mtime > ABANDONED:
                shutil.rmtree(incomplete, ignore_errors=True)


def default_store(max_bytes: int = 0) -> ActivationStore:
    """Returns the store that runs use, under the home folder."""
    return ActivationStore(home() / "cache" / "activations", max_bytes)


_verified: set[tuple[Any, ...]] = set()
"""Entries whose checksums this process has compared: path, and name, size and time of change of each file."""


def _name(key: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]


def _words(key: Mapping[str, Any]) -> str:
    return f"{key.get('split', '')} activations at boundary {key.get('boundary', '')}"
