"""Running functions at points of both faces of a model: hook points of the lens, torch hooks on the plain model.

A torch hook on a module of the plain model gets what the lens's hook point gets: the tensor alone, attention heads
split apart, and an object that has the point's name. Whatever ends the block, nothing stays behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lensteer.models import lens_model, twin_of
from lensteer.points import Point

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

HookFunction = Callable[..., Tensor]


@contextmanager
def attached(model: TransformerBridge, functions: Sequence[tuple[Point, HookFunction]]) -> Iterator[None]:
    """Run ``functions`` at their points on both faces of the model; nothing is left behind on exit.

    The model is locked for other threads meanwhile. Points that the plain model lacks run on the lens only.
    """
    twin = twin_of(model)
    handles: list[Any] = []

    def unless_probing(function: HookFunction) -> HookFunction:
        return lambda tensor, hook: tensor if twin.probing else function(tensor, hook)

    with twin.lock:
        try:
            if twin.plain is not None:
                for point, function in functions:
                    if point.module is not None:
                        handles.append(_attach_plain(twin.plain.get_submodule(point.module), point, function))
            with model.hooks(fwd_hooks=[(point.canonical, unless_probing(function)) for point, function in functions]):
                yield
        finally:
            for handle in handles:
                handle.remove()


def face_for(model: TransformerBridge, points: Sequence[Point]) -> Any:
    """The face to run so that functions at these points, and what steers the model already, take part.

    The plain model where it has all of them, else the lens.
    """
    twin = twin_of(model)
    if twin.plain is None or any(point.module is None for point in [*points, *twin.active]):
        return lens_model(model)
    return twin.plain


@dataclass(frozen=True)
class HookName:
    """Stands in for TransformerLens's HookPoint on the plain face: it has the name, and the layer."""

    name: str

    def layer(self) -> int:
        return int(self.name.split(".")[1])


def _attach_plain(module: nn.Module, point: Point, function: HookFunction) -> Any:
    hook = HookName(point.canonical)
    split = len(point.shape) > 1

    def apply(tensor: Tensor) -> Tensor:
        if not split:
            return function(tensor, hook)
        return function(tensor.unflatten(-1, point.shape), hook).flatten(-len(point.shape))

    def on_output(module: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (apply(output[0]), *output[1:])
        return apply(output)

    def on_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if args:
            return (apply(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": apply(kwargs["hidden_states"])}

    if point.side == "out":
        return module.register_forward_hook(on_output)
    return module.register_forward_pre_hook(on_input, with_kwargs=True)
