"""Distances between two sets of features: what they are on sets whose distance is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm

from tlresearch.run.shift.distances import DISTANCES, frechet, mmd, proxy_a

DRAW = np.random.default_rng(0)


def normal(samples: int, width: int = 4, *, mean: float = 0.0) -> np.ndarray:
    return DRAW.normal(mean, 1.0, (samples, width))


def test_equal_distributions_are_near_and_the_distance_grows_with_the_shift() -> None:
    source = normal(200)
    for name, distance in DISTANCES.items():
        found = [distance(source, normal(200, mean=mean)) for mean in (0.0, 0.7, 2.0)]
        assert found == sorted(found), name
        assert found[1] > 2 * abs(found[0]), name


def test_mmd_is_unbiased_and_does_not_depend_on_the_scale() -> None:
    found = [mmd(normal(20), normal(30)) for _ in range(200)]
    assert min(found) < 0 < max(found)
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(len(found))  # four standard errors
    source, target = normal(40), normal(40, mean=1)
    assert mmd(1000 * source, 1000 * target) == pytest.approx(mmd(source, target))
    assert mmd(np.ones((4, 2)), np.ones((5, 2))) == pytest.approx(0)


def test_mmd_is_the_sum_over_pairs_of_the_definition() -> None:
    source, target = normal(5, 2), normal(6, 2, mean=1)
    together = np.concatenate([source, target])
    pairs = [((a - b) ** 2).sum() for i, a in enumerate(together) for b in together[i + 1 :]]

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.exp(-((a - b) ** 2).sum() / (2 * np.median(pairs))))

    within = [
        np.mean([kernel(a, b) for i, a in enumerate(part) for j, b in enumerate(part) if i != j])
        for part in (source, target)
    ]
    between = np.mean([kernel(a, b) for a in source for b in target])
    assert mmd(source, target) == pytest.approx(within[0] + within[1] - 2 * between)


@pytest.mark.parametrize("samples", [200, 6])
def test_frechet_is_the_formula_with_fewer_samples_than_features_too(samples: int) -> None:
    source, target = normal(samples, 8), 2 * normal(samples + 3, 8, mean=1)
    first, second = np.cov(source.T), np.cov(target.T)
    root = sqrtm(first @ second).real
    wanted = ((source.mean(0) - target.mean(0)) ** 2).sum() + np.trace(first + second - 2 * root)
    assert frechet(source, target) == pytest.approx(wanted, rel=1e-4)


def test_the_classifier_is_judged_on_samples_it_has_not_seen() -> None:
    # More features than samples: on what it was trained on, it would always be right.
    assert proxy_a(normal(40, 200), normal(40, 200)) < 1.0
    assert proxy_a(normal(40), normal(40, mean=6)) == 2.0


def test_the_larger_set_does_not_make_the_classifier_better() -> None:
    found = [proxy_a(normal(20), normal(400)) for _ in range(20)]
    assert np.mean(found) < 0.6  # guessing the larger set would be right in 95 % of all cases
