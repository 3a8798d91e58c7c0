"""Records the training of any LightningModule in MLflow, as runs of experiments are: ``tlresearch.Track``."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from safetensors.torch import save_file

from tlresearch.config.schema import TrackingConfig
from tlresearch.finetuning.callback import EpochReport, FreezeScheduleCallback
from tlresearch.finetuning.foreign import FreezeSchedule
from tlresearch.run.member import Member, current
from tlresearch.run.results import EpochLog, schedule_figure
from tlresearch.tracking.base import Run
from tlresearch.tracking.provenance import collect
from tlresearch.tracking.records import TRAINED
from tlresearch.tracking.run import open_run

SCHEDULE = "freeze_schedule.json"
"""Artifact: the phases with their stages, rates and lengths."""


class Track(L.Callback):
    """Records a training: its schedule, code, versions and hardware, metrics of each epoch, rates and sizes of each
    stage, how it ended, and its weights.

    In an objective of `tlresearch.sweep` it writes into the run of the trial, which belongs to the study, and tells the
    study of each epoch: `experiment`, `name`, `uri` and `system_metrics` are then the study's.

    The run begins with the first step. A training that goes on from a checkpoint goes on in the same run; what the
    checkpoint's epochs have recorded is not stored twice.

    Args:
        experiment: MLflow experiment.
        name: Name of the run; ``None`` takes the name of the module's class.
        uri: MLflow tracking URI; ``None`` takes ``MLFLOW_TRACKING_URI``, else a local SQLite store.
        tags: Tags of your own.
        weights: Whether the weights are kept at the end.
        figures: Whether the schedule is drawn at the end.
        system_metrics: Whether processor, memory and disk use are recorded.
    """

    def __init__(
        self,
        experiment: str,
        *,
        name: str | None = None,
        uri: str | None = None,
        tags: Mapping[str, str] | None = None,
        weights: bool = True,
        figures: bool = True,
        system_metrics: bool = True,
    ) -> None:
        self.config = TrackingConfig(uri=uri, tags=dict(tags or {}), system_metrics=system_metrics)
        self.experiment = experiment
        self.name = name
        self.weights = weights
        self.figures = figures
        self.run: Run | None = None
        self._run_id = ""
        self._member: Member | None = None
        self._plan: FreezeScheduleCallback | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listens to the freeze schedule of the trainer, if it has one."""
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        self._plan = next((callback for callback in callbacks if isinstance(callback, FreezeScheduleCallback)), None)

        def record(report: EpochReport) -> None:
            if trainer.is_global_zero and self._plan is not None:
                EpochLog(self._open(trainer, pl_module), self._plan.parts.names[:-1])(report)
                self._tell(report.metrics, report.epoch)

        if self._plan is not None:
            self._plan.listeners = (*self._plan.listeners, record)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Opens the run, when all that can be refused has been looked at."""
        if trainer.is_global_zero:
            self._open(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Records the epoch's metrics where no freeze schedule reports them."""
        if self.run is not None and self._plan is None:
            metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
            self.run.log_metrics(metrics, step=trainer.current_epoch)
            self._tell(metrics, trainer.current_epoch)

    def _tell(self, metrics: Mapping[str, float], epoch: int) -> None:
        """Tells the study of an epoch, if this is the trial's run."""
        if self._member is not None:
            self._member.heard(metrics, epoch)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Writes what waits, so that no epoch in a checkpoint is unrecorded."""
        if self.run is not None:
            self.run.flush()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Records figures and weights."""
        if self.run is None:
            return
        if self.figures and self._plan is not None and self._plan.history:
            self.run.log_figure(schedule_figure(self._plan), "figures/schedule.png")
        if self.weights:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / Path(TRAINED).name
                save_file({name: tensor.cpu().clone() for name, tensor in pl_module.state_dict().items()}, file)
                self.run.log_file(file, str(Path(TRAINED).parent))

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Ends the run."""
        if self.run is not None and self._member is None:
            self.run.close()
        self.run = None

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Ends the run as killed or failed, with the reason."""
        if self.run is not None and self._member is None:
            self.run.__exit__(type(exception), exception, exception.__traceback__)
        self.run = None

    def state_dict(self) -> dict[str, Any]:
        """The run that a training resumed from the checkpoint continues."""
        return {"run_id": self.run.reference if self.run is not None else self._run_id}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave."""
        self._run_id = state_dict["run_id"]

    def _open(self, trainer: L.Trainer, module: L.LightningModule) -> Run:
        if self.run is not None:
            return self.run
        kind, trial = type(module), current()
        params = {**_settings(trainer, module), **self._schedule_settings()}
        tags = {"tlresearch.module": f"{kind.__module__}.{kind.__qualname__}"}
        if trial is not None and not trial.written:
            trial.written, self._member, self.run = True, trial, trial.run
            self.run.log_params(params)
            self.run.set_tags({**self.config.tags, **tags})
        else:
            self.run = open_run(
                self.config,
                experiment=self.experiment,
                name=self.name or kind.__name__,
                params=params,
                tags=tags,
                parent=trial.run.reference if trial else None,
                run_id=self._run_id or None,
                deferred=trial is not None,
            )
        if not self._run_id:
            if self._plan is not None:
                self.run.log_text(json.dumps(_phases(self._plan), indent=2), SCHEDULE)
                self.run.set_tags({"tlresearch.stages": ", ".join(self._plan.parts.names[:-1])})
            collect().log(self.run)
        self._run_id = self.run.reference
        return self.run

    def _schedule_settings(self) -> dict[str, Any]:
        if not isinstance(self._plan, FreezeSchedule):
            return {}
        sections = self._plan.settings.items()
        flat = {f"{section}.{key}": value for section, values in sections for key, value in values.items()}
        return {**flat, "freeze.epochs": self._plan.schedule.max_epochs, "seed": self._plan.seed}


def _settings(trainer: L.Trainer, module: L.LightningModule) -> dict[str, Any]:
    """What a comparison of runs shows: the optimizer, the trainer, and the hyperparameters the module has saved."""
    optimizer = trainer.optimizers[0] if trainer.optimizers else None
    return {
        "optimizer.name": type(getattr(optimizer, "optimizer", optimizer)).__name__,
        "schedulers": ", ".join(type(config.scheduler).__name__ for config in trainer.lr_scheduler_configs) or None,
        "trainer.max_epochs": trainer.max_epochs,
        "trainer.precision": trainer.precision,
        "trainer.devices": trainer.num_devices,
        "trainer.accumulate": trainer.accumulate_grad_batches,
        "trainer.gradient_clip": trainer.gradient_clip_val,
        **{f"hparams.{key}": value for key, value in dict(module.hparams).items()},
    }


def _phases(plan: FreezeScheduleCallback) -> list[dict[str, Any]]:
    names = plan.parts.names
    return [
        {
            "phase": phase.name,
            "epochs": phase.epochs,
            "trained": [name for number, name in enumerate(names) if phase.trains(number)],
            "parameters": list(phase.patterns),
            "rates": dict(zip(names, phase.rates, strict=True)),
            "until": None if phase.until is None else phase.until.metric,
        }
        for phase in plan.schedule.phases
    ]
