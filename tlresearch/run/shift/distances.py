"""Distances between two sets of features: maximum mean discrepancy, Fréchet distance, proxy A-distance."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

Features = NDArray[np.floating]


def mmd(source: Features, target: Features) -> float:
    """Squared maximum mean discrepancy, unbiased (Gretton et al. 2012, lemma 6): near 0, also negative, for equal sets.

    The kernel is Gaussian; its width is the median distance between two different samples (section 8 there), so the
    result does not depend on the scale of the features.

    Args:
        source: ``(n, width)``, at least 2 samples.
        target: ``(m, width)``, at least 2 samples.
    """
    together = np.concatenate([source, target]).astype(float)
    squared = cdist(together, together, "sqeuclidean")
    width = np.median(squared[np.triu_indices(len(together), 1)])
    kernel = np.exp(-squared / (2 * width)) if width > 0 else np.ones_like(squared)
    n, m = len(source), len(target)
    within = (kernel[:n, :n].sum() - n) / (n * (n - 1)) + (kernel[n:, n:].sum() - m) / (m * (m - 1))
    return float(within - 2 * kernel[:n, n:].mean())


def frechet(source: Features, target: Features) -> float:
    """Squared Fréchet distance of the two normal distributions with the sets' means and covariances.

    FID (Heusel et al. 2017) is this distance for the features of Inception:
    ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))``. The trace of the root is computed as the sum of the singular values
    of the product of the centred sets, which also works with fewer samples than features. Few samples make the distance
    too large, so compare only distances of sets of the same size.

    Args:
        source: ``(n, width)``, at least 2 samples.
        target: ``(m, width)``, at least 2 samples.
    """
    first, second = (part.astype(float) for part in (source, target))
    centred = [(part - part.mean(axis=0)) / np.sqrt(len(part) - 1) for part in (first, second)]
    means = ((first.mean(axis=0) - second.mean(axis=0)) ** 2).sum()
    spread = sum((part**2).sum() for part in centred)
    shared = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    return float(max(0.0, means + spread - 2 * shared))


def proxy_a(source: Features, target: Features) -> float:
    """Proxy A-distance (Ben-David et al. 2007): ``2 (1 - 2 error)`` of a linear classifier that separates the sets.

    The classifier is a logistic regression on standardised features, trained on one half of each set and tested on the
    other half, with the same number of samples of both sets. 0 is no better than guessing (negative values become 0),
    2 is always right.

    Args:
        source: ``(n, width)``, at least 4 samples.
        target: ``(m, width)``, at least 4 samples.
    """
    draw = np.random.default_rng(0)
    size = min(len(source), len(target)) // 2 * 2
    halves = [part[draw.permutation(len(part))[:size]] for part in (source, target)]
    learnt, tested = (np.concatenate([part[rows] for part in halves]) for rows in (np.s_[::2], np.s_[1::2]))
    labels = np.repeat([0, 1], size // 2)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # more steps would not separate the sets better
        classifier.fit(learnt, labels)
    error = 1 - classifier.score(tested, labels)
    return float(max(0.0, 2 * (1 - 2 * error)))


DISTANCES: Mapping[str, Callable[[Features, Features], float]] = {"mmd": mmd, "frechet": frechet, "proxy_a": proxy_a}
"""Distances by their name in metrics: ``shift/<set>/<distance>``."""
