"""The verdict: a pure function of published number and our values."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tlresearch.base.errors import UserError
from tlresearch.config.published_schema import NumberConfig
from tlresearch.studies.reproduction.verdict import compared_value, judge

HISTORY = [
    {"val/accuracy": 0.90, "val/loss": 0.5},
    {"val/accuracy": 0.95, "val/loss": 0.4},
    {"val/accuracy": 0.93, "val/loss": 0.3},
]


def number(**changes: Any) -> NumberConfig:
    return NumberConfig(**{"metric": "val/accuracy", "value": 0.92, "tolerance": 0.03, "reason": "noise", **changes})


def taken(published: NumberConfig, mode: Any = "max", monitor: str = "val/accuracy") -> float:
    return compared_value(published, HISTORY, {"test/accuracy": 0.8, "val/accuracy": 0.95}, monitor=monitor, mode=mode)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ([0.92], "reproduced"),
        ([0.95], "reproduced"),  # on the tolerance, whatever floating-point numbers make of it
        ([0.89], "reproduced"),
        ([0.9501], "not reproduced"),  # better is not the same
        ([0.8899], "not reproduced"),
        ([0.80, 1.04], "reproduced"),  # the mean counts
        ([math.nan, 0.92], "not reproduced"),
    ],
)
def test_the_mean_must_lie_within_the_tolerance(values: list[float], word: str) -> None:
    found = judge(number(), values)
    assert found.word == word
    assert found.ours.n == len(values)


def test_a_wrong_published_number_is_not_reproduced() -> None:
    right, wrong = (judge(number(value=value), [0.921, 0.915, 0.928]) for value in (0.92, 0.99))
    assert (right.word, wrong.word) == ("reproduced", "not reproduced")
    assert wrong.difference == pytest.approx(0.921333 - 0.99, abs=1e-5)


def test_without_a_published_number_there_is_no_verdict() -> None:
    for missing in ("value", "tolerance"):
        with pytest.raises(ValueError, match="value and a tolerance"):
            judge(number(**{missing: None}), [0.9])


def test_the_epoch_is_the_one_the_number_is_of() -> None:
    assert taken(number(select="last")) == 0.93
    assert taken(number(select="best")) == 0.95
    assert taken(number(select=1)) == 0.90
    assert taken(number(metric="val/loss", select="best")) == 0.4  # of the epoch that is best by the monitor
    assert taken(number(select="best"), mode="min", monitor="val/loss") == 0.93
    assert taken(number(metric="test/accuracy")) == 0.8


def test_what_was_not_recorded_cannot_be_compared() -> None:
    with pytest.raises(UserError, match="'val/auroc' was not recorded; recorded: val/accuracy, val/loss"):
        taken(number(metric="val/auroc"))
    with pytest.raises(UserError, match="of epoch 9, but the run had 3"):
        taken(number(select=9))
