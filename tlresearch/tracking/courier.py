"""Ships journals to MLflow: the only code that writes runs there.

One courier per store and home leads, whichever process it is in, and ships the journals of all processes in the order
in which their runs began; the others stand by until it ends. A run of its own has its courier in a thread, a sweep has
one in a process beside it (`beside`), so that MLflow's work is not in the way of a training step. Both do the same.

The courier waits with growing pauses while the store is away, and ends runs whose process was killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice, takewhile
from pathlib import Path

from filelock import FileLock

from tlresearch.base.errors import TrackingError, one_line
from tlresearch.base.files import locked, take_lock, write
from tlresearch.base.redact import protect_output, redact
from tlresearch.tracking.calls import FAILURE, Call, Target, is_local, merged, perform
from tlresearch.tracking.journal import Journal, Progress, Writer, folder, is_written, journals
from tlresearch.tracking.store import Store, StoreAwayError, connect

_log = logging.getLogger(__name__)

PACE = 0.1  # seconds between two looks at the journals
_FIRST_PAUSE = 1.0  # seconds until a store that is away is tried again; doubled each time
_LONGEST_PAUSE = 20.0
_REFUSED_PAUSE = 5.0  # seconds until a call that was refused is tried again: a disk may have space again
_DEATHS = 3  # of processes that ship, one after another
_PORTION = 100  # calls that may be merged into one request


@dataclass(eq=False)
class _Shipment:
    """A journal on its way.

    Attributes:
        journal: The journal.
        target: The run, as far as it is known.
        again: Whether the next call may have been made before: by another courier, or without an answer.
        left: Whether an earlier process left it.
    """

    journal: Journal
    target: Target
    offset: int
    ended: bool
    again: bool
    left: bool
    retry_at: float = 0.0
    shipped: Counter[str] = field(default_factory=Counter)

    def note(self, refused: str = "") -> None:
        target = self.target
        self.journal.note(
            Progress(self.offset, self.ended, refused, target.run_id, target.experiment_id, target.tags, target.models)
        )


class Courier:
    """Ships all journals of one store while it leads.

    Args:
        uri: Address of the store; it is opened with the first journal, so that leading needs no MLflow.
        born: Seconds since 1970; what began earlier was left by another process. ``None`` is now.
    """

    def __init__(self, uri: str, born: float | None = None) -> None:
        self.label = redact(uri)
        self._uri = uri
        self._born = born or time.time()
        self._lead: FileLock | None = None
        self._shipments: dict[str, _Shipment] = {}
        self._delivered: list[Delivered] = []
        self._failed_at: float | None = None
        self._pause = 0.0

    @property
    def _store(self) -> Store:
        try:
            return connect(self._uri, check=False)
        except StoreAwayError:
            raise
        except TrackingError as error:  # it could be opened when the run began
            raise StoreAwayError(str(error)) from None

    def lead(self) -> bool:
        """Whether this courier leads from now on, or does already."""
        if self._lead is None:
            self._lead = take_lock(_lead_file(self.label), 0)
            if self._lead is None:
                return False
            _away_file(self.label).unlink(missing_ok=True)
            self._shipments = {}
            for journal in journals(self.label):
                self._meet(journal, again=True)
        return True

    def step_down(self) -> None:
        """Leaves the lead to whoever stands by."""
        self._failed_at = None
        if self._lead is not None:
            _away_file(self.label).unlink(missing_ok=True)
            self._lead.release()
            self._lead = None

    def round(self, *, hurry: bool = False) -> bool:
        """Ships what the journals hold now, in the order in which their runs began.

        Args:
            hurry: Whether a store that was away is tried now instead of after a pause.

        Returns:
            Whether the store could be used.
        """
        if self._failed_at is not None and not hurry and time.monotonic() - self._failed_at < self._pause:
            return False
        listed = journals(self.label)
        for reference in set(self._shipments) - {journal.reference for journal in listed}:
            self._forget(self._shipments[reference])  # its writer has removed it
        for journal in listed:
            shipment = self._shipments.get(journal.reference)
            if shipment is None or shipment.journal != journal:  # the run goes on with a new journal
                self._meet(journal, again=False)
        try:
            for journal in listed:
                shipment = self._shipments[journal.reference]
                with contextlib.suppress(FileNotFoundError):  # its writer has just removed it
                    self._ship(shipment, hurry=hurry)
        except StoreAwayError as error:
            self._say_away(str(error))
            return False
        self._say_back()
        return True

    def deliveries(self) -> list[Delivered]:
        """What became of the journals that earlier processes left, since this was asked last."""
        told, self._delivered = self._delivered, []
        return told

    def _meet(self, journal: Journal, *, again: bool) -> None:
        progress, left = journal.progress(), journal.began < self._born
        self._shipments[journal.reference] = _Shipment(
            journal, journal.target(), progress.offset, progress.ended, again=again, left=left
        )

    def _ship(self, shipment: _Shipment, *, hurry: bool) -> None:
        if shipment.retry_at > time.monotonic() and not hurry:
            return
        try:
            while self._ship_portion(shipment):
                pass
            if not shipment.ended and self._end_killed(shipment):
                self._ship_portion(shipment)
        except StoreAwayError:
            shipment.again = True  # the call may have been made, and the answer lost
            raise
        except TrackingError as error:
            self._refuse(shipment, error)
        except FileNotFoundError:
            raise
        except Exception as error:
            # A mistake of ours must not take the other runs along, nor leave whoever waits for this one waiting.
            _log.exception("run %s could not be shipped", shipment.journal.name)
            self._refuse(shipment, TrackingError(f"{type(error).__name__}: {one_line(error)}"))
        else:
            if shipment.ended:
                self._finish(shipment)

    def _ship_portion(self, shipment: _Shipment) -> bool:
        """Makes the next calls; returns whether there were any."""
        calls = shipment.journal.calls(shipment.offset)
        read = list(islice(takewhile(lambda item: not self._names_unmade(item[0]), calls), _PORTION))
        done = 0
        try:
            for call, made in merged(call for call, _ in read):
                perform(self._store, shipment.target, call, again=shipment.again)
                done += made
                if made:
                    shipment.offset, shipment.ended = read[done - 1][1], call.what == "end"
        finally:
            if done:
                shipment.note()
                shipment.shipped += counted(call for call, _ in read[:done])
                for call, _ in read[:done]:
                    if call.file is not None:
                        shutil.rmtree(call.file.parent, ignore_errors=True)
        shipment.again = False
        return bool(read)

    def _names_unmade(self, call: Call) -> bool:
        """Whether a tag names a run by its reference that MLflow is about to give an id: the call waits for that."""
        named = {self._shipments.get(value) for value in call.about.get("tags", {}).values() if is_local(value)}
        return any(other is not None and other.target.run_id is None and not other.retry_at for other in named)

    def _end_killed(self, shipment: _Shipment) -> bool:
        """Ends a run whose process was killed; returns whether there is one to end."""
        writer = Writer.take_over(shipment.journal)
        if writer is None:
            return False
        if next(shipment.journal.calls(shipment.offset), None) is not None:  # written meanwhile
            writer.release()
        elif shipment.target.run_id is None:  # killed before it recorded anything
            writer.remove()
            self._forget(shipment)
            return False
        else:
            shipment.target.resumed = True  # what the killed process has stored is read back
            writer.append(as_end("KILLED", {}, tags={FAILURE: "its process was killed"}))
            writer.release()
        return True

    def _refuse(self, shipment: _Shipment, error: TrackingError) -> None:
        journal = shipment.journal
        if not journal.progress().refused:
            _log.warning("run %s: %s; what it records is kept in %s", journal.name, error, folder())
        shipment.again, shipment.retry_at = True, time.monotonic() + _REFUSED_PAUSE
        shipment.note(refused=str(error))
        if shipment.left:
            self._tell(shipment, f"{error}; it is kept in {journal.path}")

    def _finish(self, shipment: _Shipment) -> None:
        """Removes a journal of which MLflow holds the end, unless a process goes on with the run."""
        writer = Writer.take_over(shipment.journal)
        if writer is None:
            return  # its process is about to let it go, or to go on
        if next(shipment.journal.calls(shipment.offset), None) is not None:
            writer.release()
            return
        writer.remove()
        self._forget(shipment)

    def _forget(self, shipment: _Shipment) -> None:
        if shipment.left and (shipment.shipped["points"] or shipment.shipped["files"]):
            self._tell(shipment, "")
        self._shipments.pop(shipment.journal.reference, None)

    def _tell(self, shipment: _Shipment, problem: str) -> None:
        shipped, shipment.shipped = shipment.shipped, Counter()
        self._delivered.append(
            Delivered(shipment.journal.name, shipment.target.id, shipped["points"], shipped["files"], problem)
        )

    def _say_away(self, reason: str) -> None:
        if self._failed_at is None:
            _log.warning(
                "%s; the training goes on, and what it records waits in %s until the store is back", reason, folder()
            )
            self._pause = _FIRST_PAUSE
        else:
            self._pause = min(self._pause * 2, _LONGEST_PAUSE)
        self._failed_at = time.monotonic()
        write(_away_file(self.label), json.dumps(asdict(Away(reason, time.time()))))

    def _say_back(self) -> None:
        if self._failed_at is not None:
            _away_file(self.label).unlink(missing_ok=True)
            _log.warning("the MLflow store %s is back: what waited was delivered", self.label)
            self._failed_at = None


def as_end(status: str, files: Mapping[str, str], tags: Mapping[str, str] | None = None) -> Call:
    """The last call of a run: its status, now, with the hashes of its files and its last tags."""
    about = {"status": status, "files": dict(files), "tags": dict(tags or {}), "time": int(time.time() * 1000)}
    return Call("end", about)


@dataclass(frozen=True)
class Away:
    """A store that cannot be used.

    Attributes:
        reason: Why.
        tried: When it was tried last, in seconds since 1970.
    """

    reason: str
    tried: float


def away(label: str) -> Away | None:
    """What the courier of a store, in whichever process, said of it if it found the store away."""
    try:
        return Away(**json.loads(_away_file(label).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def is_led(label: str) -> bool:
    """Whether a courier of any process ships the journals of a store."""
    with locked(_lead_file(label), 0) as free:
        return not free


def waiting(label: str) -> list[Journal]:
    """Journals of a store that no process writes any more, and that its courier can deliver."""
    return [journal for journal in journals(label) if not journal.progress().refused and not is_written(journal)]


class CourierThread:
    """A courier in this process, as long as runs of it are open or wait for the store.

    Args:
        uri: Address of the store.
    """

    def __init__(self, uri: str) -> None:
        self._courier = Courier(uri)
        self._changed = threading.Condition()
        self._open = self._looks = 0
        self._hurry = False
        self._error = ""
        self._thread: threading.Thread | None = None

    def open(self) -> None:
        """A run is about to be opened; what earlier processes have left is shipped first."""
        with self._changed:
            self._open += 1
            if self._thread is None:
                self._error = ""
                self._thread = threading.Thread(target=self._work, name="tlresearch-courier", daemon=True)
                self._thread.start()
            looks = self._looks
            self._changed.wait_for(lambda: self._looks > looks or self._error)

    def check(self) -> None:
        """Makes sure that runs are shipped.

        Raises:
            TrackingError: If they cannot be.
        """
        if self._error:
            raise TrackingError(self._error)

    def close(self) -> None:
        """A run is closed."""
        with self._changed:
            self._open -= 1
            self._changed.notify_all()

    def hurry(self) -> None:
        """Ships now, also to a store that was away when it was tried last."""
        with self._changed:
            self._hurry = True
            self._changed.notify_all()

    def _work(self) -> None:
        try:
            while self._look():
                pass
        except Exception as error:
            if not isinstance(error, OSError):
                _log.exception("runs can no longer be shipped")
            with self._changed:
                self._error = f"what is recorded cannot be delivered from {folder()}: {one_line(error)}"
                self._thread = None
                self._changed.notify_all()

    def _look(self) -> bool:
        """Ships once and pauses; returns whether to go on: runs are open."""
        with self._changed:
            hurry, self._hurry = self._hurry, False
        if self._courier.lead():
            self._courier.round(hurry=hurry)
        tell(self._courier)
        with self._changed:
            self._looks += 1
            self._changed.notify_all()
            if self._open or self._hurry:
                self._changed.wait_for(lambda: self._hurry, PACE)
                return True
            self._courier.step_down()
            self._thread = None
            return False


class CourierProcess:
    """A courier in a process of its own, unless another process ships already; one that dies is replaced.

    Args:
        uri: Address of the store.
    """

    def __init__(self, uri: str) -> None:
        self._uri, self._born, self._deaths = uri, time.time(), 0
        self._process: subprocess.Popen[bytes] | None = None

    def open(self) -> None:
        """A run is about to be opened."""
        self.check()

    def close(self) -> None:
        """A run is closed."""

    def hurry(self) -> None:
        """It looks often enough by itself."""

    def check(self) -> None:
        """Makes sure that runs are shipped.

        Raises:
            TrackingError: If processes that ship die one after another.
        """
        if self._process is not None and self._process.poll() is not None:
            self.finish()
            self._process = None
            self._deaths += 1
        if self._process is None and not is_led(redact(self._uri)):
            if self._deaths >= _DEATHS:
                raise TrackingError(f"the process that writes to MLflow keeps dying; what waits is kept in {folder()}")
            self._start()

    def _start(self) -> None:
        command = [sys.executable, "-m", "tlresearch.tracking.courier"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE)
        assert self._process.stdin is not None
        # Not on the command line: it may hold a password. The pipe stays open until this process is done, or killed.
        self._process.stdin.write(f"{json.dumps([self._uri, self._born])}\n".encode())
        self._process.stdin.flush()

    def finish(self) -> None:
        """Waits until it has shipped what it can."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()  # which tells it
            self._process.wait()


