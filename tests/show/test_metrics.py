"""Metrics as they are shown: intervals beside values, many classes folded to the worst few."""

from __future__ import annotations

from tlresearch.show.elements import Cell
from tlresearch.show.metrics import folded, measured, without_ends


def test_an_interval_stands_beside_its_value() -> None:
    values = {"test/accuracy": 0.9, "test/accuracy_low": 0.8, "test/accuracy_high": 0.95, "test/price_low": 1.0}
    assert measured(values, "test/accuracy") == Cell(0.9, note="0.800 to 0.950")
    assert without_ends(values) == ["test/accuracy", "test/price_low"]


def test_many_classes_are_folded_to_the_worst() -> None:
    classes = {f"dice_organ_{n}": n / 100 for n in range(77)}
    others = {"map": 0.5, "map_50": 0.7, "map_75": 0.3}
    names, lines = folded({"dice": 0.5, **classes, **others, "loss": 0.1}, keep="dice_organ_9")
    worst = [f"dice_organ_{n}" for n in (0, 1, 2)]
    assert names == ["dice", *worst, "dice_organ_9", *others, "loss"]
    (line,) = lines
    assert line.startswith("dice: the 3 worst of 77 classes")


def test_few_classes_are_all_shown() -> None:
    values = {"f1": 0.5, **{f"f1_kind{n}": 0.1 for n in range(10)}}
    assert folded(values) == (list(values), [])


def test_each_metric_keeps_its_own_worst() -> None:
    values = {"iou": 0.5, "mask_map": 0.4}
    values |= {f"iou_{n}": n / 100 for n in range(20)} | {f"mask_map_c{n}": -n / 100 for n in range(20)}
    names, lines = folded(values)
    assert names == ["iou", "mask_map", "iou_0", "iou_1", "iou_2", "mask_map_c17", "mask_map_c18", "mask_map_c19"]
    assert len(lines) == 2
