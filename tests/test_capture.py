"""Captured activations against plain forward hooks, one prompt at a time; reductions, resumption, refusals."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import oracles
import pytest
import torch

from lensteer import capture
from lensteer.hooks import Add
from lensteer.moments import Moments
from lensteer.points import resolve
from lensteer.positions import at
from lensteer.prompts import Batch
from lensteer.reading import reading_of
from lensteer.steering import Steering

# In token counts from 1 to more than the tiny Gemma-2's sliding window of 8.
PROMPTS = ["The sky", "A", "A prompt, with commas, of some length.", "Rain falls", "Why?", "A few words here"]
NAMES = {
    "resid_pre": "blocks.{}.hook_resid_pre",
    "resid_post": "blocks.{}.hook_resid_post",
    "attn_out": "blocks.{}.hook_attn_out",
    "z": "blocks.{}.attn.hook_z",
    "mlp_out": "blocks.{}.hook_mlp_out",
    "post": "blocks.{}.mlp.hook_post",
}


def run(case: Any, sites: Any, prompts: Any = PROMPTS, **options: Any) -> Any:
    options = {"prompt_format": "plain", "progress": False, **options}
    return capture(case.model, prompts, sites, **options)


def ids_of(case: Any, prompt: str) -> list[int]:
    return case.tokenizer(prompt)["input_ids"]


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Cosine of every activation at least 0.99999 and its relative error at most 1e-4."""
    found, expected = found.reshape(expected.shape).flatten(1).double(), expected.flatten(1).double()
    assert torch.cosine_similarity(found, expected).min() >= 0.99999
    assert ((found - expected).norm(dim=1) / expected.norm(dim=1)).max() <= 1e-4


def last_tokens(case: Any, site: str, layers: range, prompts: Any = PROMPTS) -> torch.Tensor:
    """[layer, prompt, width]"""
    rows = [oracles.read(case.hf, ids_of(case, prompt), site, layers) for prompt in prompts]
    return torch.stack([torch.stack([row[layer][-1] for row in rows]) for layer in range(len(layers))])


@pytest.mark.parametrize("batch_size", [1, 3, "auto"])
def test_captured_vectors_equal_plain_forward_hooks_one_prompt_at_a_time(tiny, batch_size: Any) -> None:
    found = run(tiny, list(NAMES), batch_size=batch_size)
    for site, name in NAMES.items():
        expected = last_tokens(tiny, site, range(4))
        for layer in range(4):
            assert_same(found[name.format(layer)], expected[layer])


@pytest.mark.parametrize("batch_size", [1, 3, "auto"])
def test_every_token_is_captured_in_place(tiny, batch_size: Any) -> None:
    found = run(tiny, ["resid_post", "z"], tokens="all", layers=[0, 3], batch_size=batch_size)
    for site, name in (("resid_post", "blocks.{}.hook_resid_post"), ("z", "blocks.{}.attn.hook_z")):
        for i, prompt in enumerate(PROMPTS):
            first, last = oracles.read(tiny.hf, ids_of(tiny, prompt), site, [0, 3])
            assert found.mask[i].sum() == len(first)
            assert_same(found[name.format(0)][i][found.mask[i]], first)
            assert_same(found[name.format(3)][i][found.mask[i]], last)
            assert not found[name.format(3)][i][~found.mask[i]].any()


def test_the_real_model_is_captured_like_the_tiny_ones(smollm2) -> None:
    prompts = PROMPTS[:2]
    for batch_size in (1, 3):
        found = run(smollm2, ["resid_post", "z"], prompts, layers=[0, 14, 29], batch_size=batch_size)
        for site, name in (("resid_post", "blocks.{}.hook_resid_post"), ("z", "blocks.{}.attn.hook_z")):
            expected = last_tokens(smollm2, site, range(30), prompts)
            for layer in (0, 14, 29):
                assert_same(found[name.format(layer)], expected[layer])


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 3, "auto"])
def test_the_real_model_is_captured_right_at_every_site_and_layer(smollm2, batch_size: Any) -> None:
    prompts = [*PROMPTS, "The capital of France is Paris, and the capital of Japan is " * 3]
    found = run(smollm2, list(NAMES), prompts, batch_size=batch_size)
    for site, name in NAMES.items():
        expected = last_tokens(smollm2, site, range(30), prompts)
        for layer in range(30):
            assert_same(found[name.format(layer)], expected[layer])


