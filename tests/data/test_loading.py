from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tlresearch.base.errors import DataError
from tlresearch.data import loading
from tlresearch.data.base import Batch, Data, SampleKey, Split
from tlresearch.data.loading import EpochSampler, make_loader
from tlresearch.modality.values import Value

Build = Callable[..., Data]


def keys(size: int, epoch: int, *, shuffle: bool = True, seed: int = 0, batch_size: int = 4) -> list[SampleKey]:
    sampler = EpochSampler(size, shuffle=shuffle, seed=seed, batch_size=batch_size)
    sampler.set_epoch(epoch)
    assert len(list(sampler)) == len(sampler)
    return list(sampler)


def batches(split: Split, epoch: int) -> list[Batch]:
    loader = make_loader(split, batch_size=4, shuffle=True, seed=3)
    loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    return list(loader)


def equal(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a.inputs, b.inputs) and torch.equal(a.targets, b.targets) and torch.equal(a.indices, b.indices)
        for a, b in zip(first, second, strict=True)
    )


@pytest.fixture
def split(folder: Callable[..., Path], build: Build) -> Split:
    return build(folder({"cat": 12, "dog": 12}), augment="randaugment", seed=5).splits["train"]


def place(monkeypatch: pytest.MonkeyPatch, rank: int, world: int) -> None:
    monkeypatch.setattr(loading, "_place", lambda: (rank, world))


def test_the_order_is_a_pure_function_of_seed_and_epoch() -> None:
    assert keys(20, 2) == keys(20, 2)
    assert [key.index for key in keys(20, 2)] != [key.index for key in keys(20, 3)]
    assert keys(20, 2) != keys(20, 2, seed=1)
    assert sorted(key.index for key in keys(20, 2)) == list(range(20))
    assert {key.epoch for key in keys(20, 2)} == {2}


def test_evaluation_keeps_the_order() -> None:
    assert [key.index for key in keys(9, 1, shuffle=False)] == list(range(9))


def test_a_resumed_epoch_goes_on_where_it_was_and_the_next_is_whole() -> None:
    sampler = EpochSampler(20, shuffle=True, seed=0, batch_size=4)
    sampler.skip(8, epoch=2)
    sampler.set_epoch(2)
    assert list(sampler) == keys(20, 2)[8:]
    assert list(sampler) == keys(20, 2)[8:]
    assert len(sampler) == 20
    sampler.set_epoch(3)
    assert list(sampler) == keys(20, 3)


@pytest.mark.parametrize("world", [2, 3, 5])
@pytest.mark.parametrize("size", [2, 19, 20])
def test_training_shares_are_equally_long_and_cover_all(monkeypatch: pytest.MonkeyPatch, world: int, size: int) -> None:
    shares = []
    for rank in range(world):
        place(monkeypatch, rank, world)
        shares.append([key.index for key in keys(size, 1, batch_size=1)])
    assert len({len(share) for share in shares}) == 1
    assert {index for share in shares for index in share} == set(range(size))
    place(monkeypatch, 0, 1)
    assert [share[0] for share in shares][:size] == [key.index for key in keys(size, 1, batch_size=1)][:world]


@pytest.mark.parametrize("world", [2, 3])
def test_evaluation_shares_repeat_nothing(monkeypatch: pytest.MonkeyPatch, world: int) -> None:
    found: list[int] = []
    for rank in range(world):
        place(monkeypatch, rank, world)
        found += [key.index for key in keys(10, 0, shuffle=False)]
    assert sorted(found) == list(range(10))


@pytest.mark.parametrize(("size", "expected"), [(12, [4, 4, 4]), (13, [4, 4, 4]), (14, [4, 4, 4, 2]), (1, [1])])
def test_a_last_training_batch_of_one_is_dropped(build: Build, size: int, expected: list[int]) -> None:
    split = build(name="digits", classes=["0", "1"]).splits["train"]
    sampler = make_loader(_First(split, size), batch_size=4, shuffle=True, seed=0)
    assert [len(batch.indices) for batch in sampler] == expected
    assert len(sampler) == len(expected)
    evaluated = make_loader(_First(split, size), batch_size=4, shuffle=False, seed=0)
    assert sum(len(batch.indices) for batch in evaluated) == size


class _First(Split):
    """The first samples of a split."""

    def __init__(self, split: Split, size: int) -> None:
        self.targets = split.targets[:size]
        self.names = split.names[:size]
        self._split = split

    def load(self, index: int) -> Value:
        return self._split.load(index)


def test_dropping_the_only_batch_is_refused(build: Build) -> None:
    split = build(name="digits", classes=["0", "1"], labels_per_class=1).splits["train"]
    with pytest.raises(DataError, match=r"2 samples do not fill one batch of 8.*data\.batch_size"):
        make_loader(split, batch_size=8, shuffle=True, seed=0, drop_last=True)


def test_a_sample_is_a_pure_function_of_its_key(split: Split) -> None:
    assert not split.deterministic
    first = [split[SampleKey(index, 1)][0] for index in range(len(split))]
    torch.rand(7)
    for index in reversed(range(len(split))):
        assert torch.equal(split[SampleKey(index, 1)][0], first[index])
    assert any(not torch.equal(split[SampleKey(index, 2)][0], first[index]) for index in range(len(split)))


def test_global_random_numbers_stay_untouched(split: Split) -> None:
    state, numpy_state = torch.get_rng_state(), np.random.get_state(legacy=True)
    batches(split, 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert str(np.random.get_state(legacy=True)) == str(numpy_state)


def test_loader_processes_do_not_change_a_batch(split: Split) -> None:
    alone = [batches(split, epoch) for epoch in (0, 1)]
    loader = make_loader(split, batch_size=4, shuffle=True, seed=3, workers=2)
    for epoch in (0, 1):
        # The processes stay alive, so that the epoch must reach them with the key.
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        assert equal(list(loader), alone[epoch])
    assert not equal(alone[0], alone[1])


def test_another_run_seed_augments_otherwise(folder: Callable[..., Path], build: Build) -> None:
    root = folder({"cat": 6, "dog": 6})
    splits = [build(root, augment="crop_flip", seed=seed).splits["train"] for seed in (0, 1)]
    pairs = [[each[SampleKey(index, 0)][0] for each in splits] for index in range(len(splits[0]))]
    assert any(not torch.equal(one, other) for one, other in pairs)


def test_only_training_images_are_augmented(folder: Callable[..., Path], build: Build) -> None:
    root = folder({"cat": 6, "dog": 6})
    augmented, plain = build(root, augment="trivial"), build(root)
    assert augmented.splits["val"].deterministic
    for index in range(len(plain.splits["val"])):
        assert torch.equal(augmented.splits["val"][SampleKey(index, 3)][0], plain.splits["val"][SampleKey(index, 0)][0])


@pytest.mark.parametrize("source", ["digits", "image_folder"])
def test_a_batch_assembled_at_once_equals_its_samples(folder: Callable[..., Path], build: Build, source: str) -> None:
    split = build(None if source == "digits" else folder({"a": 6, "b": 6}), name=source).splits["train"]
    batch = next(iter(make_loader(split, batch_size=5, shuffle=True, seed=0)))
    assert batch.boundary == 0
    for position, index in enumerate(batch.indices.tolist()):
        image, target, own = split[SampleKey(index, 0)]
        assert own == index
        assert torch.equal(batch.inputs[position], image)
        assert torch.equal(batch.targets[position], target)
