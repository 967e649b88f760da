"""Rows that share a prompt compute it once, up to the first layer that any edit touches.

In a sweep the same prompts come back once per candidate, and below the first edited layer every copy is the same. So
each distinct prompt runs through those layers once; while the whole batch reads its prompts, the layers hand out the
stored keys, values and hidden states instead of computing them again. Later steps are not touched.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lensteer.models import twin_of
from lensteer.positions import At
from lensteer.prompts import Batch

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from transformer_lens.model_bridge import TransformerBridge

    from lensteer.steering import Steering


def shared_prefix(model: TransformerBridge, face: Any, batch: Batch, steering: Steering) -> AbstractContextManager[Any]:
    """A context in which ``face.generate`` on this batch reads its prompts the cheap way; does nothing if none gain."""
    tokens = torch.where(batch.attention_mask.bool(), batch.input_ids, -1)  # padding is no token, whatever its id
    distinct, copies = torch.unique(tokens, dim=0, return_inverse=True)
    twin = twin_of(model)
    layers = first_edited_layer(model, steering)
    if len(distinct) == len(batch.rows) or layers == 0 or face is not twin.plain or twin.active:
        return nullcontext()
    first = torch.stack([(copies == i).nonzero()[0, 0] for i in range(len(distinct))])
    blocks = _blocks(model, layers)
    prefix = _read_prefix(face, blocks, batch, first)
    if prefix is None:
        return nullcontext()
    return _handing_out(blocks, *prefix, copies)


def first_edited_layer(model: TransformerBridge, steering: Steering) -> int:
    """How many layers at the bottom read the prompt as if there were no steering."""
    layers = [int(model.cfg.n_layers)]
    for point, (_, edit) in zip(steering.points(model), steering, strict=True):
        if isinstance(edit, At) and edit.tokens == "generated":
            continue
        parts = point.canonical.split(".")
        layers.append(
            int(parts[1])
            if parts[0] == "blocks"
            else (0 if "embed" in parts[0] and parts[0] != "unembed" else layers[0])
        )
    return min(layers)


def _blocks(model: TransformerBridge, count: int) -> list[nn.Module]:
    plain = twin_of(model).plain
    assert plain is not None
    return [plain.get_submodule(model.blocks[i].name) for i in range(count)]


class _Reached(Exception):
    pass


def _read_prefix(
    face: Any, blocks: Sequence[nn.Module], batch: Batch, first: Tensor
) -> tuple[list[tuple[Tensor, Tensor]], list[Any]] | None:
    """Keys, values and outputs of the lowest layers for the distinct prompts; None if the cache drops some."""
    from transformers import DynamicCache

    from lensteer.capture import run

    outputs: list[Any] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        # Only the last output is needed; of the others, whether it is a tuple.
        outputs.append(output if len(outputs) == len(blocks) - 1 else isinstance(output, tuple))
        if len(outputs) == len(blocks):
            raise _Reached

    cache = DynamicCache(config=face.config)
    small = Batch(batch.input_ids[first], batch.attention_mask[first], batch.position_ids[first], [])
    handles = [block.register_forward_hook(note) for block in blocks]
    try:
        run(face.base_model, small, use_cache=True, past_key_values=cache)
    except _Reached:
        pass
    finally:
        for handle in handles:
            handle.remove()
    layers: list[Any] = cache.layers[: len(blocks)]
    kept = [(layer.keys, layer.values) for layer in layers]
    width = batch.input_ids.shape[1]
    if any(keys is None or keys.shape[-2] != width for keys, _ in kept):  # a sliding window dropped some
        return None
    return kept, outputs


@contextmanager
def _handing_out(
    blocks: Sequence[nn.Module], kept: Sequence[tuple[Tensor, Tensor]], outputs: Sequence[Any], copies: Tensor
) -> Iterator[None]:
    from transformers.cache_utils import Cache

    def replacement(number: int, block: nn.Module) -> Any:
        compute = block.forward
        last = number == len(blocks) - 1

        def forward(*args: Any, **kwargs: Any) -> Any:
            cache = next((v for v in (*args, *kwargs.values()) if isinstance(v, Cache)), None)
            if cache is None or cache.get_seq_length(number) > 0:
                return compute(*args, **kwargs)
            keys, values = kept[number]
            here = copies.to(keys.device)  # layers may be spread over several devices
            cache.update(keys[here], values[here], number)
            if last:
                output = outputs[-1]
                return (output[0][here], *output[1:]) if isinstance(output, tuple) else output[here]
            hidden = args[0] if args else kwargs["hidden_states"]
            return (hidden,) if outputs[number] else hidden

        return forward

    patched = [block.__dict__.get("forward") for block in blocks]  # accelerate has put its own there
    try:
        for number, block in enumerate(blocks):
            block.forward = replacement(number, block)
        yield
    finally:
        for block, before in zip(blocks, patched, strict=True):
            block.__dict__.pop("forward", None)
            if before is not None:
                block.__dict__["forward"] = before


__all__ = ["first_edited_layer", "shared_prefix"]
