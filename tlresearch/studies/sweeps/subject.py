"""The subject of a study, which its trials vary: an experiment or a user's function. What a trial passes to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import optuna
from optuna.pruners import NopPruner
from optuna.study import Study
from optuna.trial import FrozenTrial

from tlresearch.base.errors import first_line
from tlresearch.config.schema import TrackingConfig
from tlresearch.config.sweep_schema import SweepConfig
from tlresearch.finetuning.callback import RunPrunedError
from tlresearch.studies.sweeps import study as studies
from tlresearch.studies.sweeps.progress import SweepProgress
from tlresearch.tracking.base import Run


class TrialFailedError(Exception):
    """A trial failed for a reason of its own; the sweep goes on."""


@dataclass(frozen=True)
class FinalRun:
    """A run whose results are reported: the best trial run again in full, or a baseline.

    Attributes:
        name: ``best``, or the baseline's name.
        run_id: Its MLflow run.
        metrics: Metrics of the selected epoch, and of the test split if there is one.
    """

    name: str
    run_id: str
    metrics: dict[str, float]


@dataclass(frozen=True)
class Turn:
    """A trial as its subject sees it.

    Attributes:
        trial: Optuna's trial.
        point: The suggested values, by key.
        metric: The objective.
        study: Name of the study.
        parent: MLflow run of the study.
    """

    trial: optuna.Trial
    point: dict[str, Any]
    metric: str
    study: str
    parent: str

    @property
    def name(self) -> str:
        """Name of the trial's run."""
        return trial_name(self.trial.number, self.point)

    @property
    def tags(self) -> dict[str, str]:
        """Tags of the trial's run."""
        return {"tlresearch.study": self.study, "tlresearch.trial": str(self.trial.number)}

    @property
    def prunes(self) -> bool:
        """Whether a pruner reads the reports. Otherwise they are not written to the database; MLflow has the curve."""
        return not isinstance(self.trial.study.pruner, NopPruner)

    def report(self, value: float, epoch: int) -> None:
        """Reports the objective after an epoch to the study.

        Raises:
            RunPrunedError: If the pruner stops the trial.
        """
        if not self.prunes:
            return
        self.trial.report(value, epoch)
        if self.trial.should_prune():
            raise RunPrunedError(f"{self.metric} {value:.4f} after epoch {epoch}")

    def ended(self, run_id: str, seconds: float) -> None:
        """Stores the run of the trial, and how long it took, with the trial."""
        self.trial.set_user_attr("run_id", run_id)
        self.trial.set_user_attr("seconds", round(seconds, 2))

    def failed(self, error: Exception) -> TrialFailedError:
        """Stores with the trial why it failed; returns the error to raise, after which the sweep goes on."""
        self.trial.set_user_attr(studies.FAILURE, f"{type(error).__name__}: {first_line(error)}")
        return TrialFailedError(str(error))


class Subject(Protocol):
    """An experiment or a function, varied by the trials of a study."""

    @property
    def tracking(self) -> TrackingConfig:
        """Tracking options of its runs."""
        ...

    @property
    def texts(self) -> Mapping[str, str]:
        """Its definition as texts, by artifact name. They are recorded, and a study continues only with equal texts."""
        ...

    def run(self, turn: Turn) -> float:
        """Runs a trial and returns its objective.

        Raises:
            optuna.TrialPruned: If the pruner stopped it.
            TrialFailedError: If it failed.
            UserError: If a mistake of the user prevents every trial.
        """
        ...

    def at(self, point: Mapping[str, Any]) -> str | None:
        """Returns the YAML of an experiment with the values of a point; ``None`` if the subject has none."""
        ...

    def finish(
        self, config: SweepConfig, study: Study, parent: Run, progress: SweepProgress, best: FrozenTrial
    ) -> list[FinalRun]:
        """Runs the final runs, after the trials."""
        ...


def trial_name(number: int, point: Mapping[str, Any]) -> str:
    """Names a trial by its number and values, abbreviated: the MLflow UI cuts names after about 14 characters."""
    return " ".join([f"{number:02d}", *(f"{_initials(key)}{_short(value)}" for key, value in point.items())])


def _initials(key: str) -> str:
    words = key.rpartition(".")[2].split("_")
    return words[0] if len(words) == 1 else "".join(word[0] for word in words)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1e}".replace("e-0", "e-")
    if isinstance(value, list):
        return "+".join(_short(entry) for entry in value) or "none"
    if isinstance(value, Mapping):  # a part
        return _short(value.get("name", ""))
    return f"{value}".rpartition(".")[2]
