"""Where a bias goes that a model's class lacks, and that plain Hugging Face code loads it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from folding import IDS, affine, hooked, logits, points, quiet_fold, random, reload, require_equal

import lensteer as ls
from lensteer import Add, Steering
from lensteer.export import fold, folded_modeling

pytestmark = pytest.mark.usefixtures("exact_gemma_norms", "remote_code")
ADD = Add(random((32,), 0))

# (model, changes, site, the class that has room, whether it brings its own code)
ROOM = [
    ("llama", {}, "ln2.hook_out", "LlamaForCausalLM", False),
    ("llama", {}, "attn.hook_out", "LlamaForCausalLM", False),
    ("llama", {}, "ln_final.hook_out", "LlamaForCausalLM", True),
    ("mistral", {}, "ln1.hook_out", "LlamaForCausalLM", False),
    ("mistral", {"sliding_window": 5}, "ln1.hook_out", "MistralForCausalLM", True),
    ("qwen2", {}, "ln1.hook_out", "Qwen2ForCausalLM", False),
    ("qwen2", {}, "mlp.hook_out", "LlamaForCausalLM", False),
    (
        *("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}),
        *("mlp.hook_out", "Qwen2ForCausalLM", True),
    ),
    ("gemma2", {}, "attn.hook_out", "Gemma2ForCausalLM", False),
    ("gemma2", {}, "hook_resid_post", "Gemma2ForCausalLM", True),
    ("gemma2", {}, "ln2.hook_out", "Gemma2ForCausalLM", True),
    ("gpt2", {}, "hook_resid_post", "GPT2LMHeadModel", False),
    ("neox", {}, "ln2.hook_out", "GPTNeoXForCausalLM", False),
    ("neox", {"use_parallel_residual": False}, "ln2.hook_out", "GPTNeoXForCausalLM", False),
]


@pytest.mark.parametrize(("name", "changes", "site", "kind", "own_code"), ROOM)
def test_a_bias_goes_to_the_simplest_class_with_room_for_it_and_load_model_takes_it(
    double: Any, tmp_path: Path, name: str, changes: dict[str, Any], site: str, kind: str, own_code: bool
) -> None:
    model, hf = double(name, **changes)
    point = site if site.startswith("ln_final") else f"blocks.1.{site}"
    steering = Steering([(point, Add(random((32,), 5)))])
    folded = require_equal(model, hf, steering, tmp_path)
    assert type(folded).__name__ == kind
    assert type(folded).__module__.startswith("transformers.") is not own_code
    again = ls.load_model(reload(folded, tmp_path, own_code))
    # The lens computes attention in float32.
    with torch.no_grad():
        assert (again.original_model(IDS).logits - logits(folded)).abs().max() < 1e-4


def test_scaling_alone_never_needs_another_class(double: Any) -> None:
    model, hf = double("gemma2")
    sites = ["ln1.hook_out", "ln1_post.hook_out", "ln2_post.hook_out", "mlp.hook_post", "mlp.hook_out"]
    names = points(model, hf, sites)
    steering = [(p, replace(affine(model, p, 1), shift=torch.zeros_like(affine(model, p, 1).shift))) for p in names]
    folded, own_code = quiet_fold(steering, model)
    assert type(folded) is type(hf) and not own_code and folded.state_dict().keys() == hf.state_dict().keys()


def test_a_checkpoint_with_its_own_code_is_refused_without_it_instead_of_loaded_without_biases(
    double: Any, tmp_path: Path
) -> None:
    model, _ = double("gemma2")
    folded, own_code = quiet_fold([("blocks.1.hook_resid_post", Add(random((32,), 5)))], model)
    assert own_code
    folded.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    source = (tmp_path / "folded_modeling.py").read_text(encoding="utf-8")
    assert "lensteer" not in source.split('"""', 2)[2]


def test_a_folded_model_folds_again(double: Any, tmp_path: Path) -> None:
    model, hf = double("gemma2")
    first = Steering([("blocks.1.hook_resid_post", Add(random((32,), 5)))])
    second = Steering([("blocks.1.ln2_post.hook_out", affine(model, "blocks.1.ln2_post.hook_out", 6))])
    third = Steering([("blocks.2.mlp.hook_out", affine(model, "blocks.2.mlp.hook_out", 7))])
    once, own_code = quiet_fold(first, model)
    again = ls.load_model(reload(once, tmp_path / "once", own_code))
    twice, own_code = quiet_fold(second + third, again)
    # The second edit finds what the first has shifted at the same place.
    with hooked(hf, [("blocks.1.ln2_post.hook_out", first[0][1]), *second, *third]):
        wanted = logits(hf)
    assert (logits(twice) - wanted).abs().max() < 1e-10
    assert (logits(reload(twice, tmp_path / "twice", own_code)) - wanted).abs().max() < 1e-10


@pytest.mark.parametrize(
    ("name", "site", "tied"),
    [
        ("llama", "hook_resid_pre", False),
        ("gemma2", "hook_resid_pre", False),
        ("gpt2", "hook_resid_pre", True),  # its table of positions takes it
        ("llama", "ln1.hook_out", True),
    ],
)
def test_tied_embeddings_are_untied_where_only_one_of_them_changes(
    double: Any, tmp_path: Path, name: str, site: str, tied: bool
) -> None:
    model, hf = double(name, tie_word_embeddings=True)
    folded = require_equal(model, hf, [(f"blocks.0.{site}", Add(random((32,), 3)))], tmp_path)
    assert (folded.get_output_embeddings().weight is folded.get_input_embeddings().weight) is tied
    assert folded.config.tie_word_embeddings is tied and hf.config.tie_word_embeddings


def test_a_class_without_room_is_refused(double: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(folded_modeling.MODELS, "Gemma2ForCausalLM")
    model, _ = double("gemma2")
    with pytest.raises(ValueError, match=r"Gemma2ForCausalLM has no place for a bias at model.layers.1.mlp.down_proj"):
        fold([("blocks.1.mlp.hook_out", ADD)], model)


def test_a_model_with_other_modules_than_its_class_makes_is_refused(fresh_hf: Any, new_tokenizer: Any) -> None:
    hf = fresh_hf("gpt2")
    hf.transformer.h[0].adapter = torch.nn.Linear(32, 32)
    model = ls.load_model(hf, tokenizer=new_tokenizer())
    with pytest.raises(ValueError, match="other modules than its class makes"):
        fold([("blocks.1.hook_attn_out", ADD)], model)
