"""How sure a test result is: bootstrap intervals of accuracy, AUROC or any statistic over the samples of a split."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

RESAMPLES = 1000
CONFIDENCE = 0.95
MOST = 1_000_000
"""Samples times classes up to which AUROC is resampled, which then takes a few seconds."""

_AT_ONCE = 1_000_000  # numbers of one batch of resamples

Floats = NDArray[np.float64]


def bootstrap_intervals(probabilities: Floats, targets: NDArray[np.int64]) -> dict[str, float]:
    """Returns 95 % percentile bootstrap intervals (Efron and Tibshirani 1993) over 1000 resamples of the samples.

    The resamples are drawn with a fixed seed, so equal predictions give equal intervals. A class that a resample
    lacks does not count in that resample's mean.

    Args:
        probabilities: Probability of each class, or of each label by itself, ``(samples, classes)``.
        targets: Class numbers ``(samples,)``, or 0/1 columns ``(samples, classes)``.

    Returns:
        ``accuracy_low``, ``accuracy_high``, and the same of ``auroc`` unless there are more than `MOST` numbers.
    """
    samples, classes = probabilities.shape
    if targets.ndim == 1:
        right = (probabilities.argmax(axis=1) == targets).astype(np.float64)
        positive = targets[:, None] == np.arange(classes)
    else:
        right = ((probabilities > 0.5) == (targets > 0)).mean(axis=1)
        positive = targets > 0
    found = interval("accuracy", samples, lambda counts: right @ counts / samples)
    if probabilities.size <= MOST:
        # Of two classes the second's AUROC is the first's: ranked by the one or by the other.
        chosen = range(1) if targets.ndim == 1 and classes == 2 else range(classes)
        ranked = [_Ranked(probabilities[:, number], positive[:, number]) for number in chosen]

        def mean_auroc(counts: NDArray[np.float32]) -> Floats:
            values = np.stack([one.auroc(counts) for one in ranked])
            defined = ~np.isnan(values)
            with np.errstate(invalid="ignore"):
                return np.asarray(np.where(defined, values, 0).sum(axis=0) / defined.sum(axis=0))

        found |= interval("auroc", samples, mean_auroc)
    return found


class _Ranked:
    """Samples sorted by the score of one class, so that each resample costs a sum and no sorting."""

    def __init__(self, scores: Floats, positive: NDArray[np.bool_]) -> None:
        self._order = np.argsort(scores, kind="stable")
        self._positive = positive[self._order]
        # Samples of equal score stand at one place.
        places = np.concatenate([[0], np.cumsum(np.diff(scores[self._order]) != 0)])
        self._first = np.searchsorted(places, places, side="left")
        self._last = np.searchsorted(places, places, side="right") - 1

    def auroc(self, counts: NDArray[np.float32]) -> Floats:
        """Area under the ROC curve of resamples, given how often each sample is drawn, ``(samples, resamples)``.

        It is the share of pairs of a positive and a negative sample that are ranked rightly, ties counting half
        (Hanley and McNeil 1982); NaN where a resample has no positive or no negative sample.
        """
        drawn = counts[self._order]
        up = drawn[self._positive]
        drawn[self._positive] = 0
        below = drawn.cumsum(axis=0)  # exact: whole numbers below 2**24
        first, last = self._first[self._positive], self._last[self._positive]
        negatives = (below[last] + below[first] - drawn[first]) / 2
        pairs = np.einsum("nr,nr->r", up, negatives, dtype=np.float64)
        with np.errstate(invalid="ignore"):
            return np.asarray(pairs / (up.sum(axis=0, dtype=np.float64) * below[-1]))


def interval(name: str, samples: int, statistic: Callable[[NDArray[np.float32]], Floats]) -> dict[str, float]:
    """Returns ``<name>_low`` and ``<name>_high``: the 95 % bootstrap interval of a statistic.

    Args:
        name: What the statistic is called.
        samples: Number of samples.
        statistic: Takes how often each sample is drawn ``(samples, resamples)``, and returns one value per resample.
    """
    low, high = f"{name}_low", f"{name}_high"
    if samples < 2:
        return {low: float("nan"), high: float("nan")}

    def of_indices(indices: NDArray[np.int64], axis: int) -> Floats:
        drawn = np.atleast_2d(indices)
        numbers = (drawn * len(drawn) + np.arange(len(drawn))[:, None]).ravel()
        counts = np.bincount(numbers, minlength=drawn.size).reshape(samples, -1).astype(np.float32)
        values = statistic(counts)
        return values if indices.ndim > 1 else values[0]

    with warnings.catch_warnings():
        # Equal values throughout, or a resample without a pair to rank: both are dealt with below.
        warnings.simplefilter("ignore")
        found = bootstrap(
            (np.arange(samples),),
            of_indices,
            n_resamples=RESAMPLES,
            method="percentile",
            vectorized=True,
            batch=max(1, _AT_ONCE // samples),
            rng=0,
        )
        ends = np.nanquantile(found.bootstrap_distribution, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return {low: float(ends[0]), high: float(ends[1])}
