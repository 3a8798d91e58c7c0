"""Mean, interval and paired tests, against what can be counted by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tlresearch.base.statistics import bootstrap_interval, paired_test, summary


def test_one_value_is_its_own_interval() -> None:
    assert bootstrap_interval([0.7]) == (0.7, 0.7)
    assert summary([0.7]) == summary((0.7,))
    assert (summary([0.7]).std, summary([0.7]).n) == (0.0, 1)


def test_the_interval_repeats_and_holds_the_mean_between_the_ends() -> None:
    values = [0.81, 0.84, 0.80, 0.86, 0.83]
    low, high = bootstrap_interval(values)
    assert (low, high) == bootstrap_interval(values)
    assert min(values) < low < np.mean(values) < high < max(values)
    narrow = bootstrap_interval(values, level=0.5)
    assert low < narrow[0] < narrow[1] < high


def test_the_interval_has_about_the_width_that_theory_gives() -> None:
    values = np.random.default_rng(0).normal(size=400)
    low, high = bootstrap_interval(values.tolist())
    assert high - low == pytest.approx(2 * 1.96 * values.std(ddof=1) / math.sqrt(400), rel=0.05)


def test_equal_values_and_values_that_are_no_numbers() -> None:
    assert bootstrap_interval([0.5, 0.5, 0.5]) == (0.5, 0.5)
    assert math.isnan(summary([0.5, math.nan]).mean)
    assert math.isnan(bootstrap_interval([0.5, math.nan])[0])


def test_what_cannot_be_asked() -> None:
    with pytest.raises(ValueError, match="at least one value"):
        bootstrap_interval([])
    with pytest.raises(ValueError, match="level"):
        bootstrap_interval([1.0], level=95)
    with pytest.raises(ValueError, match="3 and 2"):
        paired_test([1, 2, 3], [1, 2])


def test_mcnemar_counts_only_items_on_which_the_two_disagree() -> None:
    # Eight items right only with a, one only with b: 2 * (1 + 9) / 2^9.
    a = [1] * 8 + [0] * 1 + [1] * 50
    b = [0] * 8 + [1] * 1 + [1] * 50
    assert paired_test(a, b).p_value == pytest.approx(20 / 512)
    assert paired_test(a, b).difference == pytest.approx(7 / 59)
    assert paired_test(a, a).p_value == 1.0


def test_sign_flips_are_counted_exactly_for_few_seeds() -> None:
    # All differences of one sign: only the two extreme ways of 2^n are as large.
    three = paired_test([0.9, 0.8, 0.85], [0.8, 0.75, 0.82])
    assert three.p_value == pytest.approx(2 / 2**3)
    assert three.n == 3
    assert three.low <= three.difference <= three.high
    six = paired_test([0.91, 0.82, 0.83, 0.94, 0.85, 0.96], [0.8, 0.7, 0.7, 0.8, 0.7, 0.8])
    assert six.p_value == pytest.approx(2 / 2**6)


def test_the_same_values_or_a_single_pair_show_no_difference() -> None:
    assert paired_test([0.9, 0.8], [0.9, 0.8]).p_value == 1.0
    assert paired_test([0.9], [0.5]).p_value == 1.0
    assert math.isnan(paired_test([0.9, math.nan], [0.5, 0.5]).p_value)
