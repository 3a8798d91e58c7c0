"""What a backbone is made of, what an experiment will do, and what became of each stage of a recorded run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from tlresearch.backbones.base import StagedBackbone
from tlresearch.backbones.build import FAMILIES, OURS, build_backbone
from tlresearch.backbones.describe import describe_stages
from tlresearch.base.errors import TrackingError, UserError
from tlresearch.config.load import Loaded, load_experiment
from tlresearch.config.schema import BackboneConfig, ExperimentConfig
from tlresearch.data.values import Value, leaves
from tlresearch.finetuning import lora
from tlresearch.finetuning.param_groups import apply_phase
from tlresearch.finetuning.presets import build_schedule
from tlresearch.finetuning.schedule import FreezeSchedule
from tlresearch.tasks.build import needed_end
from tlresearch.tracking.records import find_run
from tlresearch.tracking.store import connect
from tlresearch.understand.inspection.cost import STATES, depth_costs, multiply_adds
from tlresearch.understand.inspection.report import inspect_run, schedule_picture

if TYPE_CHECKING:
    from mlflow.entities import Run


def inspect_anything(
    what: str,
    overrides: Sequence[str],
    console: Console,
    *,
    saliency: int = 0,
    items: Sequence[str] = (),
    picture: Path | None = None,
) -> None:
    """Shows a backbone such as ``torchvision/resnet50``, an experiment by name or path, or a recorded run.

    Args:
        what: Which; what is neither a backbone nor an experiment is looked for among the runs.
        overrides: ``key=value`` for a backbone or an experiment.
        console: Where it is shown.
        saliency: Number of images of a run that are explained.
        items: Names of samples of a run that are explained.
        picture: Where the schedule of an experiment, or the figure of a run, is drawn.

    Raises:
        UserError: If it is none of them.
    """
    is_experiment = what.endswith(".yaml") or Path("experiments", f"{what}.yaml").is_file()
    is_backbone = not is_experiment and (what in OURS or what.partition("/")[0] in FAMILIES)
    if not is_backbone and not is_experiment and not overrides and "/" not in what:
        inspect_run(_run(what), console, saliency=saliency, names=items, picture=picture)
        return
    if saliency or items:
        raise UserError(f"inspect: --saliency and --items are for a recorded run, but '{what}' is none")
    if not is_backbone:
        loaded = load_experiment(what, overrides)
        config = loaded.config
        backbone = _skeleton(config)
        schedule = build_schedule(config, backbone.stage_names)
        console.print(stage_table(config.backbone, backbone, config.data.image_size))
        console.print(memory_table(backbone, _example(backbone, config.data.image_size), config))
        if schedule.adapters:
            lora.inject(backbone, **asdict(loaded.config.freeze.lora))
        console.print(plan_table(loaded, backbone, schedule))
        if picture is not None:
            schedule_picture(schedule).savefig(picture, dpi=150)
            console.print(f"schedule drawn: {picture}", highlight=False)
        return
    if picture is not None:
        raise UserError("inspect: --picture draws the schedule of an experiment, or what became of a run")
    alone = BackboneConfig(name=what, weights=None)
    for override in overrides:
        key, _, value = override.removeprefix("backbone.").partition("=")
        if key != "granularity" or value not in ("stage", "block"):
            raise UserError(f"inspect: of a backbone only granularity=stage or block can be given, not '{override}'")
        alone.granularity = "block" if value == "block" else "stage"
    backbone = build_backbone(alone)
    console.print(stage_table(alone, backbone, None))
    console.print(memory_table(backbone, _example(backbone, None), ExperimentConfig()))


def stage_table(config: BackboneConfig, backbone: StagedBackbone, image_size: int | None) -> Table:
    """Stages with parameters, work and output shape, and from which unfreeze depth on each is trained."""
    example = _example(backbone, image_size)
    given = " x ".join(map(str, max(leaves(example).values(), key=torch.numel).shape))
    table = Table(
        title=f"{config.name}: {len(backbone.stage_names)} stages at {config.granularity} granularity, input {given}",
        title_justify="left",
        title_style="bold",
    )
    for column in ("stage", "name", "parameters", "multiply-adds", "output", "trained from depth", "parameters then"):
        table.add_column(column, justify="left" if column in ("name", "output") else "right")
    rows = describe_stages(backbone, example)
    work = multiply_adds(backbone, example)
    for number, row in enumerate(rows):
        trained = sum(later.parameters for later in rows[number:])
        table.add_row(
            str(number),
            row.name,
            f"{row.parameters:,}",
            f"{work[number] / 1e6:,.1f} M",
            " x ".join(map(str, row.output_shape)),
            str(len(rows) - number),
            f"{trained:,}",
        )
    table.add_section()
    everything = sum(row.parameters for row in rows)
    table.add_row("", "all", f"{everything:,}", f"{sum(work) / 1e6:,.1f} M", "", "", "and the head")
    return table


def memory_table(backbone: StagedBackbone, example: Value, config: ExperimentConfig) -> Table:
    """Memory of a training step at each unfreeze depth, with the optimizer and batch size of an experiment."""
    optimizer, batch = config.optimizer, config.data.batch_size
    state = STATES[optimizer.name]
    if optimizer.name == "sgd" and not optimizer.momentum:
        state = 0
    elif optimizer.name == "rmsprop" and optimizer.momentum:
        state = 2
    table = Table(
        title=f"memory of a training step in MB: float32, batch of {batch}, {optimizer.name}",
        title_justify="left",
        title_style="bold",
    )
    for column in ("depth", "trained from", "weights", "gradients", "optimizer", "activations of a batch", "together"):
        table.add_column(column, justify="left" if column == "trained from" else "right")
    for cost in depth_costs(backbone, example, state):
        sizes = (cost.weights, cost.gradients, cost.state, batch * cost.activations, cost.total(batch))
        first = [*backbone.stage_names, "head"][len(backbone.stages) - cost.depth]
        table.add_row(str(cost.depth), first, *(f"{size / 1e6:,.1f}" for size in sizes))
    return table


def plan_table(loaded: Loaded[ExperimentConfig], backbone: StagedBackbone, schedule: FreezeSchedule) -> Table:
    """Phases with what is trained, at which rates, and what frozen norm layers do."""
    table = Table(
        title=f"{loaded.config.name}: freeze schedule {loaded.config.freeze.schedule}, {schedule.max_epochs} epochs, "
        f"rate {schedule.course.name}",
        title_justify="left",
        title_style="bold",
    )
    for column in ("phase", "epochs", "stage", "trained", "highest rate", "last rate", "frozen norm"):
        table.add_column(column, justify="left" if column in ("phase", "stage", "frozen norm") else "right")
    for index, (phase, start) in enumerate(zip(schedule.phases, schedule.starts, strict=True)):
        end = start + phase.epochs
        apply_phase(phase, backbone, nn.Identity())
        sizes = [sum(p.numel() for p in stage.parameters() if p.requires_grad) for stage in backbone.stages]
        first = schedule.rates(index, schedule.starts, start + min(phase.warmup_epochs, phase.epochs))
        last = schedule.rates(index, schedule.starts, end - 1e-6)
        names = [*schedule.stage_names, "head"]
        shown = [number for number in range(len(names)) if phase.trains(number)]
        until = f" or until {phase.until.metric} stalls" if phase.until else ""
        for line, number in enumerate(reversed(shown)):
            part = f" ({', '.join(phase.patterns)})" if phase.patterns and number < len(sizes) else ""
            table.add_row(
                phase.name if line == 0 else "",
                f"{start + 1}-{end}{until}" if line == 0 else "",
                f"{names[number]}{part}",
                f"{sizes[number]:,}" if number < len(sizes) else "",
                _rate(first[number]),
                _rate(last[number]),
                (phase.frozen_norm if phase.boundary else "-") if line == 0 else "",
            )
        table.add_section()
    return table


def _rate(rate: float) -> str:
    return f"{rate:.3g}" if rate > 1e-12 else "0"


def _run(what: str) -> Run:
    try:
        return find_run(connect(), what)
    except TrackingError as error:
        raise UserError(f"inspect: '{what}' is no backbone, no experiment under experiments/, and {error}") from None


def _example(backbone: StagedBackbone, image_size: int | None) -> Value:
    """An input of one sample, of the size that the experiment gives images."""
    return backbone.preprocessing.sized(image_size).example()


def _skeleton(config: ExperimentConfig) -> StagedBackbone:
    """The backbone with random weights: its stages are all that is looked at."""
    return build_backbone(replace(config.backbone, weights=None, checkpoint=None), needed_end(config.task))
