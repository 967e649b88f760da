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

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lensteer.hooks import Affine, Strength
from lensteer.messages import short
from lensteer.methods.transport_samples import Samples, Sides, auroc, average_precision, coupled, wide

LEVELS = (0.0, 0.5, *map(float, range(1, 100)), 99.5, 100.0)
"""The quantiles, in percent, that are kept of every source unit."""
_ROUNDING = 1e-6  # of a unit's largest value: less spread than this is float32's rounding

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

    @property
    def mean_move(self) -> Float[Tensor, "..."]:
        """How far the maps move the source's mean: T(m_a) − m_a, where no support is in the way."""
        return self.scale * self.source_mean + self.shift - self.source_mean

    def edit(self, strength: Strength = 1.0, support: tuple[float, float] | None = None) -> Affine:
        """The maps as an edit; ``support`` in percent of the source, None for everywhere.

        Raises:
            ValueError: as `support`, or a strength that is not finite.
        """
        if support is not None:
            require_support(support)
        low, high = (None, None) if support is None else self.support(*support)
        return Affine(self.scale, self.shift, low, high, strength)

    def support(self, low: float, high: float) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
        """The source's quantiles at two percentages, linear between the `LEVELS` that are kept.

        Raises:
            ValueError: not 0 ≤ low < high ≤ 100.
        """
        require_support((low, high))
        return _between(self.quantiles, low), _between(self.quantiles, high)


def shown_support(support: tuple[float, float] | None) -> str:
    """A support in words, for metadata."""
    return "everywhere" if support is None else f"{support[0]:g} to {support[1]:g} %"


def require_support(support: Any) -> None:
    """Refuse what is not two percentages, or a pair that leaves nothing, such as (60, 40)."""
    pair = isinstance(support, Sequence) and len(support) == 2 and all(isinstance(end, Real) for end in support)
    if not pair or not 0 <= support[0] < support[1] <= 100:
        raise ValueError(
            f"support={short(support)} is no range: it is two percentages of the source, 0 ≤ low < high ≤ 100, such as "
            "(0, 100); None is everywhere"
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
    require_options(method, options)
    for name, samples in (("source", source), ("target", target)):
        if len(samples) < 2:
            raise ValueError(f"the {name} has {len(samples)} samples; a map needs at least two of each side")
    shape = source.shape[1:]
    if shape != target.shape[1:]:
        raise ValueError(f"source and target have units {tuple(shape)} and {tuple(target.shape[1:])}; they must agree")
    sides = coupled(source, target)
    scale, shift, fitted = ESTIMATORS[method](sides, **options)
    values = {
        "scale": scale,
        "shift": shift,
        "source_mean": sides.m_a,
        "source_std": sides.s_a,
        "target_mean": sides.m_b,
        "target_std": sides.s_b,
        "distance": _remaining(sides, torch.ones_like(scale), torch.zeros_like(scale)),
        "residual": _remaining(sides, scale, shift),
    }
    found = {key: value.float().reshape(shape) for key, value in values.items()}
    quantiles = _quantiles(sides.a).float().reshape(len(LEVELS), *shape)
    return UnitMaps(fitted=fitted.reshape(shape), quantiles=quantiles, **found)


def _remaining(sides: Sides, scale: Float[Tensor, " unit"], shift: Float[Tensor, " unit"]) -> Float[Tensor, " unit"]:
    """Σ (ω·a_(i) + β − b_(i))² / n, from the moments."""
    variance = scale.square() * sides.v_a - 2 * scale * sides.together + sides.v_b
    return (scale * sides.m_a + shift - sides.m_b).square() + variance.clamp(min=0)


def require_method(method: Any) -> None:
    """Refuse a method that is none of `ESTIMATORS`."""
    if method not in tuple(ESTIMATORS):
        raise ValueError(f"method must be one of {tuple(ESTIMATORS)}, got {method!r}")


def require_options(method: str, options: Mapping[str, Any]) -> None:
    """Refuse options that a method does not have, and values that are no finite numbers."""
    known = [name for name, p in inspect.signature(ESTIMATORS[method]).parameters.items() if p.kind is p.KEYWORD_ONLY]
    for name, value in options.items():
        if name not in known:
            others = f"it has {', '.join(known)}" if known else "it has none"
            raise TypeError(f"method {method!r} has no option {name!r}; {others}")
        if not isinstance(value, Real) or not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, got {value!r}")


def _linear(sides: Sides, *, min_std: float = 0.0) -> Coefficients:
    a, _, m_a, m_b, v_a, _, together = sides
    varies = (v_a.sqrt() > _ROUNDING * torch.maximum(a[:, 0].abs(), a[:, -1].abs())) & (sides.s_a > min_std)
    # A unit that does not vary has no slope; shifted by the difference of means it reaches the target's mean all
    # the same, and cannot explode where the support is unbounded.
    slope = torch.where(varies, together / torch.where(varies, v_a, 1.0), 1.0)
    return slope, m_b - slope * m_a, varies


def _gaussian(sides: Sides, *, min_std: float = 1e-4) -> Coefficients:
    s_a, s_b = sides.s_a, sides.s_b
    varies = (s_a > min_std) & (s_b > min_std)
    slope = torch.where(varies, s_b / torch.where(varies, s_a, 1.0), 1.0)
    return slope, torch.where(varies, sides.m_b - slope * sides.m_a, 0.0), varies


def _mean(sides: Sides, *, min_std: float = 1e-4) -> Coefficients:
    varies = (sides.s_a > min_std) & (sides.s_b > min_std)
    return torch.ones_like(sides.m_a), torch.where(varies, sides.m_b - sides.m_a, 0.0), varies


def _aura(sides: Sides) -> Coefficients:
    detects = auroc(sides.a, sides.b)
    expert = detects > 0.5
    return torch.where(expert, 2 - 2 * detects, 1.0), torch.zeros_like(detects), expert


def _det_zero(sides: Sides, *, above: float = 0.5) -> Coefficients:
    expert = average_precision(sides.a, sides.b) > above
    return torch.where(expert, 0.0, 1.0).to(sides.m_b.dtype), torch.where(expert, sides.m_b, 0.0), expert


def _iti_m(sides: Sides) -> Coefficients:
    shift = sides.m_b - sides.m_a
    return torch.ones_like(shift), shift, torch.ones_like(shift, dtype=torch.bool)


ESTIMATORS: dict[str, Callable[..., Coefficients]] = {
    "linear": _linear,
    "gaussian": _gaussian,
    "mean": _mean,
    "aura": _aura,
    "det_zero": _det_zero,
    "iti_m": _iti_m,
}
"""Name -> estimator of (ω, β, which units are fitted) from the samples and their moments in float64."""


def _quantiles(a: Samples) -> Float[Tensor, "level unit"]:
    """Quantiles of sorted samples at `LEVELS`, linear between them (torch.quantile refuses large inputs)."""
    place = torch.tensor(LEVELS, dtype=torch.float64) / 100 * (a.shape[1] - 1)
    lower = place.floor().long().clamp(max=a.shape[1] - 2)
    share = (place - lower).to(a.device, wide(a))
    below, above = (a.index_select(1, end.to(a.device)).to(share.dtype) for end in (lower, lower + 1))
    return torch.lerp(below, above, share).T
