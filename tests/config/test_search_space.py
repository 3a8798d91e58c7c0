"""The search space: a pure function of the trial."""

from __future__ import annotations

from typing import Any

import pytest
from optuna.trial import FixedTrial

from tlresearch.config.search_space import counts, holds, resolve_all, suggest
from tlresearch.config.sweep_schema import SpaceConfig

SPACE = {
    "optimizer.lr": SpaceConfig(low=1e-5, high=1e-1, log=True),
    "freeze.unfreeze_depth": SpaceConfig(low=0, high="all"),
    "optimizer.layer_lr_decay": SpaceConfig(low=0.5, high=1.0, when="freeze.unfreeze_depth > 0"),
    "optimizer.name": SpaceConfig(choices=["sgd", "adamw"]),
}


def draw(**values: Any) -> dict[str, Any]:
    params = {key.replace("__", "."): value for key, value in values.items()}
    return suggest(FixedTrial(params), resolve_all(SPACE, stages=5))


def test_all_is_the_number_of_stages_and_a_depth_is_whole() -> None:
    point = draw(optimizer__lr=1e-3, freeze__unfreeze_depth=5, optimizer__layer_lr_decay=0.7, optimizer__name="sgd")
    assert point["freeze.unfreeze_depth"] == 5
    assert isinstance(point["freeze.unfreeze_depth"], int)
    with pytest.warns(UserWarning, match="high=5, log=False, low=0"):
        draw(optimizer__lr=1e-3, freeze__unfreeze_depth=6, optimizer__layer_lr_decay=0.7, optimizer__name="sgd")


def test_a_dimension_whose_condition_fails_is_left_out() -> None:
    point = draw(optimizer__lr=1e-3, freeze__unfreeze_depth=0, optimizer__name="sgd")
    assert "optimizer.layer_lr_decay" not in point


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("a > 1", True), ("a > 2", False), ("a >= 2", True), ("a < 3", True), ("a <= 1", False),
        ("a == 2", True), ("a != 2", False), ("b == sgd", True), ("b != sgd", False), ("missing > 0", False),
    ],
)  # fmt: skip
def test_conditions(condition: str, expected: bool) -> None:
    assert holds(condition, {"a": 2, "b": "sgd"}) is expected


def test_whole_numbers_follow_from_the_option_not_from_how_the_range_is_written() -> None:
    assert counts("data.batch_size")
    assert counts("freeze.unfreeze_depth")
    assert not counts("task.dropout")
    value = suggest(FixedTrial({"task.dropout": 0.5}), {"task.dropout": SpaceConfig(low=0, high=0.9)})
    assert value == {"task.dropout": 0.5}


def test_choices_that_are_lists_come_back_as_lists() -> None:
    space = {"freeze.stages": SpaceConfig(choices=[["layer3", "layer4"], ["layer4"]])}
    assert suggest(FixedTrial({"freeze.stages": "[layer4]"}), space) == {"freeze.stages": ["layer4"]}
