"""Ships journals to MLflow: the only code that writes runs there.

Every process that records runs has a courier. For each store and home one courier leads: it ships the journals of all
processes, in the order in which their runs began. The others stand by and take over when it ends. A single run has its
courier in a thread; a sweep has it in a separate process (`courier_process`), so that MLflow's work does not slow
down training steps. Both run the same code.

While the store is away, the courier tries again with growing pauses. It also ends runs whose process was killed.
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

PACE = 0.1  # seconds between two rounds over the journals
_FIRST_PAUSE = 1.0  # seconds until a store that is away is tried again; doubled each time
_LONGEST_PAUSE = 20.0
_REFUSED_PAUSE = 5.0  # seconds until a refused call is tried again: a full disk may have space by then
_DEATHS = 3  # courier processes that may die before we give up
_PORTION = 100  # calls that are read and merged at a time


@dataclass(eq=False)
class _Shipment:
    """A journal on its way.

    Attributes:
        journal: The journal.
        target: The run, as far as it is known.
        offset: Bytes of the journal that MLflow holds.
        ended: Whether the last call that was made is the run's end.
        again: Whether the next call may have been made before: by another courier, or by us without an answer.
        inherited: Whether an earlier process left the journal.
        retry_at: Time (monotonic) before which a refused call is not tried again.
        shipped: How many metric values and files were shipped, for the report on inherited journals.
    """

    journal: Journal
    target: Target
    offset: int
    ended: bool
    again: bool
    inherited: bool
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
        born: Seconds since 1970; a journal that began earlier was left by another process. ``None`` is now.
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
        except TrackingError as error:  # the store worked when the run began, so this passes: wait instead of failing
            raise StoreAwayError(str(error)) from None

    def lead(self) -> bool:
        """Whether this courier leads from now on, or does already."""
        if self._lead is None:
            self._lead = take_lock(_lead_file(self.label), 0)
            if self._lead is None:
                return False
            _outage_file(self.label).unlink(missing_ok=True)  # written by an earlier leader; we have not tried yet
            self._shipments = {}
            for journal in journals(self.label):
                # The earlier leader may have died between a call and the note that says so.
                self._adopt(journal, again=True)
        return True

    def step_down(self) -> None:
        """Gives up the lead, so that a courier that stands by can take it."""
        self._failed_at = None
        if self._lead is not None:
            _outage_file(self.label).unlink(missing_ok=True)
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
                self._adopt(journal, again=False)
        try:
            for journal in listed:
                shipment = self._shipments[journal.reference]
                with contextlib.suppress(FileNotFoundError):  # its writer has just removed it
                    self._ship(shipment, hurry=hurry)
        except StoreAwayError as error:
            self._note_outage(str(error))
            return False
        self._note_return()
        return True

    def deliveries(self) -> list[Delivered]:
        """Returns what became of the journals that earlier processes left, since the last call."""
        delivered, self._delivered = self._delivered, []
        return delivered

    def _adopt(self, journal: Journal, *, again: bool) -> None:
        progress = journal.progress()
        self._shipments[journal.reference] = _Shipment(
            journal,
            journal.target(),
            progress.offset,
            progress.ended,
            again=again,
            inherited=journal.began < self._born,
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
            shipment.again = True  # the store may have made the call before the answer was lost
            raise
        except TrackingError as error:
            self._refuse(shipment, error)
        except FileNotFoundError:
            raise
        except Exception as error:
            # A bug in shipping one run must not stop the other runs. Whoever waits for this run gets the error.
            _log.exception("run %s could not be shipped", shipment.journal.name)
            self._refuse(shipment, TrackingError(f"{type(error).__name__}: {one_line(error)}"))
        else:
            if shipment.ended:
                self._finish(shipment)

    def _ship_portion(self, shipment: _Shipment) -> bool:
        """Makes the next calls; returns whether there were any."""
        calls = shipment.journal.calls(shipment.offset)
        portion = list(islice(takewhile(lambda item: not self._must_wait(item[0]), calls), _PORTION))
        done = 0
        try:
            for call, completed in merged(call for call, _ in portion):
                perform(self._store, shipment.target, call, again=shipment.again)
                done += completed
                if completed:
                    shipment.offset, shipment.ended = portion[done - 1][1], call.kind == "end"
        finally:
            if done:
                # The note comes before the copies go: a courier that dies in between finds the files unneeded.
                shipment.note()
                shipment.shipped += count_items(call for call, _ in portion[:done])
                for call, _ in portion[:done]:
                    if call.file is not None:
                        shutil.rmtree(call.file.parent, ignore_errors=True)
        shipment.again = False
        return bool(portion)

    def _must_wait(self, call: Call) -> bool:
        """Whether a tag of the call holds the reference of a run that has no id in MLflow yet.

        Runs are shipped in the order in which they began, so that run gets its id in this round or the next. A run
        that the store refuses may never get one: nothing waits for it.
        """
        references = [value for value in call.arguments.get("tags", {}).values() if is_local(value)]
        shipments = [self._shipments[reference] for reference in references if reference in self._shipments]
        return any(shipment.target.run_id is None and not shipment.retry_at for shipment in shipments)

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
            # The hashes of the stored files died with the process; `resumed` has them computed from the store.
            shipment.target.resumed = True
            writer.append(end_call("KILLED", {}, tags={FAILURE: "its process was killed"}))
            writer.release()
        return True

    def _refuse(self, shipment: _Shipment, error: TrackingError) -> None:
        journal = shipment.journal
        if not journal.progress().refused:
            _log.warning("run %s: %s; its records are kept in %s", journal.name, error, folder())
        shipment.again, shipment.retry_at = True, time.monotonic() + _REFUSED_PAUSE
        shipment.note(refused=str(error))
        if shipment.inherited:
            self._add_delivery(shipment, f"{error}; it is kept in {journal.path}")

    def _finish(self, shipment: _Shipment) -> None:
        """Removes a journal of which MLflow holds the end, unless a process goes on with the run."""
        writer = Writer.take_over(shipment.journal)
        if writer is None:
            return  # its process still holds the lock: it removes the journal itself, or continues the run
        if next(shipment.journal.calls(shipment.offset), None) is not None:
            writer.release()
            return
        writer.remove()
        self._forget(shipment)

    def _forget(self, shipment: _Shipment) -> None:
        if shipment.inherited and (shipment.shipped["points"] or shipment.shipped["files"]):
            self._add_delivery(shipment, "")
        self._shipments.pop(shipment.journal.reference, None)

    def _add_delivery(self, shipment: _Shipment, problem: str) -> None:
        shipped, shipment.shipped = shipment.shipped, Counter()
        self._delivered.append(
            Delivered(shipment.journal.name, shipment.target.id, shipped["points"], shipped["files"], problem)
        )

    def _note_outage(self, reason: str) -> None:
        if self._failed_at is None:
            _log.warning("%s; training goes on, and its records wait in %s until the store is back", reason, folder())
            self._pause = _FIRST_PAUSE
        else:
            self._pause = min(self._pause * 2, _LONGEST_PAUSE)
        self._failed_at = time.monotonic()
        write(_outage_file(self.label), json.dumps(asdict(Outage(reason, time.time()))))

    def _note_return(self) -> None:
        if self._failed_at is not None:
            _outage_file(self.label).unlink(missing_ok=True)
            _log.warning("the MLflow store %s is back: the waiting records were delivered", self.label)
            self._failed_at = None


def end_call(status: str, files: Mapping[str, str], tags: Mapping[str, str] | None = None) -> Call:
    """Makes the last call of a run: status, time of the end (now), hashes of its files, last tags."""
    end_time = int(time.time() * 1000)
    return Call("end", {"status": status, "files": dict(files), "tags": dict(tags or {}), "time": end_time})


@dataclass(frozen=True)
class Outage:
    """A store that cannot be used.

    Attributes:
        reason: Why.
        tried: When it was tried last, in seconds since 1970.
    """

    reason: str
    tried: float


def outage(label: str) -> Outage | None:
    """Returns the outage that the leading courier, in whichever process, has noted; ``None`` if the store works."""
    try:
        return Outage(**json.loads(_outage_file(label).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def is_led(label: str) -> bool:
    """Whether a courier of any process ships the journals of a store."""
    with locked(_lead_file(label), 0) as free:
        return not free


def waiting(label: str) -> list[Journal]:
    """Lists journals of a store that no process writes any more and whose calls the store does not refuse."""
    return [journal for journal in journals(label) if not journal.progress().refused and not is_written(journal)]


class CourierThread:
    """A courier in a thread of this process, as long as the process has open runs.

    Args:
        uri: Address of the store.
    """

    def __init__(self, uri: str) -> None:
        self._courier = Courier(uri)
        self._changed = threading.Condition()
        self._open = self._rounds = 0
        self._hurry = False
        self._error = ""
        self._thread: threading.Thread | None = None

    def open(self) -> None:
        """Announces a run that is about to be opened; ships first what earlier processes have left."""
        with self._changed:
            self._open += 1
            if self._thread is None:
                self._error = ""
                self._thread = threading.Thread(target=self._work, name="tlresearch-courier", daemon=True)
                self._thread.start()
            rounds = self._rounds
            self._changed.wait_for(lambda: self._rounds > rounds or self._error)

    def check(self) -> None:
        """Makes sure that runs are shipped.

        Raises:
            TrackingError: If the thread has failed.
        """
        if self._error:
            raise TrackingError(self._error)

    def close(self) -> None:
        """Announces that a run is closed."""
        with self._changed:
            self._open -= 1
            self._changed.notify_all()

    def hurry(self) -> None:
        """Ships now, even if the store was away at the last try."""
        with self._changed:
            self._hurry = True
            self._changed.notify_all()

    def _work(self) -> None:
        try:
            while self._work_round():
                pass
        except Exception as error:
            if not isinstance(error, OSError):
                _log.exception("runs can no longer be shipped")
            with self._changed:
                self._error = f"the records in {folder()} cannot be delivered: {one_line(error)}"
                self._thread = None
                self._changed.notify_all()

    def _work_round(self) -> bool:
        """Ships once and pauses; returns whether to go on: runs are open."""
        with self._changed:
            hurry, self._hurry = self._hurry, False
        if self._courier.lead():
            self._courier.round(hurry=hurry)
        log_deliveries(self._courier)
        with self._changed:
            self._rounds += 1
            self._changed.notify_all()
            if self._open or self._hurry:
                self._changed.wait_for(lambda: self._hurry, PACE)
                return True
            self._courier.step_down()
            self._thread = None
            return False


class CourierProcess:
    """A courier in a separate process, unless another process leads already. A process that dies is replaced.

    Args:
        uri: Address of the store.
    """

    def __init__(self, uri: str) -> None:
        self._uri, self._born, self._deaths = uri, time.time(), 0
        self._process: subprocess.Popen[bytes] | None = None

    def open(self) -> None:
        """Announces a run that is about to be opened."""
        self.check()

    def close(self) -> None:
        """Does nothing: the process ships until `finish`."""

    def hurry(self) -> None:
        """Does nothing: the process starts a round every `PACE` seconds."""

    def check(self) -> None:
        """Makes sure that runs are shipped.

        Raises:
            TrackingError: If courier processes die one after another.
        """
        if self._process is not None and self._process.poll() is not None:
            self.finish()
            self._process = None
            self._deaths += 1
        if self._process is None and not is_led(redact(self._uri)):
            if self._deaths >= _DEATHS:
                raise TrackingError(
                    f"the process that writes to MLflow keeps dying; undelivered records are kept in {folder()}"
                )
            self._start()

    def _start(self) -> None:
        command = [sys.executable, "-m", "tlresearch.tracking.courier"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE)
        assert self._process.stdin is not None
        # The address may hold a password, so it is not on the command line. The pipe closes when this process is done
        # or killed, which tells the courier to finish.
        self._process.stdin.write(f"{json.dumps([self._uri, self._born])}\n".encode())
        self._process.stdin.flush()

    def finish(self) -> None:
        """Tells the process to finish, and waits until it has shipped what it can."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait()


