"""Splits put together: every sample once, with its own target, however the set was split."""

from __future__ import annotations

from dataclasses import replace

import torch

from tests.toy import ToySplit
from tlresearch.config.schema import DataConfig
from tlresearch.data.base import SampleKey, Split
from tlresearch.data.build import build_data
from tlresearch.data.joined import join
from tlresearch.modality.image import Preprocessing

DIGITS = DataConfig(name="digits", test_fraction=0.2)


def digits(config: DataConfig) -> Split:
    grey = Preprocessing(crop=None, resize=None, mean=(0.5,), std=(0.5,))
    return join(list(build_data(config, preprocessing=grey, seed=0).splits.values()))


def test_every_sample_is_there_whatever_the_seed_of_the_split() -> None:
    first, second = digits(DIGITS), digits(replace(DIGITS, split_seed=3))
    assert len(first) == 1797
    assert first.names == second.names
    assert torch.equal(first.targets, second.targets)
    assert torch.equal(first.load(5), second.load(5))


def test_both_ways_to_a_batch_give_the_same_samples() -> None:
    joined = digits(DIGITS)
    keys = [SampleKey(3, 0), SampleKey(1500, 0)]
    batch = joined.finish([joined.load(key.index) for key in keys], keys)
    assert batch.indices.tolist() == [3, 1500]
    for row, key in enumerate(keys):
        inputs, target, index = joined[key]
        assert torch.equal(batch.inputs[row], inputs)
        assert (batch.targets[row], index) == (target, key.index)
        assert target == joined.targets[key.index]


def test_splits_of_any_kind_are_joined() -> None:
    parts = [ToySplit(4, 0, noisy=False), ToySplit(6, 1, noisy=False)]
    joined = join(parts)
    assert list(joined.names) == sorted([*parts[0].names, *parts[1].names])
    inputs, target, _ = joined[SampleKey(4, 0)]
    assert torch.equal(inputs, parts[1][SampleKey(0, 0)][0])
    assert target == parts[1].targets[0]
