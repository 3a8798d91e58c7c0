"""The best trials of a study, run again with fresh seeds: their mean is what is reported, and what chooses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from optuna.study import Study
from optuna.trial import FrozenTrial

from tlresearch.base.statistics import Summary
from tlresearch.config.load import Loaded, revise
from tlresearch.config.schema import ExperimentConfig
from tlresearch.config.sweep_schema import ObjectiveConfig, SweepConfig
from tlresearch.studies.seeds import fit_group
from tlresearch.studies.sweeps import study as studies
from tlresearch.studies.sweeps.experiment import TRIAL_TRACKING
from tlresearch.studies.sweeps.progress import SweepProgress
from tlresearch.studies.sweeps.subject import trial_name
from tlresearch.tracking.run import JournalRun

CONFIRMS = "tlresearch.confirms"
"""Tag of a group and its runs: the study and the trial whose configuration they run again."""


@dataclass(frozen=True)
class Confirmed:
    """One configuration, run with fresh seeds.

    Attributes:
        trial: The trial it is from; its own value was selected as one of the best, and so is too good on average.
        run_id: MLflow run of the group.
        seeds: The seeds.
        metrics: Summary of each metric over the seeds.
    """

    trial: FrozenTrial
    run_id: str
    seeds: tuple[int, ...]
    metrics: dict[str, Summary]


def confirm(
    config: SweepConfig,
    base: Loaded[ExperimentConfig],
    study: Study,
    parent: JournalRun,
    progress: SweepProgress,
) -> list[Confirmed]:
    """Runs the best configurations of a study again; what was run before is not run again.

    The choice among them is made by the mean of the validation metric. Their test split is evaluated once in each
    run, when it has ended, and decides nothing.

    Returns:
        The configurations, best mean first; none unless `confirm.top` asks for some.
    """
    trials = _distinct(studies.complete(study))[: config.confirm.top]
    seeds = fresh_seeds([base.config.seed, *(int(t.params.get("seed", 0)) for t in trials)], config.confirm.seeds)
    found = []
    for trial in trials:
        name = f"confirm {trial_name(trial.number, trial.params)}"
        progress.note(f"{name}: seeds {', '.join(map(str, seeds))}")
        mark = {**base.config.tracking.tags, CONFIRMS: f"{config.name} trial {trial.number}"}
        experiment = revise(
            base, {**trial.user_attrs["overrides"], **TRIAL_TRACKING, "tracking.tags": mark, "name": name}
        )
        tags = {"tlresearch.study": config.name}
        group = fit_group(experiment, seeds, name=name, parent=parent.run_id, tags=tags, again=False)
        found.append(Confirmed(trial, group.run_id, tuple(seeds), group.metrics))
    return best_first(found, config.objective)


def best_first(found: Sequence[Confirmed], objective: ObjectiveConfig) -> list[Confirmed]:
    """Sorts by the mean of the objective over the fresh seeds; what a trial had reached does not count."""
    sign = 1 if objective.direction == "minimize" else -1
    return sorted(found, key=lambda one: (sign * one.metrics[objective.metric].mean, one.trial.number))


def fresh_seeds(used: Sequence[int], count: int) -> list[int]:
    """Seeds that no trial had: the next ones."""
    first = max(used) + 1
    return list(range(first, first + count))


def _distinct(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Leaves out trials that had the same values as a better one."""
    found: list[FrozenTrial] = []
    for trial in trials:
        if all(trial.params != other.params for other in found):
            found.append(trial)
    return found
