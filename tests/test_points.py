"""Sites to hook names, shapes, faces, and every point that would mislead."""

from __future__ import annotations

import threading
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
import oracles
import pytest
import torch

from lensteer import AnswerPair, capture
from lensteer.attach import attached
from lensteer.hooks import Add
from lensteer.models import twin_of
from lensteer.points import hook_names, is_gated, resolve
from lensteer.steering import Steering

WIDTHS = {"resid_pre": (32,), "resid_post": (32,), "attn_out": (32,), "z": (4, 8), "mlp_out": (32,), "post": (64,)}


def test_a_site_has_one_name_per_layer_in_transformer_lens_words(tiny) -> None:
    assert hook_names(tiny.model, "resid_post") == [f"blocks.{i}.hook_resid_post" for i in range(4)]
    assert hook_names(tiny.model, "z", 2) == ["blocks.2.attn.hook_z"]
    assert hook_names(tiny.model, "post", [3, 1]) == ["blocks.3.mlp.hook_post", "blocks.1.mlp.hook_post"]
    assert hook_names(tiny.model, "blocks.1.hook_resid_pre") == ["blocks.1.hook_resid_pre"]


def test_a_site_that_exists_once_has_one_name_whatever_the_layers(llama) -> None:
    assert hook_names(llama.model, "hook_embed") == ["hook_embed"]


def test_layers_may_be_numpy_numbers_as_they_come_out_of_a_table(llama) -> None:
    assert hook_names(llama.model, "resid_post", np.int64(2)) == ["blocks.2.hook_resid_post"]
    assert hook_names(llama.model, "resid_post", np.array([0, 3])) == hook_names(llama.model, "resid_post", [0, 3])


@pytest.mark.parametrize("site", list(WIDTHS))
def test_every_common_site_has_its_width_and_a_place_on_the_plain_model(tiny, site: str) -> None:
    for point in resolve(tiny.model, site, edit=True):
        assert point.shape == WIDTHS[site]
        assert point.module is not None
        tiny.hf.get_submodule(point.module)


@pytest.mark.parametrize("site", [*WIDTHS, "q", "k", "v", "pre"])
def test_both_faces_and_transformer_lens_itself_see_the_same_activation(tiny, site: str) -> None:
    ids = torch.tensor([[5, 70, 33, 250, 9]])
    (point,) = resolve(tiny.model, site, 2)
    seen: list[torch.Tensor] = []

    def look(x: torch.Tensor, hook: Any) -> torch.Tensor:
        seen.append(x.clone())
        return x

    _, cache = tiny.model.run_with_cache(ids, names_filter=point.name)
    with torch.no_grad(), attached(tiny.model, [(point, look)]):
        tiny.model(ids)
        if point.module is not None:
            tiny.hf(ids)
    assert len(seen) == (1 if point.module is None else 2)
    for x in seen:
        assert x.shape == (1, 5, *point.shape)
        torch.testing.assert_close(x, cache[point.name], atol=1e-4, rtol=1e-4)


def test_points_of_the_lens_alone_are_known_as_such(tiny) -> None:
    assert resolve(tiny.model, "q", 1)[0].module is None


@pytest.mark.parametrize(
    ("site", "layers", "words"),
    [
        ("resid_pots", None, r"LlamaForCausalLM has no hook point 'blocks.0.hook_resid_pots'.*resid_post"),
        (
            "blocks.1.hook_resid_pots",
            None,
            r"no hook point 'blocks.1.hook_resid_pots'.*close names: blocks.1.hook_resid_post",
        ),
        ("blocks.9.hook_resid_post", None, r"no hook point 'blocks.9.hook_resid_post'.*layers 0 to 3"),
        ("resid_post", 4, r"layer 4 is out of range: LlamaForCausalLM has 4 layers, 0 to 3"),
        ("resid_post", [0, -1], r"layer -1 is out of range"),
        ("resid_post", [], r"no layers"),
        ("result", 1, r"never fires.*points that fire in the same block"),
    ],
)
def test_an_unknown_site_or_layer_names_the_model_and_what_it_has(llama, forwards, site, layers, words) -> None:
    resolve(llama.model, "resid_post")
    with forwards(llama) as calls, pytest.raises(ValueError, match=words):
        resolve(llama.model, site, layers)
    assert len(calls) <= 1  # a point that did not fire is looked for once more


def test_no_sites_are_refused(llama) -> None:
    with pytest.raises(ValueError, match="no sites"):
        resolve(llama.model, [])


def test_a_dead_point_is_refused_on_models_with_fused_attention(gpt2) -> None:
    with pytest.raises(ValueError, match=r"'blocks.0.attn.qkv.hook_out'.*never fires"):
        resolve(gpt2.model, "blocks.0.attn.qkv.hook_out")