_couriers: dict[tuple[int, str], CourierThread | CourierProcess] = {}


def courier_for(uri: str) -> CourierThread | CourierProcess:
    """Returns this process's courier for a store: inside `courier_process` the separate process, else a thread."""
    # By process id: a forked child inherits the dict, but not the thread.
    return _couriers.setdefault((os.getpid(), uri), CourierThread(uri))


@contextlib.contextmanager
def courier_process(uri: str) -> Iterator[None]:
    """Ships the runs of this process from a separate process while the context lasts.

    If another process ships already, none is started: the workers of a sweep share the sweep's courier.

    Leaving the context waits until all journals without a writer are delivered, or the store is away.

    Args:
        uri: Address of the store.

    Raises:
        TrackingError: If the store refused something, or courier processes die one after another.
    """
    key = (os.getpid(), uri)
    outer = _couriers.get(key)
    process = CourierProcess(uri)
    _couriers[key] = process
    process.check()
    failed = True
    try:
        yield
        failed = False
    finally:
        try:
            wait_until_delivered(uri)
            process.finish()
            _raise_refused(redact(uri))
        except TrackingError:
            if not failed:  # otherwise the error of the context's body matters more
                raise
        finally:
            _couriers.pop(key)
            if outer is not None:
                _couriers[key] = outer


