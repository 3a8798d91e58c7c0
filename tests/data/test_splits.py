from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tlresearch.base.errors import DataError
from tlresearch.data.base import SplitName
from tlresearch.data.splits import assign_splits, subset

TRAIN: SplitName = "train"
VAL: SplitName = "val"
TEST: SplitName = "test"
LABELS = st.lists(st.integers(2, 30), min_size=2, max_size=5).flatmap(
    lambda sizes: st.permutations([label for label, size in enumerate(sizes) for _ in range(size)])
)


def assign(
    labels: list[int],
    val: float = 0.2,
    test: float = 0.0,
    seed: int = 0,
    given: list[SplitName] | None = None,
) -> dict[SplitName, list[int]]:
    return assign_splits(
        torch.tensor(labels),
        [f"sample{row}" for row in range(len(labels))],
        rows=range(len(labels)),
        given=given,
        classes=[str(label) for label in range(max(labels) + 1)],
        val_fraction=val,
        test_fraction=test,
        split_seed=seed,
    )


def pick(labels: list[int], count: int | None, fraction: float = 1.0, seed: int = 0) -> list[int]:
    return subset(
        range(len(labels)),
        torch.tensor(labels),
        [f"sample{row}" for row in range(len(labels))],
        classes=[str(label) for label in range(max(labels) + 1)],
        labels_per_class=count,
        train_fraction=fraction,
        split_seed=seed,
    )


@settings(max_examples=40, deadline=None)
@given(labels=LABELS, val=st.floats(0.05, 0.95), seed=st.integers(0, 99))
def test_splits_are_disjoint_complete_and_stratified(labels: list[int], val: float, seed: int) -> None:
    splits = assign(labels, val=val, seed=seed)
    assert sorted(splits["train"] + splits["val"]) == list(range(len(labels)))
    for label in set(labels):
        size = labels.count(label)
        held_out = sum(labels[row] == label for row in splits["val"])
        assert 1 <= held_out <= size - 1
        assert abs(held_out - val * size) <= 1


@settings(max_examples=40, deadline=None)
@given(labels=LABELS, few=st.floats(0.01, 1), many=st.floats(0.01, 1), seed=st.integers(0, 99))
def test_a_smaller_share_lies_within_a_larger_one(labels: list[int], few: float, many: float, seed: int) -> None:
    few, many = sorted((few, many))
    assert set(pick(labels, None, few, seed)) <= set(pick(labels, None, many, seed))
    assert {labels[row] for row in pick(labels, None, few, seed)} == set(labels)


def test_five_per_class_are_among_ten_per_class() -> None:
    labels = [0, 1, 2] * 20
    five, ten = pick(labels, 5), pick(labels, 10)
    assert set(five) < set(ten)
    assert [labels[row] for row in five].count(1) == 5
    assert set(pick(labels, 5, seed=1)) != set(five)


def test_a_sample_added_later_moves_few_others() -> None:
    labels = [0, 1] * 50
    before, after = set(assign(labels)["val"]), set(assign([*labels, 0])["val"])
    assert len(before - after) <= 1


def test_the_order_of_the_table_does_not_matter() -> None:
    names = [f"n{row}" for row in range(20)]
    labels = [0, 1] * 10

    def val_names(order: list[int]) -> set[str]:
        shuffled = [names[row] for row in order]
        splits = assign_splits(
            torch.tensor([labels[row] for row in order]),
            shuffled,
            rows=range(20),
            given=None,
            classes=["a", "b"],
            val_fraction=0.3,
            test_fraction=0.0,
            split_seed=0,
        )
        return {shuffled[row] for row in splits["val"]}

    assert val_names(list(range(20))) == val_names(list(reversed(range(20))))


def test_given_splits_are_kept() -> None:
    given: list[SplitName] = [TRAIN] * 6 + [VAL] * 2
    splits = assign([0, 1] * 4, given=given)
    assert splits == {"train": [0, 1, 2, 3, 4, 5], "val": [6, 7]}


def test_a_given_test_is_kept_and_val_comes_from_train() -> None:
    given: list[SplitName] = [TRAIN] * 10 + [TEST] * 2
    splits = assign([0, 1] * 6, given=given, val=0.2, test=0.5)
    assert splits["test"] == [10, 11]
    assert len(splits["val"]) == 2
    assert sorted(splits["train"] + splits["val"]) == list(range(10))


def test_several_labels_are_split_as_a_whole() -> None:
    labels = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]] * 10)
    names = [str(row) for row in range(40)]
    splits = assign_splits(
        labels,
        names,
        rows=range(40),
        given=None,
        classes=["a", "b"],
        val_fraction=0.25,
        test_fraction=0.0,
        split_seed=0,
    )
    assert len(splits["val"]) == 10
    chosen = subset(range(40), labels, names, classes=["a", "b"], labels_per_class=3, train_fraction=1.0, split_seed=0)
    assert (labels[chosen].sum(0) >= 3).all()


def test_too_few_samples_name_the_class() -> None:
    with pytest.raises(DataError, match=r"labels_per_class=3.*'1' has 2"):
        pick([0, 0, 0, 1, 1], 3)
