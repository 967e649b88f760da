"""One affine map per unit, from samples of a source and of a target: the estimators of activation transport.

Every unit stands for itself. a_(i), b_(i) are its sorted source and target samples, m and s their means and standard
deviations; T(x) = ω·x + β.

| estimator | ω | β | a unit that does not vary |
|---|---|---|---|
| ``linear`` | Σ (a_(i) − m_a)(b_(i) − m_b) / Σ (a_(i) − m_a)² | m_b − ω·m_a | shifted only: ω = 1 |
| ``gaussian`` | s_b / s_a, unbiased | m_b − ω·m_a | left alone where s_a or s_b is below ``min_std`` |
| ``mean`` | 1 | m_b − m_a | left alone where s_a or s_b is below ``min_std`` |
| ``aura`` | 1 − 2·(AUROC − ½) where AUROC > ½, else 1 | 0 | left alone |
| ``det_zero`` | 0 where the average precision is above ``above``, else 1 | m_b, else 0 | |
| ``iti_m`` | 1 | m_b − m_a | |

AUROC and average precision are those of the unit's value as a detector of the source.

Source: Rodriguez, Blaas, Klein, Zappella, Apostoloff, Cuturi, Suau, "Controlling Language and Diffusion Models by
Transporting Activations", ICLR 2025 (arXiv 2410.23054), Definition 3.1 and Table 1. The denominator of ω is the
source's, as in the released code and, by its author's word, in the camera-ready paper; the preprint prints the
target's. Unlike the released code no noise is added to the source, so a fit has no randomness at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lensteer.hooks import Affine, Strength

LEVELS = (0.0, 0.5, *map(float, range(1, 100)), 99.5, 100.0)
"""The quantiles, in percent, that are kept of every source unit."""
_ROUNDING = 1e-6  # of a unit's largest value: less spread than this is float32's rounding

Samples = Float[Tensor, "unit n"]  # sorted, float64; each unit's in one piece of memory
Coefficients = tuple[Float[Tensor, " unit"], Float[Tensor, " unit"], Bool[Tensor, " unit"]]


@dataclass(frozen=True, eq=False)
class UnitMaps:
    """The maps of all units of one site, and what they were fitted on.

    Attributes:
        scale, shift: ω and β.
        fitted: False where a unit was left alone (ω = 1, β = 0) or only shifted because it does not vary.
        quantiles: of the source, at `LEVELS` percent; supports are made from them.
        source_mean, source_std, target_mean, target_std: moments, unbiased deviations.
        distance: squared 2-Wasserstein distance between source and target, what the best map has to move.
        residual: the same between transported source and target, what this map leaves.
    """

    scale: Float[Tensor, "..."]
    shift: Float[Tensor, "..."]
    fitted: Bool[Tensor, "..."]
    quantiles: Float[Tensor, "level ..."]
    source_mean: Float[Tensor, "..."]
    source_std: Float[Tensor, "..."]
    target_mean: Float[Tensor, "..."]
    target_std: Float[Tensor, "..."]
    distance: Float[Tensor, "..."]
    residual: Float[Tensor, "..."]

    def edit(self, strength: Strength = 1.0, support: tuple[float, float] | None = None) -> Affine:
        """The maps as an edit; ``support`` in percent of the source, None for everywhere.

        Raises:
            ValueError: as `support`, or a strength that is not finite.
        """
        low, high = (None, None) if support is None else self.support(*support)
        return Affine(self.scale, self.shift, low, high, strength)

    def support(self, low: float, high: float) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
        """The source's quantiles at two percentages, linear between the `LEVELS` that are kept.

        Raises:
            ValueError: not 0 ≤ low < high ≤ 100.
        """
        require_support(low, high)
        return _between(self.quantiles, low), _between(self.quantiles, high)


def require_support(low: float, high: float) -> None:
    """Refuse a pair of percentages that leaves nothing, such as (60, 40)."""
    if not 0 <= low < high <= 100:
        raise ValueError(
            f"support=({low}, {high}) is empty or out of range: it is two percentages of the source, 0 ≤ low < high ≤ "
            "100, such as (0, 100); None is everywhere"
        )


def _between(quantiles: Float[Tensor, "level ..."], level: float) -> Float[Tensor, "..."]:
    above = next(i for i, known in enumerate(LEVELS) if known >= level)
    if LEVELS[above] == level:
        return quantiles[above]
    share = (level - LEVELS[above - 1]) / (LEVELS[above] - LEVELS[above - 1])
    return torch.lerp(quantiles[above - 1], quantiles[above], share)


def fit_units(
    source: Float[Tensor, "n ..."], target: Float[Tensor, "m ..."], method: str = "linear", **options: Any
) -> UnitMaps:
    """Fit the maps of every unit of a site, in float64.

    The numbers of samples may differ: quantiles are then matched by the exact coupling of the two empirical
    distributions, which for equal numbers is a_(i) with b_(i).

    Args:
        source, target: one row a sample; the trailing axes are the units.
        method: a key of `ESTIMATORS`.
        options: ``min_std=`` of "gaussian" and "mean" (1e-4 as released), ``above=`` of "det_zero" (0.5).

    Raises:
        ValueError: fewer than two samples, NaN or inf, units that do not agree, or an unknown method.
        TypeError: an option that the method does not have.
    """
    require_method(method)
    for name, samples in (("source", source), ("target", target)):
        if len(samples) < 2:
            raise ValueError(f"the {name} has {len(samples)} samples; a map needs at least two of each side")
        if not torch.isfinite(samples).all():
            bad = int((~torch.isfinite(samples.flatten(1))).any(1).sum())
            raise ValueError(f"{bad} of {len(samples)} samples of the {name} hold NaN or inf")
    shape = source.shape[1:]
    if shape != target.shape[1:]:
        raise ValueError(f"source and target have units {tuple(shape)} and {tuple(target.shape[1:])}; they must agree")
    a, b = _sorted(source), _sorted(target)
    scale, shift, fitted = ESTIMATORS[method](a, b, **options)
    x, y, weight = coupling(a, b)
    m_a, m_b = a.mean(1), b.mean(1)
    values = {
        "scale": scale,
        "shift": shift,
        "source_mean": m_a,
        "source_std": _std(a, m_a),
        "target_mean": m_b,
        "target_std": _std(b, m_b),
        "distance": (x - y).square() @ weight,
        "residual": (torch.addcmul(shift[:, None], scale[:, None], x) - y).square() @ weight,
    }
    found = {key: value.float().reshape(shape) for key, value in values.items()}
    return UnitMaps(fitted=fitted.reshape(shape), quantiles=_quantiles(a).float().reshape(len(LEVELS), *shape), **found)


def _sorted(samples: Float[Tensor, "n ..."]) -> Samples:
    """Sorted samples of every unit; NumPy's sort is many times faster than PyTorch's, which sorts indices along."""
    columns = samples.detach().flatten(1).T.contiguous()
    if columns.device.type == "cpu":
        found = torch.from_numpy(np.sort(columns.float().numpy() if columns.dtype.itemsize < 4 else columns.numpy()))
    else:
        found = columns.sort(-1).values
    return found.to(torch.float32 if columns.device.type == "mps" else torch.float64)


def _std(a: Samples, mean: Float[Tensor, " unit"]) -> Float[Tensor, " unit"]:
    return ((a - mean[:, None]).square().sum(1) / (a.shape[1] - 1)).sqrt()


def require_method(method: str) -> None:
    """Refuse a method that is none of `ESTIMATORS`."""
    if method not in ESTIMATORS:
        raise ValueError(f"method must be one of {tuple(ESTIMATORS)}, got {method!r}")


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


def _linear(a: Samples, b: Samples) -> Coefficients:
    x, y, weight = coupling(a, b)
    m_a, m_b = a.mean(1), b.mean(1)
    from_mean = x - m_a[:, None]
    variance = from_mean.square() @ weight
    varies = variance.sqrt() > _ROUNDING * torch.maximum(a[:, 0].abs(), a[:, -1].abs())
    slope = (from_mean * (y - m_b[:, None])) @ weight / torch.where(varies, variance, 1.0)
    # A unit that does not vary has no slope; shifted by the difference of means it reaches the target's mean all
    # the same, and cannot explode where the support is unbounded.
    slope = torch.where(varies, slope, 1.0)
    return slope, m_b - slope * m_a, varies


def _gaussian(a: Samples, b: Samples, *, min_std: float = 1e-4) -> Coefficients:
    m_a, m_b = a.mean(1), b.mean(1)
    s_a, s_b = _std(a, m_a), _std(b, m_b)
    varies = (s_a > min_std) & (s_b > min_std)
    slope = torch.where(varies, s_b / torch.where(varies, s_a, 1.0), 1.0)
    return slope, torch.where(varies, m_b - slope * m_a, 0.0), varies


def _mean(a: Samples, b: Samples, *, min_std: float = 1e-4) -> Coefficients:
    m_a, m_b = a.mean(1), b.mean(1)
    varies = (_std(a, m_a) > min_std) & (_std(b, m_b) > min_std)
    return torch.ones_like(m_a), torch.where(varies, m_b - m_a, 0.0), varies


def _aura(a: Samples, b: Samples) -> Coefficients:
    detects = auroc(a, b)
    expert = detects > 0.5
    return torch.where(expert, 2 - 2 * detects, 1.0), torch.zeros_like(detects), expert


def _det_zero(a: Samples, b: Samples, *, above: float = 0.5) -> Coefficients:
    expert = average_precision(a, b) > above
    return torch.where(expert, 0.0, 1.0).to(a.dtype), torch.where(expert, b.mean(1), 0.0), expert


def _iti_m(a: Samples, b: Samples) -> Coefficients:
    shift = b.mean(1) - a.mean(1)
    return torch.ones_like(shift), shift, torch.ones_like(shift, dtype=torch.bool)


ESTIMATORS: dict[str, Callable[..., Coefficients]] = {
    "linear": _linear,
    "gaussian": _gaussian,
    "mean": _mean,
    "aura": _aura,
    "det_zero": _det_zero,
    "iti_m": _iti_m,
}
"""Name -> estimator of (ω, β, which units are fitted) from sorted samples in float64."""


def auroc(a: Samples, b: Samples) -> Float[Tensor, " unit"]:
    """P(source > target) + ½·P(equal) for every unit."""
    below, through = torch.searchsorted(b, a), torch.searchsorted(b, a, right=True)
    return (below + through).sum(1).to(a.dtype) / (2 * a.shape[1] * b.shape[1])


def average_precision(a: Samples, b: Samples) -> Float[Tensor, " unit"]:
    """Average precision of every unit's value as a detector of the source.

    Σ over thresholds of (recall gained) · precision, equal values sharing a threshold, as in scikit-learn.
    """
    # At or above each source sample: other source samples, and target samples.
    positives = a.shape[1] - torch.searchsorted(a, a)
    negatives = b.shape[1] - torch.searchsorted(b, a)
    return (positives / (positives + negatives)).to(a.dtype).mean(1)


def _quantiles(a: Samples) -> Float[Tensor, "level unit"]:
    """Quantiles of sorted samples at `LEVELS`, linear between them (torch.quantile refuses large inputs)."""
    place = torch.tensor(LEVELS, dtype=torch.float64) / 100 * (a.shape[1] - 1)
    lower = place.floor().long().clamp(max=a.shape[1] - 2)
    share = (place - lower).to(a.device, a.dtype)
    lower = lower.to(a.device)
    return torch.lerp(a[:, lower], a[:, lower + 1], share).T
