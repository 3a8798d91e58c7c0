"""The trials of a study: each is one run of the experiment, and the final ones report."""

from __future__ import annotations

import functools
import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.pruners import NopPruner
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from tlresearch.base.errors import RunFailedError, UserError, first_line
from tlresearch.base.liveness import Identity
from tlresearch.config.load import Loaded, revise
from tlresearch.config.schema import ExperimentConfig
from tlresearch.config.search_space import suggest
from tlresearch.config.sweep_schema import SpaceConfig, SweepConfig
from tlresearch.finetuning.callback import EpochReport, RunPrunedError
from tlresearch.run.devices.memory import lasting_objects_spared
from tlresearch.run.fit import Role, RunResult, discard, fit
from tlresearch.run.shared import Shared
from tlresearch.studies.sweeps import study as studies
from tlresearch.studies.sweeps.progress import SweepProgress
from tlresearch.studies.sweeps.storage import said_plainly
from tlresearch.tracking.base import Run

TRIAL_TRACKING = {
    "tracking.figures": False,
    "tracking.model": False,
    "tracking.weights": False,
    "tracking.checkpoint": False,
    "tracking.system_metrics": False,
}
"""Trials record config and metrics; the best one is run again with everything."""
LONGEST_PAUSE = 10.0  # seconds between two looks at what other workers are doing


class TrialFailedError(Exception):
    """A trial ended with an error that is its own; the sweep goes on."""


