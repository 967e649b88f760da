"""Edits along one direction: add a vector, set a projection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .base import Edit, Strength, checked_strength, require_finite, require_fit, row_strengths


@dataclass(frozen=True, eq=False)
class Add(Edit):
    """x + s·v: add a vector, scaled.

    Args:
        vector: v, matching the trailing axes of the activation; in the units of the activation.
        strength: s, one number or one value per batch row.
    """

    vector: Float[Tensor, "..."]
    strength: Strength = 1.0

    def __post_init__(self) -> None:
        require_finite(vector=self.vector)
        object.__setattr__(self, "strength", checked_strength(self.strength))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.vector.shape)

    def __call__(self, activation: Float[Tensor, "batch ..."], hook: Any = None) -> Float[Tensor, "batch ..."]:
        require_fit(self, activation, hook)
        vector = self.vector.to(activation.device)
        if isinstance(self.strength, Tensor):
            vector = row_strengths(self.strength, activation, hook) * vector
        else:
            vector = self.strength * vector
        return activation + vector.to(activation.dtype)


@dataclass(frozen=True, eq=False)
class SetProjection(Edit):
    """x + s·(z − ⟨x, u⟩)·u: move the projection on a unit direction towards a target value.

    At strength 1 the projection equals ``value`` exactly and the orthogonal complement is untouched; value 0 ablates
    the direction. The coefficient is computed for every position by itself (instruction steering's "systematic
    scaling", Stolfo et al. 2025, Eq. 2). The direction is normalised here; ``value`` is in activation units.

    Args:
        direction: u, matching the trailing axes of the activation; need not be normalised, must not be zero.
        value: z, the projection to reach.
        strength: s, the share of the way to go; one number or one value per batch row.
        along: r, the direction to move along by the same amount, x + s·(z − ⟨x, u⟩)·r; None is u itself. A random r is
            the control whose push has the same size at every position.
    """

    direction: Float[Tensor, "..."]
    value: float = 0.0
    strength: Strength = 1.0
    along: Float[Tensor, "..."] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", float(self.value))
        require_finite(direction=self.direction, value=torch.tensor(self.value))
        object.__setattr__(self, "strength", checked_strength(self.strength))
        object.__setattr__(self, "direction", _unit(self.direction))
        if self.along is not None:
            require_finite(along=self.along)
            if self.along.shape != self.direction.shape:
                raise ValueError(
                    f"along has shape {tuple(self.along.shape)}, the direction {self.shape}; they must agree"
                )
            object.__setattr__(self, "along", _unit(self.along))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.direction.shape)

    def __call__(self, activation: Float[Tensor, "batch ..."], hook: Any = None) -> Float[Tensor, "batch ..."]:
        require_fit(self, activation, hook)
        # Half precision would round the projection by whole units where the residual stream is large.
        wide = torch.promote_types(activation.dtype, torch.float32)
        direction = self.direction.to(activation.device, wide)
        axes = tuple(range(-direction.ndim, 0))
        projection = (activation.to(wide) * direction).sum(axes, keepdim=True)
        change = self.value - projection
        if isinstance(self.strength, Tensor):
            change = row_strengths(self.strength, activation, hook).to(wide) * change
        else:
            change = self.strength * change
        along = direction if self.along is None else self.along.to(activation.device, wide)
        return activation + (change * along).to(activation.dtype)


def _unit(vector: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The vector at norm 1, in float32 or wider."""
    wide = vector.to(torch.promote_types(vector.dtype, torch.float32))
    if not wide.any():
        raise ValueError("SetProjection: the direction is zero; it has no projection to set")
    norm = wide.norm()
    # A unit vector that was saved and read back keeps its bits.
    return wide if not wide.requires_grad and abs(float(norm) - 1) < 1e-6 else wide / norm
