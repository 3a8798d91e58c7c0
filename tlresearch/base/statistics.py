"""Statistics of several values: mean, spread, bootstrap interval, and a test of paired differences. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

_RESAMPLES = 9999
_BLOCK = 1_000_000  # values drawn at a time, which limits the memory of a bootstrap over thousands of items


@dataclass(frozen=True)
class Summary:
    """Several values of one metric, such as one per seed.

    Attributes:
        mean: Their mean.
        std: Sample standard deviation (``n - 1``); 0 for a single value, which says nothing about spread.
        low: Lower end of the bootstrap interval of the mean.
        high: Its upper end.
        n: Number of values.
    """

    mean: float
    std: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class PairedTest:
    """The test whether `a` and `b`, measured on the same seeds or items, differ.

    Attributes:
        difference: Mean of ``a - b``.
        low: Lower end of the bootstrap interval of that mean.
        high: Its upper end.
        p_value: Two-sided probability of so large a difference if there is none in truth; 1 for a single pair.
        n: Number of pairs.
    """

    difference: float
    low: float
    high: float
    p_value: float
    n: int


def bootstrap_interval(values: Sequence[float], *, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Returns the percentile bootstrap interval of the mean (Efron 1979); the same values give the same interval.

    With few values the interval is too narrow, because it cannot exceed the range of the values: three seeds give at
    most the range of the three. It describes the observed values and proves nothing.

    Args:
        values: At least one value; a single value is its own interval.
        level: Share of the bootstrap means inside the interval.
        seed: Seed of the resampling.

    Raises:
        ValueError: If there is no value, or `level` is not between 0 and 1.
    """
    if not values:
        raise ValueError("an interval needs at least one value.")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1 but got {level}.")
    data = np.asarray(values, dtype=float)
    # Resampling equal values changes nothing, and a mean with a value that is not finite is not finite.
    if not np.isfinite(data).all() or data.min() == data.max():
        return float(data.min()), float(data.max())
    interval = stats.bootstrap(
        (data,),
        np.mean,
        confidence_level=level,
        n_resamples=_RESAMPLES,
        batch=max(1, _BLOCK // len(data)),
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def summary(values: Sequence[float]) -> Summary:
    """Returns mean, standard deviation and the 95 % bootstrap interval of the mean.

    Raises:
        ValueError: If there is no value.
    """
    low, high = bootstrap_interval(values)
    data = np.asarray(values, dtype=float)
    spread = float(data.std(ddof=1)) if len(data) > 1 else 0.0
    return Summary(float(data.mean()), spread, low, high, len(data))


def paired_test(a: Sequence[float], b: Sequence[float]) -> PairedTest:
    """Tests whether `a` and `b`, measured on the same seeds or items, differ, pair by pair.

    Pairing removes what both share: a hard item is hard for both, an unlucky split is unlucky for both.

    If every value is 0 or 1 (an item wrong or right), the test is McNemar's in its exact form (McNemar 1947): only
    items on which the two disagree count, and without a difference either is right with probability one half.
    Otherwise, such as for the accuracy of each seed, it is the sign-flip permutation test: without a difference, each
    pair could as well have been the other way round. It assumes nothing about the distribution, and up to 13 pairs it
    counts every one of the ``2^n`` sign patterns. So three seeds cannot give a p-value below 2/8; a p-value below 0.05
    takes six.

    Args:
        a: Values of the first.
        b: Values of the second, in the same order of seeds or items.

    Raises:
        ValueError: If their numbers differ, or there are none.
    """
    if len(a) != len(b) or not a:
        raise ValueError(
            f"a paired test needs as many values of a as of b, at least one, but got {len(a)} and {len(b)}."
        )
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    differences = first - second
    low, high = bootstrap_interval(differences.tolist())
    if set(np.unique(np.concatenate([first, second]))) <= {0.0, 1.0}:
        p_value = _mcnemar(differences)
    else:
        p_value = _sign_flips(differences)
    return PairedTest(float(differences.mean()), low, high, p_value, len(differences))


def _mcnemar(differences: np.ndarray) -> float:
    better, worse = int((differences > 0).sum()), int((differences < 0).sum())
    return float(stats.binomtest(better, better + worse).pvalue) if better + worse else 1.0


def _sign_flips(differences: np.ndarray) -> float:
    if len(differences) < 2 or not np.any(differences):
        return 1.0
    if not np.isfinite(differences).all():
        return math.nan
    # SciPy's permutations of a single sample are sign flips, and it counts all of them if they are fewer than
    # n_resamples.
    outcome = stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=_RESAMPLES,
        batch=max(1, _BLOCK // len(differences)),
        rng=np.random.default_rng(0),
    )
    return float(outcome.pvalue)
