"""What a backbone is made of, what an experiment will do, and what became of each stage of a recorded run."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from tlresearch.backbones.base import StagedBackbone
from tlresearch.backbones.build import build_backbone
from tlresearch.backbones.describe import describe_stages
from tlresearch.base.errors import TrackingError, UserError
from tlresearch.base.paths import is_yaml
from tlresearch.config.catalogue import BACKBONES
from tlresearch.config.load import Loaded, load_experiment
from tlresearch.config.schema import BackboneConfig, ExperimentConfig
from tlresearch.data.base import SplitName
from tlresearch.finetuning import lora
from tlresearch.finetuning.param_groups import apply_phase
from tlresearch.finetuning.parts import staged_parts
from tlresearch.finetuning.presets import build_schedule
from tlresearch.finetuning.schedule import FreezeSchedule
from tlresearch.modality.values import Value, leaves
from tlresearch.run.recorded import RecordedRun, load
from tlresearch.show.elements import Column, Element, Entry, Facts, Figure, Note, Table, numbers, typed
from tlresearch.show.page import Page, page_of
from tlresearch.tasks.build import needed_end
from tlresearch.tracking import figures
from tlresearch.tracking.records import Record
from tlresearch.understand.inspection.cost import depth_costs, multiply_adds, state_values
from tlresearch.understand.inspection.saliency import Saliency, choose, explain, saliency_figure
from tlresearch.understand.inspection.stages import stage_changes, stages_figure, stages_table

if TYPE_CHECKING:
    import matplotlib.figure

STAGES = "inspection/stages.json"
STAGES_FIGURE = "figures/stages.png"
SALIENCY_FIGURE = "figures/saliency.png"


def inspect(
    what: str | Record,
    overrides: Sequence[str] = (),
    *,
    saliency: int = 0,
    items: Sequence[str] = (),
    picture: Path | None = None,
) -> Page:
    """The page of a backbone such as ``torchvision/resnet50``, an experiment by name or path, or a recorded run.

    Args:
        what: Which; what is neither a backbone nor an experiment is looked for among the runs. Or a run itself.
        overrides: ``key=value`` for a backbone or an experiment.
        saliency: Number of images of a run that are explained.
        items: Names of samples of a run that are explained.
        picture: Where the schedule of an experiment, or the figure of a run, is drawn.

    Raises:
        UserError: If it is none of them.
    """
    if isinstance(what, Record):
        return inspect_run(what, saliency=saliency, names=items, picture=picture)
    is_experiment = what.endswith(".yaml") or is_yaml(what, "experiments")
    is_backbone = not is_experiment and what in BACKBONES
    if not is_backbone and not is_experiment and not overrides and "/" not in what:
        try:
            run = load(what)
        except TrackingError as error:
            raise UserError(
                f"inspect: '{what}' is no backbone, no experiment under experiments/, and {error}"
            ) from None
        return inspect_run(run, saliency=saliency, names=items, picture=picture)
    if saliency or items:
        raise UserError(f"inspect: --saliency and --items are for a recorded run, but '{what}' is none")
    if not is_backbone:
        return inspect_experiment(load_experiment(what, overrides), picture)
    if picture is not None:
        raise UserError("inspect: --picture draws the schedule of an experiment, or what became of a run")
    return inspect_backbone(what, overrides)


def inspect_backbone(name: str, overrides: Sequence[str]) -> Page:
    """The stages of a backbone and what training them takes, without any experiment."""
    config = BackboneConfig(name=name, weights=None)
    for override in overrides:
        key, _, value = override.removeprefix("backbone.").partition("=")
        if key != "granularity" or value not in ("stage", "block"):
            raise UserError(f"inspect: of a backbone only granularity=stage or block can be given, not '{override}'")
        config.granularity = "block" if value == "block" else "stage"
    backbone = build_backbone(config)
    memory = memory_table(backbone, _example(backbone, None), ExperimentConfig())
    return page_of("", stage_table(config, backbone, None), memory)


def inspect_experiment(loaded: Loaded[ExperimentConfig], picture: Path | None = None) -> Page:
    """The stages of an experiment's backbone, what training them takes, and what is trained when."""
    config = loaded.config
    backbone = _skeleton(config)
    schedule = build_schedule(config, backbone.stage_names)
    tables = [
        stage_table(config.backbone, backbone, config.data.image_size),
        memory_table(backbone, _example(backbone, config.data.image_size), config),
    ]
    if schedule.adapters:
        lora.inject(backbone, **asdict(config.freeze.lora))
    tables.append(plan_table(loaded, backbone, schedule))
    if picture is None:
        return page_of("", *tables)
    schedule_picture(schedule).savefig(picture, dpi=150)
    return page_of("", *tables, Figure("schedule drawn:", file=picture))