def test_the_last_layer_is_read_before_the_final_norm(tiny) -> None:
    last = run(tiny, "resid_post", layers=3)["blocks.3.hook_resid_post"][0]
    with torch.no_grad():
        normed = tiny.hf.base_model(torch.tensor([ids_of(tiny, PROMPTS[0])])).last_hidden_state
    assert (last - normed[0, -1]).norm() > 0.1 * last.norm()


def test_a_point_of_the_lens_alone_is_captured_through_the_lens(llama) -> None:
    found = run(llama, ["q", "resid_post"], layers=2)
    for i, prompt in enumerate(PROMPTS):
        _, cache = llama.model.run_with_cache(torch.tensor([ids_of(llama, prompt)]))
        for name in ("blocks.2.attn.hook_q", "blocks.2.hook_resid_post"):
            assert_same(found[name][i : i + 1], cache[name][:, -1])


@pytest.mark.parametrize(
    ("tokens", "choose"),
    [
        ("mean", lambda n: list(range(n))),
        (0, lambda n: [0]),
        (-2, lambda n: [n - 2]),
        (lambda row: len(row) // 2, lambda n: [n // 2]),
        (lambda row: range(1, len(row)), lambda n: list(range(1, n))),
        (lambda row: [0, -1], lambda n: [0, n - 1]),
    ],
)
def test_any_choice_of_tokens_is_read_or_averaged(llama, tokens: Any, choose: Any) -> None:
    found = run(llama, "resid_post", layers=1, tokens=tokens)["blocks.1.hook_resid_post"]
    expected = []
    for prompt in PROMPTS:
        (every,) = oracles.read(llama.hf, ids_of(llama, prompt), "resid_post", [1])
        expected.append(every[choose(len(every))].mean(0))
    assert_same(found, torch.stack(expected))


def test_template_tokens_can_be_left_out(llama) -> None:
    """The chat template puts a BOS, a role and an end of turn around the prompt's own text."""
    own = {"prompt_format": "chat", "template": False, "layers": 1}
    name = "blocks.1.hook_resid_post"
    text = "<bos><|start|>user Rain falls<|end|><|start|>bot "
    ids = llama.tokenizer(text, add_special_tokens=False)["input_ids"]
    (every,) = oracles.read(llama.hf, ids, "resid_post", [1])
    start = len("user ") + 2
    mine = every[start : start + len("Rain falls")]
    assert_same(run(llama, "resid_post", ["Rain falls"], tokens="last", **own)[name], mine[-1:])
    assert_same(run(llama, "resid_post", ["Rain falls"], tokens=0, **own)[name], mine[:1])
    assert_same(run(llama, "resid_post", ["Rain falls"], tokens="mean", **own)[name], mine.mean(0, keepdim=True))
    found = run(llama, "resid_post", ["Rain falls", "A"], tokens="all", **own)
    assert found.mask.sum(1).tolist() == [10, 1]
    assert_same(found[name][0][found.mask[0]], mine)
    with_template = run(llama, "resid_post", ["Rain falls"], prompt_format="chat", layers=1)
    assert_same(with_template[name], every[-1:])


def test_means_and_moments_equal_numpy_over_what_they_stream(llama) -> None:
    every = run(llama, "z", tokens="all", layers=2)
    samples = every["blocks.2.attn.hook_z"][every.mask].double().numpy()
    for batch_size in (2, "auto"):
        options = {"tokens": "all", "layers": 2, "batch_size": batch_size}
        mean = run(llama, "z", reduce="mean", **options)["blocks.2.attn.hook_z"]
        found = run(llama, "z", reduce="moments", **options)["blocks.2.attn.hook_z"]
        assert isinstance(found, Moments)
        assert found.count == len(samples)
        np.testing.assert_allclose(mean, samples.mean(0), atol=1e-5)
        np.testing.assert_allclose(found.mean, samples.mean(0), atol=1e-5)
        np.testing.assert_allclose(found.variance, samples.var(0), atol=1e-4)
        np.testing.assert_allclose(found.low, samples.min(0), atol=1e-5)
        np.testing.assert_allclose(found.high, samples.max(0), atol=1e-5)
    last = run(llama, "resid_post", layers=2)["blocks.2.hook_resid_post"]
    by_prompt = run(llama, "resid_post", layers=2, reduce="mean")["blocks.2.hook_resid_post"]
    torch.testing.assert_close(by_prompt, last.mean(0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("batch_size", [1, "auto"])
@pytest.mark.parametrize("reduce", [None, "mean", "moments"])
@pytest.mark.parametrize("tokens", ["last", "mean", "all"])
def test_what_comes_back_can_enter_autograd(llama, reduce: Any, tokens: Any, batch_size: Any) -> None:
    for sites in (["resid_post"], ["resid_post", "z"]):  # of one width, and of several
        found = run(llama, sites, PROMPTS[:2], layers=[1, 2], reduce=reduce, tokens=tokens, batch_size=batch_size)
        for value in found.values():
            tensors = vars(value).values() if isinstance(value, Moments) else [value]
            assert not any(isinstance(tensor, torch.Tensor) and tensor.is_inference() for tensor in tensors)


def test_activations_are_a_mapping_in_the_order_asked_for(llama) -> None:
    found = run(llama, "resid_post", layers=[3, 1])
    assert list(found) == ["blocks.3.hook_resid_post", "blocks.1.hook_resid_post"]
    assert found.stacked().shape == (2, len(PROMPTS), 32)
    assert torch.equal(found.stacked()[1], found["blocks.1.hook_resid_post"])
    assert "2 points" in repr(found)
    assert found.mask is None


def test_a_point_named_twice_is_read_once(llama) -> None:
    found = run(llama, ["resid_post", "blocks.1.hook_resid_post", "blocks.1.hook_out"], layers=[1])
    assert torch.equal(found["blocks.1.hook_resid_post"], found["blocks.1.hook_out"])


def test_the_pass_stops_after_the_last_point_that_is_asked_for(llama) -> None:
    calls = []
    blocks = oracles.blocks(llama.hf)
    handles = [block.register_forward_hook(lambda m, a, o, i=i: calls.append(i)) for i, block in enumerate(blocks)]
    run(llama, ["resid_post", "blocks.0.hook_resid_post"], PROMPTS[:1], layers=[0])
    for handle in handles:
        handle.remove()
    assert set(calls) <= {0}


def test_an_open_steering_is_seen_by_what_is_captured_under_it(tiny) -> None:
    vector = torch.randn(32, generator=torch.Generator().manual_seed(1))
    steering = Steering([("blocks.1.hook_resid_post", at(Add(vector, 4.0), -2))])
    change = oracles.Change("resid_post", 1, oracles.add(vector, 4.0), -2)
    names = ["blocks.1.hook_resid_post", "blocks.3.hook_resid_post", "blocks.3.attn.hook_q"]
    with steering.on(tiny.model):
        plain, lens = run(tiny, names[:2], batch_size=3), run(tiny, names, batch_size=3)
    for layer in (1, 3):
        for i, prompt in enumerate(PROMPTS):
            ids = ids_of(tiny, prompt)
            with oracles.changed(tiny.hf, [change], len(ids)):
                (every,) = oracles.read(tiny.hf, ids, "resid_post", [layer])
            for found in (plain, lens):
                assert_same(found[f"blocks.{layer}.hook_resid_post"][i : i + 1], every[-1:])
    assert_same(run(tiny, names[:2])[names[1]], last_tokens(tiny, "resid_post", range(4))[3])


def test_a_capture_in_another_thread_waits_for_an_open_steering(llama) -> None:
    clean = run(llama, "resid_post", layers=3)["blocks.3.hook_resid_post"]
    steering = Steering([("blocks.1.hook_resid_post", Add(torch.randn(32), 5.0))])
    found: list[torch.Tensor] = []
    thread = threading.Thread(target=lambda: found.append(run(llama, "resid_post", layers=3).stacked()[0]))
    with steering.on(llama.model):
        thread.start()
        thread.join(0.3)
        assert found == []
    thread.join(20)
    assert torch.equal(found[0], clean)


# ---- resumption


class Killed(BaseException):
    pass


def killed_after(case: Any, passes: int) -> Any:
    count = []

    def stop(module: Any, args: Any) -> None:
        count.append(1)
        if len(count) > passes:
            raise Killed

    return case.hf.base_model.register_forward_pre_hook(stop)


@pytest.mark.parametrize(
    "options", [{}, {"tokens": "all"}, {"reduce": "moments"}, {"reduce": "mean", "tokens": "mean"}]
)
def test_a_capture_that_was_killed_goes_on_where_it_stopped(llama, forwards, tmp_path, options: Any) -> None:
    options = {"layers": [1, 3], "batch_size": 2, **options}
    handle = killed_after(llama, 2)
    with pytest.raises(Killed):
        run(llama, "resid_post", resume=tmp_path, **options)
    handle.remove()
    with forwards(llama) as calls:
        resumed = run(llama, "resid_post", resume=tmp_path, **options)
    assert len(calls) == 1  # of the three batches
    whole = run(llama, "resid_post", **options)
    for name in whole:
        if isinstance(whole[name], Moments):
            assert torch.equal(resumed[name].pack(), whole[name].pack())
        else:
            assert torch.equal(resumed[name], whole[name])
    with forwards(llama) as calls:
        run(llama, "resid_post", resume=tmp_path, **options)
    assert calls == []


def test_what_was_kept_is_not_taken_for_the_answer_to_another_question(llama, fresh, tmp_path) -> None:
    def ask(case: Any, resume: Any = tmp_path, **options: Any) -> torch.Tensor:
        options = {"layers": 1, "tokens": "mean", "prompt_format": "chat", **options}
        return run(case, options.pop("site", "resid_post"), resume=resume, **options).stacked()

    first = ask(llama)
    other = fresh("llama", seed=5)  # the same architecture, name and tokenizer
    assert ask(llama, tokens="all").ndim == 4
    for case, options in (
        (llama, {"tokens": "last"}),
        (llama, {"template": False}),
        (llama, {"prompts": PROMPTS[::-1]}),
        (llama, {"layers": 2}),
        (llama, {"site": "resid_pre"}),
        (other, {}),
    ):
        found = ask(case, **options)
        assert not torch.equal(found, first)
        assert torch.equal(found, ask(case, None, **options))
    assert torch.equal(ask(llama), first)


def test_resuming_under_a_steering_is_refused(llama, forwards, tmp_path) -> None:
    with Steering([("blocks.1.hook_resid_post", Add(torch.randn(32)))]).on(llama.model), forwards(llama) as calls:
        with pytest.raises(ValueError, match=r"resume=.*steer"):
            run(llama, "resid_post", resume=tmp_path)
        assert calls == []


# ---- refusals


@pytest.mark.parametrize(
    ("prompts", "sites", "options", "words"),
    [
        (PROMPTS, "resid_pots", {}, r"no hook point 'blocks.0.hook_resid_pots'.*resid_post"),
        (PROMPTS, "resid_post", {"layers": 17}, r"layer 17 is out of range.*4 layers, 0 to 3"),
        (PROMPTS, "resid_post", {"tokens": "first"}, r"tokens must be 'last'.*got 'first'"),
        (PROMPTS, "resid_post", {"tokens": 4}, r"prompt 1 has 2 tokens.*tokens=4 cannot be read.*'A'"),
        (PROMPTS, "resid_post", {"tokens": lambda row: []}, r"prompt 0 .*cannot be read"),
        (PROMPTS, "resid_post", {"reduce": "sum"}, r"reduce must be None, 'mean' or 'moments', got 'sum'"),
        (PROMPTS, "resid_post", {"batch_size": 0}, r"batch_size must be 'auto' or a positive integer, got 0"),
        (PROMPTS, "resid_post", {"prompt_format": "caht"}, r"prompt_format='caht' is unknown; use 'auto', 'chat'"),
        ([], "resid_post", {}, r"no prompts"),
        ([*PROMPTS, "long " * 40], "resid_post", {}, r"prompt 6 has 201 tokens.*context of 128.*truncate=True"),
        (PROMPTS, [], {}, r"no sites"),
    ],
)
def test_bad_requests_are_refused_before_any_pass(llama, forwards, prompts, sites, options, words: str) -> None:
    resolve(llama.model, "resid_post")
    with forwards(llama) as calls, pytest.raises(ValueError, match=words):
        run(llama, sites, prompts, **options)
    assert calls == []


def test_a_single_string_is_not_taken_for_a_list_of_prompts(llama) -> None:
    with pytest.raises(TypeError, match=r"prompts must be a list; for one prompt write \[prompt\]"):
        run(llama, "resid_post", "The sky")


def test_something_that_is_not_a_bridge_is_refused_with_what_to_do(llama) -> None:
    with pytest.raises(TypeError, match=r"TransformerBridge, got LlamaForCausalLM.*load_model"):
        capture(llama.hf, PROMPTS, "resid_post")


@pytest.mark.parametrize("tokens", ["mean", "max", "min", "all"])
def test_what_stands_at_padding_is_never_read(tokens: Any) -> None:
    x = torch.arange(12.0).view(2, 3, 2)
    batch = Batch(torch.ones(2, 3), torch.tensor([[0, 1, 1], [1, 1, 1]]), torch.zeros(2, 3), [0, 1])
    clean = reading_of(batch, [[0, 1], [0, 1, 2]], tokens).of(x)
    spoiled = x.clone()
    spoiled[0, 0] = float("nan")
    assert torch.equal(reading_of(batch, [[0, 1], [0, 1, 2]], tokens).of(spoiled), clean)
    assert torch.isfinite(clean).all()
