"""A beginning that all prompts share is read once, and nothing else changes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from conftest import ARCHITECTURES, make_case
from oracles import Change, add, response_log_probs

from lensteer import Add, Steering, at, load_model
from lensteer.positions import STEPS
from lensteer.scoring import score_options
from lensteer.shared_beginning import can_share, laid_out, shared_tokens

BEGINNING = "Answer in one word: "
PROMPTS = [BEGINNING + rest for rest in ("what is red?", "who?", "where is the long road to?", "why")]
ANSWERS = ("yes", "no way")
SMALL: dict[str, Any] = {"hidden_size": 8, "vocab_size": 8}


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def case(request: pytest.FixtureRequest) -> Any:
    return make_case(request.param)


def test_shared_tokens_leave_the_last_of_the_shortest_row() -> None:
    ids = torch.tensor([[0, 5, 6, 7, 9], [5, 6, 7, 8, 9]])
    lengths = torch.tensor([4, 5])
    assert shared_tokens(ids, lengths) == 3
    assert shared_tokens(ids, lengths, keep=2) == 2
    assert shared_tokens(ids[:1], lengths[:1]) == 0
    assert shared_tokens(torch.tensor([[0, 5, 6, 7, 9], [4, 6, 7, 8, 9]]), lengths) == 0


def test_a_batch_is_laid_out_with_its_padding_between_the_two_parts() -> None:
    ids, mask, positions = laid_out(torch.tensor([[0, 0, 5, 6, 8], [5, 6, 7, 8, 9]]), torch.tensor([3, 5]), 2)
    assert (ids * mask).tolist() == [[5, 6, 0, 0, 8], [5, 6, 7, 8, 9]]
    assert mask.tolist() == [[1, 1, 0, 0, 1], [1, 1, 1, 1, 1]]
    assert (positions * mask).tolist() == [[0, 1, 0, 0, 2], [0, 1, 2, 3, 4]]


def test_models_with_a_sliding_window_do_not_share(case: Any) -> None:
    assert can_share(case.hf) == (case.name != "gemma2")


@pytest.fixture(scope="module")
def gpt_neo() -> Any:
    """Its second layer sees the 16 columns before a token, under names of its own for that."""
    sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}
    config = transformers.GPTNeoConfig(**sizes, window_size=16, vocab_size=make_case("llama").hf.config.vocab_size)
    torch.manual_seed(0)
    return transformers.GPTNeoForCausalLM(config).eval()


def test_no_kind_of_local_attention_shares(gpt_neo: Any) -> None:
    assert not can_share(gpt_neo)
    for config in (
        transformers.Llama4TextConfig(num_hidden_layers=2, **SMALL),
        transformers.RecurrentGemmaConfig(**SMALL),
        transformers.MambaConfig(**SMALL),
        transformers.JambaConfig(**SMALL),
        transformers.Qwen2Config(use_sliding_window=True, sliding_window=8, max_window_layers=0, **SMALL),
    ):
        assert not can_share(SimpleNamespace(config=config, forward=transformers.LlamaForCausalLM.forward))
    unused = transformers.Qwen2Config(use_sliding_window=False, sliding_window=8, **SMALL)
    assert can_share(SimpleNamespace(config=unused, forward=transformers.LlamaForCausalLM.forward))


def test_scores_with_local_attention_are_those_of_one_prompt_after_the_other(gpt_neo: Any) -> None:
    tokenizer = make_case("llama").tokenizer
    options = [[tokenizer(" yes", add_special_tokens=False)["input_ids"]]] * len(PROMPTS)
    model = load_model(gpt_neo, tokenizer=tokenizer)
    (found,) = score_options(model, PROMPTS, options, [None], prompt_format="plain", progress=False)
    for prompt, (own,), ((answer,)) in zip(PROMPTS, found, options, strict=True):
        wanted = response_log_probs(gpt_neo, tokenizer(prompt)["input_ids"], answer, [])
        torch.testing.assert_close(own.log_probs, wanted, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("tokens", [None, "last", STEPS, "all"])
def test_scores_are_those_of_one_prompt_after_the_other(case: Any, forwards: Any, tokens: Any) -> None:
    """Whether the steering acts late (and the beginning is shared), early, or not at all."""
    width = case.hf.config.hidden_size
    vector = torch.linspace(-1, 1, width)
    hook = "blocks.1.hook_out" if "blocks.1.hook_out" in case.model.hook_dict else "blocks.1.hook_resid_post"
    steering = None if tokens is None else Steering([(hook, at(Add(vector, 0.5), tokens))])
    changes = [] if tokens is None else [Change("resid_post", 1, add(vector, 0.5), tokens)]
    options = [[case.tokenizer(" " + answer, add_special_tokens=False)["input_ids"] for answer in ANSWERS]] * len(
        PROMPTS
    )
    if steering is not None:
        steering.points(case.model)  # the first look at a point runs the model to see whether edits there act
    with forwards(case) as calls:
        (found,) = score_options(case.model, PROMPTS, options, [steering], prompt_format="plain", progress=False)
    assert (calls[0][0] == 1) == (tokens != "all" and can_share(case.hf))
    for prompt, own in zip(PROMPTS, found, strict=True):
        ids = case.tokenizer(prompt)["input_ids"]
        for scored, answer in zip(own, options[0], strict=True):
            wanted = response_log_probs(case.hf, ids, answer, changes)
            torch.testing.assert_close(scored.log_probs, wanted, atol=2e-4, rtol=1e-4)


def test_a_model_that_is_steered_from_outside_reads_every_prompt_whole(forwards: Any) -> None:
    case = make_case("llama")
    options = [[[7], [8]]] * len(PROMPTS)
    outer = Steering([("blocks.0.hook_resid_post", Add(torch.ones(32)))])
    with outer.on(case.model), forwards(case) as calls:
        score_options(case.model, PROMPTS, options, [None], prompt_format="plain", progress=False)
    assert all(shape[0] == len(PROMPTS) for shape in calls)
