"""A run's journal: an append-only file of calls on disk, which a courier ships to MLflow (`tracking.courier`).

Layout of ``TLRESEARCH_HOME/journals``::

    <reference>.lock           held by the process that writes the run; free once that process has ended
    <reference>/calls.jsonl    a head line (store, name, time), then a line per call; only grows
    <reference>/files/7/…      copies of the files that call 7 stores
    <reference>/progress.json  how much of calls.jsonl MLflow holds, and what the courier knows of the run

A journal exists from the moment a run is opened until MLflow holds the run's end. A killed process leaves a journal
whose lock is free, an outage leaves a journal that MLflow does not hold completely. There is no other state.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tlresearch.base.errors import TrackingError
from tlresearch.base.files import locked, take_lock, write
from tlresearch.base.paths import home
from tlresearch.tracking.calls import Call, Target

_CALLS = "calls.jsonl"
_PROGRESS = "progress.json"
_LOCAL = re.compile("^sqlite:///(?!/)")
"""Address of a store below the home, as a journal has it: relative, so that the home may be moved."""
PATIENCE = 60.0
"""Seconds to wait for a process that still writes the run. A courier holds the lock too, but for milliseconds only."""


def folder() -> Path:
    """Returns the folder with the journals of all runs."""
    return home() / "journals"


@dataclass(frozen=True)
class Progress:
    """How much of a journal MLflow holds, and what the courier knows of the run.

    Attributes:
        offset: Bytes of ``calls.jsonl`` that MLflow holds.
        ended: Whether the last call among them is the run's end.
        refused: Why the store refuses the next call; empty if it does not.
        run_id: MLflow's id of the run; ``None`` until the run has been created.
        experiment_id: Its experiment; empty until the run has been created.
        tags: Tags the run had when it was continued, and counters.
        models: Hashes of the files of each logged model.
    """

    offset: int = 0
    ended: bool = False
    refused: str = ""
    run_id: str | None = None
    experiment_id: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    models: dict[str, dict[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Journal:
    """The journal of one run, as its courier and other readers see it.

    Attributes:
        path: Its folder, named by the run's reference.
        store: Address of the store without credentials.
        name: Name of the run.
        began: When the journal was opened, in seconds since 1970.
        run_id: MLflow's id of the run, if it was known at that time.
        continues: Whether the run may hold params and points already.
    """

    path: Path
    store: str
    name: str
    began: float
    run_id: str | None
    continues: bool

    @classmethod
    def read(cls, path: Path) -> Journal:
        """Opens a journal.

        Raises:
            FileNotFoundError: If there is none, or its head was never written completely.
        """
        with (path / _CALLS).open(encoding="utf-8") as file:
            head = file.readline()
        if not head.endswith("\n"):
            raise FileNotFoundError(path / _CALLS)
        journal = cls(path, **json.loads(head))
        return replace(journal, store=_LOCAL.sub(f"sqlite:///{home()}/", journal.store))

    @property
    def reference(self) -> str:
        """The id by which `open_run` continues the run: MLflow's, or a local one that was given before MLflow's."""
        return self.path.name

    @property
    def size(self) -> int:
        """Size of ``calls.jsonl`` in bytes; 0 if the journal has been removed."""
        try:
            return (self.path / _CALLS).stat().st_size
        except FileNotFoundError:
            return 0

    def calls(self, offset: int = 0) -> Iterator[tuple[Call, int]]:
        """Yields the calls that start at `offset` or later, in order, each with the offset of its end."""
        with contextlib.suppress(FileNotFoundError), (self.path / _CALLS).open("rb") as file:
            offset = offset or len(file.readline())  # the first line is the head
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return  # incomplete: its process was killed, or is writing the line now
                offset += len(line)
                content = json.loads(line)
                stored = self.path / content["file"] if "file" in content else None
                yield Call(content["what"], content["about"], stored), offset

    def progress(self) -> Progress:
        """Reads what the courier noted last."""
        try:
            return Progress(**json.loads((self.path / _PROGRESS).read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError):  # not noted yet, or lost in a power cut: every call can be made again
            return Progress(run_id=self.run_id)

    def note(self, progress: Progress) -> None:
        """Notes how much MLflow holds; the note is on disk when this returns."""
        write(self.path / _PROGRESS, json.dumps(asdict(progress)))

    def target(self) -> Target:
        """Returns the run as a courier knows it at first, without what earlier processes have stored of it."""
        progress = self.progress()
        resumed = self.continues or progress.offset > 0
        return Target(
            self.reference,
            progress.run_id or self.run_id,
            experiment_id=progress.experiment_id,
            resumed=resumed,
            params=None if resumed else {},
            tags=progress.tags,
            models=progress.models,
        )

    def waiting(self) -> list[Call]:
        """Lists the calls that MLflow does not hold yet."""
        return [call for call, _ in self.calls(self.progress().offset)]

    def remove(self) -> None:
        """Removes the journal; the caller holds its lock."""
        # The calls go first: a folder without them is no journal, so a kill in between leaves nothing half valid.
        (self.path / _CALLS).unlink(missing_ok=True)
        shutil.rmtree(self.path, ignore_errors=True)
        _lock_file(self.reference).unlink(missing_ok=True)


class Writer:
    """Appends a run's calls to its journal. The lock lets one process at a time write.

    Args:
        reference: Id by which the run is continued; an existing journal with this name is continued too.
        store: Address of the store without credentials.
        name: Name of the run.
        run_id: MLflow's id of the run, if it is known.
        continues: Whether the run may hold params and points already.
        patience: Seconds to wait for another process that writes the run.

    Raises:
        TrackingError: If another process still writes the run when `patience` is over.
        OSError: If the journal cannot be written.
    """

    def __init__(
        self,
        reference: str,
        *,
        store: str = "",
        name: str = "",
        run_id: str | None = None,
        continues: bool = False,
        patience: float = PATIENCE,
    ) -> None:
        lock = take_lock(_lock_file(reference), patience)
        if lock is None:
            raise TrackingError(f"run {reference} is still being written by another process")
        self._lock, self._gate, self._number = lock, threading.Lock(), 0
        try:
            self.journal, self.fresh = self._open(reference, store, name, run_id, continues)
        except BaseException:
            self._lock.release()
            raise

    def _open(self, reference: str, store: str, name: str, run_id: str | None, continues: bool) -> tuple[Journal, bool]:
        path = folder() / reference
        with contextlib.suppress(FileNotFoundError):
            journal = Journal.read(path)
            with (path / _CALLS).open("rb+") as file:  # cut off a last line that a killed process left incomplete
                content = file.read()
                file.truncate(content.rindex(b"\n") + 1)
            self._number = content.count(b"\n")
            return journal, False
        shutil.rmtree(path, ignore_errors=True)  # a killed process may have left a folder without a head
        path.mkdir()
        journal = Journal(path, store, name, time.time(), run_id, continues)
        head = {key: value for key, value in asdict(journal).items() if key != "path"}
        head["store"] = store.replace(f"sqlite:///{home()}/", "sqlite:///", 1)
        self._write(path / _CALLS, f"{json.dumps(head)}\n")
        return journal, True

    @classmethod
    def take_over(cls, journal: Journal) -> Writer | None:
        """Opens a journal whose process has ended; ``None`` if a process still writes it or it was just removed."""
        try:
            writer = cls(journal.reference, patience=0)
        except TrackingError:
            return None
        if not writer.fresh:
            return writer
        writer.remove()  # the journal was removed after the caller saw it, and we have just made an empty one
        return None

    def append(self, *calls: Call) -> None:
        """Writes calls and copies of the files that they store. A kill loses none of them once this has returned.

        Raises:
            OSError: If the disk fails or is full; the journal is then as it was.
        """
        with self._gate:
            lines = [self._line(call, self._number + number) for number, call in enumerate(calls)]
            self._write(self.journal.path / _CALLS, "".join(lines))
            self._number += len(lines)

    def _line(self, call: Call, number: int) -> str:
        line: dict[str, Any] = {"what": call.kind, "about": dict(call.arguments)}
        if call.file is not None:
            place = self.journal.path / "files" / str(number) / call.file.name
            shutil.rmtree(place.parent, ignore_errors=True)
            place.parent.mkdir(parents=True)
            # Copied, not linked: the caller may change the file at any time.
            (shutil.copytree if call.file.is_dir() else shutil.copyfile)(call.file, place)
            line["file"] = place.relative_to(self.journal.path).as_posix()
        return f"{json.dumps(line)}\n"

    def _write(self, path: Path, text: str) -> None:
        descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        size = os.fstat(descriptor).st_size
        try:
            unwritten = memoryview(text.encode())
            while unwritten:  # on a nearly full disk `os.write` may write less than all
                unwritten = unwritten[os.write(descriptor, unwritten) :]
        except BaseException:  # Ctrl-C too: half a line would spoil the next line
            os.ftruncate(descriptor, size)
            raise
        finally:
            os.close(descriptor)

    def sync(self) -> None:
        """Flushes everything written to the disk, so that a power cut cannot lose it.

        Raises:
            OSError: If the disk fails.
        """
        with (self.journal.path / _CALLS).open("rb") as file:
            os.fsync(file.fileno())
        for folder, _, names in os.walk(self.journal.path / "files"):
            for name in names:
                # A file that the courier delivers at this moment is gone.
                with contextlib.suppress(FileNotFoundError), Path(folder, name).open("rb") as file:
                    os.fsync(file.fileno())

    def release(self) -> None:
        """Releases the lock; the journal stays until the courier has delivered it."""
        self._lock.release()

    def remove(self) -> None:
        """Removes the journal and releases the lock."""
        self.journal.remove()
        self._lock.release()


def is_written(journal: Journal) -> bool:
    """Whether a living process writes the run."""
    if not _lock_file(journal.reference).exists():
        return False
    with locked(_lock_file(journal.reference), 0) as free:
        return not free


def journals(label: str | None = None) -> list[Journal]:
    """Lists all journals, or those of one store, sorted by when they began."""
    listed = []
    for path in folder().glob(f"*/{_CALLS}"):
        with contextlib.suppress(FileNotFoundError):  # just delivered, or just being made
            listed.append(Journal.read(path.parent))
    selected = (journal for journal in listed if label in (None, journal.store))
    return sorted(selected, key=lambda journal: (journal.began, journal.reference))


def journal_of(run_id: str) -> Journal | None:
    """Finds the journal of a run by the run's reference or MLflow's id."""
    for journal in journals():
        if run_id in (journal.reference, journal.progress().run_id):
            return journal
    return None


def _lock_file(reference: str) -> Path:
    return folder() / f"{reference}.lock"
