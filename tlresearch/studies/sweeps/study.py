"""The Optuna study of a sweep: storage, sampler, pruner, and what its trials came to."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from tlresearch.base.errors import ConfigError, UserError, first_line
from tlresearch.base.exclusive import exclusive
from tlresearch.base.liveness import Identity, is_gone
from tlresearch.base.paths import home
from tlresearch.base.quiet import quiet
from tlresearch.base.redact import redact
from tlresearch.config.sweep_schema import ComponentConfig, SpaceConfig, SweepConfig
from tlresearch.data.seeding import derive_seed
from tlresearch.studies.sweeps.storage import PatientStorage

SAMPLERS: Mapping[str, Callable[..., BaseSampler]] = {
    "tpe": optuna.samplers.TPESampler,
    "random": optuna.samplers.RandomSampler,
    "gp": optuna.samplers.GPSampler,
    "qmc": optuna.samplers.QMCSampler,
    "grid": optuna.samplers.GridSampler,
    "cmaes": optuna.samplers.CmaEsSampler,
    "nsgaii": optuna.samplers.NSGAIISampler,
    "brute_force": optuna.samplers.BruteForceSampler,
}
PRUNERS: Mapping[str, Callable[..., BasePruner]] = {
    "none": optuna.pruners.NopPruner,
    "median": optuna.pruners.MedianPruner,
    "hyperband": optuna.pruners.HyperbandPruner,
    "successive_halving": optuna.pruners.SuccessiveHalvingPruner,
    "percentile": optuna.pruners.PercentilePruner,
    "patient": optuna.pruners.PatientPruner,
    "threshold": optuna.pruners.ThresholdPruner,
    "wilcoxon": optuna.pruners.WilcoxonPruner,
}
WORKER, RETRY_OF, SURPLUS, FAILURE = "worker", "retry_of", "surplus", "failure"
"""Attributes of a trial: the process that runs it; the trial whose values it tries again; that it was one too many and
never began; why it failed. A failed trial without a reason was interrupted: it is given back."""
STOPPED, DEATHS = "stopped", "deaths"
"""More of them: that its worker gave it back itself, on a signal; how many workers died of earlier tries."""
MOST_DEATHS = 10  # of workers that ran the same trial; whoever is next fails it instead
ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
UNNAMED_SECONDS = 15.0  # after which a trial whose worker has not said who it is counts as given back


@dataclass(frozen=True)
class Standing:
    """How far a study is on its way to a total.

    Attributes:
        begun: Trials that count, in the order of their first try; of those tried again the last try.
        open: How many more are to be begun, or tried again.
        running: Those under way, here or elsewhere.
        surplus: Numbers of trials that are one too many: several workers asked for the last one at once.
    """

    begun: tuple[FrozenTrial, ...]
    open: int
    running: tuple[FrozenTrial, ...]
    surplus: frozenset[int]


def quiet_optuna() -> contextlib.AbstractContextManager[None]:
    """Optuna without a line per trial, its database without one per table; what is experimental is our choice."""
    return quiet("optuna", "alembic", categories=[ExperimentalWarning])


def open_study(sweep: SweepConfig, space: Mapping[str, SpaceConfig], *, worker: int = 0) -> Study:
    """Opens the study of a sweep, or makes it.

    Args:
        sweep: The sweep.
        space: Its search space.
        worker: Number of the process among those that work on the study: each draws other points.

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
            pruner=_component(PRUNERS, sweep.pruner, "pruner", "none"),
            direction=direction,
            load_if_exists=True,
        )
    weakref.finalize(study, storage.disconnect)  # Optuna would leave its connections to the garbage collector
    if study.direction.name.lower() != direction:
        raise ConfigError(
            [
                f"objective.direction: the study '{sweep.name}' was made to {study.direction.name.lower()}; "
                "give the sweep another name"
            ],
            sweep.name,
        )
    trials = len(study.get_trials(deepcopy=False))
    # A sampler that began anew with the same seed would draw the points of the first start again.
    with quiet_optuna():
        study.sampler = _sampler(sweep, space, seed=derive_seed("sampler", sweep.seed, trials, worker) % 2**32)
    if not trials:
        for point in sweep.enqueue:
            study.enqueue_trial(point)
    return study


