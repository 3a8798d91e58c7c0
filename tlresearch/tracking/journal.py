"""Calls that MLflow has not taken yet, on disk, in order: one folder per run under ``undelivered``.

``calls.jsonl`` only grows, a line per call, each on disk before the next thing happens; ``files`` holds copies of the
files they store; ``state.json`` says of which run they are and how many were delivered, and is replaced in one step.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tlresearch.config.paths import home
from tlresearch.tracking.calls import Call, Target, perform
from tlresearch.tracking.store import Store

_STATE = "state.json"
_CALLS = "calls.jsonl"


def folder() -> Path:
    """Where the journals of all runs lie."""
    return home() / "undelivered"


class Journal:
    """The calls of one run that wait.

    Args:
        path: Its folder; the run's id is its name.

    Attributes:
        store: Address of the store without credentials.
        name: Name of the run.
        began: When the first call had to wait, in seconds since 1970.
        target: The run.
        delivered: How many calls have been delivered.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        state = json.loads((path / _STATE).read_text())
        self.store: str = state["store"]
        self.name: str = state["name"]
        self.began: float = state["began"]
        self.delivered: int = state["delivered"]
        self.target = Target(**state["target"])
        # What this process does not know it has to ask the store for.
        self.target.resumed, self.target.params = True, None
        # The last line may be half a one: its process was killed, or is writing it now.
        self._lines = (path / _CALLS).read_text().split("\n")[:-1]

    @classmethod
    def begin(cls, store: Store, target: Target, name: str) -> Journal:
        """Makes the journal of a run; the caller owns the run."""
        path = folder() / target.id
        path.mkdir(parents=True, exist_ok=True)
        (path / _CALLS).write_text("")
        _write_state(path, store=store.label, name=name, began=time.time(), delivered=0, target=target)
        journal = cls(path)
        journal.target = target
        return journal

    @classmethod
    def left(cls, run_id: str) -> Journal | None:
        """The journal that an earlier process left of a run, to be gone on with; the caller owns the run."""
        path = folder() / run_id
        if not (path / _STATE).exists():
            return None
        journal = cls(path)
        os.truncate(path / _CALLS, sum(len(line.encode()) + 1 for line in journal._lines))
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
        size = (self.path / _CALLS).stat().st_size
        try:
            with (self.path / _CALLS).open("a") as file:
                file.writelines(f"{line}\n" for line in lines)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            os.truncate(self.path / _CALLS, size)  # half a line would spoil the next one
            raise
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

    def waiting(self) -> Iterator[Call]:
        """The calls that have not been delivered, in order; those that are added meanwhile too."""
        while self.delivered < len(self._lines):
            yield self._call(self._lines[self.delivered])

    def waiting_now(self) -> list[Call]:
        """The calls that wait at this moment."""
        return [self._call(line) for line in self._lines[self.delivered :]]

    def deliver(self, store: Store) -> None:
        """Makes the calls in order, each once: what another process has delivered up to its death is not repeated.

        Raises:
            StoreAwayError: If the store cannot be used now; the calls that are left stay.
            TrackingError: If it refuses a call; this one and those behind it stay.
        """
        for call in self.waiting():
            perform(store, self.target, call, again=True)
            self.delivered += 1
            _write_state(
                self.path,
                store=self.store,
                name=self.name,
                began=self.began,
                delivered=self.delivered,
                target=self.target,
            )
            if call.file is not None:
                shutil.rmtree(call.file.parent, ignore_errors=True)

    def counts(self) -> Counter[str]:
        """How many metric values (``points``) and ``files`` wait, and how many calls in all."""
        found: Counter[str] = Counter()
        for call in self.waiting_now():
            found["calls"] += 1
            found["points"] += len(call.about.get("points", ()))
            found["files"] += call.file is not None
        return found

    def remove(self) -> None:
        """Removes the folder; everything has been delivered."""
        # The state goes first: without it a folder is no journal, whenever the process is killed.
        (self.path / _STATE).unlink(missing_ok=True)
        shutil.rmtree(self.path, ignore_errors=True)

    def _call(self, line: str) -> Call:
        content = json.loads(line)
        file = self.path / content["file"] if "file" in content else None
        return Call(content["what"], content["about"], file)


def journals(label: str | None = None) -> list[Journal]:
    """All journals, those that began first in front; only those of one store, if it is named."""
    found = []
    for path in folder().glob(f"*/{_STATE}") if folder().is_dir() else ():
        with contextlib.suppress(FileNotFoundError):  # delivered this moment
            found.append(Journal(path.parent))
    return sorted((one for one in found if label in (None, one.store)), key=lambda one: (one.began, one.path.name))


def _write_state(path: Path, *, target: Target, **rest: Any) -> None:
    known = asdict(target)
    del known["steps"], known["params"]
    scratch = path / f"{_STATE}.new"
    with scratch.open("w") as file:
        json.dump({**rest, "target": known}, file)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path / _STATE)
