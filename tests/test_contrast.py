"""The activations that contrastive methods fit on, against plain hooks one text at a time."""

from __future__ import annotations

from typing import Any

import oracles
import pytest
import torch

from lensteer import Add, AnswerPair, Steering, contrast
from lensteer.contrast import Contrast
from lensteer.moments import Moments

PAIRS = [
    AnswerPair("Is ice cold?\nAnswer:", "yes", "no"),
    AnswerPair("Rain is", "wet", "dry and warm"),
    AnswerPair("Is ice cold?\nAnswer:", "very much", "no"),  # the prompt of the first, and its wrong answer
    AnswerPair("Do fish swim in a river?", "yes", "never"),
]
SITES = ["z", "mlp_out", "resid_post", "post", "attn_out"]


@pytest.fixture(scope="module")
def seen(tiny: Any) -> Contrast:
    return contrast(tiny.model, PAIRS, SITES, progress=False)


def texts(side: int) -> list[str]:
    return [f"{pair.prompt} {pair[side]}" for pair in PAIRS]


@pytest.mark.parametrize("site", SITES)
def test_both_sides_are_read_at_the_last_token_of_the_answer(tiny: Any, seen: Contrast, site: str) -> None:
    for side, found in zip((1, 2), seen.activations(site), strict=True):
        for i, text in enumerate(texts(side)):
            expected = oracles.read(tiny.hf, tiny.tokenizer(text)["input_ids"], site, range(4))
            last = torch.stack([x[-1] for x in expected])
            torch.testing.assert_close(found[:, i].flatten(1), last, atol=1e-5, rtol=1e-5)
    assert seen.activations("z")[0].shape == (4, 4, 4, 8)  # layer, pair, head, d_head


def test_a_text_that_occurs_twice_is_read_once(tiny: Any, forwards: Any) -> None:
    with forwards(tiny) as calls:
        contrast(tiny.model, PAIRS, "z", progress=False)
    assert sum(rows for rows, _ in calls) == 7


@pytest.mark.parametrize("batch_size", [1, 3, "auto"])
def test_streamed_moments_are_those_of_kept_activations(tiny: Any, seen: Contrast, batch_size: Any) -> None:
    streamed = contrast(tiny.model, PAIRS, SITES, reduce="moments", batch_size=batch_size, progress=False)
    for site in SITES:
        for kept, mine, own in zip(seen.activations(site), streamed.moments(site), seen.moments(site), strict=True):
            assert mine.count == own.count == 4
            wide = kept.double()
            for moments, tolerance in ((mine, 1e-5), (own, 1e-12)):
                options = {"atol": tolerance, "rtol": tolerance * 10}
                torch.testing.assert_close(moments.mean, wide.mean(1), **options)
                torch.testing.assert_close(moments.variance, wide.var(1, unbiased=False), **options)
                torch.testing.assert_close(moments.low, wide.amin(1), **options)
                torch.testing.assert_close(moments.high, wide.amax(1), **options)


