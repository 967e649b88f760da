"""Edits of chosen elements: scale them in place, or overwrite them with given values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .base import Edit, Strength, checked_strength, require_finite, require_fit, require_rows, row_strengths


@dataclass(frozen=True, eq=False)
class ScaleElements(Edit):
    """x·(1 + δ·M): scale some elements in place; or a·(1 + δ·M), of given values a.

    Every element's change has the sign and size of its own activation (SADI, Wang et al. 2025); an element that is 0
    stays 0. δ = −1 switches the elements off. With ``frozen`` the whole activation is overwritten, masked or not, by
    what a prompt has by itself (SADI as published, Algorithm 1).

    Args:
        mask: M, True at the elements to scale; matches the trailing axes of the activation.
        strength: δ; 0 changes nothing. One number or one value per batch row.
        frozen: a, one tensor for every batch row, the same at every position; None is the activation itself.
    """

    mask: Bool[Tensor, "..."]
    strength: Strength = 1.0
    frozen: Float[Tensor, "batch ..."] | None = None

    def __post_init__(self) -> None:
        _require_mask(self.mask)
        object.__setattr__(self, "strength", checked_strength(self.strength))
        if self.frozen is not None:
            require_finite(frozen=self.frozen)
            if tuple(self.frozen.shape[1:]) != self.shape:
                raise ValueError(
                    f"frozen has shape {tuple(self.frozen.shape)}, the mask {self.shape}; it must be [batch, *mask]"
                )
        self._require_same_rows()

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.mask.shape)

    def _row_values(self) -> dict[str, Tensor]:
        return super()._row_values() | ({} if self.frozen is None else {"frozen": self.frozen})

    def __call__(self, activation: Float[Tensor, "batch ..."], hook: Any = None) -> Float[Tensor, "batch ..."]:
        require_fit(self, activation, hook)
        mask, strength = self.mask.to(activation.device), self.strength
        share = row_strengths(strength, activation, hook) if isinstance(strength, Tensor) else strength
        if self.frozen is None:
            # where, so that the others keep their bits.
            return torch.where(mask, (activation * (1 + share)).to(activation.dtype), activation)
        values = _spread(self.frozen.to(activation.device), "frozen", activation, hook)
        scaled = torch.where(mask, values * (1 + share), values).to(activation.dtype)
        if isinstance(share, Tensor):
            return torch.where(share == 0, activation, scaled)
        return activation.clone() if share == 0 else scaled.expand_as(activation).clone()


@dataclass(frozen=True, eq=False)
class SetElements(Edit):
    """x + s·(a − x) on a mask: overwrite elements with given values; at strength 1 they are exactly a.

    Activation patching, with the same values for every prompt or with its own for each.

    Args:
        values: a, matching the trailing axes of the activation; with ``per_row`` one such tensor for every batch row,
            the same at every position.
        mask: True at the elements to overwrite; None is all of them.
        strength: s, the share of the way to a; one number or one value per batch row.
        per_row: whether the first axis of ``values`` is the batch.
    """

    values: Float[Tensor, "..."]
    mask: Bool[Tensor, "..."] | None = None
    strength: Strength = 1.0
    per_row: bool = False

    def __post_init__(self) -> None:
        require_finite(values=self.values)
        object.__setattr__(self, "strength", checked_strength(self.strength))
        if self.mask is not None:
            _require_mask(self.mask)
            if tuple(self.mask.shape) != self.shape:
                raise ValueError(
                    f"mask has shape {tuple(self.mask.shape)}, the values of a row {self.shape}; they must agree"
                )
        self._require_same_rows()

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape[1:] if self.per_row else self.values.shape)

    def _row_values(self) -> dict[str, Tensor]:
        return super()._row_values() | ({"values": self.values} if self.per_row else {})

    def __call__(self, activation: Float[Tensor, "batch ..."], hook: Any = None) -> Float[Tensor, "batch ..."]:
        require_fit(self, activation, hook)
        values = self.values.to(activation.device, activation.dtype)
        if self.per_row:
            values = _spread(values, "values", activation, hook)
        if isinstance(self.strength, Tensor):
            share = row_strengths(self.strength, activation, hook)
            # At 0 and 1 exactly x and exactly a: a + b − a is not b in floating point, and may overflow.
            moved = torch.where(share == 1, values, (activation + share * (values - activation)).to(activation.dtype))
            moved = torch.where(share == 0, activation, moved)
        elif self.strength == 0:
            return activation.clone()
        elif self.strength == 1:
            moved = values.expand_as(activation)
        else:
            moved = activation + self.strength * (values - activation)
        return moved.clone() if self.mask is None else torch.where(self.mask.to(activation.device), moved, activation)


def _spread(values: Float[Tensor, "batch ..."], what: str, activation: Tensor, hook: Any) -> Float[Tensor, "batch ..."]:
    """Values of every row with axes of length 1 for the positions."""
    require_rows(what, len(values), activation, hook)
    return values.reshape(len(values), *[1] * (activation.ndim - values.ndim), *values.shape[1:])


def _require_mask(mask: Any) -> None:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise TypeError(f"mask must be a tensor of booleans, got {getattr(mask, 'dtype', type(mask))}")
