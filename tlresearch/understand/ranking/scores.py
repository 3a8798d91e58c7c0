"""How well frozen features serve a target, from arrays alone: LogME, H-score, LEEP, NCE, and two yardsticks.

Higher is better for all of them. The definitions are those of the papers; `tests/ranking/test_scores.py` holds them
against the values of the authors' own code.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]

NEIGHBOURS = 10
PENALTIES = np.logspace(-2, 6, 9)
"""Ridge penalties the probe chooses from by leaving one sample out, for features of unit variance."""
_STEPS = 11
_CONVERGED = 1e-3
_EPSILON = 1e-5
_NOISE = 1e-13  # share of the largest variance below which a direction is rounding error


def log_me(features: Floats, targets: Ints | Floats) -> float:
    """LogME: log of the maximum evidence per sample of a Bayesian linear regression (You et al. 2021).

    Each class is regressed one against the rest; the score is the mean over classes. Numbers are regressed as they are
    (see `standardised`), and the score is the mean over them. The precisions of prior and noise
    are found by the fixed point of You et al. 2022 (arXiv 2110.10545), with the same stopping rule and epsilon as the
    authors' code. With more features than samples that code leaves the directions without data out of the determinant;
    here they are in, as in the papers' formula, so that backbones of different width stay comparable.

    Args:
        features: ``(n, d)``.
        targets: Class numbers ``(n,)``, or numbers ``(n, targets)``.
    """
    samples, width = features.shape
    if targets.ndim == 2:
        columns = targets.astype(np.float64).T
    else:
        columns = np.stack([(targets == number).astype(np.float64) for number in range(int(targets.max()) + 1)])
    left, singular, _ = np.linalg.svd(features.astype(np.float64), full_matrices=False)
    sigma = singular**2
    evidences = []
    for wanted in columns:
        squares = (left.T @ wanted) ** 2
        outside = float((wanted**2).sum() - squares.sum())
        alpha = beta = 1.0
        weights = residual = 0.0
        for _ in range(_STEPS):
            ratio = alpha / beta
            used = float((sigma / (sigma + ratio)).sum())
            weights = float((sigma * squares / (ratio + sigma) ** 2).sum())
            residual = float((squares / (1 + sigma / ratio) ** 2).sum()) + outside
            alpha = used / (weights + _EPSILON)
            beta = (samples - used) / (residual + _EPSILON)
            if abs(alpha / beta - ratio) / ratio <= _CONVERGED:
                break
        determinant = float(np.log(alpha + beta * sigma).sum()) + (width - len(sigma)) * np.log(alpha)
        evidence = width * np.log(alpha) + samples * np.log(beta) - determinant
        evidence -= beta * residual + alpha * weights + samples * np.log(2 * np.pi)
        evidences.append(evidence / 2 / samples)
    return float(np.mean(evidences))


def standardised(targets: Floats) -> Floats:
    """Numbers ``(n, targets)`` of mean 0 and variance 1; a constant is left at 0."""
    exact = targets.astype(np.float64)
    spread = exact.std(axis=0)
    return np.asarray((exact - exact.mean(axis=0)) / np.where(spread > 0, spread, 1))


def h_score(features: Floats, targets: Ints, shrinkage: float | None = None) -> float:
    """H-score: how much of the features' variance lies between the classes (Bao et al. 2019).

    It is ``tr(cov(f)^-1 cov(E[f | y]))``. The inverse means nothing with about as many features as samples; then the
    covariance is shrunk towards a multiple of the identity (Ledoit and Wolf 2004), as Ibrahim et al. 2022 propose
    (arXiv 2110.06893), and the score multiplied by ``1 - shrinkage``.

    Args:
        features: ``(n, d)``.
        targets: Class numbers ``(n,)``.
        shrinkage: Share of the identity; 0 is the score of Bao et al., ``None`` takes Ledoit and Wolf's.
    """
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    left, singular, _ = np.linalg.svd(centred, full_matrices=False)
    level = float((singular**2).sum()) / centred.shape[1]
    if shrinkage is None:
        shrinkage = _ledoit_wolf(centred, singular)
    # The class means lie in the span of the samples, so that only directions with a singular value count.
    means = np.stack([left[targets == number].mean(axis=0) for number in np.unique(targets)])
    counts = np.unique(targets, return_counts=True)[1]
    between = (counts[:, None] * means**2).sum(axis=0) * singular**2
    variance = (1 - shrinkage) * singular**2 + shrinkage * level
    there = variance > _NOISE * variance.max()
    return float((1 - shrinkage) * (between[there] / variance[there]).sum())


def _ledoit_wolf(centred: Floats, singular: Floats) -> float:
    """Ledoit and Wolf's shrinkage, as `sklearn.covariance.ledoit_wolf` has it, without a matrix of width x width."""
    samples, width = centred.shape
    level = float((singular**2).sum()) / samples / width
    squares = float((singular**4).sum()) / samples**2
    spread = (squares - width * level**2) / width
    noise = (float(((centred**2).sum(axis=1) ** 2).sum()) / samples - squares) / (width * samples)
    return min(noise, spread) / spread if spread > 0 else 0.0


