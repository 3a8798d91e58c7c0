"""What a run leaves in MLflow: inputs, metrics of each epoch, figures, weights and the model that predicts."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file
from torch import Tensor

from tlresearch.base.errors import TrackingError, WeightsError
from tlresearch.base.ranks import is_leader
from tlresearch.config.load import Loaded, revise
from tlresearch.config.parts import identities
from tlresearch.config.schema import ExperimentConfig
from tlresearch.data.base import Data
from tlresearch.finetuning.callback import EpochReport, FreezeScheduleCallback
from tlresearch.run.autotune import Tuned
from tlresearch.run.training import Built, Training
from tlresearch.serving.stored import save_predictor
from tlresearch.show.elements import typed
from tlresearch.tasks.base import Task
from tlresearch.tasks.build import declared
from tlresearch.tasks.metric_names import renamed
from tlresearch.tracking import figures, records
from tlresearch.tracking.base import Run
from tlresearch.tracking.loaders import LOADER
from tlresearch.tracking.model import log_model
from tlresearch.tracking.provenance import collect
from tlresearch.tracking.records import CONFIG, TRAINED, Runs
from tlresearch.tracking.run import JournalRun
from tlresearch.tracking.views import save_view

if TYPE_CHECKING:
    from matplotlib.figure import Figure


log = logging.getLogger(__name__)

PACKAGES: Mapping[str, tuple[str, ...]] = {"timm": ("timm",), "hf": ("transformers",), "log_mel": ("transformers",)}
"""Packages that a served model needs for its backbone's family; tasks and modalities name their own."""

CHECKPOINT = "checkpoint/last.ckpt"
"""Artifact of a run: the state of training after its last epoch."""
TEST_EVALUATIONS = "tlresearch.test_evaluations"
"""Tag of a run: how often its test split was evaluated; missing where it never was."""


def pin_checkpoint(loaded: Loaded[ExperimentConfig], runs: Runs) -> Loaded[ExperimentConfig]:
    """Replaces ``checkpoint: latest:<name>`` by one run's id, and a group's id by that of its run with the same seed.

    What is recorded names one run, so that the same config always starts from the same weights.

    Raises:
        WeightsError: If no finished run has that name, or the group has no run with the seed.
    """
    loaded = pin_latest(loaded, runs)
    source, seed = loaded.config.backbone.checkpoint, loaded.config.seed
    if source is None:
        return loaded
    try:
        group = runs.get(source)
    except TrackingError:
        return loaded  # there is no such run: whoever loads its weights says so
    if not group.is_group:
        return loaded
    if seed not in group.seeds:
        known = ", ".join(map(str, group.seeds))
        raise WeightsError(f"backbone.checkpoint: group {source} has no run with seed {seed}; it has {known}")
    return revise(loaded, {"backbone.checkpoint": group.seeds[seed].run_id})


def pin_latest(loaded: Loaded[ExperimentConfig], runs: Runs) -> Loaded[ExperimentConfig]:
    """Replaces ``checkpoint: latest:<name>`` by the id of the newest finished run, or group, of that name.

    Raises:
        WeightsError: If there is none.
    """
    wanted = loaded.config.backbone.checkpoint
    if wanted is None or not wanted.startswith("latest:"):
        return loaded
    name = wanted.removeprefix("latest:")
    newest = runs.latest(name)
    if newest is None:
        raise WeightsError(
            f"backbone.checkpoint: no finished run is named '{name}'; run it first ({typed('run', f'…/{name}')}), "
            "or give a run id"
        )
    return revise(loaded, {"backbone.checkpoint": newest.run_id})


def log_provenance(run: Run, loaded: Loaded[ExperimentConfig], command: Sequence[str]) -> None:
    """Records config, parts by dotted path, code, versions and hardware, before anything can fail."""
    run.log_text(loaded.recorded, CONFIG)
    if own := identities(loaded.config):
        run.log_dict(own, records.PARTS)
    collect(command).log(run)


def save_run_view(run: JournalRun, monitor: str) -> None:
    """Shows what runs are compared by in the UI's table of the experiment; a study saves a view of its own."""
    save_view(
        run.store,
        run.experiment_id,
        metrics=[monitor, "val/loss", f"test/{monitor.partition('/')[2]}"],
        params=["backbone.name", "freeze.schedule", "freeze.unfreeze_depth", "optimizer.lr"],
    )


def log_inputs(run: Run, config: ExperimentConfig, built: Built) -> None:
    """Records data, weights, and what the task says of its metrics, before training."""
    data, backbone, task, weights = built.data, built.backbone, built.task, built.backbone.weights
    tags = {
        "tlresearch.data": f"{data.name} {data.fingerprint.digest[:16]}",
        "tlresearch.weights": weights.source,
        "tlresearch.weights_sha256": weights.sha256,
        "tlresearch.stages": ", ".join(backbone.stage_names),
        records.DIRECTIONS: json.dumps(dict(declared(config.task))),
        records.MONITOR: config.trainer.monitor,
        "tlresearch.cut": backbone.way,
    }
    if weights.random_stages:
        tags["tlresearch.random_stages"] = ", ".join(weights.random_stages)
    if weights.prefix:
        tags["tlresearch.weights_prefix"] = weights.prefix
    if weights.source.startswith("run "):
        tags["tlresearch.parent_run"] = weights.source.removeprefix("run ")
    run.set_tags(tags)
    for name, split in data.splits.items():
        run.log_dataset(
            f"{data.name}/{name}",  # MLflow takes equal names for one data set
            data.fingerprint.digest,
            source=data.name,
            context=name,
            schema={(data.preprocessing or backbone.preprocessing).sample: "binary", **_target_columns(data)},
            profile={
                "samples": len(split),
                "fingerprint": data.fingerprint.digest,
                **task.profile(data, name),
            },
        )
    run.log_text(data.fingerprint.listing, records.DATA_FILES)
    if changed := renamed(task.class_parts):
        run.log_dict(changed, records.CLASS_NAMES)
    if data.skipped:
        run.log_dict(dict(data.skipped), "data/skipped.json")
    if data.passed:
        run.log_dict(dict(data.passed), "data/passed_over.json")