def _raise_refused(label: str) -> None:
    for journal in journals(label):
        if (refused := journal.progress().refused) and not is_written(journal):
            raise TrackingError(refused)
    if waiting(label):
        _log.warning("%s", describe_waiting(label))


def wait_until_delivered(uri: str) -> None:
    """Waits until all journals without a writer are delivered, or the store is away.

    Args:
        uri: Address of the store.

    Raises:
        TrackingError: If nothing can be shipped any more.
    """
    label = redact(uri)
    while waiting(label) and outage(label) is None:
        courier_for(uri).check()
        time.sleep(PACE / 2)


@dataclass(frozen=True)
class Delivered:
    """What became of a journal that an earlier process left.

    Attributes:
        name: Name of the run; `run_id`: its id in MLflow, or its reference.
        points: Metric values that were delivered; `files`: files.
        problem: Why it was not, or not completely, delivered; empty if it was.
    """

    name: str
    run_id: str
    points: int = 0
    files: int = 0
    problem: str = ""


def deliver(uri: str, patience: float = 5.0) -> list[Delivered]:
    """Delivers the waiting journals of a store, except those that other processes write.

    Args:
        uri: Address of the store.
        patience: Seconds to wait for a courier of another process.

    Raises:
        StoreAwayError: If the store cannot be used now; what it took before that is delivered.
        TrackingError: If another process is still delivering when `patience` is over.
    """
    courier = Courier(uri)
    deadline = time.monotonic() + patience
    while not courier.lead():
        if not waiting(courier.label):
            return []
        if time.monotonic() > deadline:
            raise TrackingError(f"{courier.label}: another process is delivering to this store")
        time.sleep(PACE)
    try:
        # A call that names another run waits until that run has an id, so there may be a round per journal.
        for _ in journals(courier.label):
            if not courier.round(hurry=True):
                noted = outage(courier.label)
                raise StoreAwayError(noted.reason if noted else f"MLflow store {courier.label} is away")
            if not waiting(courier.label):
                break
        return courier.deliveries()
    finally:
        courier.step_down()


