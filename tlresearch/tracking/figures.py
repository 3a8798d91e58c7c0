"""Figures of one run, from plain numbers: learning curves, confusion matrix, errors, freeze schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    Points = Sequence[tuple[float, float]]

# Okabe and Ito's palette: its colours differ for every kind of colour blindness, and in print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
SPLIT_COLOURS = {"train": COLOURS[0], "val": COLOURS[1], "test": COLOURS[2]}
FROZEN = "#D9D9D9"
_MOST_NUMBERS = 25  # classes up to which a confusion matrix shows numbers, not only colours


@dataclass(frozen=True)
class PhaseSpan:
    """A phase on the time axis, in epochs; `end` is exclusive."""

    name: str
    start: float
    end: float


def new_figure(width: float, height: float) -> Figure:
    """Makes a figure; sizes are in inches. Unlike pyplot's, it is in no global list, so any thread may draw."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def style(axes: Axes, *, title: str = "", x: str = "", y: str = "") -> None:
    """Sets title and labels, and removes the upper and right border."""
    axes.set_title(title, fontsize=11, loc="left", fontweight="bold")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)


def whole_numbers(axes: Axes) -> None:
    """Puts the ticks of the x axis on whole numbers: there is no epoch 2.5."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    low, high = axes.get_xlim()
    if high - low < 1:
        axes.set_xlim(round(low) - 0.5, round(low) + 0.5)


def learning_curves(history: Mapping[str, Points], phases: Sequence[PhaseSpan] = ()) -> Figure:
    """Draws one panel per metric with a line per split.

    Args:
        history: Points (epoch, value) by metric name, such as ``val/accuracy``.
        phases: Phases, shown as boundaries with names.
    """
    panels: dict[str, list[str]] = {}
    for key in sorted(history, key=lambda key: ("loss" not in key, key)):
        if any(math.isfinite(value) for _, value in history[key]):
            panels.setdefault(key.split("/", 1)[-1], []).append(key)
    columns = min(3, max(1, len(panels)))
    rows = math.ceil(max(1, len(panels)) / columns)
    figure = new_figure(4.6 * columns, 3.4 * rows)
    for index, (name, keys) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, columns, index + 1)
        style(axes, title=_short(name.replace("_", " "), 36), x="epoch")
        for number, key in enumerate(sorted(keys, key=_split_order)):
            split = key.split("/", 1)[0]
            points = sorted(history[key])
            colour = SPLIT_COLOURS.get(split, COLOURS[(number + 3) % len(COLOURS)])
            marker = "o" if len(points) <= 30 else ""
            axes.plot(
                *zip(*points, strict=True),
                color=colour,
                marker=marker,
                markersize=3.5,
                linewidth=1.6,
                label=split,
            )
        axes.grid(color="#EEEEEE")
        axes.set_axisbelow(True)
        whole_numbers(axes)
        _phase_borders(axes, phases, width=3.9)
        axes.legend(frameon=False, fontsize=9)
    return figure


def confusion_matrix(matrix: Sequence[Sequence[int]] | NDArray[Any], classes: Sequence[str]) -> Figure:
    """Draws a confusion matrix: true classes as rows, predictions as columns.

    Colours are shares of the true class (of the row), numbers are samples.
    """
    import numpy as np

    counts = np.asarray(matrix)
    totals = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    size = len(classes)
    side = min(12.0, max(3.6, 1.6 + 0.55 * size))
    figure = new_figure(side + 1.0, side)
    axes = figure.add_subplot()
    accuracy = counts.trace() / max(counts.sum(), 1)
    style(
        axes,
        title=f"Confusion matrix\n{int(counts.sum())} samples, {accuracy:.1%} right",
        x="predicted",
        y="true",
    )
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    every = max(1, math.ceil(size / 50))
    ticks = list(range(0, size, every))
    short = shortened(classes)
    names = [short[tick] for tick in ticks]
    axes.set_xticks(ticks, names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(ticks, [f"{name} ({int(totals[tick, 0])})" for name, tick in zip(names, ticks, strict=True)])
    axes.tick_params(labelsize=9 if size <= 20 else 7)
    axes.spines[["left", "bottom"]].set_visible(False)
    if size <= _MOST_NUMBERS:
        for row, column in np.ndindex(size, size):
            if counts[row, column]:
                colour = "white" if shares[row, column] > 0.55 else "black"
                text = str(int(counts[row, column]))
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=9 if size <= 12 else 7)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    return figure


def sample_grid(
    images: Sequence[Any],
    true: Sequence[str],
    predicted: Sequence[str],
    confidence: Sequence[float],
    *,
    title: str = "Wrongly classified samples, surest first",
    columns: int = 5,
) -> Figure:
    """Draws images, or sounds as waves, with true class, prediction and its probability.

    Args:
        images: uint8 tensors or arrays ``(channels, height, width)``, or ``(height, width, channels)``; sounds
            ``(samples,)``.
        true: True class of each sample.
        predicted: Predicted class of each sample.
        confidence: Probability of each prediction.
        title: Title of the figure.
        columns: Images per row.
    """
    columns = min(columns, max(2, len(images)))
    rows = max(1, math.ceil(len(images) / columns))
    figure = new_figure(2.1 * columns, 2.55 * rows + 0.4)
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.06)
    figure.suptitle(title, fontsize=11, fontweight="bold", x=0.01, ha="left")
    for index, image in enumerate(images):
        axes = figure.add_subplot(rows, columns, index + 1)
        pixels = _pixels(image)
        if pixels.ndim == 1:
            axes.plot(pixels, linewidth=0.4, color=COLOURS[0])
        else:
            axes.imshow(pixels, cmap="gray" if pixels.ndim == 2 else None, vmin=0, vmax=255)
        axes.set_axis_off()
        text = f"true: {_short(true[index], 22)}\n{_short(predicted[index], 16)} ({confidence[index]:.0%})"
        axes.set_title(text, fontsize=8.5, color=COLOURS[1], loc="left")
    if not images:
        figure.text(0.5, 0.4, "none: every sample was classified right", ha="center")
    return figure


def schedule(
    phases: Sequence[PhaseSpan],
    stages: Sequence[str],
    rates: Sequence[Sequence[float | None]],
    title: str = "Freeze schedule",
) -> Figure:
    """Draws the freeze schedule: stage by epoch, coloured by learning rate, frozen in grey.

    Args:
        phases: Phases with their epochs.
        stages: Names of the rows, from the input to the head.
        rates: Learning rate of each stage at each epoch; `None` or NaN where it is frozen.
        title: Title of the figure.
    """
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Patch

    grid = np.array([[np.nan if rate is None else rate for rate in row] for row in rates], dtype=float)
    grid[grid <= 0] = np.nan  # a rate of 0 trains nothing, and has no place on a logarithmic scale
    epochs = grid.shape[1]
    names = shortened(stages)
    longest = 0.075 * max(map(len, names), default=0)  # inches of the labels
    width = min(14.0, max(6.5, 1.6 + longest + 0.28 * epochs))
    figure = new_figure(width, max(2.6, 1.5 + 0.34 * len(stages)))
    axes = figure.add_subplot()
    axes.set_facecolor(FROZEN)
    trained = grid[np.isfinite(grid)]
    low, high = (trained.min(), trained.max()) if trained.size else (1e-4, 1e-3)
    if low == high:
        low, high = low / 2, high * 2  # LogNorm needs a range
    mesh = axes.pcolormesh(
        np.arange(epochs + 1),
        np.arange(len(stages) + 1),
        np.ma.masked_invalid(grid),
        cmap=colormaps["viridis"],
        norm=LogNorm(low, high),
        edgecolors="white",
        linewidth=0.6 if epochs <= 60 else 0.0,
    )
    style(axes, x="epoch")
    figure.suptitle(title, fontsize=11, fontweight="bold", x=0.01, ha="left")
    whole_numbers(axes)
    axes.set_yticks(np.arange(len(stages)) + 0.5, names)
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, epochs)
    axes.set_ylim(0, len(stages))
    _phase_borders(axes, phases, width=width - longest - 1.6)
    if trained.size:
        figure.colorbar(mesh, ax=axes, label="learning rate (log scale)")
    if trained.size < grid.size:
        figure.legend(handles=[Patch(color=FROZEN, label="frozen")], loc="outside upper right", frameon=False)
    return figure


def _phase_borders(axes: Axes, phases: Sequence[PhaseSpan], *, width: float) -> None:
    """Draws the borders of phases and their names: horizontal if every name fits over its phase, else slanted.

    Args:
        axes: The axes, with epochs from left to right.
        phases: The phases.
        width: Approximate width of the axes in inches: the layout is known only after drawing.
    """
    if not phases:
        return
    for phase in phases[1:]:
        axes.axvline(phase.start, color="black", linewidth=1.1, linestyle=(0, (4, 2)))
    inches = width / max(max(phase.end for phase in phases), 1)
    character = 0.068  # mean width in inches at font size 8
    horizontal = all(len(phase.name) * character <= (phase.end - phase.start) * inches for phase in phases)
    above, last = axes.get_xaxis_transform(), -1.0  # x in epochs, y as a share of the height
    names = [phase.name if horizontal else _short(phase.name, 14) for phase in phases]
    for phase, name in zip(phases, names, strict=True):
        if horizontal:
            middle = (phase.start + phase.end) / 2
            axes.text(middle, 1.01, name, transform=above, ha="center", va="bottom", fontsize=8)
        elif phase.start * inches - last >= 0.17:  # slanted names closer together would touch
            last = phase.start * inches
            axes.text(
                phase.start, 1.01, name, transform=above, ha="left", va="bottom", fontsize=8,
                rotation=45, rotation_mode="anchor",
            )  # fmt: skip
    # The title goes above the names: in points, 72 to the inch; names at 45 degrees are 0.72 of their length high.
    pad = 18 if horizontal else 14 + 72 * 0.72 * character * max(map(len, names))
    axes.set_title(axes.get_title(loc="left"), fontsize=11, loc="left", fontweight="bold", pad=pad)


def class_legend(figure: Figure, names: Sequence[str], colours: Sequence[Any]) -> None:
    """Adds a legend of classes below a figure, in as many columns as fit; of many classes only the first 20."""
    from matplotlib.patches import Patch

    shown = shortened(names[:20])
    handles = [Patch(color=colour, label=name) for name, colour in zip(shown, colours, strict=False)]
    if len(names) > len(shown):
        handles.append(Patch(color="none", label=f"and {len(names) - len(shown)} more"))
    columns = int(figure.get_figwidth() / (0.6 + 0.07 * max(map(len, shown), default=1)))
    ncols = max(1, min(6, columns, len(handles)))
    figure.legend(handles=handles, loc="outside lower center", ncols=ncols, frameon=False, fontsize=8)


def _pixels(image: Any) -> NDArray[np.uint8]:
    import numpy as np

    pixels = np.asarray(image)
    # Channels first, unless the last axis is as short as channels are, too.
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3, 4) and pixels.shape[2] not in (1, 3, 4):
        pixels = pixels.transpose(1, 2, 0)
    return pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels


def _short(name: str, most: int = 24) -> str:
    """Shortens a name in its middle, because similar names usually differ at their ends."""
    if len(name) <= most:
        return name
    end = (most - 1) // 2
    return f"{name[: most - 1 - end]}…{name[-end:]}"


def shortened(names: Sequence[str], most: int = 24) -> list[str]:
    """Shortens names to `most` characters, in the middle, at the end or at the beginning: where most stay different."""
    ways = (
        [_short(name, most) for name in names],
        [name if len(name) <= most else f"{name[: most - 1]}…" for name in names],
        [name if len(name) <= most else f"…{name[1 - most :]}" for name in names],
    )
    return max(ways, key=lambda texts: len(set(texts)))


def _split_order(key: str) -> int:
    splits = list(SPLIT_COLOURS)
    split = key.split("/", 1)[0]
    return splits.index(split) if split in splits else len(splits)