_couriers: dict[tuple[int, str], CourierThread | CourierProcess] = {}


def courier(uri: str) -> CourierThread | CourierProcess:
    """The courier of this process for a store: the process beside it, else a thread."""
    return _couriers.setdefault((os.getpid(), uri), CourierThread(uri))


@contextlib.contextmanager
def beside(uri: str) -> Iterator[None]:
    """Has the runs of this process shipped by another one while the context lasts.

    None is started where one ships already, as for the workers of a sweep on the machine of the sweep.

    Leaving the context waits until everything that nobody writes any more is delivered, or the store is away.

    Args:
        uri: Address of the store.

    Raises:
        TrackingError: If the store refused something, or the processes that ship die.
    """
    key = (os.getpid(), uri)
    before = _couriers.get(key)
    process = CourierProcess(uri)
    _couriers[key] = process
    process.check()
    failed = True
    try:
        yield
        failed = False
    finally:
        try:
            settle(uri)
            process.finish()
            _raise_refused(redact(uri))
        except TrackingError:
            if not failed:  # else the error that is on its way is the one to see
                raise
        finally:
            _couriers.pop(key)
            if before is not None:
                _couriers[key] = before


def _raise_refused(label: str) -> None:
    for journal in journals(label):
        if (refused := journal.progress().refused) and not is_written(journal):
            raise TrackingError(refused)
    if waiting(label):
        _log.warning("%s", told(label))


