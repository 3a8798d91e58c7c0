"""Balanced sampling: what an epoch draws, that it repeats, and where it is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.dense import save_boxes
from tlresearch.activations.splits import BoundarySplit
from tlresearch.base.errors import ConfigError, DataError
from tlresearch.config.load import load_text
from tlresearch.data.base import Data
from tlresearch.data.loading import EpochSampler, make_loader
from tlresearch.data.sampling import balanced_order

Build = Callable[..., Data]
CLASSES = torch.tensor([0] * 40 + [1] * 8 + [2] * 3)


def drawn(epoch: int, classes: torch.Tensor = CLASSES, seed: int = 0) -> list[int]:
    sampler = EpochSampler(len(classes), shuffle=True, seed=seed, batch_size=4, classes=classes)
    sampler.set_epoch(epoch)
    assert len(list(sampler)) == len(sampler)
    return [key.index for key in sampler]


def test_every_class_is_drawn_equally_often() -> None:
    order = drawn(0)
    assert [Counter(CLASSES[order].tolist())[number] for number in range(3)] == [17, 17, 17]
    times = Counter(order)
    assert {times[index] for index in range(40, 48)} == {2, 3}  # a rare one comes again only when all have come
    assert {times[index] for index in range(48, 51)} == {5, 6}
    assert max(times[index] for index in range(40)) == 1
    assert len(set(CLASSES[order[:17]].tolist())) == 3  # not class after class


def test_what_cannot_be_shared_goes_to_other_classes_in_other_epochs() -> None:
    classes = torch.tensor([0] * 4 + [1] * 3)
    counts = [tuple(Counter(classes[drawn(epoch, classes)].tolist())[n] for n in (0, 1)) for epoch in range(20)]
    assert set(counts) == {(4, 3), (3, 4)}


def test_the_order_is_a_function_of_seed_and_epoch_and_covers_all_in_time() -> None:
    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert drawn(1) != drawn(1, seed=1)
    assert {index for epoch in range(12) for index in drawn(epoch)} == set(range(len(CLASSES)))
    assert sorted(balanced_order(torch.zeros(5, dtype=torch.int64), torch.Generator())) == list(range(5))


def test_batches_are_balanced_and_evaluation_is_not(folder: Callable[..., Path], build: Build) -> None:
    splits = build(folder({"cat": 20, "dog": 5}), sampling="balanced").splits
    loader = make_loader(
        BoundarySplit(splits["train"]), batch_size=4, shuffle=True, seed=0, sampling="balanced"
    )  # as the activation cache gives it
    targets = torch.cat([batch.targets for batch in loader])
    assert targets.sum() * 2 == len(targets) == 20
    evaluated = make_loader(splits["val"], batch_size=4, shuffle=False, seed=0, sampling="balanced")
    assert torch.equal(torch.cat([batch.targets for batch in evaluated]), torch.as_tensor(splits["val"].targets))


def test_it_is_refused_where_a_sample_has_no_single_class(tmp_path: Path, build: Build, save_image: Callable) -> None:
    for number in range(6):
        save_image(tmp_path / f"{number}.png")
    (tmp_path / "labels.csv").write_text(
        "image,label\n" + "".join(f"{n}.png,{'a;b' if n % 2 else 'a'}\n" for n in range(6))
    )
    with pytest.raises(DataError, match=r"data\.sampling: balanced .* several labels; .*task\.class_weights"):
        build(tmp_path, name="image_csv", sampling="balanced")
    with pytest.raises(DataError, match=r"data\.sampling: balanced .* are boxes; set it to uniform"):
        build(save_boxes(tmp_path / "boxes"), name="voc", sampling="balanced", image_size=32)


def test_balancing_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.sampling: .*task\.class_weights, not both"):
        load_text("data: {name: digits, sampling: balanced}\ntask: {class_weights: balanced}")