def leep(source: Floats, targets: Ints) -> float:
    """LEEP: mean log likelihood of the targets given what the source head says (Nguyen et al. 2020).

    Args:
        source: Probabilities of the source classes ``(n, c)``; rows sum to 1.
        targets: Class numbers ``(n,)``.
    """
    source = source.astype(np.float64)
    joint = np.stack([source[targets == number].sum(axis=0) for number in range(int(targets.max()) + 1)])
    marginal = joint.sum(axis=0)
    given = joint[:, marginal > 0] / marginal[marginal > 0]  # P(target | source class)
    expected = source[:, marginal > 0] @ given.T
    return float(np.log(expected[np.arange(len(targets)), targets]).mean())


def nce(source: Ints, targets: Ints) -> float:
    """NCE: negative conditional entropy of the targets given hard source labels (Tran et al. 2019).

    Args:
        source: Source labels ``(n,)``.
        targets: Class numbers ``(n,)``.
    """
    joint = np.zeros((int(source.max()) + 1, int(targets.max()) + 1))
    np.add.at(joint, (source, targets), 1 / len(targets))
    marginal = np.broadcast_to(joint.sum(axis=1, keepdims=True), joint.shape)
    there = joint > 0
    return float((joint[there] * np.log(joint[there] / marginal[there])).sum())


def knn(features: Floats, targets: Ints | Floats, other: Floats, wanted: Ints | Floats) -> float:
    """Accuracy of the `NEIGHBOURS` nearest training samples by cosine similarity on other samples; of numbers their R2.

    Args:
        features: Training features ``(n, d)``.
        targets: Their class numbers ``(n,)``, or numbers ``(n, targets)``.
        other: Features ``(m, d)`` to classify.
        wanted: Their class numbers ``(m,)``, or numbers ``(m, targets)``.
    """
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

    kind = KNeighborsRegressor if targets.ndim == 2 else KNeighborsClassifier
    neighbours = kind(min(NEIGHBOURS, len(targets)), metric="cosine")
    return float(neighbours.fit(features, targets).score(other, wanted))


def probe(features: Floats, targets: Ints | Floats, other: Floats, wanted: Ints | Floats) -> float:
    """Accuracy on other samples of a ridge classifier on standardised features; the penalty is chosen in training.

    Of numbers it is the R2 of a ridge regression.

    Args:
        features: Training features ``(n, d)``.
        targets: Their class numbers ``(n,)``, or numbers ``(n, targets)``.
        other: Features ``(m, d)`` to classify.
        wanted: Their class numbers ``(m,)``, or numbers ``(m, targets)``.
    """
    from sklearn.linear_model import RidgeClassifierCV, RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = make_pipeline(StandardScaler(), (RidgeCV if targets.ndim == 2 else RidgeClassifierCV)(PENALTIES))
    return float(classifier.fit(features.astype(np.float64), targets).score(other.astype(np.float64), wanted))