def settle(uri: str) -> None:
    """Waits until everything that no process writes any more is delivered, or the store is away.

    Args:
        uri: Address of the store.

    Raises:
        TrackingError: If nothing can be shipped any more.
    """
    label = redact(uri)
    while waiting(label) and away(label) is None:
        courier(uri).check()
        time.sleep(PACE / 2)


@dataclass(frozen=True)
class Delivered:
    """What became of a journal that an earlier process left.

    Attributes:
        name: Name of the run; `run_id`: its id in MLflow, or its reference.
        points: Metric values that were delivered; `files`: files.
        problem: Why it was not delivered, or not all of it; empty if it was.
    """

    name: str
    run_id: str
    points: int = 0
    files: int = 0
    problem: str = ""


def deliver(uri: str, patience: float = 5.0) -> list[Delivered]:
    """Delivers what waits for a store; what other processes write is left to them.

    Args:
        uri: Address of the store.
        patience: Seconds to wait for a courier of another process.

    Raises:
        StoreAwayError: If the store cannot be used now; what it took before that is delivered.
        TrackingError: If another process goes on delivering.
    """
    own = Courier(uri)
    deadline = time.monotonic() + patience
    while not own.lead():
        if not waiting(own.label):
            return []
        if time.monotonic() > deadline:
            raise TrackingError(f"{own.label}: another process delivers what waits for this store")
        time.sleep(PACE)
    try:
        for _ in journals(own.label):  # a call that names another run waits for that one: once more for each at most
            if not own.round(hurry=True):
                reason = away(own.label)
                raise StoreAwayError(reason.reason if reason else f"MLflow store {own.label} is away")
            if not waiting(own.label):
                break
        return own.deliveries()
    finally:
        own.step_down()


