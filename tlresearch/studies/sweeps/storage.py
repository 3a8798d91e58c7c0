"""A storage for Optuna that waits for a database that is away, so that an outage costs no trial."""

# ruff: noqa: D102  # `BaseStorage` says what each call does
from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any, TypeVar

from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage, get_storage
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.study import Study, StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import InterfaceError, OperationalError

from tlresearch.base.errors import UserError, first_line
from tlresearch.base.redact import redact
from tlresearch.tracking.database import connect_arguments

_log = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE = 300.0  # seconds that the database may be away
_FIRST_PAUSE = 0.5  # seconds until the second try; doubled each time
_LONGEST_PAUSE = 15.0


class StorageLostError(UserError):
    """The database has been away for longer than `PATIENCE`."""


@contextlib.contextmanager
def unwrapped_storage_error() -> Iterator[None]:
    """Raises a `StorageLostError` itself instead of the errors with which Optuna wraps it.

    Optuna tries to end the trial in the database that is away, so the error of that attempt comes on top.
    """
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, StorageLostError):
                raise cause from None
            cause = cause.__cause__ or cause.__context__
        raise


class PatientStorage(BaseStorage, BaseHeartbeat):
    """Repeats calls, with growing pauses, while the database is down or locked.

    It stands in front of Optuna's cache, which stands in front of Optuna's storage: a whole call is repeated, and a
    call that the cache answers never waits.

    Args:
        url: Address of the database.
        heartbeat_interval: Seconds between two heartbeats of a trial; ``None`` sends none.
        grace_period: Seconds without a heartbeat after which a trial counts as lost.
    """

    def __init__(self, url: str, *, heartbeat_interval: int | None = None, grace_period: int | None = None) -> None:
        self._label = redact(url)
        self._waiting = threading.Lock()  # only one thread waits and logs; the others queue behind it
        self._gave_up = False
        self._back = -1e9  # monotonic time at which the last outage ended
        self._grace = grace_period or 2 * (heartbeat_interval or 0)
        self._database = RDBStorage(
            url,
            engine_kwargs={"connect_args": connect_arguments(url)},
            heartbeat_interval=heartbeat_interval,
            grace_period=grace_period,
        )
        cached = get_storage(self._database)
        assert isinstance(cached, BaseHeartbeat)
        self._beating, self._storage = cached, cached
        if url.startswith("sqlite"):
            # WAL needs a third of the syncs, and readers need not wait for a writer. The setting stays in the file. A
            # database in use refuses the change, and keeps its mode.
            with contextlib.suppress(OperationalError), self._database.engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA journal_mode=WAL")

    def disconnect(self) -> None:
        """Closes all connections; the next call opens a new one."""
        self._database.engine.dispose()

    def _patiently(self, attempt: Callable[[bool], T]) -> T:
        """Repeats an attempt until the database answers. The argument says whether it may have been made before.

        Raises:
            StorageLostError: If the database has not answered for `PATIENCE` seconds. From then on no call waits.
        """
        try:
            return attempt(False)
        except (StorageInternalError, OperationalError, InterfaceError) as error:
            reason = _outage(error)
            if reason is None:
                raise
        with self._waiting:
            return self._wait(attempt, reason)

    def _wait(self, attempt: Callable[[bool], T], reason: str) -> T:
        began, pause, logged = time.monotonic(), _FIRST_PAUSE, False
        while not self._gave_up and time.monotonic() - began < PATIENCE:
            if not logged:
                _log.warning("storage %s does not answer (%s); waiting for it", self._label, reason)
                logged = True
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
            try:
                answer = attempt(True)
            except (StorageInternalError, OperationalError, InterfaceError) as error:
                if (still := _outage(error)) is None:
                    raise
                reason = still
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
        """Begins or ends a trial. If the answer of the first attempt was lost, the second finds the trial ended."""

        def attempt(again: bool) -> bool:
            try:
                return self._storage.set_trial_state_values(trial_id, state, values)
            except UpdateFinishedTrialError:
                if again and self._storage.get_trial(trial_id).state == state:
                    return True
                raise

        return self._patiently(attempt)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Makes a trial. If the answer is lost, it makes another, and the first is given back as a lost worker's."""
        return self._patiently(lambda _: self._storage.create_new_trial(study_id, template_trial))

    def record_heartbeat(self, trial_id: int) -> None:
        """Sends a heartbeat of a trial; skips it if the database is away, since the next one comes within seconds."""
        try:
            self._beating.record_heartbeat(trial_id)
        except (StorageInternalError, OperationalError, InterfaceError) as error:
            if _outage(error) is None:
                raise

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        stale = self._patiently(lambda _: self._beating._get_stale_trial_ids(study_id))
        # No heartbeat was recorded during the outage, so every trial looks lost: all get the grace period again.
        return [] if time.monotonic() - self._back < self._grace else stale

    def get_heartbeat_interval(self) -> int | None:
        return self._beating.get_heartbeat_interval()

    def get_heartbeat_stale_trial_callback(self) -> Callable[[Study, FrozenTrial], None] | None:
        return self._beating.get_heartbeat_stale_trial_callback()

    def remove_session(self) -> None:
        self._database.remove_session()

    # The remaining calls are only repeated until the database answers.

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        return self._patiently(lambda _: self._storage.create_new_study(directions, study_name))

    def delete_study(self, study_id: int) -> None:
        self._patiently(lambda _: self._storage.delete_study(study_id))

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        self._patiently(lambda _: self._storage.set_study_user_attr(study_id, key, value))

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self._patiently(lambda _: self._storage.set_study_system_attr(study_id, key, value))

    def get_study_id_from_name(self, study_name: str) -> int:
        return self._patiently(lambda _: self._storage.get_study_id_from_name(study_name))

    def get_study_name_from_id(self, study_id: int) -> str:
        return self._patiently(lambda _: self._storage.get_study_name_from_id(study_id))

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return self._patiently(lambda _: self._storage.get_study_directions(study_id))

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return self._patiently(lambda _: self._storage.get_study_user_attrs(study_id))

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return self._patiently(lambda _: self._storage.get_study_system_attrs(study_id))

    def get_all_studies(self) -> list[FrozenStudy]:
        return self._patiently(lambda _: self._storage.get_all_studies())

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        self._patiently(
            lambda _: self._storage.set_trial_param(trial_id, param_name, param_value_internal, distribution)
        )

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        self._patiently(lambda _: self._storage.set_trial_intermediate_value(trial_id, step, intermediate_value))

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._patiently(lambda _: self._storage.set_trial_user_attr(trial_id, key, value))

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._patiently(lambda _: self._storage.set_trial_system_attr(trial_id, key, value))

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        return self._patiently(lambda _: self._storage.get_trial_id_from_study_id_trial_number(study_id, trial_number))

    def get_trial(self, trial_id: int) -> FrozenTrial:
        return self._patiently(lambda _: self._storage.get_trial(trial_id))

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        return self._patiently(lambda _: self._storage.get_all_trials(study_id, deepcopy, states))

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        return self._patiently(lambda _: self._storage.get_best_trial(study_id))


def _outage(error: BaseException) -> str | None:
    """Returns why the database could not be used; ``None`` if it could, and refused the call."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (OperationalError, InterfaceError)):
            # This includes SQLite's "database is locked", on a slow or shared disk or with too many writers.
            return first_line(cause.orig or cause)
        cause = cause.__cause__ or cause.__context__
    return None