def test_a_point_that_a_setter_wakes_up_is_found_afterwards(fresh) -> None:
    case = fresh("llama")
    with pytest.raises(ValueError, match="never fires"):
        resolve(case.model, "result", 1)
    case.model.set_use_attn_result(True)
    assert resolve(case.model, "result", 1)[0].shape == (4, 32)


def test_the_middle_of_the_residual_stream_can_be_read_but_not_edited(llama) -> None:
    name = "blocks.1.hook_resid_mid"
    assert resolve(llama.model, name)[0].shape == (32,)
    with pytest.raises(ValueError, match=r"hook_resid_mid' cannot be edited.*attn_out"):
        resolve(llama.model, name, edit=True)


def test_an_edit_that_changes_no_output_is_refused(llama) -> None:
    """The rotary embedding looks at the residual stream only for its dtype and device."""
    assert resolve(llama.model, "rotary_emb.hook_in")[0].shape == (32,)
    with pytest.raises(ValueError, match=r"'rotary_emb.hook_in' does not change what LlamaForCausalLM puts out"):
        resolve(llama.model, "rotary_emb.hook_in", edit=True)


def test_token_ids_are_not_activations(llama) -> None:
    with pytest.raises(ValueError, match=r"'embed.hook_in'"):
        resolve(llama.model, "embed.hook_in", edit=True)


def test_the_two_norms_of_a_block_are_checked_apart(fresh) -> None:
    """An edit before one norm counts; before the other, whose weight is zero here, it does not."""
    case = fresh("llama")
    with torch.no_grad():
        for block in case.hf.model.layers:
            block.post_attention_layernorm.weight.zero_()
    resolve(case.model, "blocks.1.ln1.hook_in", edit=True)
    with pytest.raises(ValueError, match="does not change"):
        resolve(case.model, "blocks.1.ln2.hook_in", edit=True)


@pytest.mark.parametrize("site", ["pattern", "attn_scores"])
def test_points_without_an_axis_of_tokens_second_are_refused(tiny, site: str) -> None:
    """Attention patterns are [batch, head, query, key]; a token index would silently pick a head."""
    name = f"blocks.0.attn.hook_{site}"
    with pytest.raises(ValueError, match=rf"{name}.*\[batch, pos"):
        resolve(tiny.model, site, 0)


