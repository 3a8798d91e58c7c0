"""Every class has a metric of its own name, whatever signs its name is made of, and takes no other metric's."""

from __future__ import annotations

import itertools
import re

import pytest
import torch

from tlresearch.tasks.classification import Meters
from tlresearch.tasks.counts import ClassCounts
from tlresearch.tasks.detection import BoxMeters
from tlresearch.tasks.metric_names import metric_names
from tlresearch.tasks.segmentation import overlap_metrics
from tlresearch.tasks.tokens import EntityScore

AWKWARD = [
    ("C", "C++", "C#"),
    ("кошка", "собака", "лиса"),
    ("猫", "犬"),
    ("a b", "a-b", "a_b", "a.b"),
    ("e\u0301t\u00e9", "\u00e9t\u00e9"),  # composed and decomposed letters
    ("हिन्दी", "हनद"),
    ("+", "-", "", " "),
    ("x" * 300, "x" * 299 + "y"),
    ("C", "C__" + "0" * 6, "C+"),
]


@pytest.mark.parametrize("classes", AWKWARD, ids=str)
def test_names_are_distinct_stable_and_in_mlflows_alphabet(classes: tuple[str, ...]) -> None:
    names = metric_names(classes)
    assert list(names) == list(classes)
    assert len(set(names.values())) == len(classes)
    for order in itertools.islice(itertools.permutations(classes), 6):
        assert metric_names(order) == names
    for name in names.values():
        assert re.fullmatch(r"\w+", name)  # what trainer.monitor can name
        assert len(name) <= 120


def test_a_name_that_can_stand_is_left_alone() -> None:
    assert metric_names(["car", "traffic light", "T-shirt", "кошка", "007"]) == {
        "car": "car",
        "traffic light": "traffic_light",
        "T-shirt": "T_shirt",
        "кошка": "кошка",
        "007": "007",
    }
    # Signs that are lost leave a mark that depends on the name alone.
    assert metric_names(["C", "C++"])["C++"] == metric_names(["C++", "C#"])["C++"]


def test_names_are_distinct_in_a_database_that_knows_no_capitals_and_accents() -> None:
    """MySQL takes two metrics whose names differ in these alone for one, and refuses the second."""
    assert metric_names(["Ham", "egg"]) == {"Ham": "Ham", "egg": "egg"}
    names = metric_names(["Ham", "ham", "HAM"])
    assert names["ham"] == "ham"
    assert len({name.lower() for name in names.values()}) == 3
    assert metric_names(["HAM", "Ham"])["Ham"] == names["Ham"]  # whatever else there is, and in any order
    accents = metric_names(["caf\u00e9", "cafe"])
    assert accents["cafe"] == "cafe"
    assert re.fullmatch(r"caf\u00e9_[0-9a-f]{6}", accents["caf\u00e9"])


def test_a_class_never_takes_the_name_of_another_metric() -> None:
    """With 30, 50 and 75 as classes ``map_50`` stays the mean average precision at an overlap of 0.5."""

    def boxes(shift: float) -> torch.Tensor:
        return torch.tensor([[0.0, 0, 100, 100], [200.0, 0, 300, 100]]) + torch.tensor([[shift, 0, shift, 0]])

    def values(classes: tuple[str, ...]) -> dict[str, float]:
        meters = BoxMeters(classes)
        # Class 0 is found with an overlap of 0.67, class 1 is missed.
        found = [{"boxes": boxes(20.0)[:1], "scores": torch.ones(1), "labels": torch.tensor([0])}]
        meters.update(found, [{"boxes": boxes(0.0), "labels": torch.tensor([0, 1])}], torch.tensor(1.0))
        return meters.finish()

    pytest.importorskip("pycocotools", reason="the extra 'detection' is not installed")
    numbered, spelt = values(("30", "50")), values(("thirty", "fifty"))
    assert numbered["map_50"] == spelt["map_50"] == pytest.approx(0.5, abs=0.01)
    assert len(numbered) == len(spelt)
    assert sorted(numbered.values()) == sorted(spelt.values())
    assert {"map_", "map_50"} & set(values(("", "75"))) == {"map_50"}


@pytest.mark.parametrize("classes", AWKWARD[:6], ids=str)
def test_every_task_has_one_metric_for_each_class(classes: tuple[str, ...]) -> None:
    count = len(classes)
    targets = torch.arange(count).repeat(2)
    meters = Meters("multiclass", count, thorough=True)
    meters.update(torch.eye(count)[targets], targets, torch.tensor(0.0))
    values = meters.finish(classes)
    assert len([name for name in values if name.startswith("auroc_of_")]) == count
    counts = ClassCounts(count)
    counts.update(targets, targets)
    overlaps = overlap_metrics(counts.compute(), classes)
    assert len([name for name in overlaps if name.startswith("dice_")]) == count
    assert len([name for name in overlaps if name.startswith("iou_")]) == count
    pytest.importorskip("seqeval", reason="the extra 'text' is not installed")
    score = EntityScore(classes)
    score.update([], [])
    assert len([name for name in score.compute() if name.startswith("f1_")]) == count
