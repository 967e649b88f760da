from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from analysis.statistics import (
    bootstrap_mean,
    bootstrap_means,
    correlation,
    geometric_mean,
    mcnemar,
    paired_bootstrap,
    spearman,
)


def test_correlations_are_those_of_scipy_ties_included_and_nan_where_a_side_is_constant():
    rng = np.random.default_rng(5)
    first, second = rng.integers(0, 6, 40).astype(float), rng.normal(size=40)
    assert correlation(first, second) == pytest.approx(stats.pearsonr(first, second).statistic)
    assert spearman(first, second) == pytest.approx(stats.spearmanr(first, second).statistic)
    assert math.isnan(correlation(first, np.ones(40))) and math.isnan(spearman(np.ones(40), second))


def test_the_interval_agrees_with_scipys_percentile_bootstrap():
    values = np.random.default_rng(3).normal(2.0, 1.0, size=60)
    ours = bootstrap_mean(values, n_resamples=20_000, seed=1)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(5)
    ).confidence_interval
    assert ours.estimate == pytest.approx(values.mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.01)
    assert ours.high == pytest.approx(theirs.high, abs=0.01)


def test_the_interval_covers_the_true_rate_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    samples = rng.random((400, 60)) < 0.4
    _, low, high = bootstrap_means(samples.astype(float), level=0.9, n_resamples=500)
    coverage = ((low <= 0.4) & (high >= 0.4)).mean()
    assert 0.84 <= coverage <= 0.95


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    values = np.random.default_rng(0).normal(size=30)
    assert bootstrap_mean(values, seed=4) == bootstrap_mean(values, seed=4)
    assert bootstrap_mean(values, seed=4) != bootstrap_mean(values, seed=5)


def test_candidates_share_their_resampled_prompts():
    values = np.random.default_rng(0).normal(size=20)
    estimate, low, high = bootstrap_means(np.stack([values, values + 3.0]))
    assert estimate[1] - estimate[0] == pytest.approx(3.0)
    assert low[1] - low[0] == pytest.approx(3.0)
    assert high[1] - high[0] == pytest.approx(3.0)


def test_drawing_in_chunks_still_draws_every_resample(monkeypatch):
    values = np.random.default_rng(0).normal(size=50)
    whole = bootstrap_mean(values, n_resamples=4000)
    monkeypatch.setattr("analysis.statistics._RESAMPLES_IN_MEMORY", 350)  # seven resamples at a time
    chunked = bootstrap_mean(values, n_resamples=4000)
    assert chunked == pytest.approx(whole, abs=0.03)


def test_prompts_of_one_group_are_drawn_together():
    one_each = np.random.default_rng(1).random((2, 30))
    four_each, names = one_each.repeat(4, axis=1), [f"context {i}" for i in range(30) for _ in range(4)]
    np.testing.assert_allclose(bootstrap_means(four_each, groups=names), bootstrap_means(one_each))
    np.testing.assert_array_equal(bootstrap_means(one_each, groups=range(30)), bootstrap_means(one_each))
    mixed = np.random.default_rng(2).permutation(120)
    found = bootstrap_means(four_each[:, mixed], groups=[names[i] for i in mixed], n_resamples=20_000)
    np.testing.assert_allclose(found, bootstrap_means(one_each, n_resamples=20_000), atol=0.005)


def test_groups_of_other_sizes_weigh_by_their_prompts():
    sizes, rng = [1, 2, 5, 9, 3, 4], np.random.default_rng(3)
    groups = [np.full(size, value) for size, value in zip(sizes, rng.random(6), strict=True)]
    drawn = [np.concatenate([groups[i] for i in rng.integers(0, 6, 6)]).mean() for _ in range(20_000)]
    names = np.repeat(np.arange(6), sizes)
    found = bootstrap_mean(np.concatenate(groups), groups=names, n_resamples=20_000)
    np.testing.assert_allclose(found[1:], np.quantile(drawn, [0.025, 0.975]), atol=0.01)
    with pytest.raises(ValueError, match="5 groups for 24 values"):
        bootstrap_mean(np.concatenate(groups), groups=names[:5])


def test_equal_values_give_an_interval_of_zero_width():
    assert bootstrap_mean(np.ones(5)) == (1.0, 1.0, 1.0)


def test_the_paired_interval_is_that_of_the_differences():
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 10, size=40)
    first, second = shared + 1.0 + rng.normal(0, 0.1, 40), shared
    interval = paired_bootstrap(first, second)
    assert interval == bootstrap_mean(first - second)
    assert interval.high - interval.low < 0.2  # the shared spread cancels


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (5, 0), (3, 9), (7, 7), (700, 620)])
def test_mcnemar_is_the_exact_binomial_test_of_the_discordant_prompts(only_first, only_second):
    first = np.array([1.0] * only_first + [0.0] * only_second + [1.0, 0.0, 0.0])
    second = np.array([0.0] * only_first + [1.0] * only_second + [1.0, 0.0, 0.0])
    result = mcnemar(first, second)
    n = only_first + only_second
    expected = stats.binomtest(only_first, n, 0.5).pvalue if n else 1.0
    assert (result.only_first, result.only_second) == (only_first, only_second)
    assert result.p_value == pytest.approx(expected)


def test_geometric_mean_averages_logarithms():
    assert geometric_mean(np.array([1.0, 100.0])) == pytest.approx(10.0)
    assert math.isnan(geometric_mean(np.array([])))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap_mean(np.array([])), "at least one value"),
        (lambda: bootstrap_mean(np.array([1.0, np.nan])), "1 of 2 values are NaN"),
        (lambda: bootstrap_mean(np.ones(3), level=95), "level must lie between 0 and 1, got 95"),
        (lambda: bootstrap_mean(np.ones(3), n_resamples=0), "n_resamples must be at least 1"),
        (lambda: bootstrap_means(np.ones(3)), r"\[candidate, prompt\], got shape \(3,\)"),
        (lambda: paired_bootstrap(np.ones(3), np.ones(4)), r"shapes \(3,\) and \(4,\)"),
        (lambda: mcnemar(np.array([0.5]), np.array([1.0])), "outcomes of 0 or 1"),
        (lambda: mcnemar(np.array([np.nan]), np.array([1.0])), "outcomes of 0 or 1"),
        (lambda: mcnemar(np.array([]), np.array([])), "at least one prompt"),
    ],
)
def test_bad_input_gets_one_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()
