"""Which layers a batch may compute once for all copies of a prompt."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import oracles
import pytest
import torch

from lensteer import Add, Steering, at
from lensteer.points import resolve
from lensteer.prefix import first_edited_layer, shared_prefix
from lensteer.prompts import make_batch, tokenize


def steering(case: Any, *names: str, tokens: Any = "all") -> Steering:
    pairs = []
    for name in names:
        shape = resolve(case.model, name)[0].shape
        pairs.append((name, at(Add(torch.randn(shape)), tokens)))
    return Steering(pairs)


@pytest.mark.parametrize(
    ("names", "layer"),
    [
        ([], 4),
        (["blocks.2.hook_resid_post"], 2),
        (["blocks.2.hook_resid_pre"], 2),
        (["blocks.3.attn.hook_z", "blocks.1.mlp.hook_post"], 1),
        (["blocks.0.hook_mlp_out"], 0),
        (["ln_final.hook_in"], 4),
        (["unembed.hook_in"], 4),
        (["hook_embed"], 0),
        (["hook_embed", "ln_final.hook_in"], 0),
    ],
)
def test_layers_below_the_first_edit_read_the_prompt_as_without_steering(tiny, names: list[str], layer: int) -> None:
    assert first_edited_layer(tiny.model, steering(tiny, *names)) == layer


def test_an_edit_of_generated_tokens_leaves_the_whole_prompt_alone(llama) -> None:
    name = "blocks.0.hook_resid_post"
    assert first_edited_layer(llama.model, steering(llama, name, tokens="generated")) == 4
    assert first_edited_layer(llama.model, steering(llama, name, tokens="last")) == 0


def batch_of(case: Any, *prompts: str) -> Any:
    rows = tokenize(case.model, list(prompts), prompt_format="plain")
    return make_batch(rows, list(range(len(rows))), 0, "cpu")


def test_nothing_is_shared_where_nothing_gains(llama) -> None:
    edit = steering(llama, "blocks.2.hook_resid_post")
    low = steering(llama, "blocks.0.hook_resid_post")
    copies, distinct = batch_of(llama, "Why", "Why"), batch_of(llama, "Why", "How")
    assert not isinstance(shared_prefix(llama.model, llama.hf, copies, edit), nullcontext)
    assert isinstance(shared_prefix(llama.model, llama.hf, distinct, edit), nullcontext)
    assert isinstance(shared_prefix(llama.model, llama.hf, copies, low), nullcontext)
    assert isinstance(shared_prefix(llama.model, llama.model.original_model, copies, edit), nullcontext)
    with low.on(llama.model):  # an edit from outside may touch any layer
        assert isinstance(shared_prefix(llama.model, llama.hf, copies, edit), nullcontext)


@pytest.mark.parametrize("count", [1, 3, 4])
def test_each_distinct_prompt_runs_once_through_the_shared_layers(tiny, count: int) -> None:
    names = [f"blocks.{count}.hook_resid_pre"] if count < 4 else []
    batch = batch_of(tiny, "Why", "Not", "Why", "Why")
    rows: dict[int, list[int]] = {}

    def note(layer: int) -> Any:
        # An attention module runs only where its block is really computed.
        block = oracles.blocks(tiny.hf)[layer]
        module = next(part for name, part in block.named_children() if name in ("attn", "self_attn", "attention"))
        return module.register_forward_hook(lambda m, a, output: rows.setdefault(layer, []).append(len(output[0])))

    handles = [note(layer) for layer in range(4)]
    with torch.no_grad(), shared_prefix(tiny.model, tiny.hf, batch, steering(tiny, *names)):
        shared = tiny.hf(**_inputs(tiny, batch), use_cache=True)
    assert rows == {layer: [2] if layer < count else [4] for layer in range(4)}
    for handle in handles:
        handle.remove()
    with torch.no_grad():
        plain = tiny.hf(**_inputs(tiny, batch), use_cache=True)
    torch.testing.assert_close(shared.logits, plain.logits, atol=1e-4, rtol=1e-4)
    for mine, theirs in zip(shared.past_key_values.layers, plain.past_key_values.layers, strict=True):
        torch.testing.assert_close(mine.keys, theirs.keys, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(mine.values, theirs.values, atol=1e-4, rtol=1e-4)


def _inputs(case: Any, batch: Any) -> dict[str, Any]:
    return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "position_ids": batch.position_ids}
