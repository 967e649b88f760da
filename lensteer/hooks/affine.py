"""The edit of activation transport: one affine map per unit, where the unit lies inside its support."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .base import Edit, Strength, checked_strength, require_finite, require_fit, row_strengths


@dataclass(frozen=True, eq=False)
class Affine(Edit):
    """(1 − λ)·x + λ·(ω·x + β) where low < x < high, and x elsewhere; every unit by itself.

    Activation transport (Rodriguez et al. 2025, Eqs. 3 to 5), and every other per-unit affine edit: a mean shift
    (ω = 1), Gaussian transport, AURA (β = 0). The support is tested on the value before the map, strictly, so a unit
    whose support is a single point is never moved. Strengths below 0 and above 1 extrapolate.

    Args:
        scale: ω, matching the trailing axes of the activation.
        shift: β, of the same shape; in the units of the activation.
        low, high: the support of each unit, ±inf where it has no end; None is everywhere.
        strength: λ; 0 changes nothing, 1 is the whole map. One number or one value per batch row.
    """

    scale: Float[Tensor, "..."]
    shift: Float[Tensor, "..."]
    low: Float[Tensor, "..."] | None = None
    high: Float[Tensor, "..."] | None = None
    strength: Strength = 1.0

    def __post_init__(self) -> None:
        require_finite(scale=self.scale, shift=self.shift)
        object.__setattr__(self, "strength", checked_strength(self.strength))
        for name in ("shift", "low", "high"):
            value = getattr(self, name)
            if value is None:
                continue
            if not isinstance(value, Tensor):
                raise TypeError(f"{name} must be a tensor like the scale, or None, got {value!r}")
            if tuple(value.shape) != self.shape:
                raise ValueError(f"{name} has shape {tuple(value.shape)}, the scale {self.shape}; they must agree")
        _require_support(self.low, self.high)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.scale.shape)

    def __call__(self, activation: Float[Tensor, "batch ..."], hook: Any = None) -> Float[Tensor, "batch ..."]:
        require_fit(self, activation, hook)
        # Half precision would round the map of a large value by more than many maps move it.
        wide = torch.promote_types(activation.dtype, torch.float32)
        x, scale = activation.to(wide), self.scale.to(activation.device, wide)
        shift = self.shift.to(activation.device, wide)
        share = self.strength
        if isinstance(share, Tensor):
            share = row_strengths(share, activation, hook).to(wide)
        # One fused operation on the activation; exactly x at 0.
        moved = torch.addcmul(share * shift, share * (scale - 1) + 1, x)
        if self.low is None or self.high is None:
            return moved.to(activation.dtype)
        low, high = self.low.to(activation.device, wide), self.high.to(activation.device, wide)
        # where on the activation itself: what lies outside keeps its bits.
        return torch.where((x > low) & (x < high), moved.to(activation.dtype), activation)


def _require_support(low: Tensor | None, high: Tensor | None) -> None:
    if low is None and high is None:
        return
    if low is None or high is None:
        raise ValueError("a support needs both ends; give low and high (±inf where a unit has none), or neither")
    if bool(torch.isnan(low).any() | torch.isnan(high).any()):
        raise ValueError("the support holds NaN; use ±inf where a unit has no end")
    if empty := int((low > high).sum()):
        raise ValueError(f"the support of {empty} of {low.numel()} units is empty: low lies above high")
