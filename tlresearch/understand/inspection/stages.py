"""What fine-tuning did to each stage of a recorded run: how far its weights moved, how its output changed."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from tlresearch.backbones.base import StagedBackbone, evaluating
from tlresearch.backbones.lineage import TRAINED
from tlresearch.base.errors import TrackingError
from tlresearch.config.schema import ExperimentConfig
from tlresearch.data.base import Data, SampleKey, SplitName
from tlresearch.finetuning.presets import build_schedule
from tlresearch.modality.values import leaves, to_device
from tlresearch.run.process import prepared
from tlresearch.show.elements import Column, Table
from tlresearch.studies.reproduction.present import (
    as_it_was,
    load_trained,
    present_data,
    present_weights,
    recorded_config,
)
from tlresearch.tasks.base import Task
from tlresearch.tasks.build import build_task
from tlresearch.tracking import figures
from tlresearch.tracking.manifest import local
from tlresearch.tracking.store import Store
from tlresearch.understand.comparison.differences import read_record
from tlresearch.understand.inspection.similarity import Alignment

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow.entities import Run

SAMPLES = 256
BATCH = 32
LEAST = 4  # samples that the unbiased estimate of a batch needs
GRADIENT = "gradient_norm/"


@dataclass(frozen=True)
class StageChange:
    """What became of one stage.

    Attributes:
        name: Its name.
        parameters: Number of values in its parameters.
        loaded: Whether it started from loaded weights; random ones have moved from where the seed put them.
        moved: ``‖w - w0‖ / ‖w0‖`` over its parameters; NaN if it has none.
        statistics: The same over its buffers, such as the running statistics of batch norm; NaN if it has none.
        similarity: CKA of its output before and after fine-tuning, 1 where nothing changed.
        gradients: Each epoch that trained it, and the norm of its gradient in the last step, as logged then.
    """

    name: str
    parameters: int
    loaded: bool
    moved: float
    statistics: float
    similarity: float
    gradients: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Finished:
    """A recorded run, ready to be looked at.

    Attributes:
        config: Its config, with all that `auto` had become.
        data: Its data.
        before: The backbone as it was loaded.
        task: The task with the weights that the run kept.
    """

    config: ExperimentConfig
    data: Data
    before: StagedBackbone
    task: Task


def reopen(store: Store, run: Run) -> Finished:
    """Rebuilds what a run started from and what it came to.

    Raises:
        TrackingError: If the run kept no weights, or still runs.
        UserError: If data or weights are not here any more.
    """
    run_id, name = run.info.run_id, run.info.run_name or ""
    if run.info.status in ("RUNNING", "SCHEDULED"):
        raise TrackingError(f"run {run_id[:8]} ({name}) has not ended yet; inspect it when it has")
    loaded = recorded_config(store, run_id, name)
    with store.errors():
        kept = [item.path for item in store.client.list_artifacts(run_id, TRAINED.partition("/")[0])]
    if TRAINED not in kept:
        raise TrackingError(
            f"run {run_id[:8]} ({name}) kept no weights, as trials do not: run its config again with "
            "tracking.weights=true, or inspect one of the sweep's final runs"
        )
    config = as_it_was(loaded, run, read_record(store, run)).config
    with prepared(config):
        before = present_weights(config)
        data = present_data(config, before)
        task = build_task(config, copy.deepcopy(before), data, build_schedule(config, before.stage_names))
    with local(store, f"{run.info.artifact_uri}/{TRAINED}") as file:
        load_trained(task, file)
    return Finished(config, data, before, task)


def stage_changes(store: Store, run: Run, finished: Finished, samples: int = SAMPLES) -> list[StageChange]:
    """Measures every stage of the backbone.

    Args:
        store: The store.
        run: The run.
        finished: The same run, rebuilt.
        samples: Validation samples that the similarity is measured on.
    """
    before, after = finished.before, finished.task.backbone
    similar = similarities(before, after, finished.data, samples)
    changes = []
    for number, (name, stage) in enumerate(before.named_stages()):
        with store.errors():
            history = store.client.get_metric_history(run.info.run_id, f"{GRADIENT}{name}")
        changes.append(
            StageChange(
                name=name,
                parameters=sum(parameter.numel() for parameter in stage.parameters()),
                loaded=name not in before.weights.random_stages,
                moved=relative_change(stage.parameters(), after.stages[number].parameters()),
                statistics=relative_change(_statistics(stage), _statistics(after.stages[number])),
                similarity=similar[number],
                gradients=tuple(sorted((point.step, point.value) for point in history)),
            )
        )
    return changes


def stages_table(name: str, changes: Sequence[StageChange]) -> Table:
    """What became of the stages of a run: a row per stage."""
    rows = []
    for place, change in enumerate(changes):
        norms = [norm for _, norm in change.gradients]
        measures = (change.moved, change.statistics, change.similarity)
        rows.append(
            (
                f"{place} {change.name}" if change.loaded else f"{place} {change.name} (random)",
                change.parameters,
                *("" if math.isnan(number) else number for number in measures),
                f"{norms[0]:.2g} → {norms[-1]:.2g}" if norms else None,
            )
        )
    return Table(
        (
            Column("stage"),
            Column("parameters", ","),
            Column("moved", ".4f"),
            Column("statistics", ".4f"),
            Column("CKA", ".4f"),
            Column("gradient", align="right"),
        ),
        tuple(rows),
        title=f"{name}: what became of the stages",
        note="moved: |w - w0| / |w0| over the parameters; statistics: the same over running means and variances of "
        "norm layers.\nCKA: likeness of the output before and after on validation samples, 1 is equal.\n"
        "gradient: its norm in the last step, in the first and the last epoch that trained the stage.",
    ).filled()


def stages_figure(changes: Sequence[StageChange]) -> Figure:
    """How far each stage moved, how its output changed, and its gradient over the epochs."""
    trained = any(norm > 0 for one in changes for _, norm in one.gradients)
    bars = [
        ("Weights: relative change", [one.moved for one in changes], figures.COLOURS[0]),
        ("Norm statistics: relative change", [one.statistics for one in changes], figures.COLOURS[2]),
        ("Output: 1 - CKA", [1 - one.similarity for one in changes], figures.COLOURS[1]),
    ]
    bars = [bar for bar in bars if not all(map(math.isnan, bar[1]))]
    panels = len(bars) + trained
    figure = figures.new_figure(4.0 * panels, max(2.8, 1.6 + 0.3 * len(changes)))
    names = figures.shortened([change.name for change in changes])
    rows = range(len(changes))
    for number, (title, values, colour) in enumerate(bars, 1):
        axes = figure.add_subplot(1, panels, number)
        figures.style(axes, title=title)
        axes.barh(rows, [0.0 if math.isnan(value) else value for value in values], color=colour)
        axes.set_yticks(rows, names if number == 1 else [])
        axes.set_ylim(-0.6, len(changes) - 0.4)
        largest = max((value for value in values if not math.isnan(value)), default=0.0)
        axes.set_xlim(0, 1.05 * largest if largest > 1e-9 else 1.0)  # where all were frozen the axis is not of noise
        axes.locator_params(axis="x", nbins=4)
        axes.grid(color="#EEEEEE", axis="x")
        axes.set_axisbelow(True)
    if trained:
        from matplotlib import colormaps

        axes = figure.add_subplot(1, panels, panels)
        figures.style(axes, title="Gradient norm, last step of the epoch", x="epoch")
        colours = colormaps["viridis"]
        for number, one in enumerate(changes):
            points = [(epoch, norm) for epoch, norm in one.gradients if norm > 0]
            if points:
                shade = colours(number / max(1, len(changes) - 1))
                axes.plot(*zip(*points, strict=True), color=shade, marker="o", markersize=3, label=names[number])
        axes.set_yscale("log")
        axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), ncols=1 + len(names) // 20)
        figures.whole_numbers(axes)
    return figure


def relative_change(before: Iterable[Tensor], after: Iterable[Tensor]) -> float:
    """Returns ``‖w - w0‖ / ‖w0‖`` over tensors taken together; NaN if there are none."""
    moved = total = 0.0
    for first, second in zip(before, after, strict=True):
        moved += float((second - first).detach().double().square().sum())
        total += float(first.detach().double().square().sum())
    return math.sqrt(moved / total) if total else math.nan


def similarities(before: StagedBackbone, after: StagedBackbone, data: Data, samples: int = SAMPLES) -> list[float]:
    """Returns the CKA of each stage's output between two backbones, on validation samples in batches of `BATCH`.

    Maps are compared as they are, position by position; of named tensors the largest, averaged over what its mask
    leaves of a sequence.
    """
    alignments = [Alignment() for _ in before.stages]
    for rows in chosen_batches(data, "val", samples):
        if len(rows) < LEAST:
            continue
        inputs = inputs_of(data, "val", rows)
        with torch.inference_mode(), evaluating(before), evaluating(after):
            one = other = inputs
            for number, alignment in enumerate(alignments):
                same = one is other and _equal(before.stages[number], after.stages[number])
                one = before.step(number, before.stages[number], one)
                other = one if same else after.step(number, after.stages[number], other)
                alignment.update(_flat(one), _flat(other))
    return [alignment.value for alignment in alignments]


def chosen_batches(data: Data, split: SplitName, samples: int) -> list[list[int]]:
    """Returns positions of up to `samples` samples in batches, drawn at random: files lie sorted by class."""
    order = torch.randperm(len(data.splits[split]), generator=torch.Generator().manual_seed(0))[:samples].tolist()
    return [order[first : first + BATCH] for first in range(0, len(order), BATCH)]


def inputs_of(data: Data, split: Literal["train", "val", "test"], rows: Sequence[int]) -> Any:
    """Returns the network's input for some samples of a split."""
    part = data.splits[split]
    keys = [SampleKey(row, 0) for row in rows]
    return to_device(part.__getitems__(keys).inputs, torch.device("cpu"))


def _statistics(stage: nn.Module) -> Iterator[Tensor]:
    """The buffers with values to compare: not counters."""
    return (buffer for buffer in stage.buffers() if buffer.is_floating_point())


def _flat(value: Any) -> Tensor:
    named = leaves(value)
    leaf = max((leaf for name, leaf in named.items() if name != "mask"), key=torch.numel).float()
    mask = named.get("mask")
    if mask is not None and leaf.shape[: mask.ndim] == mask.shape and leaf.ndim == mask.ndim + 1:
        weight = mask.unsqueeze(-1).float()
        return (leaf * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)
    return leaf.flatten(1)


def _equal(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return all(torch.equal(first[key], second[key]) for key in first)