def inspect_run(
    run: str | Record, *, saliency: int = 0, names: Sequence[str] = (), picture: Path | None = None
) -> Page:
    """What became of each stage of a run; table and figures are added to it in MLflow.

    Args:
        run: The run, or its id, the beginning of its id, or its name.
        saliency: Number of images that are explained.
        names: Names of samples that are explained.
        picture: Where the figure of the stages is drawn too.

    Raises:
        UserError: If it kept no weights, or its data or weights are not here any more.
    """
    recorded = load(run)
    changes = stage_changes(recorded)
    drawn = {STAGES_FIGURE: stages_figure(changes)}
    elements: list[Element] = [stages_table(recorded.name, changes)]
    if saliency or names:
        explained = _explained(recorded, saliency, names)
        drawn[SALIENCY_FIGURE] = saliency_figure(explained)
        for image in explained:
            elements.append(
                Note(f"{image.name}: {image.target}, taken for {image.prediction} ({image.probability:.0%})")
            )
    if picture is not None:
        drawn[STAGES_FIGURE].savefig(picture, dpi=150)
    content = {"stages": [_plain(asdict(change)) for change in changes]}
    _add(recorded, json.dumps(content, indent=1), drawn)
    added = Facts((("added to the run", ", ".join(drawn)), (f"see it with {typed('ui')}", recorded.url)))
    return page_of("", *elements, added)


def stage_table(config: BackboneConfig, backbone: StagedBackbone, image_size: int | None) -> Table:
    """Stages with parameters, work and output shape, and from which unfreeze depth on each is trained."""
    example = _example(backbone, image_size)
    size = " x ".join(map(str, max(leaves(example).values(), key=torch.numel).shape))
    rows: list[tuple[Entry, ...]] = []
    stages = describe_stages(backbone, example)
    work = multiply_adds(backbone, example)
    for number, stage in enumerate(stages):
        trained = sum(later.parameters for later in stages[number:])
        shape = " x ".join(map(str, stage.output_shape))
        rows.append(
            (
                f"{number} {stage.name}",
                stage.parameters,
                work[number] / 1e6,
                shape,
                len(stages) - number,
                f"{trained:,}",
            )
        )
    everything = sum(stage.parameters for stage in stages)
    rows.append(("all", everything, sum(work) / 1e6, "", "", "and the head"))
    return Table(
        (
            Column("stage"),
            Column("parameters", ","),
            Column("multiply-adds", ",.1f", unit="M"),
            Column("output"),
            Column("trained from depth", "d"),
            Column("parameters then", align="right"),
        ),
        tuple(rows),
        title=f"{config.name}: {len(backbone.stage_names)} stages at {config.granularity} granularity, cut by "
        f"{backbone.way}, input {size}",
        rules=frozenset({len(stages)}),
    )


def memory_table(backbone: StagedBackbone, example: Value, config: ExperimentConfig) -> Table:
    """Memory of a training step at each unfreeze depth, with the optimizer and batch size of an experiment."""
    optimizer, batch = config.optimizer, config.data.batch_size
    names = [*backbone.stage_names, "head"]
    rows: list[tuple[Entry, ...]] = []
    for cost in depth_costs(backbone, example, state_values(optimizer)):
        sizes = (cost.weights, cost.gradients, cost.state, batch * cost.activations, cost.total(batch))
        rows.append((cost.depth, names[len(backbone.stages) - cost.depth], *(size / 1e6 for size in sizes)))
    heads = ("weights", "gradients", "optimizer", "activations of a batch", "together")
    return Table(
        (Column("depth", "d"), Column("trained from"), *numbers(heads, ",.1f")),
        tuple(rows),
        title=f"memory of a training step in MB: float32, batch of {batch}, {optimizer.name}",
    )


