"""CKA is 1 for the same representation up to rotation and scale, about 0 for unrelated ones, whatever the batches."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tlresearch.understand.inspection.stages import Alignment, independence


def noise(samples: int, width: int, seed: int) -> Tensor:
    return torch.randn(samples, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def alignment(first: Tensor, second: Tensor, batch: int = 64) -> float:
    found = Alignment()
    for start in range(0, len(first), batch):
        found.update(first[start : start + batch], second[start : start + batch])
    return found.value


def test_rotation_and_scale_do_not_count() -> None:
    features = noise(128, 12, 0)
    rotation = torch.linalg.qr(noise(12, 12, 1)).Q
    assert alignment(features, features) == pytest.approx(1)
    assert alignment(features, 3 * features @ rotation) == pytest.approx(1)
    assert alignment(features.view(128, 3, 2, 2), features) == pytest.approx(1)


def test_unrelated_features_come_to_nothing() -> None:
    assert abs(alignment(noise(512, 6, 0), noise(512, 6, 1))) < 0.05


def test_more_noise_is_less_alike_and_batches_agree() -> None:
    features = noise(512, 12, 0) * torch.linspace(3, 0.1, 12)
    values = [alignment(features, features + level * noise(512, 12, 1)) for level in (0.1, 0.5, 2.0)]
    assert 1 > values[0] > values[1] > values[2] > 0
    assert alignment(features, features + 0.5 * noise(512, 12, 1), batch=512) == pytest.approx(values[1], abs=0.02)


def test_the_estimate_is_that_of_song_et_al() -> None:
    """By its definition: sums over all tuples of different samples."""
    one, other = (noise(6, 3, seed) for seed in (0, 1))
    first, second = one @ one.T, other @ other.T
    n = len(first)
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    trace = sum(first[i, j] * second[i, j] for i, j in pairs) / (n * (n - 1))
    triples = [(i, j, k) for i, j in pairs for k in range(n) if k not in (i, j)]
    cross = sum(first[i, j] * second[i, k] for i, j, k in triples) / (n * (n - 1) * (n - 2))
    fours = [(i, j, k, m) for i, j, k in triples for m in range(n) if m not in (i, j, k)]
    apart = sum(first[i, j] * second[k, m] for i, j, k, m in fours) / (n * (n - 1) * (n - 2) * (n - 3))
    assert independence(first, second) == pytest.approx(float(trace - 2 * cross + apart))


def test_without_samples_there_is_no_value() -> None:
    assert math.isnan(Alignment().value)
