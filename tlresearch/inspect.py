"""What a backbone is made of and what an experiment will do, before anything trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from tlresearch.backbones.base import StagedBackbone
from tlresearch.backbones.build import FAMILIES, OURS, build_backbone
from tlresearch.backbones.describe import describe_stages
from tlresearch.config.load import Loaded, load_experiment
from tlresearch.config.schema import BackboneConfig, ExperimentConfig
from tlresearch.data.base import Preprocessing
from tlresearch.data.transforms import resized
from tlresearch.data.values import leaves
from tlresearch.errors import UserError
from tlresearch.finetuning import lora
from tlresearch.finetuning.param_groups import apply_phase
from tlresearch.finetuning.presets import build_schedule
from tlresearch.finetuning.schedule import FreezeSchedule
from tlresearch.tasks.build import needed_end


def inspect_anything(what: str, overrides: Sequence[str], console: Console) -> None:
    """Shows a backbone such as ``torchvision/resnet50``, or an experiment by name or path.

    Raises:
        UserError: If it is neither.
    """
    is_experiment = what.endswith(".yaml") or Path("experiments", f"{what}.yaml").is_file()
    if is_experiment or not (what in OURS or what.partition("/")[0] in FAMILIES):
        loaded = load_experiment(what, overrides)
        backbone = _skeleton(loaded.config)
        schedule = build_schedule(loaded.config, backbone.stage_names)
        console.print(stage_table(loaded.config.backbone, backbone, loaded.config.data.image_size))
        if schedule.adapters:
            lora.inject(backbone, **asdict(loaded.config.freeze.lora))
        console.print(plan_table(loaded, backbone, schedule))
        return
    config = BackboneConfig(name=what, weights=None)
    for override in overrides:
        key, _, value = override.removeprefix("backbone.").partition("=")
        if key != "granularity" or value not in ("stage", "block"):
            raise UserError(f"inspect: of a backbone only granularity=stage or block can be given, not '{override}'")
        config.granularity = "block" if value == "block" else "stage"
    console.print(stage_table(config, build_backbone(config), None))


def stage_table(config: BackboneConfig, backbone: StagedBackbone, image_size: int | None) -> Table:
    """Stages with parameters and output shape, and from which unfreeze depth on each is trained."""
    preprocessing = backbone.preprocessing
    if isinstance(preprocessing, Preprocessing):
        preprocessing = resized(preprocessing, image_size)
    example = preprocessing.example()
    given = " x ".join(map(str, max(leaves(example).values(), key=torch.numel).shape))
    table = Table(
        title=f"{config.name}: {len(backbone.stage_names)} stages at {config.granularity} granularity, input {given}",
        title_justify="left",
        title_style="bold",
    )
    for column in ("stage", "name", "parameters", "output", "trained from depth", "trained at that depth"):
        table.add_column(column, justify="left" if column in ("name", "output") else "right")
    rows = describe_stages(backbone, example)
    for number, row in enumerate(rows):
        trained = sum(later.parameters for later in rows[number:])
        table.add_row(
            str(number),
            row.name,
            f"{row.parameters:,}",
            " x ".join(map(str, row.output_shape)),
            str(len(rows) - number),
            f"{trained:,}",
        )
    table.add_section()
    table.add_row("", "all", f"{sum(row.parameters for row in rows):,}", "", "", "the head is trained at every depth")
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


def _skeleton(config: ExperimentConfig) -> StagedBackbone:
    """The backbone with random weights: its stages are all that is looked at."""
    return build_backbone(replace(config.backbone, weights=None, checkpoint=None), needed_end(config.task))
