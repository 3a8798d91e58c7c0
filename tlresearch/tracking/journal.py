"""Calls that MLflow has not taken yet, on disk, in order: one folder per run under ``undelivered``.

``calls.jsonl`` only grows: a line that says of which run they are, then a line per call, each on disk before the next
thing happens. ``files`` holds copies of the files they store. ``progress.json``, replaced in one step, says how many
were delivered; it is written once a second, since a call may be made twice.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tlresearch.base.paths import home
from tlresearch.tracking.calls import Call, Target, perform
from tlresearch.tracking.gathering import gathered
from tlresearch.tracking.store import Store

_CALLS = "calls.jsonl"
_PROGRESS = "progress.json"
_PACE = 1.0  # seconds between two writes of the progress
_PORTION = 100  # calls that may be made together


def folder() -> Path:
    """Where the journals of all runs lie."""
    return home() / "undelivered"


@dataclass
class Journal:
    """The calls of one run that wait.

    Attributes:
        path: Its folder; the run's id is its name.
        store: Address of the store without credentials.
        name: Name of the run.
        began: When the first call had to wait, in seconds since 1970.
        target: The run.
        delivered: How many calls have been delivered.
    """

    path: Path
    store: str
    name: str
    began: float
    target: Target
    delivered: int = 0
    _lines: list[str] = field(default_factory=list)
    _head: str = ""  # the first line, until it is on disk

    @classmethod
    def begin(cls, store: Store, target: Target, name: str) -> Journal:
        """Makes the journal of a run, on disk with its first call; the caller owns the run."""
        journal = cls(folder() / target.id, store.label, name, time.time(), target)
        shutil.rmtree(journal.path, ignore_errors=True)  # a kill may have left one that never began
        journal.path.mkdir(parents=True)
        about = {"store": store.label, "name": name, "began": journal.began, "target": _known(target)}
        journal._head = f"{json.dumps(about)}\n"
        return journal

    @classmethod
    def read(cls, path: Path) -> Journal:
        """Reads what another process has left, or is writing.

        Raises:
            FileNotFoundError: If there is none, or one that never began.
        """
        # The last line may be half a one: its process was killed, or is writing it now.
        head, *lines = (path / _CALLS).read_text().split("\n")[:-1] or [""]
        if not lines:
            raise FileNotFoundError(path / _CALLS)
        about = json.loads(head)
        with contextlib.suppress(FileNotFoundError):
            about |= json.loads((path / _PROGRESS).read_text())
        # What this process does not know it has to ask the store for.
        about["target"] = Target(**about["target"], resumed=True, params=None)
        return cls(path, **about, _lines=lines)

    @classmethod
    def left(cls, run_id: str) -> Journal | None:
        """The journal that an earlier process left of a run, to be gone on with; the caller owns the run."""
        try:
            journal = cls.read(folder() / run_id)
        except FileNotFoundError:
            return None
        with (journal.path / _CALLS).open("rb+") as file:
            file.truncate(file.read().rindex(b"\n") + 1)
        return journal

    @property
    def ended(self) -> bool:
        """Whether the run has ended, as far as the journal knows; else its process was killed."""
        return bool(self._lines) and self._call(self._lines[-1]).what == "end"

    def append(self, *calls: Call) -> None:
        """Puts calls on disk, with copies of the files that they store.

        Raises:
            OSError: If the disk does not take them; the journal is then as it was.
        """
        lines = [self._line(call, len(self._lines) + number) for number, call in enumerate(calls)]
        path = self.path / _CALLS
        size = 0 if self._head else path.stat().st_size
        try:
            with path.open("a") as file:
                file.writelines([self._head, *(f"{line}\n" for line in lines)])
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(FileNotFoundError):
                os.truncate(path, size)  # half a line would spoil the next one
            raise
        self._head = ""
        self._lines += lines

    def _line(self, call: Call, number: int) -> str:
        line: dict[str, Any] = {"what": call.what, "about": dict(call.about)}
        if call.file is not None:
            place = self.path / "files" / str(number) / call.file.name
            shutil.rmtree(place.parent, ignore_errors=True)
            place.parent.mkdir(parents=True)
            if call.file.is_dir():
                shutil.copytree(call.file, place)
            else:
                shutil.copyfile(call.file, place)
            line["file"] = place.relative_to(self.path).as_posix()
        return json.dumps(line)

    def waiting(self, most: int | None = None) -> list[Call]:
        """The first calls that have not been delivered, so many at most, in order."""
        return [self._call(line) for line in self._lines[self.delivered :][:most]]

    def deliver(self, store: Store) -> None:
        """Makes the calls in order; what another process delivered in the second before its death is made again.

        Raises:
            StoreAwayError: If the store cannot be used now; the calls that are left stay.
            TrackingError: If it refuses a call; this one and those behind it stay.
        """
        done: list[Call] = []
        noted = time.monotonic()
        try:
            while calls := self.waiting(_PORTION):
                for call, made in gathered(calls):
                    perform(store, self.target, call, again=True)
                    self.delivered += made
                    done.append(call)
                    if made and time.monotonic() - noted > _PACE:
                        self._note(done)
                        done, noted = [], time.monotonic()
        except Exception:
            self._note(done)
            raise

    def _note(self, done: list[Call]) -> None:
        scratch = self.path / f"{_PROGRESS}.new"
        with scratch.open("w") as file:
            file.write(json.dumps({"delivered": self.delivered, "target": _known(self.target)}))
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(self.path / _PROGRESS)
        for call in done:
            if call.file is not None:
                shutil.rmtree(call.file.parent, ignore_errors=True)

    def counts(self) -> Counter[str]:
        """How many metric values (``points``) and ``files`` wait, and how many calls in all."""
        found: Counter[str] = Counter()
        for call in self.waiting():
            found["calls"] += 1
            found["points"] += len(call.about.get("points", ()))
            found["files"] += (call.file is not None) + len(call.about.get("texts", ()))
        return found

    def remove(self) -> None:
        """Removes the folder; everything has been delivered."""
        # The calls go first: without them a folder is no journal, whenever the process is killed.
        (self.path / _CALLS).unlink(missing_ok=True)
        shutil.rmtree(self.path, ignore_errors=True)

    def _call(self, line: str) -> Call:
        content = json.loads(line)
        file = self.path / content["file"] if "file" in content else None
        return Call(content["what"], content["about"], file)


def journals(label: str | None = None) -> list[Journal]:
    """All journals, those that began first in front; only those of one store, if it is named."""
    found = []
    for path in folder().glob(f"*/{_CALLS}") if folder().is_dir() else ():
        with contextlib.suppress(FileNotFoundError):  # delivered this moment
            found.append(Journal.read(path.parent))
    return sorted((one for one in found if label in (None, one.store)), key=lambda one: (one.began, one.path.name))


def _known(target: Target) -> dict[str, Any]:
    """What the next process is told of a run; the rest it has to ask the store for."""
    told = ("local_id", "run_id", "experiment_id", "tags", "models")
    return {key: value for key, value in asdict(target).items() if key in told}
