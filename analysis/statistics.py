"""Uncertainty of the rates in a results table.

    mean of n prompts:   percentile bootstrap over prompts, m* = (1/n) Σ_i w_i x_i,  w ~ Multinomial(n, 1/n)
    two conditions:      the same bootstrap on the paired differences x_i − y_i
    two pass/fail rates: McNemar's exact test on the prompts where the two disagree

The unit that is resampled is the prompt, or with ``groups`` a whole group of them (cluster bootstrap): prompts made
from one source are right or wrong together, and one by one they would pass for more than they are. All functions are
vectorised and deterministic given ``seed``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

_RESAMPLES_IN_MEMORY = 8_000_000  # numbers drawn at once, so that 10^5 prompts do not need gigabytes


class Interval(NamedTuple):
    """An estimate with the ends of its bootstrap interval."""

    estimate: float
    low: float
    high: float


class McNemar(NamedTuple):
    """McNemar's exact test: the discordant counts and the two-sided p-value."""

    only_first: int
    only_second: int
    p_value: float


def bootstrap_mean(
    values: Float[np.ndarray, "prompt"],
    *,
    groups: Sequence[Any] | None = None,
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Mean over prompts with its percentile bootstrap interval.

    Values that are all equal give an interval of zero width: a bootstrap cannot see what never occurred.

    Raises:
        ValueError: no values, NaN or infinite values, not one group for each, a level outside (0, 1), or less than one
            resample.
    """
    estimate, low, high = bootstrap_means(
        np.asarray(values, dtype=float)[None], groups=groups, level=level, n_resamples=n_resamples, seed=seed
    )
    return Interval(float(estimate[0]), float(low[0]), float(high[0]))


def bootstrap_means(
    values: Float[np.ndarray, "candidate prompt"],
    *,
    groups: Sequence[Any] | None = None,
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> tuple[Float[np.ndarray, "candidate"], Float[np.ndarray, "candidate"], Float[np.ndarray, "candidate"]]:
    """Means of many candidates on the same prompts, with the low and high ends of their intervals.

    Every candidate sees the same resampled prompts, so candidates can be compared end with end.

    Raises:
        ValueError: as ``bootstrap_mean``, or values that are not two-dimensional.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 2:
        raise ValueError(f"values must be [candidate, prompt], got shape {values.shape}")
    if values.size == 0:
        raise ValueError(f"a bootstrap needs at least one value, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{int((~np.isfinite(values)).sum())} of {values.size} values are NaN or infinite")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    if n_resamples < 1:
        raise ValueError(f"n_resamples must be at least 1, got {n_resamples}")
    resampled = resampled_means(values, n_resamples, seed, groups=groups)
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return values.mean(axis=1), low, high


def resampled_means(
    values: Float[np.ndarray, "candidate prompt"],
    n_resamples: int,
    seed: int = 0,
    *,
    groups: Sequence[Any] | None = None,
) -> Float[np.ndarray, "resample candidate"]:
    """Means of all candidates over the same resampled prompts: what the intervals are quantiles of.

    Args:
        groups: what each prompt was made from; whole groups are drawn. None: every prompt by itself.
    """
    rng = np.random.default_rng(seed)
    n = values.shape[1]
    if groups is not None and len(groups) != n:
        raise ValueError(f"{len(groups)} groups for {n} values; give one for each")
    place = np.arange(n) if groups is None else pd.factorize(pd.Series(list(groups), dtype=object))[0]
    chunk = max(1, _RESAMPLES_IN_MEMORY // n)
    sizes = [min(chunk, n_resamples - start) for start in range(0, n_resamples, chunk)]
    weights = (_weights(int(place.max()) + 1, size, rng)[:, place] for size in sizes)
    return np.concatenate([own @ values.T / own.sum(1, keepdims=True) for own in weights])


def paired_bootstrap(
    first: Float[np.ndarray, "prompt"],
    second: Float[np.ndarray, "prompt"],
    *,
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Mean of ``first − second`` over the same prompts, with its bootstrap interval.

    Raises:
        ValueError: lengths that differ, or as ``bootstrap_mean``.
    """
    first, second = _same_length(first, second)
    return bootstrap_mean(first - second, level=level, n_resamples=n_resamples, seed=seed)


def mcnemar(first: Float[np.ndarray, "prompt"], second: Float[np.ndarray, "prompt"]) -> McNemar:
    """McNemar's exact two-sided test that two pass/fail outcomes on the same prompts have equal rates.

    With b prompts passed only by ``first``, c only by ``second`` and n = b + c:
    ``p = min(1, 2 · 2^(−n) · Σ_{k ≤ min(b, c)} C(n, k))``; 1 where they never disagree.

    Raises:
        ValueError: lengths that differ, no prompts, or outcomes other than 0 and 1 (NaN included).
    """
    first, second = _same_length(first, second)
    if len(first) == 0:
        raise ValueError("McNemar's test needs at least one prompt")
    if not is_binary(first) or not is_binary(second):
        raise ValueError("McNemar's test needs outcomes of 0 or 1; compare graded scores by paired_bootstrap")
    only_first = int(((first == 1) & (second == 0)).sum())
    only_second = int(((first == 0) & (second == 1)).sum())
    n = only_first + only_second
    tail = sum(math.comb(n, k) for k in range(min(only_first, only_second) + 1))
    # whole numbers to the end: 2^n overflows a float from n = 1024
    return McNemar(only_first, only_second, min(1.0, 2 * tail / 2**n))


def geometric_mean(values: Float[np.ndarray, "prompt"]) -> float:
    """exp of the mean logarithm: the mean for perplexities, where ratios count. NaN for no values."""
    values = np.asarray(values, dtype=float)
    return float(np.exp(np.log(values).mean())) if values.size else math.nan


def is_binary(values: Float[np.ndarray, "prompt"]) -> bool:
    """Whether every value is 0 or 1 (so NaN says no)."""
    return bool(np.isin(values, (0, 1)).all())


def correlation(first: Float[np.ndarray, "n"], second: Float[np.ndarray, "n"]) -> float:
    """Pearson's correlation; NaN where one side is constant."""
    a, b = first - first.mean(), second - second.mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm > 0 else math.nan


def spearman(first: Float[np.ndarray, "n"], second: Float[np.ndarray, "n"]) -> float:
    """Spearman's ρ: Pearson's correlation of the ranks, ties at their mean rank; NaN where one side is constant."""
    import pandas as pd

    return correlation(*(pd.Series(values).rank().to_numpy() for values in (first, second)))


def _weights(n: int, n_resamples: int, rng: np.random.Generator) -> Int[np.ndarray, "resample prompt"]:
    """How often each prompt is drawn in each resample: one bincount over all of them."""
    drawn = rng.integers(n, size=(n_resamples, n)) + n * np.arange(n_resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=n_resamples * n).reshape(n_resamples, n)


def _same_length(
    first: Float[np.ndarray, "prompt"], second: Float[np.ndarray, "prompt"]
) -> tuple[Float[np.ndarray, "prompt"], Float[np.ndarray, "prompt"]]:
    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"paired values need one length, got shapes {first.shape} and {second.shape}")
    return first, second
