"""What cannot be folded is refused, with the edit, the reason and a way out."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from folding import random

import lensteer as ls
from lensteer import Add, Affine, ScaleElements, SetElements, SetProjection, Steering, at
from lensteer.export import fold
from lensteer.export.places import Place

ADD, Z = Add(random((32,), 0)), "blocks.1.attn.hook_z"
ONES, MASK = torch.ones(32), torch.ones(4, 8) > 0
REFUSED: dict[str, tuple[str, tuple[str, Any], str]] = {
    "bounded support": (
        "llama",
        ("blocks.1.ln1.hook_out", Affine(ONES, ONES, -ONES, ONES)),
        r"Affine at 'blocks.1.ln1.hook_out'.*support is bounded.*support=None",
    ),
    "per-row strengths": ("llama", ("blocks.1.ln1.hook_out", ADD.at_strength([1.0, 2.0])), r"at_strength\(number\)"),
    "positions": ("llama", ("blocks.1.ln1.hook_out", at(ADD, "last")), r"Add at .*tokens='last'.*without at\(…\)"),
    "a projection": ("llama", ("blocks.1.hook_resid_post", SetProjection(ONES)), "SetProjection at .*other units"),
    "frozen elements": ("llama", (Z, ScaleElements(MASK, 1.0, torch.ones(2, 4, 8))), "ScaleElements at.*without froz"),
    "rows of values": ("llama", (Z, SetElements(torch.ones(2, 4, 8), per_row=True)), "SetElements at.*same values"),
    "a scaled stream": ("llama", ("blocks.1.hook_resid_post", Affine(2 * ONES, ONES)), "only shifts fold.*use Add"),
    "a scaled stream before": ("gpt2", ("blocks.0.hook_resid_pre", Affine(2 * ONES, ONES)), "only shifts fold"),
    "fused q": ("gpt2", ("blocks.1.attn.hook_q", Add(torch.ones(4, 8))), "one fused module.*use ln1.hook_out"),
    "fused v": ("neox", ("blocks.1.attn.hook_v", Add(torch.ones(4, 8))), "one fused module"),
    "a norm's input": ("llama", ("blocks.1.ln1.hook_in", ADD), "no linear layer or norm makes or reads.*attn_out"),
    "a norm's inside": ("llama", ("ln_final.hook_normalized", ADD), "no linear layer or norm makes or reads"),
    "rotated keys": ("llama", ("blocks.1.attn.hook_rot_q", Add(torch.ones(4, 8))), "no linear layer or norm makes"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", list(REFUSED))
def test_what_no_weights_can_do_is_refused_with_the_edit_the_reason_and_a_way_out(double: Any, case: str) -> None:
    name, (point, edit), message = REFUSED[case]
    model, _ = double(name)
    if "blocks.1" in point:
        message = "edit 1, .*" + message
    with pytest.raises(ValueError, match=message) as error:
        fold([("blocks.2.hook_mlp_out", ADD), (point, edit)], model)
    assert "cannot be folded into weights" in str(error.value)


def test_quantised_weights_are_refused(fresh_hf: Any, new_tokenizer: Any) -> None:
    class Linear4bit(torch.nn.Linear):
        pass

    hf = fresh_hf("llama")
    hf.model.layers[1].self_attn.o_proj.__class__ = Linear4bit
    model = ls.load_model(hf, tokenizer=new_tokenizer())
    with pytest.raises(ValueError, match=r"self_attn.o_proj is a Linear4bit, .*quantised.*load the model unquantised"):
        fold([("blocks.1.hook_attn_out", ADD)], model)


def test_a_model_without_a_plain_face_or_one_that_is_steered_is_refused(fresh_hf: Any, double: Any) -> None:
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    hf = fresh_hf("llama")
    bridge = build_bridge_from_module(hf, "LlamaForCausalLM", hf_config=hf.config, model_name="mine")
    with pytest.raises(ValueError, match=r"no plain face.*load_model"):
        fold([("blocks.1.hook_attn_out", ADD)], bridge)
    model, _ = double("llama")
    steering = Steering([("blocks.1.hook_attn_out", ADD)])
    with steering.on(model), pytest.raises(ValueError, match="being steered"):
        fold(steering, model)


def test_a_folded_model_that_is_not_the_hooked_one_is_not_handed_out(
    double: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules[fold.__module__]  # the function hides its module's name
    monkeypatch.setattr(module, "place_of", lambda model, name: Place("model.layers.2.self_attn.o_proj"))
    model, _ = double("llama")
    with pytest.raises(ValueError, match=r"gives other logits on LlamaForCausalLM \(relative error"):
        fold([("blocks.1.hook_attn_out", ADD)], model)
