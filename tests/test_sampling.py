"""Sampling: the right frequencies, from a stream of random numbers of each prompt's own."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import oracles
import pytest
import torch

from lensteer import Add, Steering, generate
from lensteer.sampling import GumbelNoise, sampler

PROMPTS = ["The sky", "A", "Rain falls on the roof"]


def draw(case: Any, prompts: Any = PROMPTS, steering: Any = None, **options: Any) -> list[list[int]]:
    options = {"max_new_tokens": 6, "temperature": 1.0, "prompt_format": "plain", "progress": False, **options}
    return generate(case.model, prompts, steering, **options)["token_ids"].tolist()


def p_value(counts: torch.Tensor, probabilities: torch.Tensor) -> float:
    """Of Pearson's chi-square, by the normal approximation of Wilson and Hilferty."""
    wanted = probabilities * counts.sum()
    statistic, freedom = float(((counts - wanted) ** 2 / wanted).sum()), len(counts) - 1
    z = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    return 0.5 * math.erfc(z / math.sqrt(2))


def test_the_same_seed_draws_the_same_tokens_and_another_seed_others(tiny) -> None:
    assert draw(tiny, seed=1) == draw(tiny, seed=1)
    assert draw(tiny, seed=1) != draw(tiny, seed=2)
    assert draw(tiny, seed=1) != draw(tiny, temperature=0.0)


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"batch_size": 2}, {"use_cache": False}])
def test_what_a_prompt_draws_does_not_depend_on_its_batch(tiny, options: Any) -> None:
    steering = Steering([("blocks.1.hook_resid_post", Add(torch.ones(32).cumsum(0).sin(), 2.0))])
    for given in (None, steering):
        assert draw(tiny, steering=given, seed=3, **options) == draw(tiny, steering=given, seed=3)


def test_what_a_prompt_draws_does_not_touch_the_global_random_state(llama) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = draw(llama, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    assert draw(llama, seed=1) == first


def test_copies_of_a_prompt_draw_different_tokens(llama) -> None:
    assert len(set(map(tuple, draw(llama, ["The sky"] * 8)))) == 8


@pytest.mark.parametrize("temperature", [0.7, 1.5])
def test_frequencies_follow_the_softmax_of_the_steered_model(llama, temperature: float) -> None:
    vector = torch.randn(32, generator=torch.Generator().manual_seed(0))
    change = oracles.Change("resid_post", 1, oracles.add(vector, 2.0))
    ids = llama.tokenizer("The sky")["input_ids"]
    best = oracles.next_log_probs(llama.hf, ids, [change], len(ids)).topk(6)
    wanted = (best.values / temperature).softmax(0)
    options = {"max_new_tokens": 1, "temperature": temperature, "top_k": 6, "seed": 11}
    steering = Steering([("blocks.1.hook_resid_post", Add(vector, 2.0))])
    drawn = [row[0] for row in draw(llama, ["The sky"] * 1500, steering, **options) if row]
    counts = torch.tensor([float(drawn.count(token)) for token in best.indices.tolist()])
    assert counts.sum() == 1500
    assert p_value(counts, wanted) > 1e-3
    assert p_value(counts, wanted.flip(0)) < 1e-6  # the test can fail


def test_top_p_keeps_the_smallest_set_of_tokens_that_holds_the_mass(llama) -> None:
    ids = llama.tokenizer("The sky")["input_ids"]
    probabilities, tokens = oracles.next_log_probs(llama.hf, ids, [], len(ids)).exp().sort(descending=True)
    kept = int((probabilities.cumsum(0) < 0.3).sum()) + 1
    drawn = {row[0] for row in draw(llama, ["The sky"] * 400, max_new_tokens=1, top_p=0.3) if row}
    assert drawn <= set(tokens[:kept].tolist())
    assert len(drawn) > 1


def test_a_very_low_temperature_is_greedy(llama) -> None:
    assert draw(llama, temperature=1e-4) == draw(llama, temperature=0.0)


def test_greedy_decoding_needs_no_noise() -> None:
    options = {"top_k": None, "top_p": None, "seed": 0, "repetition_penalty": 1.0}
    mask = torch.ones(1, 3, dtype=torch.long)
    assert sampler(SimpleNamespace(temperature=0.0, **options), [0], mask) == []  # type: ignore[arg-type]
    (_, noise) = sampler(SimpleNamespace(temperature=1.0, **options), [0], mask)  # type: ignore[arg-type]
    assert isinstance(noise, GumbelNoise)


def test_the_noise_is_gumbel_and_keeps_forbidden_tokens_forbidden() -> None:
    noise = GumbelNoise(0, list(range(200)))(torch.zeros(200, 1), torch.zeros(200, 50))
    assert abs(float(noise.mean()) - 0.5772) < 0.05  # Euler's constant
    assert abs(float(noise.var()) - math.pi**2 / 6) < 0.1
    scores = torch.full((1, 5), float("-inf"))
    scores[0, 3] = 0.0
    assert int(GumbelNoise(1, [0])(torch.zeros(1, 1), scores).argmax()) == 3


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_repetition_penalty_is_transformers_own_without_the_padding(gpt2: Any, temperature: float) -> None:
    prompts = ["One, one, one, one,", "The end of the end of the"]
    options: dict[str, Any] = {"temperature": temperature, "seed": 3, "max_new_tokens": 12, "progress": False}
    found = generate(gpt2.model, prompts, repetition_penalty=3.0, **options).token_ids.tolist()
    alone = [generate(gpt2.model, [p], repetition_penalty=3.0, **options).token_ids[0] for p in prompts[:1]]
    assert found[:1] == alone  # its own stream of numbers and no padding, whatever is beside it
    if temperature == 0:
        assert found != generate(gpt2.model, prompts, **options).token_ids.tolist()
        for prompt, own in zip(prompts, found, strict=True):
            ids = torch.tensor([gpt2.tokenizer(prompt)["input_ids"]])
            more = {"do_sample": False, "max_new_tokens": len(own), "repetition_penalty": 3.0, "eos_token_id": None}
            plain = gpt2.hf.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **more)
            assert own == plain[0, ids.shape[1] :].tolist()


def test_a_repetition_penalty_that_is_not_positive_is_refused(gpt2: Any) -> None:
    with pytest.raises(ValueError, match="repetition_penalty must be positive"):
        generate(gpt2.model, ["A"], repetition_penalty=0.0)
