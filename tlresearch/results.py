"""What a run leaves in MLflow: inputs, metrics of each epoch, figures, weights and the model that predicts."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor

from tlresearch.backbones.base import StagedBackbone
from tlresearch.backbones.lineage import CONFIG, TRAINED
from tlresearch.config.load import Loaded, revise
from tlresearch.config.schema import ExperimentConfig, TrackingConfig
from tlresearch.data.base import Data, Split
from tlresearch.errors import UserError
from tlresearch.finetuning.callback import EpochReport, FreezeScheduleCallback
from tlresearch.finetuning.schedule import FreezeSchedule
from tlresearch.serving import save_predictor, servable
from tlresearch.tasks.base import Task
from tlresearch.tracking import figures
from tlresearch.tracking.model import log_model
from tlresearch.tracking.provenance import collect
from tlresearch.tracking.run import TrackedRun
from tlresearch.tracking.store import connect
from tlresearch.tracking.views import save_view

if TYPE_CHECKING:
    from matplotlib.figure import Figure


log = logging.getLogger(__name__)


def fetch(config: TrackingConfig, run_id: str, path: str) -> Path:
    """Returns a local copy of an artifact of another run in the same store."""
    store = connect(config.uri)
    with store.errors():
        return Path(store.client.download_artifacts(run_id, path))


def pin_checkpoint(loaded: Loaded[ExperimentConfig]) -> Loaded[ExperimentConfig]:
    """Replaces ``checkpoint: latest:<name>`` by the id of the newest finished run of that name.

    What is recorded names one run, so that the same config always starts from the same weights.

    Raises:
        UserError: If no finished run has that name.
    """
    wanted = loaded.config.backbone.checkpoint
    if wanted is None or not wanted.startswith("latest:"):
        return loaded
    name = wanted.removeprefix("latest:")
    store = connect(loaded.config.tracking.uri)
    with store.errors():
        ids = [experiment.experiment_id for experiment in store.client.search_experiments()]
        query = f"attributes.run_name = '{name}' and attributes.status = 'FINISHED'"
        found = store.client.search_runs(ids, query, max_results=1, order_by=["attributes.start_time DESC"])
    if not found:
        raise UserError(
            f"backbone.checkpoint: no finished run is named '{name}'; run it first (make run EXP=.../{name}), "
            "or give a run id"
        )
    return revise(loaded, {"backbone.checkpoint": found[0].info.run_id})


def log_provenance(run: TrackedRun, recorded: str, command: Sequence[str]) -> None:
    """Records config, code, versions and hardware, before anything can fail."""
    if run.resumed:
        return
    run.log_text(recorded, CONFIG)
    save_view(
        run.store,
        run.experiment_id,
        metrics=["val/accuracy", "val/loss", "test/accuracy"],
        params=["backbone.name", "freeze.schedule", "freeze.unfreeze_depth", "optimizer.lr"],
    )
    collect(command).log(run)


def log_inputs(run: TrackedRun, data: Data, backbone: StagedBackbone, schedule: FreezeSchedule) -> None:
    """Records data, weights and the planned schedule, before training."""
    if run.resumed:
        return
    weights = backbone.weights
    tags = {
        "tlresearch.data": f"{data.name} {data.fingerprint.digest[:16]}",
        "tlresearch.weights": weights.source,
        "tlresearch.weights_sha256": weights.sha256,
        "tlresearch.stages": ", ".join(backbone.stage_names),
    }
    if weights.random_stages:
        tags["tlresearch.random_stages"] = ", ".join(weights.random_stages)
    if weights.source.startswith("run "):
        tags["tlresearch.parent_run"] = weights.source.removeprefix("run ")
    run.set_tags(tags)
    for name, split in data.splits.items():
        run.log_dataset(
            f"{data.name}/{name}",  # MLflow takes equal names for one data set
            data.fingerprint.digest,
            source=data.name,
            context=name,
            schema={"image": "binary", "label": "string"},
            profile={
                "samples": len(split),
                "fingerprint": data.fingerprint.digest,
                **_per_class(data, split),
            },
        )
    run.log_dict(dict(data.fingerprint.files), "data/files.json")
    if data.skipped:
        run.log_dict(dict(data.skipped), "data/skipped.json")


class EpochLog:
    """Hands each epoch's metrics, rates and trained parameters to MLflow; a listener of the freeze schedule.

    Args:
        run: The run.
        stages: Names of the stages, 0 nearest the input.
    """

    def __init__(self, run: TrackedRun, stages: Sequence[str]) -> None:
        self.run = run
        self.names = [*stages, "head"]

    def __call__(self, report: EpochReport) -> None:
        """Records one epoch."""
        metrics = dict(report.metrics)
        metrics |= {f"lr/{name}": rate for name, rate in zip(self.names, report.rates, strict=True)}
        metrics |= {f"trainable/{name}": float(n) for name, n in zip(self.names, report.trainable, strict=True)}
        self.run.log_metrics(metrics, step=report.epoch)


def log_outcome(
    run: TrackedRun,
    config: ExperimentConfig,
    task: Task,
    data: Data,
    plan: FreezeScheduleCallback,
    metrics: dict[str, float],
    epoch: int,
) -> None:
    """Records the final metrics, figures, weights and model of a finished run."""
    run.log_metrics({name: value for name, value in metrics.items() if name.startswith("test/")}, step=epoch)
    run.log_metrics(
        {f"selected/{name}": value for name, value in metrics.items()} | {"selected/epoch": epoch}, step=epoch
    )
    if config.tracking.figures:
        run.log_figure(schedule_figure(plan), "figures/schedule.png")
        curves = {name: [(e, row[name]) for e, row in enumerate(plan.history)] for name in plan.history[0]}
        run.log_figure(figures.learning_curves(curves, _spans(plan)), "figures/learning_curves.png")
        for path, figure in task.figures(data).items():
            run.log_figure(figure, f"figures/{path}")
    if config.tracking.weights:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / Path(TRAINED).name
            save_file({name: _plain(tensor) for name, tensor in task.changing_state().items()}, file)
            run.log_file(file, str(Path(TRAINED).parent))
    if config.tracking.model and not servable(task):
        log.warning(
            "no model is logged: a head of your own cannot be rebuilt for serving; tracking.model=false says so"
        )
    elif config.tracking.model:
        with tempfile.TemporaryDirectory() as folder:
            save_predictor(Path(folder), config, task, data)
            log_model(
                run,
                Path(folder),
                data.classes,
                loader="tlresearch.serving.load_predictor",
                step=epoch,
                extra_requirements=("timm",) if config.backbone.name.startswith("timm/") else (),
            )


def schedule_figure(plan: FreezeScheduleCallback) -> Figure:
    """Draws what was trained at which rate in each epoch."""
    schedule, starts = plan.schedule, plan.position.starts
    rates = []
    for epoch in range(len(plan.history)):
        phase = max(index for index, start in enumerate(starts[: len(schedule.phases)]) if start <= epoch)
        rates.append(schedule.rates(phase, starts, epoch + 0.5))
    rows = [[row[stage] or None for row in rates] for stage in range(len(schedule.stage_names) + 1)]
    return figures.schedule(_spans(plan), [*schedule.stage_names, "head"], rows)


def _spans(plan: FreezeScheduleCallback) -> list[figures.PhaseSpan]:
    starts = plan.position.starts
    ends = [*starts[1:], len(plan.history)]
    named = zip(plan.schedule.phases, starts, ends, strict=False)
    return [figures.PhaseSpan(phase.name, start, end) for phase, start, end in named if end > start]


def _per_class(data: Data, split: Split) -> dict[str, int]:
    if split.targets.ndim == 2:
        counts = split.targets.sum(0).int()
    else:
        counts = torch.bincount(split.targets, minlength=len(data.classes))
    return {f"samples of {name}": int(count) for name, count in zip(data.classes, counts, strict=True)}


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()
