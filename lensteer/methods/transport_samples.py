"""Sorted samples of a source and of a target, unit by unit: their coupling, their moments, how well one can tell them.

In one dimension the optimal transport between two empirical distributions matches their sorted samples. All that
affine maps and squared distances need of it are two means, two variances and one covariance.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

Samples = Float[Tensor, "unit n"]  # sorted, float32 at least; each unit's in one piece of memory


class Sides(NamedTuple):
    """Sorted samples of both sides, and their moments in float64, which estimators and statistics are made of.

    Attributes:
        a, b: the source's and the target's samples.
        m_a, m_b: means.
        v_a, v_b: variances, biased.
        together: covariance of the optimal coupling, Σ (a_(i) − m_a)(b_(i) − m_b) / n for equal numbers.
    """

    a: Samples
    b: Samples
    m_a: Float[Tensor, " unit"]
    m_b: Float[Tensor, " unit"]
    v_a: Float[Tensor, " unit"]
    v_b: Float[Tensor, " unit"]
    together: Float[Tensor, " unit"]

    @property
    def s_a(self) -> Float[Tensor, " unit"]:
        return _unbiased(self.v_a, self.a.shape[1])

    @property
    def s_b(self) -> Float[Tensor, " unit"]:
        return _unbiased(self.v_b, self.b.shape[1])


def coupled(source: Float[Tensor, "n ..."], target: Float[Tensor, "m ..."]) -> Sides:
    """Both sides sorted, with their moments; trailing axes are flattened to units.

    Raises:
        ValueError: NaN or inf.
    """
    dtype = torch.promote_types(torch.promote_types(source.dtype, target.dtype), torch.float32)
    a, b = _sorted("source", source, dtype), _sorted("target", target, dtype)
    m_a, m_b = a.mean(1, dtype=wide(a)), b.mean(1, dtype=wide(b))
    x, y = a - m_a[:, None], b - m_b[:, None]
    v_a, v_b = (x * x).mean(1), (y * y).mean(1)
    if a.shape[1] == b.shape[1]:
        return Sides(a, b, m_a, m_b, v_a, v_b, (x * y).mean(1))
    x, y, weight = coupling(x, y)
    return Sides(a, b, m_a, m_b, v_a, v_b, (x * y) @ weight)


def _sorted(name: str, samples: Float[Tensor, "n ..."], dtype: torch.dtype) -> Samples:
    """Sorted samples of every unit; NumPy's sort is many times faster than PyTorch's, which sorts indices along."""
    columns = samples.detach().flatten(1).T.to(dtype, copy=True, memory_format=torch.contiguous_format)
    if columns.device.type == "cpu":
        columns.numpy().sort()  # in place: the samples were copied
    else:
        columns = columns.sort(-1).values
    if not torch.isfinite(columns[:, [0, -1]]).all():  # NaN is sorted to the end
        bad = int((~torch.isfinite(samples.flatten(1))).any(1).sum())
        raise ValueError(f"{bad} of {len(samples)} samples of the {name} hold NaN or inf")
    return columns


def wide(a: Samples) -> torch.dtype:
    """The dtype in which statistics are computed: float64, which MPS lacks."""
    return torch.float32 if a.device.type == "mps" else torch.float64


def _unbiased(variance: Float[Tensor, " unit"], n: int) -> Float[Tensor, " unit"]:
    return (variance * (n / (n - 1))).sqrt()


def coupling(a: Samples, b: Samples) -> tuple[Samples, Samples, Float[Tensor, " m"]]:
    """The optimal coupling of two sorted sets of samples: pairs (x, y) and the mass of each.

    Equal numbers give a_(i) with b_(i), mass 1/n. Otherwise the quantile functions are cut wherever either jumps,
    n_a + n_b − gcd(n_a, n_b) pieces in all.
    """
    n_a, n_b = a.shape[1], b.shape[1]
    if n_a == n_b:
        return a, b, torch.full((n_a,), 1 / n_a, dtype=a.dtype, device=a.device)
    # In units of 1 / (n_a n_b), so that the cuts are whole numbers.
    cuts = torch.unique(torch.cat([torch.arange(n_a + 1) * n_b, torch.arange(n_b + 1) * n_a])).to(a.device)
    starts, mass = cuts[:-1], cuts.diff().to(a.dtype) / (n_a * n_b)
    return a[:, starts // n_b], b[:, starts // n_a], mass


def auroc(a: Samples, b: Samples) -> Float[Tensor, " unit"]:
    """P(source > target) + ½·P(equal) for every unit."""
    below, through = torch.searchsorted(b, a), torch.searchsorted(b, a, right=True)
    return (below + through).sum(1).to(wide(a)) / (2 * a.shape[1] * b.shape[1])


def average_precision(a: Samples, b: Samples) -> Float[Tensor, " unit"]:
    """Average precision of every unit's value as a detector of the source.

    Σ over thresholds of (recall gained) · precision, equal values sharing a threshold, as in scikit-learn.
    """
    # At or above each source sample: other source samples, and target samples.
    positives = a.shape[1] - torch.searchsorted(a, a)
    negatives = b.shape[1] - torch.searchsorted(b, a)
    return (positives / (positives + negatives)).mean(1, dtype=wide(a))