def test_the_neurons_of_a_mixture_of_experts_are_refused(new_tokenizer) -> None:
    import transformers

    from lensteer import load_model

    shape: dict[str, Any] = {"vocab_size": 262, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.MixtralConfig(**shape, num_key_value_heads=2, intermediate_size=64, num_local_experts=2)
    hf = transformers.AutoModelForCausalLM.from_config(config).eval()
    model = load_model(hf, tokenizer=new_tokenizer())
    with pytest.raises(ValueError, match=r"hook_post.*mixture of experts.*mlp_out"):
        resolve(model, "post", 0)
    assert resolve(model, "mlp_out", 0, edit=True)[0].shape == (32,)


def test_a_model_is_surveyed_once_and_looking_a_point_up_again_runs_nothing(llama, forwards) -> None:
    resolve(llama.model, ["resid_post", "z"], edit=True)
    with forwards(llama) as calls:
        resolve(llama.model, ["resid_post", "z"], edit=True)
    assert calls == []


def test_a_survey_waits_while_another_thread_steers(fresh) -> None:
    """Else the probe would run under that thread's edits, with strengths for other rows."""
    case = fresh("llama")
    steering = Steering([("blocks.1.hook_resid_post", Add(torch.randn(32), torch.ones(3)))])
    errors: list[BaseException] = []

    def look() -> None:
        try:
            twin_of(case.model).survey = None
            resolve(case.model, "z", edit=True)
        except BaseException as error:
            errors.append(error)

    with steering.on(case.model):
        thread = threading.Thread(target=look)
        thread.start()
        thread.join(0.5)
    thread.join(20)
    assert not thread.is_alive()
    assert errors == []


def test_a_point_can_be_looked_up_while_an_edit_with_strengths_per_row_is_on(fresh) -> None:
    case = fresh("llama")
    with Steering([("blocks.1.hook_resid_post", Add(torch.randn(32), torch.ones(3)))]).on(case.model):
        assert resolve(case.model, "mlp_out", 2, edit=True)[0].shape == (32,)


# ---- neurons before anything gates them


@pytest.mark.parametrize("layer", [0, 3])
def test_a_neuron_is_what_the_activation_function_puts_out(tiny, layer: int) -> None:
    """On a plain MLP that is what enters the second matrix; on a gated one, what the up branch is multiplied by."""
    text = "Why is it so?"
    mlp: Any = oracles.blocks(tiny.hf)[layer].mlp
    act = mlp.act_fn if hasattr(mlp, "act_fn") else mlp.act
    found: list[torch.Tensor] = []
    handle = act.register_forward_hook(lambda module, args, output: found.append(output[0, -1].clone()))
    with torch.no_grad():
        tiny.hf(torch.tensor([tiny.tokenizer(text)["input_ids"]]))
    handle.remove()
    options: dict[str, Any] = {"layers": layer, "prompt_format": "plain", "progress": False}
    seen = capture(tiny.model, [text], ["neuron", "post"], **options)
    name = f"blocks.{layer}.hook_neuron"
    torch.testing.assert_close(seen[name][0], found[0], atol=1e-5, rtol=1e-5)
    same = torch.allclose(seen[name], seen[f"blocks.{layer}.mlp.hook_post"], atol=1e-5)
    assert same is (tiny.name in ("gpt2", "neox"))
    assert is_gated(tiny.model.hook_dict, layer) is not same


def test_neurons_of_a_padded_batch_and_of_every_token_are_those_of_the_plain_model(tiny) -> None:
    texts = ["Why", "A much longer question?"]
    mlp: Any = oracles.blocks(tiny.hf)[2].mlp
    act = mlp.act_fn if hasattr(mlp, "act_fn") else mlp.act
    options: dict[str, Any] = {"layers": 2, "prompt_format": "plain", "progress": False}
    every = capture(tiny.model, texts, "neuron", tokens="all", **options)
    last = capture(tiny.model, texts, "neuron", **options)["blocks.2.hook_neuron"]
    for i, text in enumerate(texts):
        found: list[torch.Tensor] = []
        handle = act.register_forward_hook(lambda module, args, output, found=found: found.append(output[0].clone()))
        with torch.no_grad():
            tiny.hf(torch.tensor([tiny.tokenizer(text)["input_ids"]]))
        handle.remove()
        assert every.mask is not None
        own = every["blocks.2.hook_neuron"][i][every.mask[i]]
        torch.testing.assert_close(own, found[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(last[i], found[0][-1], atol=1e-5, rtol=1e-5)


def test_the_activation_function_is_given_no_more_than_the_tokens_that_are_read(
    tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_gated(tiny.model.hook_dict, 2):
        pytest.skip("a plain MLP is read behind its activation function")
    (point,) = resolve(tiny.model, "neuron", 2)
    given: list[tuple[int, ...]] = []

    def through(x: torch.Tensor) -> torch.Tensor:
        given.append(tuple(x.shape))
        return point.through(x)  # type: ignore[misc]

    monkeypatch.setattr(
        import_module("lensteer.capture"), "resolve", lambda *a, **more: [replace(point, through=through)]
    )
    texts, options = ["Why", "A much longer question?"], {"prompt_format": "plain", "progress": False}
    last, every = (capture(tiny.model, texts, "neuron", layers=2, tokens=which, **options) for which in ("last", "all"))
    assert given[0] == (2, *point.shape) and len(given[1]) == 3
    torch.testing.assert_close(last[point.name], every[point.name][:, -1], rtol=0, atol=0)


def test_neurons_are_named_like_a_site_of_transformer_lens(tiny) -> None:
    assert hook_names(tiny.model, "neuron") == [f"blocks.{i}.hook_neuron" for i in range(4)]
    assert hook_names(tiny.model, "blocks.1.hook_neuron") == ["blocks.1.hook_neuron"]
    for point in resolve(tiny.model, "neuron"):
        assert point.shape == (64,)
        assert point.module is not None
        assert "0x" not in repr(point)  # a capture that goes on from a folder is found by this text


def test_neurons_can_be_read_and_not_edited(tiny) -> None:
    with pytest.raises(ValueError, match=r"'blocks.1.hook_neuron' cannot be edited.*scale them at 'post'"):
        resolve(tiny.model, "neuron", 1, edit=True)
    with pytest.raises(ValueError, match="cannot be edited"):
        Steering([("blocks.1.hook_neuron", Add(torch.randn(64)))]).points(tiny.model)


def test_a_mixture_of_experts_has_no_neurons_to_read(new_tokenizer) -> None:
    import transformers

    from lensteer import load_model, sadi

    shape: dict[str, Any] = {"vocab_size": 262, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.MixtralConfig(**shape, num_key_value_heads=2, intermediate_size=64, num_local_experts=2)
    model = load_model(transformers.AutoModelForCausalLM.from_config(config).eval(), tokenizer=new_tokenizer())
    with pytest.raises(ValueError, match=r"neuron.*(mlp_out|Sites that it has)"):
        resolve(model, "neuron")
    pairs = [AnswerPair("Why", "yes", "no")]
    with pytest.raises(ValueError, match=r"neuron"):
        sadi.fit(model, pairs, "neuron", progress=False)
    assert sadi.fit(model, pairs, "hidden", progress=False).scores.shape == (2, 32)
