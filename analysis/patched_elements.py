"""Where elements are read and patched, and what a pass over a batch reads of them; used by `analysis.patching`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from analysis.answer_odds import Tail
from lensteer.attach import HookFunction
from lensteer.methods.sadi import site_of
from lensteer.points import Point, resolve

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class Place:
    """Where elements of one kind are read and written, layer by layer.

    A gated neuron is read before the up branch multiplies it, where nothing can be written: it is written as the
    product, and `up` are the factors.
    """

    read: list[Point]
    write: list[Point]
    up: list[Point] | None

    @property
    def points(self) -> list[Point]:
        """All points that it needs: read, written, and the up branches."""
        return [*self.read, *self.write, *(self.up or ())]

    @property
    def shape(self) -> tuple[int, ...]:
        """Layers, and the shape of a layer's activation."""
        return len(self.read), *self.read[0].shape


def place_of(model: TransformerBridge, element: str, hidden_site: str) -> Place:
    """Where elements of a kind are on a model, layer by layer.

    Args:
        element: "head", "neuron" or "hidden".
        hidden_site: of "hidden": "mlp_out" or "resid_post".

    Raises:
        ValueError: another element or site, or one that this architecture lacks.
    """
    read = resolve(model, site_of(element, hidden_site))
    if read[0].through is None:
        return Place(read, read, None)
    return Place(read, resolve(model, "post"), resolve(model, "pre_linear"))


def reference_values(reference: Any, element: str, place: Place, n: int) -> Float[Tensor, "layer pair ..."] | None:
    """Reference values, ``[layer, pair or 1, *shape]``; None is the mean over the prompts."""
    if isinstance(reference, str):
        if reference not in ("mean", "zero"):
            raise ValueError(f"reference must be 'mean', 'zero' or values, got {reference!r}")
        return None if reference == "mean" else torch.zeros(place.shape[0], 1, *place.shape[1:])
    values = reference.get(element) if isinstance(reference, Mapping) else reference
    one, every = place.shape, (place.shape[0], n, *place.shape[1:])
    shape = tuple(getattr(values, "shape", ()))
    if not isinstance(values, Tensor) or shape not in (one, every):
        raise ValueError(
            f"reference values of {element!r} must be [layer, *shape] = {one}, or {every} with one for each pair; got "
            f"{shape or type(values).__name__}"
        )
    if not torch.isfinite(values).all():
        raise ValueError(f"the reference values of {element!r} hold NaN or infinite values")
    return values.detach().cpu() if shape == every else values.detach().cpu().unsqueeze(1)


class Pass:
    """What one pass over a batch reads of one kind of element, and the probes that its gradients are of."""

    def __init__(self, place: Place, tail: Tail) -> None:
        self._place, self._tail = place, tail
        self._seen: dict[int, Tensor] = {}
        self._up: dict[int, Tensor] = {}
        self.probes: dict[int, Tensor] = {}

    def readers(self) -> list[tuple[Point, HookFunction]]:
        """Hooks that keep the activations of every layer, and of the up branches."""
        found = [(point, self._keep(point, i, self._seen)) for i, point in enumerate(self._place.read)]
        return found + [(point, self._keep(point, i, self._up)) for i, point in enumerate(self._place.up or ())]

    def functions(self) -> list[tuple[Point, HookFunction]]:
        """The readers, and a zero at the place of every point, whose gradient is that of the activation."""
        return self.readers() + [(point, self._probe(i)) for i, point in enumerate(self._place.write)]

    def _keep(self, point: Point, layer: int, into: dict[int, Tensor]) -> HookFunction:
        def function(x: Tensor, hook: Any) -> Tensor:
            value = x.detach()[self._tail.place(x)]
            into[layer] = (value if point.through is None else point.through(value)).float()
            return x

        return function

    def _probe(self, layer: int) -> HookFunction:
        def function(x: Tensor, hook: Any) -> Tensor:
            probe = torch.zeros(len(x), *x.shape[2:], device=x.device, requires_grad=True)
            self.probes[layer] = probe
            moved = x.clone()
            moved[self._tail.place(x)] += probe.to(x.dtype)
            return moved

        return function

    def values(self, gradients: Sequence[Tensor]) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Layer, activations and their gradients, ``[row, *shape]`` in float64 on the CPU."""
        for layer, gradient in zip(self.probes, gradients, strict=True):
            gradient = gradient * self._up[layer] if self._up else gradient
            yield layer, self._seen[layer].cpu().double(), gradient.cpu().double()

    def patch(self, layer: int, index: int, value: Float[Tensor, "row ..."]) -> tuple[Point, HookFunction]:
        """Sets one element; nothing upstream changes, so the up branch is that of the clean pass."""
        if self._up:
            value = value * self._up[layer][:, index].to(value.device)

        def function(x: Tensor, hook: Any) -> Tensor:
            moved = x.clone()
            moved[(*self._tail.place(x), index)] = value.to(x.device, x.dtype)
            return moved

        return self._place.write[layer], function


class Sums:
    """Attribution as sums over pairs: the mean is known only at the end, and Σ(ā − a)·g = ā·Σg − Σa·g."""

    def __init__(self, place: Place, given: Float[Tensor, "layer pair ..."] | None) -> None:
        self._given = given
        self._n = 0
        self._total, self._values, self._gradients = torch.zeros(3, *place.shape, dtype=torch.float64)

    def add(self, layer: int, values: Tensor, gradients: Tensor, rows: Sequence[int]) -> None:
        """One layer of one batch, whose rows are the pairs of these numbers."""
        self._n += len(rows) if layer == 0 else 0
        if self._given is None:
            self._values[layer] += values.sum(0)
            self._gradients[layer] += gradients.sum(0)
            self._total[layer] -= (values * gradients).sum(0)
        else:
            given = self._given[layer] if self._given.shape[1] == 1 else self._given[layer, list(rows)]
            self._total[layer] += ((given.double() - values) * gradients).sum(0)

    def attribution(self) -> Float[Tensor, "layer element"]:
        """The mean over pairs; of a head the sum over its coordinates."""
        total = self._total / self._n
        if self._given is None:
            total = total + self._values / self._n * self._gradients / self._n
        return total.sum(-1) if total.ndim == 3 else total
