"""Intervals of test results: against scikit-learn resample by resample, and against what is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tlresearch.tasks import intervals
from tlresearch.tasks.intervals import _Ranked, bootstrap_intervals

GENERATOR = np.random.default_rng(0)
TARGETS = GENERATOR.integers(0, 3, 90)
SCORES = GENERATOR.random((90, 3)).round(1)  # with ties
SCORES[np.arange(90), TARGETS] += 0.3


def test_auroc_of_resamples_is_that_of_scikit_learn() -> None:
    counts = GENERATOR.integers(0, 3, (90, 4))
    found = _Ranked(SCORES[:, 1], TARGETS == 1).auroc(counts.astype(np.float32))
    wanted = [roc_auc_score(TARGETS == 1, SCORES[:, 1], sample_weight=column) for column in counts.T]
    assert found.tolist() == pytest.approx(wanted)


def test_intervals_hold_the_value_repeat_and_shrink_with_the_samples() -> None:
    found = bootstrap_intervals(SCORES, TARGETS)
    each = [roc_auc_score(np.equal(TARGETS, number), column) for number, column in enumerate(SCORES.T)]
    value = np.mean(each)
    accuracy = np.mean(SCORES.argmax(axis=1) == TARGETS)
    assert found["auroc_low"] < value < found["auroc_high"]
    assert found["accuracy_low"] < accuracy < found["accuracy_high"]
    # The normal approximation of a share's interval.
    width = 2 * 1.96 * math.sqrt(accuracy * (1 - accuracy) / 90)
    assert found["accuracy_high"] - found["accuracy_low"] == pytest.approx(width, rel=0.15)
    assert bootstrap_intervals(SCORES, TARGETS) == found
    more = bootstrap_intervals(np.tile(SCORES, (9, 1)), np.tile(TARGETS, 9))
    ratio = (more["auroc_high"] - more["auroc_low"]) / (found["auroc_high"] - found["auroc_low"])
    assert ratio == pytest.approx(1 / 3, rel=0.2)


def test_of_two_classes_the_first_tells_all(monkeypatch: pytest.MonkeyPatch) -> None:
    first = (SCORES[:, 1] * 16).round() / 32  # exact, so that both columns have the same ties
    binary = bootstrap_intervals(np.stack([1 - first, first], axis=1), (TARGETS == 1).astype(np.int64))
    both = bootstrap_intervals(np.stack([1 - first, first], axis=1), np.stack([TARGETS != 1, TARGETS == 1], axis=1))
    assert binary["auroc_low"] == pytest.approx(both["auroc_low"])
    monkeypatch.setattr(intervals, "MOST", 10)
    assert set(bootstrap_intervals(SCORES, TARGETS)) == {"accuracy_low", "accuracy_high"}


def test_what_cannot_be_ranked_is_left_out() -> None:
    labels = np.stack([TARGETS == 0, np.zeros(90)], axis=1).astype(np.int64)
    alone = bootstrap_intervals(SCORES[:, :1], labels[:, :1])
    assert bootstrap_intervals(SCORES[:, :2], labels)["auroc_low"] == alone["auroc_low"]
    nothing = bootstrap_intervals(SCORES[:, 1:2], labels[:, 1:])
    assert math.isnan(nothing["auroc_low"])
    assert math.isnan(bootstrap_intervals(SCORES[:1], TARGETS[:1])["accuracy_low"])
