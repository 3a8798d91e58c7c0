"""An experiment as the subject of a study: each trial is a run of it; final runs are the best trial and baselines."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.study import Study
from optuna.trial import FrozenTrial

from tlresearch.base.errors import RunFailedError, UserError
from tlresearch.config.load import Loaded, revise
from tlresearch.config.parts import identities
from tlresearch.config.schema import ExperimentConfig, TrackingConfig
from tlresearch.config.sweep_schema import SweepConfig
from tlresearch.finetuning.callback import EpochReport
from tlresearch.run.fit import Role, RunResult, discard, fit
from tlresearch.run.shared import Shared
from tlresearch.studies.sweeps.progress import SweepProgress
from tlresearch.studies.sweeps.subject import FinalRun, Turn
from tlresearch.tracking.base import Run

TRIAL_TRACKING = {
    "tracking.figures": False,
    "tracking.model": False,
    "tracking.weights": False,
    "tracking.checkpoint": False,
    "tracking.system_metrics": False,
}
"""Trials record only config and metrics; the best trial is run again with everything."""


@dataclass(frozen=True)
class Experiment:
    """An experiment that trials vary by overrides.

    Attributes:
        base: The experiment.
        shared: Data and backbone that the trials of this process share.
    """

    base: Loaded[ExperimentConfig]
    shared: Shared = field(default_factory=Shared)

    @property
    def tracking(self) -> TrackingConfig:
        """Tracking options of the experiment."""
        return self.base.config.tracking

    @property
    def texts(self) -> Mapping[str, str]:
        """The YAML of the experiment, and where the code of parts by dotted path comes from."""
        own = identities(self.base.config)
        return {"experiment.yaml": self.base.recorded, **({"parts.json": json.dumps(own, indent=1)} if own else {})}

    @functools.cached_property
    def _base_of_trials(self) -> Loaded[ExperimentConfig]:
        return revise(self.base, TRIAL_TRACKING)

    def run(self, turn: Turn) -> float:
        """Fits the experiment with the trial's values; returns the metric of the selected epoch."""

        def report_epoch(epoch: EpochReport) -> None:
            turn.report(epoch.metrics[turn.metric], epoch.epoch)

        def record_end(result: RunResult) -> None:
            turn.ended(result.run_id, result.seconds)

        role = Role(
            turn.name,
            turn.parent,
            turn.tags,
            report_epoch,
            record_end,
            deferred=True,
            shared=self.shared,
            watched={"objective.metric": turn.metric},
        )
        experiment = revise(self._base_of_trials, turn.point)
        try:
            result = fit(experiment, role=role)
        except UpdateFinishedTrialError:
            raise
        except Exception as error:
            if isinstance(error, UserError) and not isinstance(error, RunFailedError):
                raise  # not the trial's fault: once the user has corrected it, the same command tries the trial again
            self.shared.forget()
            discard(experiment, role)
            raise turn.failed(error) from error
        if result.status == "pruned":
            raise optuna.TrialPruned
        return result.metrics[turn.metric]

    def at(self, point: Mapping[str, Any]) -> str:
        """Returns the YAML of the experiment with the values of a point."""
        return revise(self.base, point).recorded

    def finish(
        self, config: SweepConfig, study: Study, parent: Run, progress: SweepProgress, best: FrozenTrial
    ) -> list[FinalRun]:
        """Runs the best trial again in full, and the baselines, except those that an earlier call has run."""
        runs = {"best": best.user_attrs["overrides"], **config.baselines}
        finals = []
        for name, overrides in runs.items():
            experiment, key = revise(self.base, overrides), f"final:{name}"
            identity = hashlib.sha256(experiment.recorded.encode()).hexdigest()
            # The study keeps the result of a final run. It is run again only if its config has changed, such as after
            # more trials with another best one.
            stored = study.user_attrs.get(key)
            if stored is None or stored["identity"] != identity:
                progress.note(f"final run: {name}")
                tags = {"tlresearch.study": config.name, "tlresearch.final": name}
                result: RunResult = fit(experiment, role=Role(name, parent.run_id, tags, test=True))
                stored = {"identity": identity, "run_id": result.run_id, "metrics": result.metrics}
                study.set_user_attr(key, stored)
            finals.append(FinalRun(name, stored["run_id"], stored["metrics"]))
        return finals
