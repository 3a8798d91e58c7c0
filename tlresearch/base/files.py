"""Files that several processes share, or that a kill must not spoil: one lock, one write in one step, one hash."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

_POLL = 0.01  # seconds between two tries for a lock that is held


def take_lock(path: Path, patience: float = -1) -> FileLock | None:
    """Takes the lock of a file, which is made if need be, and its folder too; the file stays when the lock is released.

    The operating system releases the lock when the process dies, however it dies. Processes that this one forks do not
    hold it, and any thread may release it. Another thread of this process has to wait for it as another process has.

    Args:
        path: The file.
        patience: Seconds to wait for the holder; 0 does not wait, a negative number has no limit.

    Returns:
        The lock, held until its `release`; ``None`` if the holder outlasted `patience`.

    Raises:
        OSError: If the file cannot be opened or made.
        RuntimeError: If this thread holds the lock and would wait for itself for ever.
    """
    lock = FileLock(path, timeout=patience, thread_local=False, poll_interval=_POLL)
    try:
        lock.acquire()
    except Timeout:
        return None
    return lock


@contextlib.contextmanager
def locked(path: Path, patience: float = -1) -> Iterator[bool]:
    """Holds the lock of a file, as `take_lock` takes it, while the context lasts.

    Yields:
        Whether we hold it: always, where `patience` has no limit.
    """
    lock = take_lock(path, patience)
    try:
        yield lock is not None
    finally:
        if lock is not None:
            lock.release()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Opens a new file that takes the place of `path` in one step when the context ends.

    Readers see the old content or the new, never a part, even after a power failure. If anything is raised, the old
    file stays as it was and nothing is left of the new one.

    Raises:
        OSError: If it cannot be written.
    """
    scratch = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_native_id()}.tmp")
    try:
        with scratch.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def write(path: Path, *content: str | bytes | memoryview) -> None:
    """Writes a file in one step, as `replacing` does; text as UTF-8."""
    with replacing(path) as file:
        file.writelines(part.encode() if isinstance(part, str) else part for part in content)


_DISGUISES = {
    b"version https://git-lfs": "it is a pointer of Git LFS and not the file itself; git lfs pull fetches that",
    b"<!doctype html": "it is a web page, such as that of a login; download the file itself",
    b"<html": "it is a web page, such as that of a login; download the file itself",
    b"PK\x03\x04": "it is a ZIP archive, as a workbook of Excel is; unpack it, or save the workbook as CSV",
    b"\x1f\x8b": "it is compressed by gzip; unpack it",
}
"""What lies under other names than its own, by how it begins, in small letters where those are letters."""


def disguise(file: Path | bytes) -> str:
    """Says what a file is that is not what its name says, and the cure; empty if that cannot be told."""
    if isinstance(file, Path):
        with file.open("rb") as opened:
            file = opened.read(64)
    head = file[:64].lstrip(b"\xef\xbb\xbf \t\r\n")
    beginnings = ((head[: len(start)], start) for start in _DISGUISES)
    return next((_DISGUISES[start] for begins, start in beginnings if start in (begins, begins.lower())), "")


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