def log_computation(run: Run, about: Mapping[str, Any], tuned: Tuned) -> None:
    """Records threads, precision and device, which a repetition sets or compares, and why they were chosen."""
    run.log_dict(about, records.COMPUTATION)
    run.set_tags({f"resolved.{key}": value for key, value in tuned.settings().items()})
    if tuned.times:
        run.log_dict(tuned.times, records.TIMES)


def count_test(run: Run) -> None:
    """Records that the test split is evaluated now; more than one time means that a process died over it."""
    if is_leader():
        run.count(TEST_EVALUATIONS)


class EpochLog:
    """Hands each epoch's metrics, and rates, sizes and gradients of the stages, to MLflow; listens to the schedule.

    A frozen stage has none of them: its series begin when it is trained. Sizes are recorded where they can change, in
    the first and the last epoch of a phase.

    Args:
        run: The run.
        stages: Names of the stages, 0 nearest the input.
    """

    def __init__(self, run: Run, stages: Sequence[str]) -> None:
        self.run = run
        self.names = [*stages, "head"]

    def __call__(self, report: EpochReport) -> None:
        """Records one epoch."""
        metrics = dict(report.metrics)
        at_edge = report.phase_end or report.epoch == report.phase_start  # of its phase
        for name, rate, size, norm in zip(self.names, report.rates, report.trainable, report.gradients, strict=True):
            if size:
                metrics |= {f"lr/{name}": rate, f"gradient_norm/{name}": norm}
                if at_edge:
                    metrics[f"trainable/{name}"] = float(size)
        self.run.log_metrics(metrics, step=report.epoch)


def log_outcome(
    run: Run, how: Training, built: Built, metrics: Mapping[str, float], epoch: int, checkpoint: Path
) -> None:
    """Records the final metrics, figures, weights, last state and model of a finished run.

    Args:
        run: The run.
        how: How it was trained.
        built: What it is made of.
        metrics: Metrics of the selected epoch and of the test.
        epoch: The selected epoch.
        checkpoint: The last state of training, if it was written.
    """
    tracking, plan, task, data = how.config.tracking, how.plan, built.task, built.data
    run.log_metrics({name: value for name, value in metrics.items() if name.startswith("test/")}, step=epoch)
    run.log_metrics(
        {f"selected/{name}": value for name, value in metrics.items()} | {"selected/epoch": epoch}, step=epoch
    )
    items = task.items(data)
    # Validation was predicted in each epoch; without figures, what is left is the last one's, whichever is kept.
    if items and (items.split == "test" or tracking.figures or epoch == len(plan.history) - 1):
        run.log_text(items.text(), items.path)
    if tracking.figures:
        run.log_figure(schedule_figure(plan), "figures/schedule.png")
        curves = {name: [(e, row[name]) for e, row in enumerate(plan.history)] for name in plan.history[0]}
        run.log_figure(figures.learning_curves(curves, _spans(plan)), "figures/learning_curves.png")
        for path, figure in task.figures(data).items():
            run.log_figure(figure, f"figures/{path}")
    if tracking.weights:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / Path(TRAINED).name
            save_file({name: _plain(tensor) for name, tensor in task.changing_state().items()}, file)
            run.log_file(file, str(Path(TRAINED).parent))
    if tracking.checkpoint and checkpoint.exists():
        run.log_file(checkpoint, str(Path(CHECKPOINT).parent))
    if tracking.model:
        _log_predictor(run, how.config, task, data, epoch)


def _log_predictor(run: Run, config: ExperimentConfig, task: Task, data: Data, epoch: int) -> None:
    if task.predictor is None:
        log.warning("no model is logged: the task has no predictor; tracking.model=false says so")
        return
    if config.data.eval_transforms:
        log.warning("no model is logged: it would not have data.eval_transforms; tracking.model=false says so")
        return
    modality = data.preprocessing or task.backbone.preprocessing
    family = config.backbone.name.partition("/")[0]
    with tempfile.TemporaryDirectory() as folder:
        save_predictor(Path(folder), config, task, data)
        log_model(
            run,
            Path(folder),
            data.classes,
            loader=LOADER,
            columns=task.served_columns,
            step=epoch,
            extra_requirements=list(dict.fromkeys((*PACKAGES.get(family, ()), *modality.packages, *task.packages))),
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


def _target_columns(data: Data) -> dict[str, str]:
    return dict.fromkeys(data.classes, "double") if data.kind == "numbers" else {"label": "string"}


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()
