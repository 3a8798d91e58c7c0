"""What a run records, on disk: an append-only file of calls, which a courier ships to MLflow (`tracking.courier`).

Layout of ``TLRESEARCH_HOME/journals``::

    <reference>.lock           held by the process that writes the run; free once that process has ended
    <reference>/calls.jsonl    a head line (store, name, time), then a line per call; only grows
    <reference>/files/7/…      copies of the files that call 7 stores
    <reference>/progress.json  how much of calls.jsonl MLflow holds, and what the courier knows of the run

A journal exists from the moment a run is opened until MLflow holds its end. So a killed process leaves a journal whose
lock is free, and an outage leaves one that is behind: there is no other state.
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
"""Seconds to wait for a process that still writes the run; a courier holds the lock for milliseconds only."""


def folder() -> Path:
    """Where the journals of all runs lie."""
    return home() / "journals"


@dataclass(frozen=True)
class Progress:
    """How far a courier has come.

    Attributes:
        offset: Bytes of ``calls.jsonl`` that MLflow holds.
        ended: Whether the last call among them is the run's end.
        refused: Why the store refuses the next call; empty if it does not.
        run_id: MLflow's id of the run; ``None`` until it has been created.
        experiment_id: Its experiment; empty until it has been created.
        tags: Tags the run had when it was continued, and counters.
        models: Hashes of the files of each model that was logged.
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
        began: When it was opened, in seconds since 1970.
        run_id: MLflow's id of the run if that was known when it was opened.
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
            FileNotFoundError: If there is none, or one whose head was never written.
        """
        with (path / _CALLS).open(encoding="utf-8") as file:
            head = file.readline()
        if not head.endswith("\n"):
            raise FileNotFoundError(path / _CALLS)
        journal = cls(path, **json.loads(head))
        return replace(journal, store=_LOCAL.sub(f"sqlite:///{home()}/", journal.store))

    @property
    def reference(self) -> str:
        """What the run is continued by."""
        return self.path.name

    @property
    def size(self) -> int:
        """Bytes that have been written; 0 if the journal has been removed."""
        try:
            return (self.path / _CALLS).stat().st_size
        except FileNotFoundError:
            return 0

    def calls(self, offset: int = 0) -> Iterator[tuple[Call, int]]:
        """Yields the calls behind an offset, in order, each with the offset behind it."""
        with contextlib.suppress(FileNotFoundError), (self.path / _CALLS).open("rb") as file:
            offset = offset or len(file.readline())  # of the head
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return  # its process was killed, or is writing it now
                offset += len(line)
                content = json.loads(line)
                stored = self.path / content["file"] if "file" in content else None
                yield Call(content["what"], content["about"], stored), offset

    def progress(self) -> Progress:
        """How far the courier has come, as it last said."""
        try:
            return Progress(**json.loads((self.path / _PROGRESS).read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError):  # none yet, or lost to a power cut
            return Progress(run_id=self.run_id)

    def note(self, progress: Progress) -> None:
        """Says how far the courier has come; durable when this returns."""
        write(self.path / _PROGRESS, json.dumps(asdict(progress)))

    def target(self) -> Target:
        """The run as the courier meets it; what other processes have stored of it is not known."""
        progress = self.progress()
        again = self.continues or progress.offset > 0
        return Target(
            self.reference,
            progress.run_id or self.run_id,
            experiment_id=progress.experiment_id,
            resumed=again,
            params=None if again else {},
            tags=progress.tags,
            models=progress.models,
        )

    def waiting(self) -> list[Call]:
        """Calls that MLflow does not hold yet."""
        return [call for call, _ in self.calls(self.progress().offset)]

    def remove(self) -> None:
        """Removes the journal; the caller holds its lock."""
        # The calls go first: without them a folder is no journal, whenever the process is killed.
        (self.path / _CALLS).unlink(missing_ok=True)
        shutil.rmtree(self.path, ignore_errors=True)
        _lock_file(self.reference).unlink(missing_ok=True)


class Writer:
    """Appends what a run records to its journal; one process at a time does.

    Args:
        reference: What the run is continued by; a journal that is left under it goes on.
        store: Address of the store without credentials.
        name: Name of the run.
        run_id: MLflow's id of the run, if it is known.
        continues: Whether the run may hold params and points already.
        patience: Seconds to wait for another process that writes the run.

    Raises:
        TrackingError: If another process goes on writing the run.
        OSError: If the disk does not take it.
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
            with (path / _CALLS).open("rb+") as file:  # what a killed process wrote of its last line
                content = file.read()
                file.truncate(content.rindex(b"\n") + 1)
            self._number = content.count(b"\n")
            return journal, False
        shutil.rmtree(path, ignore_errors=True)  # a killed process may have left one without a head
        path.mkdir()
        journal = Journal(path, store, name, time.time(), run_id, continues)
        head = {key: value for key, value in asdict(journal).items() if key != "path"}
        head["store"] = store.replace(f"sqlite:///{home()}/", "sqlite:///", 1)
        self._write(path / _CALLS, f"{json.dumps(head)}\n")
        return journal, True

    @classmethod
    def take_over(cls, journal: Journal) -> Writer | None:
        """Writes a journal whose process has ended; ``None`` if one still writes it, or it has just been removed."""
        try:
            writer = cls(journal.reference, patience=0)
        except TrackingError:
            return None
        if not writer.fresh:
            return writer
        writer.remove()
        return None

    def append(self, *calls: Call) -> None:
        """Writes calls, with copies of the files that they store: no kill can lose them when this returns.

        Raises:
            OSError: If the disk does not take them; the journal is then as it was.
        """
        with self._gate:
            lines = [self._line(call, self._number + number) for number, call in enumerate(calls)]
            self._write(self.journal.path / _CALLS, "".join(lines))
            self._number += len(lines)

    def _line(self, call: Call, number: int) -> str:
        line: dict[str, Any] = {"what": call.what, "about": dict(call.about)}
        if call.file is not None:
            place = self.journal.path / "files" / str(number) / call.file.name
            shutil.rmtree(place.parent, ignore_errors=True)
            place.parent.mkdir(parents=True)
            # Copied, never linked: the caller may change the file the next moment.
            (shutil.copytree if call.file.is_dir() else shutil.copyfile)(call.file, place)
            line["file"] = place.relative_to(self.journal.path).as_posix()
        return f"{json.dumps(line)}\n"

    def _write(self, path: Path, text: str) -> None:
        descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        size = os.fstat(descriptor).st_size
        try:
            rest = memoryview(text.encode())
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        except BaseException:  # also Ctrl-C: half a line would spoil the next one
            os.ftruncate(descriptor, size)
            raise
        finally:
            os.close(descriptor)

    def sync(self) -> None:
        """Has all that was written on disk, so that no power cut takes it.

        Raises:
            OSError: If the disk fails.
        """
        with (self.journal.path / _CALLS).open("rb") as file:
            os.fsync(file.fileno())
        for folder, _, names in os.walk(self.journal.path / "files"):
            for name in names:
                with contextlib.suppress(FileNotFoundError), Path(folder, name).open("rb") as file:
                    os.fsync(file.fileno())  # unless it has been delivered this moment

    def release(self) -> None:
        """Lets the run go. What MLflow does not hold yet stays."""
        self._lock.release()

    def remove(self) -> None:
        """Removes the journal and lets the run go."""
        self.journal.remove()
        self._lock.release()


def is_written(journal: Journal) -> bool:
    """Whether a living process writes the run."""
    if not _lock_file(journal.reference).exists():
        return False
    with locked(_lock_file(journal.reference), 0) as free:
        return not free


def journals(label: str | None = None) -> list[Journal]:
    """All journals, those that began first in front; only those of one store, if it is named."""
    listed = []
    for path in folder().glob(f"*/{_CALLS}"):
        with contextlib.suppress(FileNotFoundError):  # delivered this moment, or just being made
            listed.append(Journal.read(path.parent))
    mine = (journal for journal in listed if label in (None, journal.store))
    return sorted(mine, key=lambda journal: (journal.began, journal.reference))


def journal_of(run_id: str) -> Journal | None:
    """The journal that is left of a run, by the run's reference or MLflow's id."""
    for journal in journals():
        if run_id in (journal.reference, journal.progress().run_id):
            return journal
    return None


def _lock_file(reference: str) -> Path:
    return folder() / f"{reference}.lock"