def plan_table(loaded: Loaded[ExperimentConfig], backbone: StagedBackbone, schedule: FreezeSchedule) -> Table:
    """Phases with what is trained, at which rates, and what frozen norm layers do."""
    rows: list[tuple[Entry, ...]] = []
    rules = []
    for index, (phase, start) in enumerate(zip(schedule.phases, schedule.starts, strict=True)):
        end = start + phase.epochs
        apply_phase(phase, staged_parts(backbone, nn.Identity()))
        sizes = [sum(p.numel() for p in stage.parameters() if p.requires_grad) for stage in backbone.stages]
        first = schedule.rates(index, schedule.starts, start + min(phase.warmup_epochs, phase.epochs))
        last = schedule.rates(index, schedule.starts, end - 1e-6)
        names = [*schedule.stage_names, "head"]
        shown = [number for number in range(len(names)) if phase.trains(number)]
        until = f" or until {phase.until.metric} stalls" if phase.until else ""
        for line, number in enumerate(reversed(shown)):
            part = f" ({', '.join(phase.patterns)})" if phase.patterns and number < len(sizes) else ""
            rows.append(
                (
                    phase.name if line == 0 else "",
                    f"{start + 1}-{end}{until}" if line == 0 else "",
                    f"{names[number]}{part}",
                    sizes[number] if number < len(sizes) else "",
                    _rate(first[number]),
                    _rate(last[number]),
                    (phase.frozen_norm if phase.boundary else "-") if line == 0 else "",
                )
            )
        rules.append(len(rows))
    columns = (
        Column("phase"),
        Column("epochs", align="right"),
        Column("stage"),
        Column("trained", ","),
        Column("highest rate", align="right"),
        Column("last rate", align="right"),
        Column("frozen norm"),
    )
    config = loaded.config
    title = f"freeze schedule {config.freeze.schedule}, {schedule.max_epochs} epochs, rate {config.scheduler.name}"
    return Table(columns, tuple(rows), title=f"{loaded.config.name}: {title}", rules=frozenset(rules))


def _rate(rate: float) -> str:
    return f"{rate:.3g}" if rate > 1e-12 else "0"


def _example(backbone: StagedBackbone, image_size: int | None) -> Value:
    """An input of one sample, of the size that the experiment gives images."""
    return backbone.preprocessing.sized(image_size).example()


def _skeleton(config: ExperimentConfig) -> StagedBackbone:
    """The backbone with random weights: its stages are all that is looked at."""
    return build_backbone(replace(config.backbone, weights=None, checkpoint=None), needed_end(config.task))


def schedule_picture(schedule: FreezeSchedule) -> matplotlib.figure.Figure:
    """The freeze schedule as planned: what would be trained at which rate if no phase ended early."""
    spans, rates = [], []
    for index, (phase, start) in enumerate(zip(schedule.phases, schedule.starts, strict=True)):
        spans.append(figures.PhaseSpan(phase.name, start, start + phase.epochs))
        for epoch in range(start, start + phase.epochs):
            rates.append(schedule.rates(index, schedule.starts, epoch + 0.5))
    rows = [[row[stage] or None for row in rates] for stage in range(len(schedule.stage_names) + 1)]
    return figures.schedule(spans, [*schedule.stage_names, "head"], rows, title="Freeze schedule as planned")


def _explained(run: RecordedRun, count: int, names: Sequence[str]) -> list[Saliency]:
    split: SplitName = "test" if "test" in run.data.splits else "val"
    return explain(run.task, run.data, split, choose(run.data, split, run.items, count, names))


def _plain(values: Mapping[str, object]) -> dict[str, object]:
    """JSON knows no NaN."""
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in values.items()}


def _add(run: Record, text: str, drawn: Mapping[str, matplotlib.figure.Figure]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for path, figure in drawn.items():
            files[path] = Path(folder) / Path(path).name
            figure.savefig(files[path], dpi=150)
        run.add(texts={STAGES: text}, files=files)
