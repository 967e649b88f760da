"""Parameters of a plain model while maps of single units are multiplied into them.

Behind a linear layer y = W·x + b the map w, c gives W' = diag(w)·W and b' = w·b + c, before it W' = W·diag(w) and
b' = b + W·c. Numbers are float32, or float64 where the model is, and rounded to the model's own once at the end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lensteer.export.linear_maps import UnitMap

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Weights:
    """The changed parameters of a model, by name; the model keeps its own.

    Attributes:
        changed: name -> value; biases that the model lacks among them.
    """

    def __init__(self, plain: PreTrainedModel) -> None:
        self.plain = plain
        self.wide = torch.promote_types(plain.dtype, torch.float32)
        self.changed: dict[str, Tensor] = {}

    def value(self, name: str) -> Tensor | None:
        """A parameter as it is now; None where there is none of the name."""
        if name not in self.changed:
            path, _, leaf = name.rpartition(".")
            parameter = getattr(self.plain.get_submodule(path), leaf, None)
            return None if parameter is None else parameter.detach().to(self.wide)
        return self.changed[name]

    def after_linear(self, path: str, units: UnitMap) -> None:
        """Fold a map of a linear layer's output."""
        units = self._here(path, units)
        if units.scales:
            weight = self._weight(path)
            self.changed[f"{path}.weight"] = weight * (units.scale if self._transposed(path) else units.scale[:, None])
        self.bias(path, units)

    def before_linear(self, path: str, units: UnitMap) -> None:
        """Fold a map of a linear layer's input."""
        units = self._here(path, units)
        weight = self._weight(path)
        across = weight if self._transposed(path) else weight.T  # [in, out]
        if units.shifts:
            self.bias(path, UnitMap(torch.ones_like(across[0]), units.shift @ across))
        if units.scales:
            self.changed[f"{path}.weight"] = weight * (units.scale[:, None] if self._transposed(path) else units.scale)

    def bias(self, path: str, units: UnitMap) -> None:
        """w·b + c; a bias that would be zero is not made."""
        bias = self.value(f"{path}.bias")
        if bias is not None and (units.scales or units.shifts):
            self.changed[f"{path}.bias"] = units.scale.to(bias.device) * bias + units.shift.to(bias.device)
        elif units.shifts:
            self.changed[f"{path}.bias"] = self._here(path, units).shift

    def gain(self, path: str, scale: Tensor) -> None:
        """Scale what a norm gives before its bias; some norms multiply by 1 + weight."""
        weight, offset = self._weight(path), gain_offset(self.plain.get_submodule(path))
        if offset is None:
            raise ValueError(f"{path} is a {type(self.plain.get_submodule(path)).__name__}, whose gain is not known")
        self.changed[f"{path}.weight"] = scale.to(weight.device) * (weight + offset) - offset

    def shift_rows(self, path: str, shift: Tensor) -> None:
        """Add to every row of an embedding, which may scale what it looks up (Gemma)."""
        table = self._weight(path)
        scale = getattr(self.plain.get_submodule(path), "embed_scale", 1.0)
        scale = float(scale.to(self.plain.dtype)) if isinstance(scale, Tensor) else float(scale)
        self.changed[f"{path}.weight"] = table + shift.to(table.device) / scale

    def _weight(self, path: str) -> Tensor:
        weight = self.value(f"{path}.weight")
        assert weight is not None
        return weight

    def _here(self, path: str, units: UnitMap) -> UnitMap:
        device = self._weight(path).device
        return UnitMap(units.scale.to(device), units.shift.to(device))

    def _transposed(self, path: str) -> bool:
        return type(self.plain.get_submodule(path)) is not nn.Linear


def is_linear(module: nn.Module) -> bool:
    """A linear layer whose weight is a plain matrix of floating-point numbers: no adapter, no quantised subclass."""
    from transformers.pytorch_utils import Conv1D

    weight = getattr(module, "weight", None)
    return type(module) in (nn.Linear, Conv1D) and isinstance(weight, Tensor) and weight.dtype.itemsize >= 2


@torch.no_grad()
def gain_offset(module: nn.Module) -> float | None:
    """0 where a norm multiplies by its weight, 1 where by 1 + weight, None where by neither; measured."""
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if weight is None or weight.ndim != 1:
        return None
    signs = torch.ones_like(weight)
    signs[1::2] = -1  # mean 0 and mean square 1, so that every kind of norm leaves it as it is
    found = module(signs[None])[0] - (0 if bias is None else bias)
    return next((offset for offset in (0.0, 1.0) if (found * signs - weight - offset).abs().median() < 0.1), None)
