"""What the trials of a study vary, an experiment or a function of the user's, and what each trial is told."""

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
    """A trial ended with an error that is its own; the sweep goes on."""


@dataclass(frozen=True)
class FinalRun:
    """A run that reports: the best trial run again in full, or a baseline.

    Attributes:
        name: ``best``, or the baseline's name.
        run_id: Its MLflow run.
        metrics: Metrics of the selected epoch, and of the test split where there is one.
    """

    name: str
    run_id: str
    metrics: dict[str, float]


@dataclass(frozen=True)
class Turn:
    """One trial, as what it varies sees it.

    Attributes:
        trial: Optuna's.
        point: The values that were drawn, by key.
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
        """Whether what is reported counts; otherwise it is not written to the database: MLflow has the curve."""
        return not isinstance(self.trial.study.pruner, NopPruner)

    def report(self, value: float, epoch: int) -> None:
        """Tells the study how far the trial is.

        Raises:
            RunPrunedError: If it is not worth going on with.
        """
        if not self.prunes:
            return
        self.trial.report(value, epoch)
        if self.trial.should_prune():
            raise RunPrunedError(f"{self.metric} {value:.4f} after epoch {epoch}")

    def ended(self, run_id: str, seconds: float) -> None:
        """Keeps with the trial which run it was, and how long it took."""
        self.trial.set_user_attr("run_id", run_id)
        self.trial.set_user_attr("seconds", round(seconds, 2))

    def failed(self, error: Exception) -> TrialFailedError:
        """Keeps with the trial why it failed; returns what the sweep goes on after."""
        self.trial.set_user_attr(studies.FAILURE, f"{type(error).__name__}: {first_line(error)}")
        return TrialFailedError(str(error))


class Subject(Protocol):
    """What the trials of a study vary."""

    @property
    def tracking(self) -> TrackingConfig:
        """Where its runs are recorded."""
        ...

    @property
    def texts(self) -> Mapping[str, str]:
        """What it is, by the name of the artifact: recorded with the study, which no other one goes on with."""
        ...

    def run(self, turn: Turn) -> float:
        """Runs a trial and returns its objective.

        Raises:
            optuna.TrialPruned: If it was not worth going on with.
            TrialFailedError: If it failed.
            UserError: If no trial could be run, because of a mistake of the user's.
        """
        ...

    def at(self, point: Mapping[str, Any]) -> str | None:
        """YAML that is run to have a point again; ``None`` if there is no such file."""
        ...

    def finish(
        self, config: SweepConfig, study: Study, parent: Run, progress: SweepProgress, best: FrozenTrial
    ) -> list[FinalRun]:
        """Runs what comes after the trials."""
        ...


def trial_name(number: int, point: Mapping[str, Any]) -> str:
    """Names a trial by what differs, shortest first: the MLflow UI cuts names after about 14 characters."""
    return " ".join([f"{number:02d}", *(f"{_initials(key)}{_short(value)}" for key, value in point.items())])


def _initials(key: str) -> str:
    words = key.rpartition(".")[2].split("_")
    return words[0] if len(words) == 1 else "".join(word[0] for word in words)


def _short(value: Any) -> str:
    return f"{value:.1e}".replace("e-0", "e-") if isinstance(value, float) else f"{value}"
