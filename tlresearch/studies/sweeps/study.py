"""The Optuna study of a sweep: storage, sampler, pruner, and which of its trials count."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from tlresearch.base.errors import ConfigError, UserError, first_line
from tlresearch.base.exclusive import exclusive
from tlresearch.base.liveness import Identity, is_gone
from tlresearch.base.paths import home
from tlresearch.base.quiet import quiet
from tlresearch.base.redact import redact
from tlresearch.config.parts import make
from tlresearch.config.search_space import stored
from tlresearch.config.sweep_schema import SpaceConfig, SweepConfig
from tlresearch.data.seeding import derive_seed
from tlresearch.studies.sweeps.storage import PatientStorage

WORKER, RETRY_OF, SURPLUS, FAILURE = "worker", "retry_of", "surplus", "failure"
"""Attributes of a trial: the process that runs it; number of the trial whose values it tries again; whether it is
beyond the total and never began; why it failed. A failed trial without a reason was interrupted: it is given back."""
STOPPED, DEATHS = "stopped", "deaths"
"""Attributes of a trial: whether its worker gave it back itself, on a signal; number of workers that died with it."""
MOST_DEATHS = 10  # workers that may die in the same trial before it counts as failed
ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
UNNAMED_SECONDS = 15.0  # after which a trial whose worker has not recorded its identity counts as abandoned


@dataclass(frozen=True)
class Standing:
    """The progress of a study towards its total.

    Attributes:
        begun: Trials that count, in the order of their first try; of a trial that was tried again, the last try.
        open: Number of trials that must still begin, or be tried again.
        running: Trials that are running, in any process.
        surplus: Numbers of trials beyond the total: several workers asked for the last trial at the same time.
    """

    begun: tuple[FrozenTrial, ...]
    open: int
    running: tuple[FrozenTrial, ...]
    surplus: frozenset[int]


def quiet_optuna() -> contextlib.AbstractContextManager[None]:
    """Suppresses Optuna's line per trial, its database's line per table, and warnings of experimental features."""
    return quiet("optuna", "alembic", categories=[ExperimentalWarning])


def open_study(sweep: SweepConfig, space: Mapping[str, SpaceConfig], *, worker: int = 0) -> Study:
    """Opens the study of a sweep; creates it if necessary.

    Args:
        sweep: The sweep.
        space: Its search space.
        worker: Number of this worker among those of the study; the sampler's seed depends on it.

    Raises:
        UserError: If the storage cannot be reached.
        ConfigError: If sampler or pruner refuse their options, or the study was made with another direction.
    """
    direction = sweep.objective.direction or "maximize"
    with quiet_optuna():
        storage = open_storage(sweep)
        study = optuna.create_study(
            study_name=sweep.name,
            storage=storage,
            pruner=make(sweep.pruner, "pruner"),
            direction=direction,
            load_if_exists=True,
        )
    weakref.finalize(study, storage.disconnect)  # Optuna leaves open connections to the garbage collector
    if study.direction.name.lower() != direction:
        raise ConfigError(
            [
                f"objective.direction: the study '{sweep.name}' was made to {study.direction.name.lower()}; "
                "give the sweep another name"
            ],
            sweep.name,
        )
    trials = len(study.get_trials(deepcopy=False))
    # The number of trials is part of the seed: a sampler that starts again with the same seed would draw the points of
    # the first start once more.
    with quiet_optuna():
        study.sampler = _sampler(sweep, space, seed=derive_seed("sampler", sweep.seed, trials, worker) % 2**32)
    if not trials:
        for point in sweep.enqueue:
            study.enqueue_trial(point)
    return study


def ended(study: Study) -> list[FrozenTrial]:
    """Lists ended trials that count towards the total: complete, pruned or failed, neither given back nor surplus."""
    return [trial for trial in study.get_trials(deepcopy=False, states=ENDED) if is_counted(trial)]


def is_counted(trial: FrozenTrial) -> bool:
    """Whether a trial that has ended counts towards the total."""
    return trial.state != TrialState.FAIL or (SURPLUS not in trial.user_attrs and FAILURE in trial.user_attrs)


def standing(trials: Sequence[FrozenTrial], total: int) -> Standing:
    """Computes which trials count. All workers compute the same from the database, so nobody has to coordinate them.

    The first try of each trial takes a place, in the order of the trial numbers, which the database gives out one by
    one. A try that was given back keeps the place for the next try. Trials with places beyond the total are surplus,
    and so is a second retry of the same trial.

    Args:
        trials: All trials of the study, sorted by number.
        total: The total number of trials of the sweep.
    """
    place: dict[int, int] = {}  # number of the first try, by the number of each try
    last: dict[int, FrozenTrial] = {}  # the last try, by place
    retried, surplus = set[int](), set[int]()
    for trial in trials:
        first = trial.user_attrs.get(RETRY_OF)
        if first in retried:  # two workers gave the same trial back at the same time
            surplus.add(trial.number)
            continue
        if first is not None:
            retried.add(first)
        if trial.state == TrialState.WAITING or SURPLUS in trial.user_attrs:
            continue
        place[trial.number] = trial.number if first is None else place.get(first, trial.number)
        last[place[trial.number]] = trial
    begun = tuple(last.values())[:total]
    surplus |= {trial.number for trial in tuple(last.values())[total:]}
    given_back = sum(not is_counted(trial) for trial in begun)
    running = tuple(trial for trial in begun if trial.state == TrialState.RUNNING)
    return Standing(begun, total - len(begun) + given_back, running, frozenset(surplus))


def claim(study: Study, trial: optuna.Trial, total: int, identity: Identity) -> bool:
    """Records the worker of a trial that it has asked for; returns whether the trial may begin, or is surplus.

    Two workers may ask for the last trial at the same time. Each first writes its trial and then counts, so both see
    both, and agree that the one with the larger number is surplus.
    """
    trial.set_user_attr(WORKER, identity.record())
    trials = study.get_trials(deepcopy=False)
    if trial.number not in standing(trials, total).surplus:
        return True
    trial.set_user_attr(SURPLUS, True)
    enqueued = trials[trial.number].system_attrs.get("fixed_params")
    if enqueued and RETRY_OF not in trial.user_attrs:
        study.enqueue_trial(enqueued)  # again, so that the sweep's own point is tried when the total is raised
    return False


def give_back(study: Study, identity: Identity) -> int:
    """Enqueues trials whose worker is gone for another try. Any worker may call this, also at the same time.

    A worker is gone if its process does not exist any more on this machine, if the process of `identity` was started
    in its place, or if it is on another machine and sent no heartbeat for `lost_after` seconds. The new trial has the
    same values. Where it finds the folder of the unfinished run, it continues that run from its checkpoint.

    Returns:
        Number of trials that were enqueued.
    """
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if _abandoned(trial, identity):
            with contextlib.suppress(UpdateFinishedTrialError):
                study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
    with quiet_optuna():
        optuna.storages.fail_stale_trials(study)
    failed = given_back(study)
    if not failed:
        return 0
    trials = study.get_trials(deepcopy=False)
    retried = {trial.user_attrs.get(RETRY_OF) for trial in trials}
    interrupted = [trials[number] for number in failed if number not in retried]
    for trial in interrupted:
        values = trial.system_attrs.get("fixed_params", {}) | trial.params
        deaths = trial.user_attrs.get(DEATHS, 0) + (STOPPED not in trial.user_attrs)
        study.enqueue_trial(values, user_attrs={RETRY_OF: trial.number, DEATHS: deaths})
    return len(interrupted)


def given_back(study: Study) -> list[int]:
    """Lists the numbers of trials whose worker was interrupted or lost."""
    failed = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
    return [trial.number for trial in failed if not is_counted(trial) and SURPLUS not in trial.user_attrs]


def _abandoned(trial: FrozenTrial, identity: Identity) -> bool:
    worker = trial.user_attrs.get(WORKER)
    if worker is None:  # killed between asking for the trial and recording its identity, or just about to record it
        age = time.time() - trial.datetime_start.timestamp() if trial.datetime_start else 0.0
        return age > UNNAMED_SECONDS
    return is_gone(worker) or identity.replaces(worker)


def complete(study: Study) -> list[FrozenTrial]:
    """Lists trials that reached their last epoch, best first."""
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    sign = -1 if study.direction.name == "MAXIMIZE" else 1
    return sorted(done, key=lambda trial: (sign * (trial.value or 0.0), trial.number))


def importances(study: Study) -> dict[str, float]:
    """Returns the share of the objective's variation that each dimension explains; empty if it cannot be computed."""
    done = complete(study)
    if len(done) < 4 or len({trial.value for trial in done}) < 2:
        return {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return dict(optuna.importance.get_param_importances(study))
    except (ValueError, RuntimeError, ZeroDivisionError):
        return {}  # too few trials share a conditional dimension


def storage_url(sweep: SweepConfig) -> str:
    """Returns the address of the study's database: the sweep's `storage`, else an SQLite file in our home."""
    if sweep.storage is not None:
        return sweep.storage
    home().mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{home() / 'optuna.db'}"


@contextlib.contextmanager
def study_lock(sweep: SweepConfig, purpose: str, *, wait: bool = True) -> Iterator[bool]:
    """Holds a lock that all processes of the study share, one per purpose; yields whether we hold it.

    Raises:
        UserError: If the storage cannot be reached.
    """
    url = storage_url(sweep)
    # The context's own errors must not pass through `_storage_errors`, so only entering the lock is inside it.
    with contextlib.ExitStack() as stack:
        with _storage_errors(url):
            held = stack.enter_context(exclusive(url, f"{purpose} {sweep.name}", wait=wait))
        yield held


def open_storage(sweep: SweepConfig) -> PatientStorage:
    """Opens the database that holds the study of a sweep.

    Raises:
        UserError: If it cannot be opened.
    """
    url = storage_url(sweep)
    # A file is used by processes of one machine, which can see whether another process lives. A server is used by
    # several machines, so trials send heartbeats.
    heartbeat = None if url.startswith("sqlite") else max(1, int(sweep.lost_after / 6))
    grace = None if heartbeat is None else int(sweep.lost_after)
    # Two processes that create the tables of a new database at the same time make each other fail.
    with _storage_errors(url), exclusive(url, "tables"):
        return PatientStorage(url, heartbeat_interval=heartbeat, grace_period=grace)


@contextlib.contextmanager
def _storage_errors(url: str) -> Iterator[None]:
    """Turns errors of opening the database into a `UserError`."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.startswith("sqlalchemy") or isinstance(error, (ImportError, OSError)):
            reason = first_line(error)
            raise UserError(f"storage: {redact(url)} cannot be opened: {redact(reason)}") from None
        raise


def grid_points(sweep: SweepConfig, space: Mapping[str, SpaceConfig]) -> int | None:
    """Returns the number of trials of a grid, its points and the enqueued points; ``None`` for another sampler."""
    if sweep.sampler.name != "grid":
        return None
    choices = sweep.sampler.options.get("search_space") or {key: dimension.choices for key, dimension in space.items()}
    return math.prod(len(values) for values in choices.values()) + len(sweep.enqueue)


def _sampler(sweep: SweepConfig, space: Mapping[str, SpaceConfig], *, seed: int) -> BaseSampler:
    if sweep.sampler.name == "grid" and "search_space" not in sweep.sampler.options:
        open_ended = [key for key, dimension in space.items() if not dimension.choices]
        if open_ended:
            raise ConfigError([f"space[{key}]: the grid sampler needs choices" for key in open_ended], sweep.name)
        grid = {key: list(stored(dimension.choices)) for key, dimension in space.items()}
        return optuna.samplers.GridSampler(grid, seed=sweep.seed)
    sampler: BaseSampler = make(sweep.sampler, "sampler", seed=seed)
    return sampler
