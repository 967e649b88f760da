"""What an edit is as a map y = w·x + c of every unit by itself, and which edits are none.

| edit | w | c |
|---|---|---|
| ``Add(v, s)`` | 1 | s·v |
| ``Affine(ω, β, λ)`` without a support | 1 + λ(ω − 1) | λ·β |
| ``ScaleElements(M, δ)`` | 1 + δ·M | 0 |
| ``SetElements(a, M, s)`` | 1 − s·M | s·a·M |
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lensteer.hooks import Add, Affine, Edit, ScaleElements, SetElements
from lensteer.positions import At


@dataclass(frozen=True)
class UnitMap:
    """y = scale·x + shift, unit by unit."""

    scale: Float[Tensor, " unit"]
    shift: Float[Tensor, " unit"]

    def then(self, later: UnitMap) -> UnitMap:
        """The map that runs this one first."""
        return UnitMap(later.scale * self.scale, later.scale * self.shift + later.shift)

    @property
    def scales(self) -> bool:
        return bool((self.scale != 1).any())

    @property
    def shifts(self) -> bool:
        return bool((self.shift != 0).any())


def unlike_a_map(edit: Edit) -> str:
    """Why an edit is not the same map at every position of every row; empty where it is."""
    if isinstance(edit, At):
        return f"it acts at tokens={edit.tokens!r}, and weights act at every position; use the edit without at(…)"
    if isinstance(edit, ScaleElements) and edit.frozen is not None:
        return "it writes what each prompt had by itself (frozen); use ScaleElements without frozen"
    if isinstance(edit, SetElements) and edit.per_row:
        return "it has values for every row of a batch (per_row); use SetElements with the same values for all"
    if edit.n_rows is not None:
        return f"it has strengths for {edit.n_rows} rows, and weights are the same for all; use at_strength(number)"
    if isinstance(edit, Affine) and _bounded(edit):
        return (
            "its support is bounded, so the input decides which units move; use steering(support=None), or fit with "
            "support=None"
        )
    if not isinstance(edit, Add | Affine | ScaleElements | SetElements):
        return "how far it moves a unit depends on the other units of the input; use Add, or Affine without a support"
    return ""


def unit_map(edit: Edit, dtype: torch.dtype) -> UnitMap:
    """The map of an edit that is one, flattened over its axes, rounded where the edit itself rounds."""
    strength = float(edit.strength)
    if isinstance(edit, Add):
        shift = (edit.strength * edit.vector).to(dtype)
        return _flat(torch.ones_like(shift), shift)
    if isinstance(edit, Affine):
        return _flat(strength * (edit.scale.to(dtype) - 1) + 1, strength * edit.shift.to(dtype))
    if isinstance(edit, ScaleElements):
        scale = torch.ones(edit.shape, dtype=dtype, device=edit.mask.device).masked_fill(edit.mask, 1 + strength)
        return _flat(scale, torch.zeros_like(scale))
    if isinstance(edit, SetElements):
        values = edit.values.to(dtype)
        share = torch.full_like(values, strength)
        share = share if edit.mask is None else share * edit.mask.to(values.device)
        return _flat(1 - share, share * values)
    raise TypeError(f"{type(edit).__name__} is no map of single units")


def _flat(scale: Tensor, shift: Tensor) -> UnitMap:
    return UnitMap(scale.detach().flatten(), shift.detach().flatten())


def _bounded(edit: Affine) -> bool:
    ends = [end for end in (edit.low, edit.high) if end is not None]
    return any(not torch.isinf(end).all() for end in ends)