def tell(own: Courier) -> None:
    """Says what was delivered of journals that earlier processes had left."""
    if whole := [item for item in own.deliveries() if not item.problem]:
        _log.warning("delivered to the MLflow store %s what had waited: %s", own.label, summary(whole))


def summary(delivered: list[Delivered]) -> str:
    """Delivered runs in a line."""
    points, files = sum(item.points for item in delivered), sum(item.files for item in delivered)
    runs = _names([item.name for item in delivered])
    return f"{_number(points, 'metric value')} and {_number(files, 'file')} of {runs}"


def told(label: str) -> str:
    """One line about what waits for a store: how much, of which runs, and who delivers it."""
    left = [journal for journal in journals(label) if journal.waiting()]
    counts = counted(call for journal in left for call in journal.waiting())
    return (
        f"not delivered to the MLflow store {label}: {_number(counts['points'], 'metric value')}, "
        f"{_number(counts['files'], 'file')} and the end of {_names([journal.name for journal in left])}; "
        f"kept in {folder()}, and delivered by: tlresearch sync"
    )


def counted(calls: Iterable[Call]) -> Counter[str]:
    """How many metric values (``points``) and ``files`` calls store."""
    counts: Counter[str] = Counter()
    for call in calls:
        counts["points"] += len(call.about.get("points", ()))
        counts["files"] += (call.file is not None) + len(call.about.get("texts", ()))
    return counts


def _names(names: list[str]) -> str:
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return f"{_number(len(names), 'run')} ({shown})"


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _lead_file(label: str) -> Path:
    return folder() / f".{hashlib.sha256(label.encode()).hexdigest()[:12]}.courier"


def _away_file(label: str) -> Path:
    return _lead_file(label).with_suffix(".away")


def main() -> None:
    """Ships until the process that started this one closes the pipe; then what is left."""
    # Ctrl-C and a scheduler's signal reach the whole group; the runs are ended by their own processes.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    protect_output()
    os.nice(5)  # the training comes first; at a lower priority a busy machine would let a sweep wait for its records
    own = Courier(*json.loads(sys.stdin.readline()))
    while True:
        over = bool(select.select([sys.stdin], [], [], PACE)[0])  # nothing is sent: it can only be the end
        there = own.lead() and own.round(hurry=over)
        tell(own)
        if over and (not there or not waiting(own.label)):
            break
    own.step_down()


if __name__ == "__main__":
    main()
