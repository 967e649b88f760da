"""The edits: small frozen objects that *are* TransformerLens hook functions.

Each edit is called as ``edit(activation, hook)`` and returns a new tensor of the same shape, dtype and device.
It holds no reference to a model and imports nothing else of lensteer, so it works in anybody's
``model.run_with_hooks(fwd_hooks=[(name, edit)])``.

| edit | effect on an activation x |
|---|---|
| ``Add(v, s)`` | ``x + s·v`` |
| ``SetProjection(u, z, s)`` | ``x + s·(z − ⟨x, u⟩)·u``: at strength 1 the projection on u becomes z |
| ``ScaleElements(M, δ)`` | ``x·(1 + δ·M)``: the elements of the mask times 1 + δ; with ``frozen=a``, ``a·(1 + δ·M)`` |
| ``SetElements(a, M, s)`` | ``x + s·(a − x)`` on the mask: at strength 1 exactly a |
| ``at(edit, tokens)`` | the edit at some token positions only, x elsewhere (see `lensteer.positions`) |

Tensors match the *trailing* axes of the activation: ``[d_model]`` on residual points, ``[head, d_head]`` on z,
``[d_mlp]`` on neurons. ``strength`` is one number, or a tensor with one value per batch row; 0 changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float
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
        changed = self._copy(strength=_checked_strength(strength))
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
        _require_finite(vector=self.vector)
        object.__setattr__(self, "strength", _checked_strength(self.strength))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.vector.shape)

    def __call__(self, activation: Float[Tensor, "batch ..."], hook: Any = None) -> Float[Tensor, "batch ..."]:
        _require_fit(self, activation, hook)
        vector = self.vector.to(activation.device)
        if isinstance(self.strength, Tensor):
            vector = _per_row(self.strength, activation, hook) * vector
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
        _require_finite(direction=self.direction, value=torch.tensor(self.value))
        object.__setattr__(self, "strength", _checked_strength(self.strength))
        object.__setattr__(self, "direction", _unit(self.direction))
        if self.along is not None:
            _require_finite(along=self.along)
            if self.along.shape != self.direction.shape:
                raise ValueError(
                    f"along has shape {tuple(self.along.shape)}, the direction {self.shape}; they must agree"
                )
            object.__setattr__(self, "along", _unit(self.along))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.direction.shape)

    def __call__(self, activation: Float[Tensor, "batch ..."], hook: Any = None) -> Float[Tensor, "batch ..."]:
        _require_fit(self, activation, hook)
        # Half precision would round the projection by whole units where the residual stream is large.
        wide = torch.promote_types(activation.dtype, torch.float32)
        direction = self.direction.to(activation.device, wide)
        axes = tuple(range(-direction.ndim, 0))
        projection = (activation.to(wide) * direction).sum(axes, keepdim=True)
        change = self.value - projection
        if isinstance(self.strength, Tensor):
            change = _per_row(self.strength, activation, hook).to(wide) * change
        else:
            change = self.strength * change
        along = direction if self.along is None else self.along.to(activation.device, wide)
        return activation + (change * along).to(activation.dtype)


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
        object.__setattr__(self, "strength", _checked_strength(self.strength))
        if self.frozen is not None:
            _require_finite(frozen=self.frozen)
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
        _require_fit(self, activation, hook)
        mask, strength = self.mask.to(activation.device), self.strength
        share = _per_row(strength, activation, hook) if isinstance(strength, Tensor) else strength
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
        _require_finite(values=self.values)
        object.__setattr__(self, "strength", _checked_strength(self.strength))
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
        _require_fit(self, activation, hook)
        values = self.values.to(activation.device, activation.dtype)
        if self.per_row:
            values = _spread(values, "values", activation, hook)
        if isinstance(self.strength, Tensor):
            share = _per_row(self.strength, activation, hook)
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
    _require_rows(what, len(values), activation, hook)
    return values.reshape(len(values), *[1] * (activation.ndim - values.ndim), *values.shape[1:])


def _require_mask(mask: Any) -> None:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise TypeError(f"mask must be a tensor of booleans, got {getattr(mask, 'dtype', type(mask))}")


def _unit(vector: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The vector at norm 1, in float32 or wider."""
    wide = vector.to(torch.promote_types(vector.dtype, torch.float32))
    if not wide.any():
        raise ValueError("SetProjection: the direction is zero; it has no projection to set")
    norm = wide.norm()
    # A unit vector that was saved and read back keeps its bits.
    return wide if not wide.requires_grad and abs(float(norm) - 1) < 1e-6 else wide / norm


def _require_finite(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor, got {getattr(tensor, 'dtype', type(tensor))}")
        if not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor)).sum())
            raise ValueError(
                f"{name} holds NaN or inf in {bad} of {tensor.numel()} entries; an edit needs finite numbers"
            )


def _checked_strength(strength: Any) -> Strength:
    """One finite number, or one finite value per batch row (a list will do)."""
    if isinstance(strength, list | tuple):
        strength = torch.tensor(strength, dtype=torch.float32)
    if isinstance(strength, Tensor):
        if strength.ndim != 1:
            raise ValueError(
                f"strength must be one number or one value per batch row (1-D), got shape {tuple(strength.shape)}"
            )
        _require_finite(strength=strength)
    elif not isinstance(strength, Real):
        raise TypeError(f"strength must be a number, or one value per batch row, got {strength!r}")
    elif not torch.isfinite(torch.as_tensor(float(strength))):
        raise ValueError(f"strength must be finite, got {strength}")
    checked: Strength = strength
    return checked


def _require_fit(edit: Edit, activation: Tensor, hook: Any) -> None:
    shape = edit.shape
    if tuple(activation.shape[activation.ndim - len(shape) :]) != shape or activation.ndim < len(shape):
        raise ValueError(
            f"{type(edit).__name__} of shape {shape} does not fit the activation at {_name(hook)}, "
            f"whose shape is {tuple(activation.shape)}; its trailing axes must be {shape}"
        )


def _per_row(strength: Float[Tensor, " batch"], activation: Tensor, hook: Any) -> Float[Tensor, "batch ..."]:
    _require_rows("strength", len(strength), activation, hook)
    return strength.to(activation.device).view(-1, *[1] * (activation.ndim - 1))


def _require_rows(what: str, count: int, activation: Tensor, hook: Any) -> None:
    if count != len(activation):
        raise ValueError(
            f"{what} has {count} values but the batch at {_name(hook)} has {len(activation)} rows; "
            "give one number, or one value per row"
        )


def _name(hook: Any) -> str:
    return repr(hook.name) if getattr(hook, "name", None) else "this hook point"
