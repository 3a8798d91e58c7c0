"""The search space: a pure function of the trial."""

from __future__ import annotations

from typing import Any

import pytest
from optuna.trial import FixedTrial

from tlresearch.config.search_space import counts, holds, needs_stages, resolve_all, suggest
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


@pytest.mark.parametrize(
    ("condition", "depths"),
    [("> 0", [2, 5]), (">= 5", [5]), ("== all", [5]), ("< all", [0, 2]), ("!= 5", [0, 2]), ("> all", [])],
)  # fmt: skip
def test_all_counts_as_the_number_of_stages_in_a_condition(condition: str, depths: list[Any]) -> None:
    space = {
        "freeze.unfreeze_depth": SpaceConfig(choices=[0, 2, "all"]),
        "optimizer.layer_lr_decay": SpaceConfig(low=0.5, high=1.0, when=f"freeze.unfreeze_depth {condition}"),
    }
    assert needs_stages(space)
    resolved = resolve_all(space, stages=5)
    points = [
        suggest(FixedTrial({"freeze.unfreeze_depth": depth, "optimizer.layer_lr_decay": 0.7}), resolved)
        for depth in (0, 2, 5)
    ]
    assert [point["freeze.unfreeze_depth"] for point in points if len(point) == 2] == depths


def test_stages_are_asked_for_only_where_all_stands() -> None:
    assert needs_stages(SPACE)
    assert needs_stages({"freeze.unfreeze_depth": SpaceConfig(choices=[0, "all"])})
    assert not needs_stages({key: SPACE[key] for key in ("optimizer.lr", "optimizer.name")})


def test_whole_numbers_follow_from_the_option_not_from_how_the_range_is_written() -> None:
    assert counts("data.batch_size")
    assert counts("freeze.unfreeze_depth")
    assert not counts("task.dropout")
    value = suggest(FixedTrial({"task.dropout": 0.5}), {"task.dropout": SpaceConfig(low=0, high=0.9)})
    assert value == {"task.dropout": 0.5}


def test_choices_that_are_lists_come_back_as_lists() -> None:
    space = {"freeze.stages": SpaceConfig(choices=[["layer3", "layer4"], ["layer4"]])}
    assert suggest(FixedTrial({"freeze.stages": "[layer4]"}), space) == {"freeze.stages": ["layer4"]}
