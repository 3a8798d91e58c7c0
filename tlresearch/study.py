"""The Optuna study of a sweep: storage, sampler, pruner, and what its trials came to."""

from __future__ import annotations

import fcntl
import logging
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from tlresearch.config.paths import home
from tlresearch.config.sweep_schema import ComponentConfig, SpaceConfig, SweepConfig
from tlresearch.data.seeding import derive_seed
from tlresearch.errors import ConfigError, UserError
from tlresearch.tracking.redact import redact

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
INTERRUPTED = "interrupted"
ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


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
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=ExperimentalWarning)
    study = optuna.create_study(
        study_name=sweep.name,
        storage=_storage(sweep),
        pruner=_component(PRUNERS, sweep.pruner, "pruner", "none"),
        direction=sweep.objective.direction,
        load_if_exists=True,
    )
    if study.direction.name.lower() != sweep.objective.direction:
        raise ConfigError(
            [
                f"objective.direction: the study '{sweep.name}' was made to {study.direction.name.lower()}; "
                "give the sweep another name"
            ],
            sweep.name,
        )
    trials = len(study.get_trials(deepcopy=False))
    # A sampler that began anew with the same seed would draw the points of the first start again.
    study.sampler = _sampler(sweep, space, seed=derive_seed("sampler", sweep.seed, trials, worker) % 2**32)
    if not trials:
        for point in sweep.enqueue:
            study.enqueue_trial(point)
    return study


def ended(study: Study) -> list[FrozenTrial]:
    """Trials that count towards the total: complete, pruned or failed, but not those that were interrupted."""
    return [t for t in study.get_trials(deepcopy=False, states=ENDED) if INTERRUPTED not in t.user_attrs]


def requeue_interrupted(study: Study) -> int:
    """Gives trials that a killed process left running another try; the caller knows that no process runs them.

    The new trial has the same values, so its run is the same run: it goes on from the checkpoint.

    Returns:
        Number of such trials.
    """
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        _interrupt(study, trial)
    return _try_again(study)


def requeue(study: Study, number: int) -> None:
    """Gives one trial another try, whose process has died while others go on."""
    trial = study.get_trials(deepcopy=False)[number]
    if trial.state == TrialState.RUNNING:
        _interrupt(study, trial)
    _try_again(study)


def _interrupt(study: Study, trial: FrozenTrial) -> None:
    study._storage.set_trial_user_attr(trial._trial_id, INTERRUPTED, True)
    study.tell(trial.number, state=TrialState.FAIL)


def _try_again(study: Study) -> int:
    tried_again = study.user_attrs.get("tried_again", [])
    failed = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
    left = [t for t in failed if INTERRUPTED in t.user_attrs and t.number not in tried_again]
    study.set_user_attr("tried_again", [*tried_again, *(trial.number for trial in left)])
    for trial in left:
        study.enqueue_trial(trial.params)
    return len(left)


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


def _storage(sweep: SweepConfig) -> RDBStorage:
    url = sweep.storage
    if url is None:
        home().mkdir(parents=True, exist_ok=True)
        url = f"sqlite:///{home() / 'optuna.db'}"
    # Two processes that make the tables of a fresh database at once break each other.
    home().mkdir(parents=True, exist_ok=True)
    with (home() / "optuna.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            return RDBStorage(url)
        except Exception as error:
            if type(error).__module__.startswith("sqlalchemy") or isinstance(error, (ImportError, OSError)):
                reason = str(error).splitlines()[0]
                raise UserError(f"storage: {redact(url)} cannot be opened: {redact(reason)}") from None
            raise


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
        reason = str(error).splitlines()[0]
        raise ConfigError([f"{key}.options: {config.name} refuses them: {reason}"], "sweep") from None
