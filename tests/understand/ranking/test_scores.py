"""The scores are those of the papers: equal to the authors' own code where that is right, and to slow formulas."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.covariance import ledoit_wolf

from tlresearch.understand.ranking import scores
from tlresearch.understand.ranking.scores import Floats, Ints


def arrays(samples: int, width: int, classes: int, sources: int = 6) -> tuple[Floats, Ints, Floats]:
    """Features, targets and source probabilities without random numbers, so that any code can be given the same."""
    rows, columns = np.arange(1, samples + 1)[:, None], np.arange(1, width + 1)[None]
    targets = np.arange(samples) % classes
    features = np.sin(rows * columns) + 0.5 * np.cos(columns * (targets[:, None] + 1))
    logits = 2 * np.cos(rows * np.arange(1, sources + 1)[None])
    logits = logits + np.sin((targets[:, None] + 1) * np.arange(sources)[None])
    probabilities = np.exp(logits)
    return features, targets, probabilities / probabilities.sum(axis=1, keepdims=True)


FEW, MORE, WIDE = (60, 5, 3), (48, 12, 4), (20, 40, 3)

# What the authors' code gives for `arrays`: LogME of thuml/LogME at 56551ca94a3295bcc37e6a01b1291911af985f07 (LogME.py,
# `_fit_fixed_point`); LEEP, NCE and H-score of thuml/Transfer-Learning-Library at
# c4aa59eb565650a552b809411601d0589efbbfe4 (tllib/ranking). For more features than samples the former leaves part of the
# determinant out, so nothing is stated.
LOGME = {FEW: -0.7996212436345665, MORE: -0.6142376780356317}
LEEP = {FEW: -0.9646625881595993, MORE: -1.245024961519908, WIDE: -0.8591849195457646}
NCE = {FEW: -0.8877798512096876, MORE: -1.124407238653573, WIDE: -0.5671513214087416}
H_SCORE = {FEW: 0.7062492220411596, MORE: 1.839281656770464}


@pytest.mark.parametrize("shape", LOGME)
def test_logme_is_that_of_the_authors(shape: tuple[int, int, int]) -> None:
    features, targets, _ = arrays(*shape)
    assert scores.log_me(features, targets) == pytest.approx(LOGME[shape], abs=1e-6)


@pytest.mark.parametrize("shape", [FEW, MORE, WIDE])
def test_logme_is_the_evidence_at_its_maximum(shape: tuple[int, int, int]) -> None:
    """Slowly: the density of the targets under the prior, at precisions found by a search."""
    features, targets, _ = arrays(*shape)
    kernel, found = features @ features.T, []
    for number in range(targets.max() + 1):
        wanted = (targets == number).astype(float)
        best = -np.inf
        around, width = np.zeros(2), 6.0
        for _ in range(6):
            for alpha, beta in np.array(np.meshgrid(*[np.linspace(-width, width, 9)] * 2)).reshape(2, -1).T + around:
                covariance = np.exp(-beta) * np.eye(len(wanted)) + np.exp(-alpha) * kernel
                evidence = multivariate_normal(np.zeros(len(wanted)), covariance).logpdf(wanted) / len(wanted)
                if evidence > best:
                    best, center = evidence, np.array([alpha, beta])
            around, width = center, width / 3
        found.append(best)
    assert scores.log_me(features, targets) == pytest.approx(np.mean(found), abs=1e-3)


@pytest.mark.parametrize("shape", LEEP)
def test_leep_is_that_of_the_authors(shape: tuple[int, int, int]) -> None:
    _, targets, source = arrays(*shape)
    assert scores.leep(source, targets) == pytest.approx(LEEP[shape], abs=1e-6)


def test_leep_by_its_definition() -> None:
    _, targets, source = arrays(*FEW)
    total = 0.0
    for row, target in zip(source, targets, strict=True):
        total += np.log(sum(row[z] * source[targets == target, z].sum() / source[:, z].sum() for z in range(6)))
    assert scores.leep(source, targets) == pytest.approx(total / len(targets), abs=1e-12)


def test_leep_bears_a_source_class_that_never_occurs() -> None:
    source = np.array([[1.0, 0.0], [1.0, 0.0]])
    assert scores.leep(source, np.array([0, 1])) == pytest.approx(np.log(0.5))


@pytest.mark.parametrize("shape", NCE)
def test_nce_is_that_of_the_authors(shape: tuple[int, int, int]) -> None:
    _, targets, source = arrays(*shape)
    assert scores.nce(source.argmax(axis=1), targets) == pytest.approx(NCE[shape], abs=1e-6)


@pytest.mark.parametrize("shape", H_SCORE)
def test_h_score_without_shrinkage_is_that_of_the_authors(shape: tuple[int, int, int]) -> None:
    features, targets, _ = arrays(*shape)
    assert scores.h_score(features, targets, shrinkage=0) == pytest.approx(H_SCORE[shape], abs=1e-6)


def blobs(distance: float, samples: int = 60, width: int = 80) -> tuple[Floats, Ints]:
    draw = np.random.default_rng(0)
    targets = np.arange(samples) % 2
    return draw.normal(size=(samples, width)) * np.linspace(2, 0.1, width) + distance * targets[:, None], targets


def test_h_score_of_wide_features_is_shrunk_as_ledoit_and_wolf_do() -> None:
    features, targets = blobs(0.3)
    covariance, shrinkage = ledoit_wolf(features)
    means = np.stack([features[targets == target].mean(axis=0) for target in targets])
    biased = np.trace(np.linalg.inv(covariance) @ np.cov(means, rowvar=False, ddof=0))
    assert 0 < shrinkage < 1
    assert scores.h_score(features, targets) == pytest.approx((1 - shrinkage) * biased, rel=1e-6)


def test_every_score_prefers_features_that_tell_the_classes_apart() -> None:
    (near, targets), (far, _) = blobs(0.02), blobs(1.0)
    train, val = slice(0, 40), slice(40, None)
    for score in (scores.log_me, scores.h_score):
        assert score(far, targets) > score(near, targets)
    for measure in (scores.knn, scores.probe):
        found = [measure(f[train], targets[train], f[val], targets[val]) for f in (near, far)]
        assert found[1] > found[0]
        assert found[1] >= 0.8