def log_deliveries(courier: Courier) -> None:
    """Logs what was delivered of journals that earlier processes had left."""
    if complete := [item for item in courier.deliveries() if not item.problem]:
        _log.warning("delivered to the MLflow store %s: %s", courier.label, describe_deliveries(complete))


def describe_deliveries(delivered: list[Delivered]) -> str:
    """Says in one line what was delivered."""
    points, files = sum(item.points for item in delivered), sum(item.files for item in delivered)
    runs = _names([item.name for item in delivered])
    return f"{_number(points, 'metric value')} and {_number(files, 'file')} of {runs}"


def describe_waiting(label: str) -> str:
    """Says in one line what waits for a store: how much, of which runs, and which command delivers it."""
    undelivered = [journal for journal in journals(label) if journal.waiting()]
    counts = count_items(call for journal in undelivered for call in journal.waiting())
    return (
        f"not delivered to the MLflow store {label}: {_number(counts['points'], 'metric value')}, "
        f"{_number(counts['files'], 'file')} and the end of {_names([journal.name for journal in undelivered])}; "
        f"kept in {folder()}; to deliver, run: tlresearch sync"
    )


def count_items(calls: Iterable[Call]) -> Counter[str]:
    """Counts the metric values (``points``) and ``files`` that calls store."""
    counts: Counter[str] = Counter()
    for call in calls:
        counts["points"] += len(call.arguments.get("points", ()))
        counts["files"] += (call.file is not None) + len(call.arguments.get("texts", ()))
    return counts


def _names(names: list[str]) -> str:
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return f"{_number(len(names), 'run')} ({shown})"


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _lead_file(label: str) -> Path:
    return folder() / f".{hashlib.sha256(label.encode()).hexdigest()[:12]}.courier"


def _outage_file(label: str) -> Path:
    return _lead_file(label).with_suffix(".away")


def main() -> None:
    """Ships until the process that started this one closes the pipe, then delivers the rest and ends."""
    # Ctrl-C and a scheduler's signal reach the whole process group, but this process must outlive the training
    # processes: they still record how their runs ended. It ends when the pipe closes.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    protect_output()
    os.nice(5)  # training comes first; with a lower priority, a sweep on a busy machine would wait for its records
    courier = Courier(*json.loads(sys.stdin.readline()))
    while True:
        # Nothing more is sent through the pipe, so it is readable only once it is closed.
        closed = bool(select.select([sys.stdin], [], [], PACE)[0])
        shipped = courier.lead() and courier.round(hurry=closed)
        log_deliveries(courier)
        if closed and (not shipped or not waiting(courier.label)):
            break
    courier.step_down()


if __name__ == "__main__":
    main()
