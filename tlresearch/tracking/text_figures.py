"""The figure of wrongly predicted texts, as a list."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tlresearch.tracking.figures import COLOURS, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 110
"""Characters per line."""


def wrong_texts(
    texts: Sequence[str],
    true: Sequence[str],
    predicted: Sequence[str],
    confidence: Sequence[float],
    *,
    title: str = "Wrongly classified samples, surest first",
) -> Figure:
    """Lists texts with their true class, prediction and its probability.

    Args:
        texts: The texts; only the beginning of a long text is shown.
        true: True class of each text.
        predicted: Prediction for each text.
        confidence: Probability of each prediction.
        title: Title of the figure.
    """
    shown = [textwrap.wrap(" ".join(_drawable(text).split()), WIDTH, max_lines=3, placeholder=" …") for text in texts]
    heads = [
        _short(f"true: {_drawable(label)}    predicted: {_drawable(prediction)} ({probability:.0%})")
        for label, prediction, probability in zip(true, predicted, confidence, strict=True)
    ]
    # Placed by hand in inches (a line is 0.19 high): layout engines know axes, and this figure has none.
    lines = sum(len(text) + 1.6 for text in shown)
    height = 0.6 + 0.19 * max(lines, 1)
    figure = new_figure(9.5, height)
    figure.set_layout_engine("none")
    figure.text(0.01, 1 - 0.12 / height, title, fontsize=11, fontweight="bold", va="top")
    top = 1 - 0.45 / height
    for head, text in zip(heads, shown, strict=True):
        figure.text(0.01, top, head, fontsize=8.5, color=COLOURS[1], va="top", parse_math=False)
        figure.text(0.01, top - 0.19 / height, "\n".join(text), fontsize=8.5, va="top", parse_math=False)
        top -= 0.19 * (len(text) + 1.6) / height
    if not texts:
        figure.text(0.5, 0.4, "none: every sample was right", ha="center")
    return figure


def _short(line: str) -> str:
    return textwrap.shorten(line, WIDTH + 10, placeholder=" …") if len(line) > WIDTH + 10 else line


def _drawable(text: str) -> str:
    """Replaces characters that the figure's font lacks: each would become a box and a warning."""
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    glyphs = FT2Font(font_manager.findfont("DejaVu Sans")).get_charmap()
    return "".join(
        letter if ord(letter) in glyphs or letter.isspace() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )
