"""What fine-tuning did to each stage of a recorded run: how far its weights moved, how its output changed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from tlresearch.backbones.base import StagedBackbone, evaluating
from tlresearch.data.base import Data, SampleKey, SplitName
from tlresearch.modality.values import leaves, to_device
from tlresearch.run.recorded import RecordedRun
from tlresearch.show.elements import Column, Table
from tlresearch.tracking import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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


def stage_changes(run: RecordedRun, samples: int = SAMPLES) -> list[StageChange]:
    """Measures every stage of the backbone.

    Args:
        run: The run.
        samples: Validation samples that the similarity is measured on.
    """
    after, before = run.backbone, run.start
    similar = similarities(before, after, run.data, samples)
    changes = []
    for number, (name, stage) in enumerate(before.named_stages()):
        changes.append(
            StageChange(
                name=name,
                parameters=sum(parameter.numel() for parameter in stage.parameters()),
                loaded=name not in before.weights.random_stages,
                moved=relative_change(stage.parameters(), after.stages[number].parameters()),
                statistics=relative_change(_statistics(stage), _statistics(after.stages[number])),
                similarity=similar[number],
                gradients=tuple(sorted(run.series(f"{GRADIENT}{name}").items())),
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


class Alignment:
    """Linear CKA gathered over batches, as Nguyen et al. 2021 (arXiv 2010.15327) do it.

    The three independence criteria of Kornblith et al. 2019 are estimated without bias on each batch (Song et al. 2012)
    and averaged, so that the value does not depend on the size of the batches, and activations need not be kept.
    """

    def __init__(self) -> None:
        self._sums = torch.zeros(3, dtype=torch.float64)

    def update(self, first: Tensor, second: Tensor) -> None:
        """Takes a batch in.

        Args:
            first: Activations of one network ``(batch, ...)``; at least four samples.
            second: Those of the other for the same samples ``(batch, ...)``; of any other shape.
        """
        one, other = _kernel(first), _kernel(second)
        self._sums += torch.stack([independence(one, other), independence(one, one), independence(other, other)]).cpu()

    @property
    def value(self) -> float:
        """1 for representations equal up to rotation and scale, about 0 for unrelated ones; NaN without samples."""
        both, first, second = self._sums.tolist()
        return both / math.sqrt(first * second) if first > 0 and second > 0 else math.nan


def independence(one: Tensor, other: Tensor) -> Tensor:
    """Unbiased estimate of the Hilbert-Schmidt independence criterion of two kernels ``(n, n)`` (Song et al. 2012)."""
    count = len(one)
    one, other = one - one.diag().diag(), other - other.diag().diag()
    trace = (one * other).sum()
    means = one.sum() * other.sum() / ((count - 1) * (count - 2))
    cross = (one.sum(dim=0) * other.sum(dim=0)).sum() * 2 / (count - 2)
    return (trace + means - cross) / (count * (count - 3))


def _kernel(activations: Tensor) -> Tensor:
    flat = activations.flatten(1).double()
    return flat @ flat.T


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