def ended(study: Study) -> list[FrozenTrial]:
    """Trials that count towards the total: complete, pruned or failed, but neither given back nor one too many."""
    return [trial for trial in study.get_trials(deepcopy=False, states=ENDED) if counts(trial)]


def counts(trial: FrozenTrial) -> bool:
    """Whether a trial that has ended is one of the total."""
    return trial.state != TrialState.FAIL or (SURPLUS not in trial.user_attrs and FAILURE in trial.user_attrs)


def standing(trials: Sequence[FrozenTrial], total: int) -> Standing:
    """Says which trials count. Every worker that has asked for a trial finds the same: nobody has to coordinate them.

    The first try of each trial takes a place, in the order of the numbers that the database gives out one by one. A
    try that was given back keeps the place for the next one. Places beyond the total are surplus, and so is a second
    retry of the same trial.

    Args:
        trials: All trials of the study, by number.
        total: How many are wanted.
    """
    place: dict[int, int] = {}  # of each try: the number of the first one
    last: dict[int, FrozenTrial] = {}  # of each place
    retried, surplus = set[int](), set[int]()
    for trial in trials:
        first = trial.user_attrs.get(RETRY_OF)
        if first in retried:
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
    given_back = sum(not counts(trial) for trial in begun)
    running = tuple(trial for trial in begun if trial.state == TrialState.RUNNING)
    return Standing(begun, total - len(begun) + given_back, running, frozenset(surplus))


def claim(study: Study, trial: optuna.Trial, total: int, identity: Identity) -> bool:
    """Puts a worker's name on a trial it has asked for; says whether it may begin, or the trial is one too many."""
    trial.set_user_attr(WORKER, identity.record())
    trials = study.get_trials(deepcopy=False)
    if trial.number not in standing(trials, total).surplus:
        return True
    trial.set_user_attr(SURPLUS, True)
    wished = trials[trial.number].system_attrs.get("fixed_params")
    if wished and RETRY_OF not in trial.user_attrs:
        study.enqueue_trial(wished)  # a point that the sweep names is tried when the total is raised
    return False


