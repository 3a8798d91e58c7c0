"""Whether our runs gave a published number: which value of a run is compared, and what comes of it. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tlresearch.base.errors import UserError
from tlresearch.base.statistics import Summary, summary
from tlresearch.config.published_schema import NumberConfig

Word = Literal["reproduced", "not reproduced", "not run", "failed"]
_ROUNDING = 1e-9  # 0.95 - 0.92 is a little more than 0.03


@dataclass(frozen=True)
class Judgement:
    """What one published number and our values say together.

    Attributes:
        word: ``reproduced`` or ``not reproduced``.
        ours: Our values over the seeds.
        difference: Our mean less the published number.
    """

    word: Word
    ours: Summary
    difference: float


def judge(number: NumberConfig, values: Sequence[float]) -> Judgement:
    """Compares the mean of our values with a published number: reproduced if it lies within the tolerance.

    A number better than the published one by more than the tolerance is not reproduced either: something differs.

    Args:
        number: The published number; value and tolerance are set.
        values: Ours, one per seed.

    Raises:
        ValueError: If there is no value on one of the sides.
    """
    if number.value is None or number.tolerance is None:
        raise ValueError("a published number has a value and a tolerance.")
    ours = summary(values)
    difference = ours.mean - number.value
    # Written so that NaN, which fulfils no comparison, is not reproduced.
    near = abs(difference) <= number.tolerance + _ROUNDING
    return Judgement("reproduced" if near else "not reproduced", ours, difference)


def compared_value(
    number: NumberConfig,
    history: Sequence[Mapping[str, float]],
    metrics: Mapping[str, float],
    *,
    monitor: str,
    mode: Literal["min", "max"],
) -> float:
    """Returns the value of a run that a published number is held against.

    Args:
        number: Says the metric, and the epoch by `select`.
        history: Metrics of every epoch of the run.
        metrics: Its final metrics, those of the test split among them.
        monitor: Metric that says which epoch is best.
        mode: Whether less or more of it is better.

    Raises:
        UserError: If the run did not record the metric, or ended before the epoch.
    """
    if number.metric.startswith("test/"):
        row: Mapping[str, float] = metrics
    elif number.select == "best":
        best = min if mode == "min" else max
        row = best(history, key=lambda epoch: epoch[monitor])
    elif number.select == "last":
        row = history[-1]
    elif int(number.select) <= len(history):
        row = history[int(number.select) - 1]
    else:
        raise UserError(f"reference: the number is of epoch {number.select}, but the run had {len(history)}")
    if number.metric not in row:
        raise UserError(f"reference: '{number.metric}' was not recorded; recorded: {', '.join(sorted(row))}")
    return row[number.metric]
