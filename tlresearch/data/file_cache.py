"""Remembers which image and sound files were verified, so that the next run need not decode them again."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

from tlresearch.base.files import write
from tlresearch.base.paths import home
from tlresearch.modality.decoding import Measured

logger = logging.getLogger(__name__)

_VERSION = 2
# A file changed this shortly before it was read may change again within one clock tick of the file system.
_TICK_NS = 20_000_000


class FileCache:
    """Hash and measures of the readable files below one root, by name, size and times of change.

    The time of the last status change is compared too: it cannot be set back as the modification time can.
    Unreadable files are never remembered. A cache that cannot be read or written is ignored.

    Args:
        root: Folder the names are relative to.
        kind: What the files are: ``images`` or ``audio``.
    """

    def __init__(self, root: Path, kind: str = "images") -> None:
        place = hashlib.sha256(str(root.absolute()).encode()).hexdigest()[:32]
        self._path = home() / "cache" / kind / f"{place}.json"
        self._entries = self._read()
        self._changed = False

    def get(self, name: str, stat: os.stat_result) -> tuple[str, Measured] | None:
        """Returns hash and measures of a file, or ``None`` if it is new or has changed."""
        entry = self._entries.get(name)
        if not isinstance(entry, list) or len(entry) != 4 + len(Measured._fields) or entry[:3] != _stamp(stat):
            return None
        digest, *measures = entry[3:]
        if isinstance(digest, str) and len(digest) == 64 and all(type(measure) is int for measure in measures):
            return digest, Measured(*measures)
        return None

    def put(self, name: str, stat: os.stat_result, digest: str, measured: Measured) -> None:
        """Remembers a readable file."""
        if time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) < _TICK_NS:
            return
        self._entries[name] = [*_stamp(stat), digest, *measured]
        self._changed = True

    def save(self) -> None:
        """Writes the cache in one step if there is anything new; failing to is not an error."""
        if not self._changed:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write(self._path, json.dumps({"version": _VERSION, "files": self._entries}))
        except OSError as error:
            logger.debug("the file cache %s was not written: %s", self._path, error)

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            logger.debug("the file cache %s was not read: %s", self._path, error)
            return {}
        if isinstance(content, dict) and content.get("version") == _VERSION:
            files = content.get("files")
            if isinstance(files, dict):
                return files
        return {}


def _stamp(stat: os.stat_result) -> list[int]:
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