def give_back(study: Study, identity: Identity) -> int:
    """Gives trials whose worker is gone another try; any worker may, at any time, several at once too.

    Gone is a process that this machine no longer has, one that `identity` was started for in its place, and one of
    another machine that has not been heard of for `lost_after` seconds. The new trial has the same values, so where
    the folder of the unfinished run is within reach it is the same run, and goes on from its checkpoint.

    Returns:
        Number of such trials.
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
    left = [trials[number] for number in failed if number not in retried]
    for trial in left:
        values = trial.system_attrs.get("fixed_params", {}) | trial.params
        deaths = trial.user_attrs.get(DEATHS, 0) + (STOPPED not in trial.user_attrs)
        study.enqueue_trial(values, user_attrs={RETRY_OF: trial.number, DEATHS: deaths})
    return len(left)


def given_back(study: Study) -> list[int]:
    """Numbers of the trials whose worker was interrupted or lost."""
    failed = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
    return [trial.number for trial in failed if not counts(trial) and SURPLUS not in trial.user_attrs]


def _abandoned(trial: FrozenTrial, identity: Identity) -> bool:
    worker = trial.user_attrs.get(WORKER)
    if worker is None:  # killed between asking and giving its name
        age = time.time() - trial.datetime_start.timestamp() if trial.datetime_start else 0.0
        return age > UNNAMED_SECONDS
    return is_gone(worker) or identity.replaces(worker)


def complete(study: Study) -> list[FrozenTrial]:
    """Trials that reached their last epoch, best first."""
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    sign = -1 if study.direction.name == "MAXIMIZE" else 1
    return sorted(done, key=lambda trial: (sign * (trial.value or 0.0), trial.number))


def importances(study: Study) -> dict[str, float]:
    """Share of the objective's variation that each dimension explains; empty if that cannot be said."""
    done = complete(study)
    if len(done) < 4 or len({trial.value for trial in done}) < 2:
        return {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return dict(optuna.importance.get_param_importances(study))
    except (ValueError, RuntimeError, ZeroDivisionError):
        return {}  # conditional dimensions that too few trials share


def storage_url(sweep: SweepConfig) -> str:
    """Where the study of a sweep is: the database it names, else an SQLite file in our home."""
    if sweep.storage is not None:
        return sweep.storage
    home().mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{home() / 'optuna.db'}"


@contextlib.contextmanager
def alone(sweep: SweepConfig, what: str, *, wait: bool = True) -> Iterator[bool]:
    """Holds a lock that everybody who works on the study shares; says whether we have it.

    Raises:
        UserError: If the storage cannot be reached.
    """
    url = storage_url(sweep)
    with contextlib.ExitStack() as stack:
        with _opening(url):
            held = stack.enter_context(exclusive(url, f"{what} {sweep.name}", wait=wait))
        yield held


def open_storage(sweep: SweepConfig) -> PatientStorage:
    """Opens the database that holds the study of a sweep.

    Raises:
        UserError: If it cannot be opened.
    """
    url = storage_url(sweep)
    # A file is used by processes of one machine, which can see whether another one lives; a server's are told.
    heartbeat = None if url.startswith("sqlite") else max(1, int(sweep.lost_after / 6))
    grace = None if heartbeat is None else int(sweep.lost_after)
    # Two processes that make the tables of a fresh database at once break each other.
    with _opening(url), exclusive(url, "tables"):
        return PatientStorage(url, heartbeat_interval=heartbeat, grace_period=grace)


@contextlib.contextmanager
def _opening(url: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if type(error).__module__.startswith("sqlalchemy") or isinstance(error, (ImportError, OSError)):
            reason = first_line(error)
            raise UserError(f"storage: {redact(url)} cannot be opened: {redact(reason)}") from None
        raise


def grid_points(sweep: SweepConfig, space: Mapping[str, SpaceConfig]) -> int | None:
    """Trials after which a grid is exhausted: its points and what is enqueued; ``None`` for another sampler."""
    if sweep.sampler.name != "grid":
        return None
    choices = sweep.sampler.options.get("search_space") or {key: dimension.choices for key, dimension in space.items()}
    return math.prod(len(values) for values in choices.values()) + len(sweep.enqueue)


def _sampler(sweep: SweepConfig, space: Mapping[str, SpaceConfig], *, seed: int) -> BaseSampler:
    if sweep.sampler.name == "grid" and "search_space" not in sweep.sampler.options:
        open_ended = [key for key, dimension in space.items() if not dimension.choices]
        if open_ended:
            raise ConfigError([f"space[{key}]: the grid sampler needs choices" for key in open_ended], sweep.name)
        grid = {key: list(dimension.choices) for key, dimension in space.items()}
        return optuna.samplers.GridSampler(grid, seed=sweep.seed)
    sampler: BaseSampler = _component(SAMPLERS, sweep.sampler, "sampler", "tpe", seed=seed)
    return sampler


def _component(
    table: Mapping[str, Callable[..., Any]], config: ComponentConfig, key: str, default: str, **fixed: Any
) -> Any:
    try:
        return table[config.name or default](**fixed, **config.options)
    except (TypeError, ValueError, ImportError) as error:
        reason = first_line(error)
        raise ConfigError([f"{key}.options: {config.name} refuses them: {reason}"], "sweep") from None
