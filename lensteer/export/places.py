"""Where on the plain model an activation is made and read, so that weights can be edited instead of it.

| activation | made by | read by |
|---|---|---|
| ``attn.hook_out``, ``mlp.hook_out``, ``gate``, ``in``, ``q``, ``k``, ``v`` | a linear layer | |
| ``attn.hook_z``, ``mlp.hook_post`` | | a linear layer |
| ``ln1``, ``ln2``, ``ln_final.hook_out`` | a norm | the linear layers behind it |
| ``ln1_post``, ``ln2_post.hook_out`` (Gemma-2) | a norm | |
| ``hook_resid_post``, ``hook_resid_pre``, shifts only | the layer's last addition to the stream, the embedding | |

Modules are found by the names that the bridge's components carry, so this holds for every family that TransformerLens
bridges.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lensteer.points import plain_path

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


_LINEAR = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.in", "mlp.out")


@dataclass(frozen=True)
class Place:
    """Paths on the plain model.

    Attributes:
        made_by: the linear layer, norm or embedding whose output the activation is; empty where it is none's.
        read_by: the linear layers whose input it is.
        stream: whether it is the residual stream, to which ``made_by`` only adds.
    """

    made_by: str = ""
    read_by: tuple[str, ...] = ()
    stream: bool = False


def place_of(model: TransformerBridge, canonical: str) -> Place | None:
    """Where the activation of a hook point is made and read; None where no weights make or read it."""
    inside = re.match(r"blocks\.(\d+)\.(.+)$", canonical)
    if inside:
        return _in_block(model, int(inside[1]), inside[2])
    if canonical == "ln_final.hook_out":
        return _made(model, "ln_final", ["unembed"])
    return _read(model, ["unembed"]) if canonical == "unembed.hook_in" else None


def _in_block(model: TransformerBridge, layer: int, point: str) -> Place | None:
    block = f"blocks.{layer}"
    attention = [f"{block}.attn.{part}" for part in ("qkv", "q", "k", "v")]
    neurons = [f"{block}.mlp.{part}" for part in ("gate", "in")]
    if point == "hook_in":
        return _in_block(model, layer - 1, "hook_out") if layer else _embedding(model)
    if point == "hook_out":
        # What the layer adds last: the MLP's output, or that of the norm behind it.
        last = place_of(model, str(model.hook_dict[f"{block}.hook_mlp_out"].name))
        return None if last is None else Place(last.made_by, stream=True)
    if point == "mlp.hook_in":
        return _read(model, neurons)
    if point == "ln1.hook_out":
        alone = plain_path(model, f"{block}.ln2") is None  # one norm for both branches
        return _made(model, f"{block}.ln1", attention + (neurons if alone else []))
    if point == "ln2.hook_out":
        return _made(model, f"{block}.ln2", neurons)
    component, _, side = point.rpartition(".")
    if side == "hook_in":
        return _read(model, [f"{block}.{component}"]) if component in _LINEAR else None
    component = {"attn": "attn.o", "mlp": "mlp.out"}.get(component, component)
    known = side == "hook_out" and component in (*_LINEAR, "ln1_post", "ln2_post")
    return _made(model, f"{block}.{component}") if known else None


def _made(model: TransformerBridge, component: str, readers: list[str] | None = None) -> Place | None:
    path = plain_path(model, component)
    return None if path is None else Place(path, _paths(model, readers or []))


def _read(model: TransformerBridge, components: list[str]) -> Place | None:
    paths = _paths(model, components)
    return Place(read_by=paths) if paths else None


def _paths(model: TransformerBridge, components: list[str]) -> tuple[str, ...]:
    """Those of the components that the plain model has: q, k and v are one module in some."""
    return tuple(path for one in components if (path := plain_path(model, one)) is not None)


def _embedding(model: TransformerBridge) -> Place | None:
    # Positions where they are learned: the table of tokens may be the unembedding as well.
    path = plain_path(model, "pos_embed") or plain_path(model, "embed")
    return None if path is None else Place(path, stream=True)
