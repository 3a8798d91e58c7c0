"""Optuna's storage, which waits for a database that has gone away instead of losing the trial over it."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy.exc import InterfaceError, OperationalError

from tlresearch.base.errors import UserError, first_line
from tlresearch.base.redact import redact
from tlresearch.tracking.database import connect_arguments

_log = logging.getLogger(__name__)

PATIENCE = 300.0  # seconds
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 15.0


class StorageLostError(UserError):
    """The database has been away for too long."""


@contextlib.contextmanager
def said_plainly() -> Iterator[None]:
    """Ends with the `StorageLostError` itself: Optuna covers it with errors of its own, as it cannot end the trial."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, StorageLostError):
                raise cause from None
            cause = cause.__cause__ or cause.__context__
        raise


class PatientStorage(RDBStorage):
    """Tries again, with growing pauses, what a database that is down or locked did not take.

    Args:
        url: Address of the database.
        options: What `RDBStorage` takes.
    """

    def __init__(self, url: str, **options: Any) -> None:
        self._label = redact(url)
        self._waiting = threading.Lock()  # one thread waits, and says so
        self._gave_up = False
        self._back = -1e9  # when the last outage ended
        super().__init__(url, engine_kwargs={"connect_args": connect_arguments(url)}, **options)
        if url.startswith("sqlite"):
            # A third of the syncs, and readers wait for no writer. It stays in the file; one in use keeps what it has.
            with contextlib.suppress(OperationalError), self.engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA journal_mode=WAL")

    def __getstate__(self) -> dict[Any, Any]:
        """Leaves out what another process has of its own."""
        state = super().__getstate__()
        del state["_waiting"]
        return state

    def __setstate__(self, state: dict[Any, Any]) -> None:
        self._waiting = threading.Lock()
        super().__setstate__(state)

    def patiently(self, attempt: Callable[[bool], Any]) -> Any:
        """Makes an attempt until the database takes it; it is told whether it may have been made before.

        Raises:
            StorageLostError: If the database has not answered for `PATIENCE` seconds; nothing waits any more then.
        """
        try:
            return attempt(False)
        except (StorageInternalError, OperationalError, InterfaceError) as error:
            reason = _outage(error)
            if reason is None:
                raise
        with self._waiting:
            return self._wait(attempt, reason)

    def _wait(self, attempt: Callable[[bool], Any], reason: str) -> Any:
        began, pause, said = time.monotonic(), _FIRST_PAUSE, False
        while not self._gave_up and time.monotonic() - began < PATIENCE:
            if not said:
                _log.warning("storage %s does not answer (%s); waiting for it", self._label, reason)
                said = True
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
            try:
                answer = attempt(True)
            except (StorageInternalError, OperationalError, InterfaceError) as error:
                if (found := _outage(error)) is None:
                    raise
                reason = found
            else:
                self._back = time.monotonic()
                _log.warning("storage %s is back after %.0f s", self._label, self._back - began)
                return answer
        self._gave_up = True
        raise StorageLostError(
            f"storage: {self._label} has not answered for {PATIENCE:.0f} s ({reason}); "
            "nothing is lost: the same command continues when it is back"
        )

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Begins or ends a trial; a trial that the database has ended though its answer was lost has ended."""

        def attempt(again: bool) -> bool:
            try:
                return RDBStorage.set_trial_state_values(self, trial_id, state, values)
            except UpdateFinishedTrialError:
                if again and RDBStorage.get_trial(self, trial_id).state == state:
                    return True
                raise

        return bool(self.patiently(attempt))

    def record_heartbeat(self, trial_id: int) -> None:
        """Says that a trial lives. What the database does not take is left out: the next one comes in seconds."""
        try:
            super().record_heartbeat(trial_id)
        except (StorageInternalError, OperationalError, InterfaceError) as error:
            if _outage(error) is None:
                raise

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        found: list[int] = self.patiently(lambda again: RDBStorage._get_stale_trial_ids(self, study_id))
        # While the database was away nobody was heard of: all get the time to be heard of again.
        grace = self.grace_period or 2 * (self.heartbeat_interval or 0)
        return [] if time.monotonic() - self._back < grace else found


def _outage(error: BaseException) -> str | None:
    """Why a database could not be used; ``None`` if it could, and refused what it was given."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (OperationalError, InterfaceError)):
            # Of SQLite also "database is locked": one that is on a slow or shared disk, or has too many writers.
            return first_line(cause.orig or cause)
        cause = cause.__cause__ or cause.__context__
    return None


def _patient(name: str) -> Callable[..., Any]:
    plain = getattr(RDBStorage, name)

    @functools.wraps(plain)
    def method(self: PatientStorage, *arguments: Any, **named: Any) -> Any:
        return self.patiently(lambda again: plain(self, *arguments, **named))

    return method


# Those with an underscore are what Optuna's cache calls; the public methods of the same names lead to them.
_CALLS = (
    "create_new_study",
    "delete_study",
    "set_study_user_attr",
    "set_study_system_attr",
    "get_study_id_from_name",
    "get_study_name_from_id",
    "get_study_directions",
    "get_study_user_attrs",
    "get_study_system_attrs",
    "get_all_studies",
    # Made twice if its answer is lost; the one that nobody knows of is given back as that of a lost worker.
    "_create_new_trial",
    "_set_trial_param",
    "get_trial_param",
    "set_trial_intermediate_value",
    "set_trial_user_attr",
    "set_trial_system_attr",
    "get_trial_user_attrs",
    "get_trial_system_attrs",
    "get_trial_id_from_study_id_trial_number",
    "get_trial",
    "get_all_trials",
    "_get_trials",
    "get_best_trial",
    "_get_best_trial_id",
)
for _name in _CALLS:
    setattr(PatientStorage, _name, _patient(_name))