class _NotOursError(Exception):
    """A trial that another worker runs, or nobody has to."""


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
class Worker:
    """Runs the trials of a study, one after another in this process, and its final runs.

    Any number of them work on one study, on as many machines as reach its database, and none is told what to do: the
    database says what is left.
    """

    config: SweepConfig
    base: Loaded[ExperimentConfig]
    space: dict[str, SpaceConfig]
    study: Study
    parent: Run
    progress: SweepProgress
    identity: Identity = field(default_factory=Identity.own)
    shared: Shared = field(default_factory=Shared)

    @functools.cached_property
    def _base_of_trials(self) -> Loaded[ExperimentConfig]:
        return revise(self.base, TRIAL_TRACKING)

    def standing(self) -> studies.Standing:
        """How far the study is, after trials of workers that are gone have been given back."""
        studies.give_back(self.study, self.identity)
        return studies.standing(self.study.get_trials(deepcopy=False), self.config.trials)

    @lasting_objects_spared()
    def run_all(self, *, wait: bool = True, leave: Callable[[], bool] = lambda: False) -> None:
        """Runs trials until the study has its total.

        Args:
            wait: Whether to wait for trials of other workers, one of which may be given back; otherwise this returns
                as soon as there is none to begin.
            leave: Asked before each trial whether to stop.

        Raises:
            UserError: If a trial cannot be run because of a mistake of the user's.
        """
        waiting_since = None
        while not leave():
            now = self.standing()
            if now.open:
                waiting_since = None
                self.run_next()
            elif now.running and wait:
                if waiting_since is None:
                    waiting_since = time.monotonic()
                    numbers = ", ".join(str(trial.number) for trial in now.running)
                    self.progress.note(f"waiting for other workers: trial {numbers}")
                time.sleep(min(LONGEST_PAUSE, 0.2 + 0.1 * (time.monotonic() - waiting_since)))
                self.progress.catch_up()
            else:
                return

    def run_next(self) -> None:
        """Asks for a trial and runs it, unless it turns out to be one too many."""
        not_ours = False

        def objective(trial: optuna.Trial) -> float:
            nonlocal not_ours
            try:
                if studies.claim(self.study, trial, self.config.trials, self.identity):
                    return self.objective(trial)
            except UpdateFinishedTrialError:
                self.progress.note(f"trial {trial.number} was given to another worker: nothing was heard of this one")
            except (SystemExit, KeyboardInterrupt) as signal:
                trial.set_user_attr(studies.STOPPED, True)
                # On another machine nobody would know before `lost_after` seconds; Optuna does it on Ctrl-C.
                if isinstance(signal, SystemExit):
                    self.study.tell(trial, state=TrialState.FAIL)
                raise
            not_ours = True
            raise _NotOursError

        try:
            callbacks = [self.progress.trial_ended]
            with said_plainly():
                self.study.optimize(objective, n_trials=1, catch=(TrialFailedError, _NotOursError), callbacks=callbacks)
        except ValueError:  # Optuna cannot end a trial that has ended
            if not not_ours:
                raise

    def objective(self, trial: optuna.Trial) -> float:
        """Runs one trial and returns its objective."""
        if trial.user_attrs.get(studies.DEATHS, 0) >= studies.MOST_DEATHS:
            reason = f"{studies.MOST_DEATHS} processes died while they ran it"
            trial.set_user_attr(studies.FAILURE, reason)
            raise TrialFailedError(reason)
        point = suggest(trial, self.space)
        trial.set_user_attr("overrides", point)
        metric = self.config.objective.metric

        def report(epoch: EpochReport) -> None:
            if isinstance(self.study.pruner, NopPruner):
                return  # each report is a write to the database, and MLflow has the curve
            trial.report(epoch.metrics[metric], epoch.epoch)
            if trial.should_prune():
                raise RunPrunedError(f"{metric} {epoch.metrics[metric]:.4f} after epoch {epoch.epoch}")

        def ended(result: RunResult) -> None:
            trial.set_user_attr("run_id", result.run_id)
            trial.set_user_attr("seconds", round(result.seconds, 2))

        tags = {"tlresearch.study": self.config.name, "tlresearch.trial": str(trial.number)}
        role = Role(
            trial_name(trial.number, point),
            self.parent.run_id,
            tags,
            report,
            ended,
            deferred=True,
            shared=self.shared,
            watched={"objective.metric": metric},
        )
        experiment = revise(self._base_of_trials, point)
        try:
            result = fit(experiment, role=role)
        except UpdateFinishedTrialError:
            raise
        except Exception as error:
            if isinstance(error, UserError) and not isinstance(error, RunFailedError):
                raise  # not this trial's fault: when it has been mended, the same command tries the trial again
            self.shared.forget()
            discard(experiment, role)
            trial.set_user_attr(studies.FAILURE, f"{type(error).__name__}: {first_line(error)}")
            raise TrialFailedError(str(error)) from error
        if result.status == "pruned":
            raise optuna.TrialPruned
        value = result.metrics[metric]
        if not math.isfinite(value):
            trial.set_user_attr(studies.FAILURE, f"{metric} is {value} in epoch {result.epoch}")
            raise TrialFailedError(f"{metric} is {value}")
        return value

    def check_complete(self) -> None:
        """Refuses to go on without a completed trial.

        Raises:
            UserError: With the reason of the last failure.
        """
        if not studies.complete(self.study):
            reasons = [
                t.user_attrs[studies.FAILURE] for t in studies.ended(self.study) if studies.FAILURE in t.user_attrs
            ]
            raise UserError(
                f"sweep '{self.config.name}': no trial was completed; "
                + (f"the last one failed: {reasons[-1]}" if reasons else "all were pruned: let the pruner wait longer")
            )

    def finish(self, best: FrozenTrial) -> list[FinalRun]:
        """Runs the best trial again in full, and the baselines; what has been run before is not run again."""
        runs = [self._final("best", self.best_config(best))]
        for name, overrides in self.config.baselines.items():
            runs.append(self._final(name, revise(self.base, overrides)))
        return runs

    def best_config(self, best: FrozenTrial) -> Loaded[ExperimentConfig]:
        """The experiment with the values of a trial."""
        return revise(self.base, best.user_attrs["overrides"])

    def _final(self, name: str, experiment: Loaded[ExperimentConfig]) -> FinalRun:
        key = f"final:{name}"
        identity = hashlib.sha256(experiment.recorded.encode()).hexdigest()
        before = self.study.user_attrs.get(key)
        if before is None or before["identity"] != identity:
            self.progress.note(f"final run: {name}")
            tags = {"tlresearch.study": self.config.name, "tlresearch.final": name}
            result: RunResult = fit(experiment, role=Role(name, self.parent.run_id, tags, test=True))
            before = {"identity": identity, "run_id": result.run_id, "metrics": result.metrics}
            self.study.set_user_attr(key, before)
        return FinalRun(name, before["run_id"], before["metrics"])


def trial_name(number: int, point: dict[str, Any]) -> str:
    """Names a trial by what differs, shortest first: the MLflow UI cuts names after about 14 characters."""
    return " ".join([f"{number:02d}", *(f"{_initials(key)}{_short(value)}" for key, value in point.items())])


def _initials(key: str) -> str:
    words = key.rpartition(".")[2].split("_")
    return words[0] if len(words) == 1 else "".join(word[0] for word in words)


def _short(value: Any) -> str:
    return f"{value:.1e}".replace("e-0", "e-") if isinstance(value, float) else f"{value}"