def test_all_sites_of_one_pass_equal_separate_passes(tiny: Any, seen: Contrast) -> None:
    for site in SITES:
        alone = contrast(tiny.model, PAIRS, site, progress=False)
        for one, other in zip(alone.activations(site), seen.activations(site), strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


def test_some_layers_are_those_layers(llama: Any) -> None:
    every = contrast(llama.model, PAIRS, ["z", "neuron"], progress=False)
    some = contrast(llama.model, PAIRS, ["z", "neuron"], layers=[3, 1], progress=False)
    assert some.names["z"] == ["blocks.3.attn.hook_z", "blocks.1.attn.hook_z"]
    for site in ("z", "neuron"):
        for one, other in zip(some.activations(site), every.activations(site), strict=True):
            torch.testing.assert_close(one, other[[3, 1]], atol=1e-5, rtol=1e-5)


def test_chats_are_read_at_the_last_token_of_the_answer_without_the_end_of_the_turn(llama: Any) -> None:
    turn = [{"role": "user", "content": "Is ice cold?"}]
    pair = tuple([*turn, {"role": "assistant", "content": answer}] for answer in ("yes", "no"))
    found = contrast(llama.model, [pair], "resid_post", prompt_format="chat", progress=False)
    start = llama.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    for answer, side in zip(("yes", "no"), found.activations("resid_post"), strict=True):
        ids = llama.tokenizer(start + answer, add_special_tokens=False)["input_ids"]
        expected = torch.stack([x[-1] for x in oracles.read(llama.hf, ids, "resid_post", range(4))])
        torch.testing.assert_close(side[:, 0], expected, atol=1e-5, rtol=1e-5)
    assert found.metadata["prompt_format"] == "chat"


def test_it_records_the_model_the_pairs_and_the_kind_of_mlp(llama: Any, gpt2: Any) -> None:
    found = contrast(llama.model, PAIRS, "z", progress=False)
    assert found.pairs == PAIRS
    about = {"n_pairs": "4", "prompt_format": "plain", "gated_mlp": "True", "n_layers": "4"}
    assert about.items() <= found.metadata.items()
    assert contrast(gpt2.model, PAIRS, "z", progress=False).metadata["gated_mlp"] == "False"
    assert contrast(llama.model, PAIRS[:3], "z", progress=False).metadata["data_hash"] != found.metadata["data_hash"]


def test_a_pass_that_was_interrupted_goes_on_from_its_folder(llama: Any, forwards: Any, tmp_path) -> None:
    options: dict[str, Any] = {"resume": tmp_path, "batch_size": 2, "progress": False}
    for reduce in (None, "moments"):
        first = contrast(llama.model, PAIRS, ["z", "neuron"], reduce=reduce, **options)  # type: ignore[arg-type]
        with forwards(llama) as calls:
            again = contrast(llama.model, PAIRS, ["z", "neuron"], reduce=reduce, **options)  # type: ignore[arg-type]
        assert calls == []
        for site in ("z", "neuron"):
            for one, other in zip(first.moments(site), again.moments(site), strict=True):
                assert torch.equal(one.pack(), other.pack())


def test_it_reads_under_the_steering_that_is_on(llama: Any) -> None:
    vector = torch.randn(32, generator=torch.Generator().manual_seed(0))
    with Steering([("blocks.1.hook_resid_post", Add(vector, 2.0))]).on(llama.model):
        found = contrast(llama.model, PAIRS, "resid_post", layers=1, progress=False).activations("resid_post")[0]
    plain = contrast(llama.model, PAIRS, "resid_post", layers=1, progress=False).activations("resid_post")[0]
    torch.testing.assert_close(found, plain + 2.0 * vector, atol=1e-5, rtol=1e-5)


def test_its_repr_is_one_short_line(llama: Any) -> None:
    shown = repr(contrast(llama.model, PAIRS, ["z", "neuron"], layers=[1, 2], progress=False))
    assert f"activations of {len(PAIRS)} pairs" in shown and "z (2 layers), neuron (2 layers)" in shown
    assert "moments of" in repr(contrast(llama.model, PAIRS, "z", reduce="moments", progress=False))
    assert len(shown) < 200


def test_what_was_not_kept_is_refused_with_what_there_is(llama: Any) -> None:
    streamed = contrast(llama.model, PAIRS, ["z"], reduce="moments", progress=False)
    assert isinstance(streamed.positive["blocks.0.attn.hook_z"], Moments)
    with pytest.raises(ValueError, match=r"only the moments of 'z' were kept; read it again with reduce=None"):
        streamed.activations("z")
    for use in (streamed.activations, streamed.moments):
        with pytest.raises(ValueError, match=r"site 'mlp_out' was not read; there are \['z'\]"):
            use("mlp_out")


def test_layers_are_told_by_their_row_only_where_all_are_there_in_order(llama: Any) -> None:
    options: dict[str, Any] = {"progress": False}
    contrast(llama.model, PAIRS, ["z", "neuron"], **options).require_all_layers("neuron")
    for layers, words in (
        ([2, 3], r"holds 2 of 4 layers of 'z' only: \[2, 3\]"),
        ([3, 2, 1, 0], r"holds 4 of 4 layers of 'z' in another order: \[3, 2, 1, 0\]"),
    ):
        with pytest.raises(ValueError, match=words):
            contrast(llama.model, PAIRS, "z", layers=layers, **options).require_all_layers("z")
    with pytest.raises(ValueError, match=r"site 'z' was not read; there are \['neuron'\]"):
        contrast(llama.model, PAIRS, "neuron", **options).require_all_layers("z")


@pytest.mark.parametrize(
    ("pairs", "options", "words"),
    [
        ([], {}, r"no pairs were given"),
        ([("Why", "yes", "yes ")], {}, r"same answer"),
        ([*PAIRS, ("x" * 200, "yes", "no")], {}, r"has 201 tokens"),
        ([("x" * 120, "yes", "n" * 30)], {}, r"121 \+ 31 tokens"),
        (PAIRS, {"sites": "head"}, r"no hook point.*Sites that it has"),
        (PAIRS, {"sites": []}, r"no sites"),
        (PAIRS, {"layers": [7]}, r"layer 7 is out of range"),
        (PAIRS, {"reduce": "mean"}, r"reduce must be None or 'moments', got 'mean'"),
        (PAIRS, {"prompt_format": "free"}, r"prompt_format='free' is unknown"),
    ],
)
def test_a_bad_request_is_refused_before_any_pass(llama: Any, forwards: Any, pairs, options, words: str) -> None:
    contrast(llama.model, PAIRS[:1], "z", progress=False)  # the model is surveyed once
    with forwards(llama) as calls, pytest.raises(ValueError, match=words):
        contrast(llama.model, pairs, **{"sites": "z", **options}, progress=False)
    assert calls == []
