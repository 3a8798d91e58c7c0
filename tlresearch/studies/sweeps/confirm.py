"""Runs the best trials of a study again with fresh seeds: their means are reported, and decide which trial is best."""

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
    """A trial's configuration, run with fresh seeds.

    Attributes:
        trial: The trial. Its own value was selected as one of the best, so on average it is too good.
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
    """Runs the best configurations of a study again, except those that an earlier call has run.

    The mean of the validation metric decides among them. Each run evaluates the test split once at its end; that
    decides nothing.

    Returns:
        The configurations, best mean first; none unless `confirm.top` is set.
    """
    # A sampler may propose the same values twice; running them twice would confirm nothing.
    trials = _distinct(studies.complete(study))[: config.confirm.top]
    seeds = fresh_seeds([base.config.seed, *(int(t.params.get("seed", 0)) for t in trials)], config.confirm.seeds)
    confirmed = []
    for trial in trials:
        name = f"confirm {trial_name(trial.number, trial.params)}"
        progress.note(f"{name}: seeds {', '.join(map(str, seeds))}")
        run_tags = {**base.config.tracking.tags, CONFIRMS: f"{config.name} trial {trial.number}"}
        experiment = revise(
            base, {**trial.user_attrs["overrides"], **TRIAL_TRACKING, "tracking.tags": run_tags, "name": name}
        )
        tags = {"tlresearch.study": config.name}
        group = fit_group(experiment, seeds, name=name, parent=parent.run_id, tags=tags, again=False)
        confirmed.append(Confirmed(trial, group.run_id, tuple(seeds), group.metrics))
    return best_first(confirmed, config.objective)


def best_first(confirmed: Sequence[Confirmed], objective: ObjectiveConfig) -> list[Confirmed]:
    """Sorts by the mean of the objective over the fresh seeds; the value of the trial itself does not count."""
    sign = 1 if objective.direction == "minimize" else -1
    return sorted(confirmed, key=lambda group: (sign * group.metrics[objective.metric].mean, group.trial.number))


def fresh_seeds(used: Sequence[int], count: int) -> list[int]:
    """Returns seeds that no trial had: those after the largest."""
    first = max(used) + 1
    return list(range(first, first + count))


def _distinct(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Drops trials with the same values as an earlier, better trial."""
    distinct: list[FrozenTrial] = []
    for trial in trials:
        if all(trial.params != earlier.params for earlier in distinct):
            distinct.append(trial)
    return distinct
