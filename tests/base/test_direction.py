"""The direction of a metric is what its task declares, and never a matter of letters in its name."""

from __future__ import annotations

import pytest

from tlresearch.base.direction import Direction, Directions, direction_of

DECLARED: Directions = {"answer_accuracy": "max", "map_*": "max", "map_loss": "min"}


@pytest.mark.parametrize(
    ("metric", "direction"),
    [
        ("val/answer_accuracy", "max"),
        ("answer_accuracy", "max"),
        ("shift/rain/answer_accuracy", "max"),
        ("val/map_error", "max"),  # a class called error
        ("val/map_loss", "min"),  # a whole name goes before a pattern
        ("val/loss", "min"),
        ("shift/rain/drop", "min"),
        ("gap/answer_accuracy", None),
        ("val/wer", None),
    ],
)
def test_a_metric_has_the_direction_that_was_declared(metric: str, direction: Direction | None) -> None:
    assert direction_of(metric, DECLARED) == direction
