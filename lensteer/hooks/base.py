"""The base of all edits, and what every edit checks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

Strength = float | Float[Tensor, " batch"]
E = TypeVar("E", bound="Edit")


@dataclass(frozen=True, eq=False)
class Edit:
    """Base of all edits: a strength, and what every edit can do besides being called."""

    def __call__(self, activation: Float[Tensor, "batch ..."], hook: Any = None) -> Float[Tensor, "batch ..."]:
        raise NotImplementedError

    @property
    def strength(self) -> Strength:
        raise NotImplementedError

    def at_strength(self: E, strength: Strength) -> E:
        """The same edit with another strength."""
        changed = self._copy(strength=checked_strength(strength))
        changed._require_same_rows()
        return changed

    def to(self: E, device: torch.device | str) -> E:
        """The same edit with its tensors on ``device`` (done once per run, so that a call copies nothing)."""
        return self._copy(**{name: value.to(device) for name, value in self.tensors()})

    def _copy(self: E, **changes: Any) -> E:
        # Not dataclasses.replace: what was checked and normalised once is not touched again.
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__, **changes)
        return copy

    @property
    def n_rows(self) -> int | None:
        """Batch rows that its per-row values are for; None where it does the same to every row."""
        return next((len(values) for values in self._row_values().values()), None)

    def rows(self: E, index: Sequence[int]) -> E:
        """The edit for some rows of a batch: per-row values are indexed, the rest stays."""
        return self._copy(**{name: values[list(index)] for name, values in self._row_values().items()})

    def _row_values(self) -> dict[str, Tensor]:
        """The fields with one entry per batch row."""
        return {"strength": self.strength} if isinstance(self.strength, Tensor) else {}

    def _require_same_rows(self) -> None:
        counts = {name: len(values) for name, values in self._row_values().items()}
        if len(set(counts.values())) > 1:
            shown = ", ".join(f"{name} has {count} rows" for name, count in counts.items())
            raise ValueError(f"{type(self).__name__}: {shown}; they must agree")

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The fields that are tensors, as (name, tensor)."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                yield field.name, value

    @property
    def shape(self) -> tuple[int, ...]:
        """The trailing axes of the activations that this edit fits."""
        raise NotImplementedError


def require_finite(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor, got {getattr(tensor, 'dtype', type(tensor))}")
        if not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor)).sum())
            raise ValueError(
                f"{name} holds NaN or inf in {bad} of {tensor.numel()} entries; an edit needs finite numbers"
            )


def checked_strength(strength: Any) -> Strength:
    """One finite number, or one finite value per batch row (a list will do)."""
    if isinstance(strength, list | tuple):
        strength = torch.tensor(strength, dtype=torch.float32)
    if isinstance(strength, Tensor):
        if strength.ndim != 1:
            raise ValueError(
                f"strength must be one number or one value per batch row (1-D), got shape {tuple(strength.shape)}"
            )
        require_finite(strength=strength)
    elif not isinstance(strength, Real):
        raise TypeError(f"strength must be a number, or one value per batch row, got {strength!r}")
    elif not torch.isfinite(torch.as_tensor(float(strength))):
        raise ValueError(f"strength must be finite, got {strength}")
    checked: Strength = strength
    return checked


def require_fit(edit: Edit, activation: Tensor, hook: Any) -> None:
    shape = edit.shape
    if tuple(activation.shape[activation.ndim - len(shape) :]) != shape or activation.ndim < len(shape):
        raise ValueError(
            f"{type(edit).__name__} of shape {shape} does not fit the activation at {_name(hook)}, "
            f"whose shape is {tuple(activation.shape)}; its trailing axes must be {shape}"
        )


def row_strengths(strength: Float[Tensor, " batch"], activation: Tensor, hook: Any) -> Float[Tensor, "batch ..."]:
    require_rows("strength", len(strength), activation, hook)
    return strength.to(activation.device).view(-1, *[1] * (activation.ndim - 1))


def require_rows(what: str, count: int, activation: Tensor, hook: Any) -> None:
    if count != len(activation):
        raise ValueError(
            f"{what} has {count} values but the batch at {_name(hook)} has {len(activation)} rows; "
            "give one number, or one value per row"
        )


def _name(hook: Any) -> str:
    return repr(hook.name) if getattr(hook, "name", None) else "this hook point"
