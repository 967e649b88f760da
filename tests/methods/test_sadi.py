"""SADI against plain hooks on the Hugging Face model, hand-made differences, and the method's own identities.

The oracle records a component at the last prompt token of a run of the prompt alone, multiplies the chosen elements,
and overwrites the whole component at that token in every layer of a second run.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from torch import Tensor, nn

from lensteer import AnswerPair, ScaleElements, Steering, capture, contrast, generate, load_model, sadi
from lensteer.contrast import Contrast
from lensteer.methods.sadi import SADI
from lensteer.moments import Moments
from lensteer.positions import STEPS
from lensteer.scoring import score, score_options

PAIRS = [
    AnswerPair("Is ice cold?\nAnswer:", "yes", "no"),
    AnswerPair("Is fire cold?\nAnswer:", "no", "yes"),
    AnswerPair("Do fish swim in the sea?\nAnswer:", "yes, they do", "never"),
    AnswerPair("Two and two", "four", "five"),
    AnswerPair("Rain is", "wet", "dry and warm"),
]
PROMPTS = ["Is the water of a long river wet?\nAnswer:", "Ice is", "Do cows fly?\nAnswer:", "Two and three"]
ANSWERS = ["yes", "not warm", "no", "five"]
# More layers than heads: an index that confuses the two shows. (No test scales all elements: a norm takes that away.)
DEEP: dict[str, dict[str, int]] = {
    "llama": {"num_hidden_layers": 6},
    "gpt2": {"n_layer": 6},
    "neox": {"num_hidden_layers": 6},
    "gemma2": {"num_hidden_layers": 6},
}
ELEMENTS: dict[str, Any] = {"z": "head", "neuron": "neuron", "mlp_out": "hidden", "resid_post": "hidden"}
WIDTHS = {"z": 32, "neuron": 64, "mlp_out": 32, "resid_post": 32}
COUNTS = {"z": 5, "neuron": 24, "mlp_out": 12, "resid_post": 12}
PLAIN: Any = {"prompt_format": "plain", "progress": False}


@pytest.fixture(scope="module", params=list(DEEP))
def deep(request: pytest.FixtureRequest, fresh: Any) -> Any:
    return fresh(request.param, **DEEP[request.param])


@pytest.fixture(scope="module")
def seen(deep: Any) -> Contrast:
    return contrast(deep.model, PAIRS, list(ELEMENTS), progress=False)


@pytest.fixture(scope="module")
def fits(seen: Contrast) -> dict[str, SADI]:
    return {site: sadi.from_contrast(seen, element, site) for site, element in ELEMENTS.items()}


@pytest.fixture(scope="module")
def six(fresh: Any) -> Any:
    """One deep model for what does not depend on the architecture."""
    return fresh("llama", **DEEP["llama"])


@pytest.fixture(scope="module")
def six_fits(six: Any) -> dict[str, SADI]:
    every = contrast(six.model, PAIRS, list(ELEMENTS), progress=False)
    return {site: sadi.from_contrast(every, element, site) for site, element in ELEMENTS.items()}


# --- the oracle ----------------------------------------------------------------------------------------------------


def ids_of(case: Any, text: str, start: bool = True) -> list[int]:
    return list(case.tokenizer(text, add_special_tokens=start)["input_ids"])


def hook(hf: nn.Module, site: str, layer: int, function: Any) -> Any:
    """As oracles.hook; a neuron is what the activation function puts out."""
    if site != "neuron":
        return oracles.hook(hf, site, layer, function)
    mlp: Any = oracles.blocks(hf)[layer].mlp
    act = mlp.act_fn if hasattr(mlp, "act_fn") else mlp.act

    def after(module: Any, args: Any, output: Tensor) -> Tensor | None:
        new = function(output[0])
        return None if new is None else new.unsqueeze(0)

    return act.register_forward_hook(after)


def read(hf: nn.Module, ids: list[int], site: str) -> Tensor:
    """[layer, width] at the last token, from one clean run."""
    layers = range(len(oracles.blocks(hf)))
    found: list[Tensor] = []
    handles = [hook(hf, site, layer, lambda x: found.append(x[-1].clone())) for layer in layers]
    with torch.no_grad():
        hf(torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return torch.stack(found)


@contextmanager
def steered(
    hf: nn.Module,
    prompt: list[int],
    site: str,
    mask: Tensor,
    strength: float,
    mode: str = "frozen",
    steps: bool = False,
) -> Iterator[None]:
    """Plain hooks that scale the mask at the prompt's last token, and with ``steps`` at each later one."""
    clean, at = read(hf, prompt, site), len(prompt) - 1
    factor = 1 + strength * mask.repeat_interleave(clean.shape[1] // mask.shape[1], 1)

    def change(layer: int) -> Any:
        def apply(x: Tensor) -> Tensor:
            new = x.clone()
            new[at] = (clean[layer] if mode == "frozen" else x[at]) * factor[layer]
            if steps:
                new[at + 1 :] = x[at + 1 :] * factor[layer]
            return new

        return apply

    handles = [hook(hf, site, layer, change(layer)) for layer in range(len(clean))]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def logits(hf: nn.Module, ids: list[int]) -> Tensor:
    with torch.no_grad():
        return hf(torch.tensor([ids]), use_cache=False).logits[0].float()


def decoded(case: Any, prompt: list[int], new: int, *arguments: Any, **options: Any) -> oracles.Greedy:
    """Greedy decoding by hand: the whole sequence again for every token, under `steered`."""
    stops = {2, 4} if case.tokenizer.chat_template else {2}
    sequence, margins = list(prompt), []
    for _ in range(new):
        with steered(case.hf, prompt, *arguments, **options):
            best = logits(case.hf, sequence)[-1].log_softmax(-1).topk(2)
        if int(best.indices[0]) in stops:
            break
        sequence.append(int(best.indices[0]))
        margins.append(float(best.values[0] - best.values[1]))
    return oracles.Greedy(sequence[len(prompt) :], margins)


def made(scores: Any, element: Any = "hidden", site: str = "mlp_out", **options: Any) -> SADI:
    """A fit whose mean difference is given, ``[layer, element]``; of a head every coordinate has it."""
    difference = torch.as_tensor(scores, dtype=torch.float64)
    if element == "head":
        difference = difference.unsqueeze(-1) + torch.tensor([-1.0, 0.0, 1.0]).double()
    base = torch.zeros_like(difference)
    sides = [Moments(4.0, base + own, base, base, base) for own in (difference, base)]
    return SADI(element, site, *sides, **options)


def both_faces(case: Any, ids: list[int], prompt: int, steering: Steering) -> tuple[Tensor, Tensor]:
    with torch.no_grad(), steering.on(case.model, prompt_length=prompt):
        return case.hf(torch.tensor([ids])).logits[0], case.model(torch.tensor([ids]))[0]


# --- the fit -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", list(ELEMENTS))
def test_the_difference_is_the_mean_over_pairs_at_the_last_answer_token(deep: Any, fits: Any, site: str) -> None:
    sides = []
    for side in (1, 2):
        texts = [f"{pair.prompt} {pair[side]}" for pair in PAIRS]
        sides.append(torch.stack([read(deep.hf, ids_of(deep, text), site) for text in texts]).double())
    expected = (sides[0] - sides[1]).mean(0)
    found = fits[site]
    torch.testing.assert_close(found.difference.flatten(1), expected, atol=1e-5, rtol=1e-5)
    heads = expected.view(6, 4, 8).mean(-1) if site == "z" else expected
    torch.testing.assert_close(found.scores, heads, atol=1e-5, rtol=1e-5)
    variance = sides[0].var(0, unbiased=False)
    torch.testing.assert_close(found.positive.variance.flatten(1), variance, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_a_chat_fit_reads_the_last_token_of_the_assistants_answer(fresh: Any, name: str) -> None:
    case = fresh(name, **DEEP[name])
    sides = []
    for side in (1, 2):
        rows = []
        for pair in PAIRS:
            turn = [{"role": "user", "content": pair.prompt}]
            text = case.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
            rows.append(read(case.hf, ids_of(case, text + pair[side], start=False), "z"))
        sides.append(torch.stack(rows).double().mean(0))
    found = sadi.fit(case.model, PAIRS, prompt_format="chat", progress=False)
    torch.testing.assert_close(found.difference.flatten(1), sides[0] - sides[1], atol=1e-5, rtol=1e-5)
    user = [{"role": "user", "content": "x"}]
    chats = [[[{**user[0], "content": p}, {"role": "assistant", "content": a}] for a in (r, w)] for p, r, w in PAIRS]
    again = sadi.fit(case.model, chats, prompt_format="chat", progress=False)
    assert torch.equal(again.difference, found.difference)


@pytest.mark.parametrize("batch_size", [1, 3, "auto"])
def test_all_elements_of_one_streamed_pass_equal_separate_fits(six: Any, six_fits: Any, batch_size: Any) -> None:
    together = sadi.fit_all(six.model, PAIRS, batch_size=batch_size, progress=False)
    assert list(together) == ["head", "neuron", "hidden"]
    for element, found in together.items():
        alone = sadi.fit(six.model, PAIRS, element, batch_size=batch_size, progress=False)  # type: ignore[arg-type]
        kept = six_fits[sadi.SITES[element][0]]
        for side in ("positive", "negative"):
            one, two, three = (getattr(fitted, side) for fitted in (found, alone, kept))
            assert one.count == two.count == three.count == len(PAIRS)
            assert torch.equal(one.mean, two.mean)
            for name in ("mean", "deviation", "low", "high"):
                torch.testing.assert_close(getattr(one, name), getattr(three, name), atol=1e-5, rtol=1e-4)
    layer = sadi.fit(six.model, PAIRS, "hidden", hidden_site="resid_post", progress=False)
    torch.testing.assert_close(layer.scores, six_fits["resid_post"].scores, atol=1e-5, rtol=1e-4)


def test_all_elements_cost_the_passes_of_one(six: Any, forwards: Any) -> None:
    sadi.fit_all(six.model, PAIRS, progress=False)
    with forwards(six) as one:
        sadi.fit(six.model, PAIRS, progress=False)
    with forwards(six) as all_three:
        sadi.fit_all(six.model, PAIRS, progress=False)
    assert sorted(all_three) == sorted(one)


def test_a_fit_that_was_interrupted_goes_on_from_its_folder(six: Any, six_fits: Any, forwards: Any, tmp_path) -> None:
    first = sadi.fit(six.model, PAIRS, "neuron", resume=tmp_path, progress=False)
    with forwards(six) as calls:
        again = sadi.fit(six.model, PAIRS, "neuron", resume=tmp_path, progress=False)
    assert calls == []
    assert torch.equal(first.difference, again.difference)
    torch.testing.assert_close(again.scores, six_fits["neuron"].scores, atol=1e-5, rtol=1e-4)


def test_swapped_answers_turn_the_top_into_the_bottom(six: Any, six_fits: Any) -> None:
    swapped = [AnswerPair(p, wrong, right) for p, right, wrong in PAIRS]
    for element, found in sadi.fit_all(six.model, swapped, progress=False).items():
        kept = six_fits[sadi.SITES[element][0]]
        torch.testing.assert_close(found.scores, -kept.scores, atol=1e-5, rtol=1e-4)
        for k in (1, 4, 9):
            assert torch.equal(found.mask(k), kept.mask(k, "signed_min"))
            assert torch.equal(found.mask(k, "abs"), kept.mask(k, "abs"))


# --- the mask ------------------------------------------------------------------------------------------------------


def brute_force(scores: Tensor, rank_by: str) -> list[list[int]]:
    cells = [(layer, i) for layer in range(scores.shape[0]) for i in range(scores.shape[1])]
    key = {"signed": lambda s: -s, "abs": lambda s: -abs(s), "signed_min": lambda s: s}[rank_by]
    return [list(cell) for cell in sorted(cells, key=lambda c: (key(float(scores[c])), c))]


@pytest.mark.parametrize("rank_by", ["signed", "abs", "signed_min"])
@pytest.mark.parametrize("shape", [(6, 4), (2, 9), (1, 5), (9, 1)])
def test_the_first_k_are_those_of_a_sort_by_hand_also_under_ties(rank_by: Any, shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(shape[0])
    scores = torch.randint(-3, 4, shape, generator=generator).double()  # seven values: many ties
    fitted, order = made(scores), brute_force(scores, rank_by)
    before: set[tuple[int, ...]] = set()
    for k in range(scores.numel() + 1):
        top = fitted.top(k, rank_by)
        assert top.tolist() == order[:k]
        own = {tuple(cell) for cell in top.tolist()}
        assert len(own) == k == int(fitted.mask(k, rank_by).sum())
        assert before <= own
        before = own


def test_signed_ranking_never_takes_a_strongly_negative_element() -> None:
    scores = torch.full((6, 4), 0.1)
    scores[5, 3], scores[4, 0] = -100.0, 0.2
    fitted = made(scores, "head", "z")
    assert fitted.top(1).tolist() == [[4, 0]]
    assert not fitted.mask(23)[5, 3]
    assert fitted.top(1, "abs").tolist() == fitted.top(1, "signed_min").tolist() == [[5, 3]]


def test_a_heads_score_is_signed_so_that_coordinates_cancel() -> None:
    assert made(torch.tensor([[0.0, 1.0]]), "head", "z").scores.tolist() == [[0.0, 1.0]]


def test_a_table_lists_the_first_elements_with_their_scores() -> None:
    table = made([[1.0, 5.0], [-2.0, 3.0], [0.0, 4.0]]).table(3)
    assert table.columns.tolist() == ["rank", "layer", "element", "score"]
    assert table.to_numpy().tolist() == [[1, 0, 1, 5.0], [2, 2, 1, 4.0], [3, 1, 1, 3.0]]
    assert len(made([[1.0]]).table(0)) == 0


# --- frozen --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", ["few", "many", "half"])
@pytest.mark.parametrize("site", list(ELEMENTS))
def test_frozen_equals_plain_hooks_that_overwrite_every_layer(deep: Any, fits: Any, site: str, k: str) -> None:
    fitted = fits[site]
    count = {"few": 2, "many": COUNTS[site], "half": fitted.scores.numel() // 2}[k]
    mask, prompt, answer = fitted.mask(count), ids_of(deep, PROMPTS[0]), ids_of(deep, " yes", start=False)
    with steered(deep.hf, prompt, site, mask, 1.5):
        expected = logits(deep.hf, prompt + answer)
    steering = fitted.steering(count, 1.5, clean=fitted.read(deep.model, PROMPTS[:1], prompt_format="plain"))
    plain, lens = both_faces(deep, prompt + answer, len(prompt), steering)
    torch.testing.assert_close(plain, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lens, expected, atol=1e-4, rtol=1e-4)
    assert (expected - logits(deep.hf, prompt + answer)).abs().max() > 1e-3
    (found,) = score(deep.model, PROMPTS[:1], [answer], steering, **PLAIN)
    lines = expected[len(prompt) - 1 : -1].log_softmax(-1)
    torch.testing.assert_close(found.log_probs, lines.gather(1, torch.tensor(answer)[:, None])[:, 0], atol=2e-5, rtol=0)
    assert found.predicted.tolist() == lines.argmax(-1).tolist()


@pytest.mark.parametrize("site", list(ELEMENTS))
def test_live_equals_plain_hooks_that_scale_in_place(deep: Any, fits: Any, site: str) -> None:
    fitted, k = fits[site], COUNTS[site]
    prompt, answer = ids_of(deep, PROMPTS[0]), ids_of(deep, " yes", start=False)
    for tokens, steps in (("last", False), (STEPS, True)):
        with steered(deep.hf, prompt, site, fitted.mask(k), 1.5, "live", steps):
            expected = logits(deep.hf, prompt + answer)
        steering = fitted.steering(k, 1.5, mode="live", tokens=tokens)
        plain, lens = both_faces(deep, prompt + answer, len(prompt), steering)
        torch.testing.assert_close(plain, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(lens, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("site", list(ELEMENTS))
def test_no_elements_and_no_strength_are_no_steering_to_the_bit(deep: Any, fits: Any, site: str) -> None:
    fitted, ids = fits[site], ids_of(deep, PROMPTS[0])
    clean = fitted.read(deep.model, PROMPTS[:1], prompt_format="plain")
    without = both_faces(deep, ids, len(ids), Steering())
    for k, strength in ((0, 5.0), (4, 0.0), (0, 0.0)):
        for mode in ("frozen", "live"):
            found = both_faces(deep, ids, len(ids), fitted.steering(k, strength, mode=mode, clean=clean))
            assert all(map(torch.equal, found, without))
    off = fitted.steering(4, 2.0, clean=clean).at_strength(0.0)
    assert all(map(torch.equal, both_faces(deep, ids, len(ids), off), without))


@pytest.mark.parametrize("site", list(ELEMENTS))
def test_tokens_before_the_last_of_the_prompt_do_not_change_by_a_bit(deep: Any, fits: Any, site: str) -> None:
    prompt, answer = ids_of(deep, PROMPTS[0]), ids_of(deep, " yes", start=False)
    fitted = fits[site]
    clean = fitted.read(deep.model, PROMPTS[:1], prompt_format="plain")
    without = both_faces(deep, prompt + answer, len(prompt), Steering())
    for mode in ("frozen", "live"):
        steering = fitted.steering(fitted.scores.numel() // 2, 3.0, mode=mode, clean=clean)
        for found, before in zip(both_faces(deep, prompt + answer, len(prompt), steering), without, strict=True):
            assert torch.equal(found[: len(prompt) - 1], before[: len(prompt) - 1])
            assert not torch.allclose(found[len(prompt) - 1], before[len(prompt) - 1], atol=1e-2)


@pytest.mark.parametrize("site", list(ELEMENTS))
def test_frozen_is_live_where_the_mask_is_in_the_last_layer_only(deep: Any, fits: Any, site: str) -> None:
    fitted = fits[site]
    clean = fitted.read(deep.model, PROMPTS[:1], prompt_format="plain")
    prompt, answer = ids_of(deep, PROMPTS[0]), ids_of(deep, " yes", start=False)
    for layer, same in ((5, True), (1, False)):
        ranking = torch.zeros(fitted.scores.shape)
        ranking[layer] = 1
        own = fitted.ranked_by(ranking)
        pair = (own.steering(2, 4.0, mode=mode, clean=clean) for mode in ("frozen", "live"))
        frozen, live = (both_faces(deep, prompt + answer, len(prompt), steering)[0] for steering in pair)
        assert torch.allclose(frozen, live, atol=2e-5, rtol=1e-5) is same


def test_a_gated_neuron_is_scaled_before_the_up_branch_as_in_a_hand_written_mlp(six: Any) -> None:
    """down(s · silu(gate(x)) · up(x)), written out, in the place of the whole MLP."""
    fitted = sadi.fit(six.model, PAIRS, "neuron", progress=False)
    mask, prompt = fitted.mask(20), ids_of(six, PROMPTS[0])
    mlps = [block.mlp for block in six.hf.model.layers]

    def by_hand(layer: int) -> Any:
        def forward(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            gate, up, down = (mlps[layer].get_submodule(f"{name}_proj").weight for name in ("gate", "up", "down"))
            x = args[0]
            hidden = x @ gate.T
            hidden = hidden / (1 + (-hidden).exp()) * (x @ up.T)
            hidden[:, len(prompt) - 1] *= 1 + 3.0 * mask[layer]
            return hidden @ down.T

        return forward

    handles = [mlp.register_forward_hook(by_hand(layer)) for layer, mlp in enumerate(mlps)]
    expected = logits(six.hf, prompt)
    for handle in handles:
        handle.remove()
    found, _ = both_faces(six, prompt, len(prompt), fitted.steering(20, 3.0, mode="live"))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


# --- batches of different prompts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3, "auto"])
@pytest.mark.parametrize("site", list(ELEMENTS))
def test_a_batch_of_different_prompts_is_scored_as_each_alone(deep: Any, fits: Any, site: str, batch_size: Any) -> None:
    fitted, k = fits[site], COUNTS[site]
    answers = [ids_of(deep, f" {answer}", start=False) for answer in ANSWERS]
    clean = fitted.read(deep.model, PROMPTS, batch_size=batch_size, prompt_format="plain")
    steering = fitted.steering(k, 1.5, clean=clean)
    assert steering.n_rows == len(PROMPTS)
    batched = score(deep.model, PROMPTS, answers, steering, batch_size=batch_size, **PLAIN)
    many = [fitted.steering(k, 0.5, clean=clean), steering, None, fitted.steering(k, 1.5, mode="live")]
    grid = score_options(deep.model, PROMPTS, [[a, a[:1]] for a in answers], many, batch_size=batch_size, **PLAIN)
    for i, (text, answer) in enumerate(zip(PROMPTS, answers, strict=True)):
        prompt = ids_of(deep, text)
        with steered(deep.hf, prompt, site, fitted.mask(k), 1.5):
            lines = logits(deep.hf, prompt + answer)[len(prompt) - 1 : -1].log_softmax(-1)
        expected = lines.gather(1, torch.tensor(answer)[:, None])[:, 0]
        for found in (batched[i].log_probs, grid[1][i][0].log_probs):
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(grid[1][i][1].log_probs, expected[:1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("site", list(ELEMENTS))
def test_a_batch_of_prompts_is_continued_as_each_alone(deep: Any, fits: Any, site: str, use_cache: bool) -> None:
    fitted, k = fits[site], COUNTS[site]
    prompts = [*PROMPTS, PROMPTS[1]]  # longest first, so rows are not in order; one prompt twice
    steering = fitted.steering(k, 1.5, clean=fitted.read(deep.model, prompts, prompt_format="plain"))
    table = generate(deep.model, prompts, steering, max_new_tokens=4, batch_size=2, use_cache=use_cache, **PLAIN)
    sure = 0
    for text, found in zip(prompts, table["token_ids"], strict=True):
        expected = decoded(deep, ids_of(deep, text), 4, site, fitted.mask(k), 1.5)
        assert found[: len(expected.sure)] == expected.sure
        sure += len(expected.sure)
    assert sure >= 8


@pytest.mark.parametrize("mode", ["frozen", "live"])
@pytest.mark.parametrize("site", list(ELEMENTS))
def test_at_each_new_token_as_well_equals_a_decoding_loop_by_hand(deep: Any, fits: Any, site: str, mode: Any) -> None:
    fitted, k = fits[site], COUNTS[site]
    clean = fitted.read(deep.model, PROMPTS[:2], prompt_format="plain")
    steering = fitted.steering(k, 1.5, mode=mode, tokens=STEPS, clean=clean)
    for use_cache in (True, False):
        options: Any = {"max_new_tokens": 4, "use_cache": use_cache, **PLAIN}
        table = generate(deep.model, PROMPTS[:2], steering, **options)
        for text, found in zip(PROMPTS[:2], table["token_ids"], strict=True):
            expected = decoded(deep, ids_of(deep, text), 4, site, fitted.mask(k), 1.5, mode=mode, steps=True)
            assert found[: len(expected.sure)] == expected.sure
    prompt, answer = ids_of(deep, PROMPTS[0]), ids_of(deep, " yes", start=False)
    with steered(deep.hf, prompt, site, fitted.mask(k), 1.5, mode, True):
        lines = logits(deep.hf, prompt + answer)[len(prompt) - 1 : -1].log_softmax(-1)
    found = score(deep.model, PROMPTS[:1], [answer], steering.rows([0]), **PLAIN)[0].log_probs
    torch.testing.assert_close(found, lines.gather(1, torch.tensor(answer)[:, None])[:, 0], atol=1e-4, rtol=1e-4)


def test_one_reading_of_the_prompts_serves_every_k_and_strength(six: Any, six_fits: Any, forwards: Any) -> None:
    fitted = six_fits["neuron"]
    clean = fitted.read(six.model, PROMPTS, prompt_format="plain")
    with forwards(six) as calls:
        steerings = [fitted.steering(k, s, clean=clean) for k in (1, 5, 30) for s in (0.0, 1.0, 9.0)]
    assert calls == []
    assert len({s.content_hash() for s in steerings}) == 7  # the three of strength 0 are one


@pytest.mark.parametrize("tokens", ["last", STEPS])
@pytest.mark.parametrize("site", list(ELEMENTS))
def test_another_strength_of_a_steering_is_the_steering_of_that_strength(
    deep: Any, fits: Any, site: str, tokens: Any
) -> None:
    fitted, k = fits[site], COUNTS[site]
    clean = fitted.read(deep.model, PROMPTS, progress=False)
    weak, strong = (fitted.steering(k, s, clean=clean, tokens=tokens) for s in (0.5, 1.5))
    wanted = score(deep.model, PROMPTS, ANSWERS, strong, **PLAIN)
    for other in (weak.at_strength(1.5), weak * 3.0, weak.at_strength([1.5] * len(PROMPTS))):
        for one, two in zip(score(deep.model, PROMPTS, ANSWERS, other, **PLAIN), wanted, strict=True):
            torch.testing.assert_close(one.log_probs, two.log_probs, atol=1e-5, rtol=1e-5)
    none = score(deep.model, PROMPTS, ANSWERS, **PLAIN)
    for one, two in zip(score(deep.model, PROMPTS, ANSWERS, strong.at_strength(0.0), **PLAIN), none, strict=True):
        assert torch.equal(one.log_probs, two.log_probs)


def test_settings_of_one_reading_share_its_tensors(six: Any, six_fits: Any) -> None:
    for fitted in six_fits.values():
        clean = fitted.read(six.model, PROMPTS, progress=False)
        edits = [edit.edit for _, edit in fitted.steering(4, 2.0, clean=clean)]
        frozen = [edit.frozen for edit in edits if edit.frozen is not None]
        assert [values.data_ptr() for values in frozen] == [clean[name].data_ptr() for name in clean]


def test_a_reading_belongs_to_its_prompts_in_their_order_and_format(llama: Any) -> None:
    fitted = sadi.fit(llama.model, PAIRS, progress=False)
    frozen = fitted.steering(4, 1.0, clean=fitted.read(llama.model, PROMPTS, progress=False))
    score(llama.model, PROMPTS, ANSWERS, frozen, **PLAIN)
    turned = [*PROMPTS[1:], PROMPTS[0]]
    for run in (
        lambda: score(llama.model, turned, ANSWERS, frozen, **PLAIN),
        lambda: generate(llama.model, turned, frozen, max_new_tokens=2, **PLAIN),
        lambda: generate(llama.model, PROMPTS, frozen, max_new_tokens=2, progress=False),  # rendered as a chat
    ):
        with pytest.raises(ValueError, match=r"holds what other prompts have by themselves"):
            run()
    score(
        llama.model, turned[-1:], ANSWERS[:1], frozen.rows([0]), **PLAIN
    )  # rows that the caller picks are his to know


def test_prompts_are_not_read_clean_on_a_steered_model(six: Any, six_fits: Any) -> None:
    fitted = six_fits["z"]
    with (
        fitted.steering(2, 1.0, mode="live").on(six.model),
        pytest.raises(ValueError, match="is being steered, so its prompts cannot be read clean"),
    ):
        fitted.read(six.model, PROMPTS, progress=False)


def test_a_read_prompt_does_not_depend_on_its_neighbours(six: Any, six_fits: Any) -> None:
    for fitted in six_fits.values():
        together = fitted.read(six.model, PROMPTS, prompt_format="plain")
        for i, text in enumerate(PROMPTS):
            alone = fitted.read(six.model, [text], prompt_format="plain")
            torch.testing.assert_close(together.stacked()[:, i], alone.stacked()[:, 0], atol=1e-4, rtol=1e-4)


def test_what_was_read_into_a_folder_is_not_read_again(six: Any, six_fits: Any, tmp_path: Path, forwards: Any) -> None:
    fitted = six_fits["z"]
    first = fitted.read(six.model, PROMPTS, resume=tmp_path)
    assert torch.equal(first.stacked(), fitted.read(six.model, PROMPTS).stacked())
    with forwards(six) as calls:
        again = fitted.read(six.model, PROMPTS, resume=tmp_path)
    assert calls == [] and torch.equal(again.stacked(), first.stacked())


def test_two_threads_steer_one_model_each_with_values_of_its_own(six: Any, six_fits: Any) -> None:
    fitted = six_fits["z"]
    work = [PROMPTS[:3], PROMPTS[1:2]]
    steerings = [fitted.steering(5, 2.0, clean=fitted.read(six.model, own, prompt_format="plain")) for own in work]

    def run(i: int) -> Any:
        return generate(six.model, work[i], steerings[i], max_new_tokens=4, **PLAIN)["token_ids"].tolist()

    expected, found = [run(0), run(1)], [[], []]
    threads = [threading.Thread(target=lambda i=i: found[i].append([run(i) for _ in range(3)])) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [[[rows] * 3] for rows in expected]


# --- ablations and other rankings ------------------------------------------------------------------------------------


def test_random_elements_are_drawn_uniformly_over_all_layers_from_a_seed() -> None:
    fitted = made(torch.arange(24.0).view(6, 4), "head", "z")
    counts = torch.stack([fitted.random(seed).mask(6) for seed in range(400)]).sum(0)
    assert (counts.sum(), counts.min() > 60, counts.max() < 140) == (2400, True, True)  # 100 each, give or take
    assert torch.equal(fitted.random(3).mask(6), fitted.random(3).mask(6))
    assert not torch.equal(fitted.random(3).mask(6), fitted.mask(6))
    assert torch.equal(fitted.random(3).difference, fitted.difference)
    assert fitted.random(3).metadata["ranked_by"] == "random, seed 3"


@pytest.mark.parametrize("site", ["z", "mlp_out", "resid_post"])
def test_fixed_steering_adds_the_difference_on_the_mask(deep: Any, fits: Any, site: str) -> None:
    fitted, prompt = fits[site], ids_of(deep, PROMPTS[0])
    k, width = COUNTS[site], WIDTHS[site]
    wide = fitted.mask(k).repeat_interleave(width // fitted.scores.shape[1], 1)
    vectors = (fitted.difference.flatten(1) * wide).float()
    changes = [oracles.Change(site, i, oracles.add(v, 2.5), "last") for i, v in enumerate(vectors) if v.any()]
    with oracles.changed(deep.hf, changes, len(prompt)):
        expected = logits(deep.hf, prompt)
    found, _ = both_faces(deep, prompt, len(prompt), fitted.fixed(k, 2.5))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert len(fitted.fixed(0, 2.5)) == 0
    without = both_faces(deep, prompt, len(prompt), Steering())
    assert all(map(torch.equal, both_faces(deep, prompt, len(prompt), fitted.fixed(k, 0.0)), without))


def test_fixed_steering_of_neurons_works_only_where_nothing_gates_them(six: Any, fresh: Any) -> None:
    with pytest.raises(ValueError, match=r"fixed steering of gated neurons has no hook point.*'head' or 'hidden'"):
        sadi.fit(six.model, PAIRS, "neuron", progress=False).fixed(3, 1.0)
    case = fresh("gpt2")
    fitted = sadi.fit(case.model, PAIRS, "neuron", progress=False)
    steering = fitted.fixed(3, 1.0)
    added = torch.cat([edit.edit.vector for _, edit in steering])  # type: ignore[attr-defined]
    top = fitted.top(3)
    assert sorted(added[added != 0].tolist()) == pytest.approx(sorted(fitted.scores[top[:, 0], top[:, 1]].tolist()))


def test_another_ranking_chooses_other_elements_and_changes_nothing_else(six_fits: Any) -> None:
    fitted = six_fits["mlp_out"]
    ranking = -fitted.scores
    other = fitted.ranked_by(ranking, "upside down")
    assert torch.equal(other.mask(7), fitted.mask(7, "signed_min"))
    assert torch.equal(other.difference, fitted.difference)
    assert (other.metadata["ranked_by"], other.site) == ("upside down", "mlp_out")
    assert fitted.ranking is None
    assert torch.equal(fitted.ranked_by(ranking.numpy()).mask(7), other.mask(7))


# --- files, names ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", list(ELEMENTS))
def test_a_saved_fit_comes_back_bit_for_bit(six: Any, six_fits: Any, site: str, tmp_path) -> None:
    for fitted in (six_fits[site], six_fits[site].random(4)):
        loaded = SADI.load(fitted.save(tmp_path / "folder" / "sadi.safetensors"))
        assert (loaded.element, loaded.site, loaded.metadata) == (fitted.element, fitted.site, fitted.metadata)
        assert torch.equal(loaded.scores, fitted.scores)
        for side in ("positive", "negative"):
            for a, b in zip(getattr(loaded, side).pack(), getattr(fitted, side).pack(), strict=True):
                assert torch.equal(a, b)
        clean = loaded.read(six.model, PROMPTS[:2], prompt_format="plain")
        pair = [own.steering(5, 2.0, clean=clean).content_hash() for own in (loaded, fitted)]
        assert pair[0] == pair[1]


def test_a_frozen_steering_can_be_saved_with_the_values_of_its_prompts(six: Any, six_fits: Any, tmp_path) -> None:
    fitted = six_fits["neuron"]
    clean = fitted.read(six.model, PROMPTS, prompt_format="plain")
    steering = fitted.steering(9, 2.0, clean=clean, tokens=STEPS)
    loaded = Steering.load(steering.save(tmp_path / "s.safetensors"), six.model)
    assert loaded.content_hash() == steering.content_hash()
    assert loaded.n_rows == len(PROMPTS)
    first, second = (generate(six.model, PROMPTS, s, max_new_tokens=3, **PLAIN) for s in (steering, loaded))
    assert first["token_ids"].tolist() == second["token_ids"].tolist()


def test_a_file_of_another_kind_or_a_cut_one_is_refused(six_fits: Any, tmp_path) -> None:
    path = six_fits["z"].save(tmp_path / "sadi.safetensors")
    with pytest.raises(ValueError, match=r"is not a lensteer.steering.v1 file"):
        Steering.load(path)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match="damaged, truncated"):
        SADI.load(path)


def test_a_fit_says_what_it_is(six_fits: Any) -> None:
    fitted = six_fits["z"]
    text = repr(fitted)
    assert "SADI, head elements at z: 6 layers x 4, from 5 pairs on LlamaForCausalLM" in text
    layer, element = fitted.top(1)[0].tolist()
    assert f"{layer}.{element}" in text
    assert "from ? pairs on ?" in repr(made([[1.0]]))
    about = fitted.steering(4, 2.0, mode="live").metadata
    assert {"name": "head K=4", "mode": "live", "rank_by": "signed", "method": "sadi"}.items() <= about.items()


def test_the_papers_grid_counts_in_the_strength_that_changes_nothing_at_zero() -> None:
    assert sadi.PAPER_GRID["head"][1][:2] == (4.0, 9.0)
    assert {element: len(ks) * len(strengths) for element, (ks, strengths) in sadi.PAPER_GRID.items()} == {
        "head": 96,
        "neuron": 60,
        "hidden": 176,
    }


# --- half precision --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_half_precision_keeps_its_dtype_and_stays_close(fresh_hf, new_tokenizer, name: str, dtype: torch.dtype) -> None:
    found = {}
    for own in (torch.float32, dtype):
        model = load_model(fresh_hf(name, **DEEP[name]).to(own), tokenizer=new_tokenizer())
        wide = sadi.fit_all(model, PAIRS, progress=False) if own == torch.float32 else wide
        ids = torch.tensor([new_tokenizer()(PROMPTS[0])["input_ids"]])
        for element, fitted in wide.items():
            fitted = sadi.SADI(element, fitted.site, fitted.positive, fitted.negative, metadata=fitted.metadata)
            clean = fitted.read(model, PROMPTS[:1], prompt_format="plain")
            for mode in ("frozen", "live"):
                steering = fitted.steering(COUNTS[fitted.site] // 4, 2.0, mode=mode, clean=clean)
                with torch.no_grad(), steering.on(model):
                    logits = model(ids)[0, -1]
                assert logits.dtype == own
                found[own, element, mode] = logits.float().softmax(-1)
    for (own, element, mode), value in found.items():
        if own == dtype:
            assert (value - found[torch.float32, element, mode]).abs().sum() < 0.35


# --- bad input -------------------------------------------------------------------------------------------------------

GIVEN = made(torch.arange(24.0).view(6, 4), "head", "z")


@pytest.mark.parametrize("k", [25, -1, 2.0, 1.5, True, "3", None])
def test_k_must_be_a_whole_number_of_the_elements_there_are(k: Any) -> None:
    for use in (lambda: GIVEN.steering(k, 1.0, mode="live"), lambda: GIVEN.top(k), lambda: GIVEN.fixed(k, 1.0)):
        with pytest.raises(ValueError, match=r"K=.*6 layers of 4 head elements.*whole number from 0 to 24"):
            use()


def test_k_may_be_a_numpy_number_as_it_comes_out_of_a_table() -> None:
    assert torch.equal(GIVEN.mask(np.int64(3)), GIVEN.mask(3))
    assert len(GIVEN.table(np.int64(3))) == 3


@pytest.mark.parametrize("strength", [-1.0, -1e-9, float("nan"), float("inf"), None, "2", torch.ones(2)])
@pytest.mark.parametrize("k", [0, 3])
def test_a_strength_is_one_finite_number_that_is_not_negative(strength: Any, k: int) -> None:
    with pytest.raises(ValueError, match=r"strength=.*not be negative.*1 \+ δ.*ScaleElements\(mask, -1.0\)"):
        GIVEN.steering(k, strength, mode="live")


@pytest.mark.parametrize("k", [0, 3])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "cold"}, r"mode must be 'frozen' or 'live', got 'cold'"),
        ({"rank_by": "size"}, r"rank_by must be one of .*'signed_min'.*got 'size'"),
    ],
)
def test_options_that_mean_nothing_are_refused_also_where_nothing_is_steered(k: int, options: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        GIVEN.steering(k, 2.0, **options)


def test_frozen_needs_a_clean_reading_of_its_prompts_and_the_tokens_it_can_act_on(six: Any, six_fits: Any) -> None:
    fitted = six_fits["z"]
    with pytest.raises(ValueError, match=r"pass clean=fitted.read\(model, prompts\), or use mode='live'"):
        fitted.steering(3, 2.0)
    clean = fitted.read(six.model, PROMPTS[:3], prompt_format="plain")
    for tokens in ("all", "generated", 0, [0, -1], slice(-2, None)):
        with pytest.raises(ValueError, match=r"a frozen steering acts at tokens='last' or STEPS.*use mode='live'"):
            fitted.steering(3, 2.0, tokens=tokens, clean=clean)


def test_a_reading_by_another_fit_or_of_other_tokens_is_refused(six: Any, six_fits: Any) -> None:
    fitted, names = six_fits["mlp_out"], [f"blocks.{i}.hook_mlp_out" for i in range(6)]
    for clean in (
        six_fits["z"].read(six.model, PROMPTS, prompt_format="plain"),
        capture(six.model, PROMPTS, names, tokens="all", **PLAIN),
        capture(six.model, PROMPTS, names, reduce="moments", **PLAIN),
        capture(six.model, PROMPTS, names, reduce="mean", **PLAIN),
        capture(six.model, PROMPTS, names[:3], **PLAIN),
    ):
        with pytest.raises(
            ValueError, match=r"clean holds no activations of 'blocks.\d.hook_mlp_out'.*of this very fit"
        ):
            fitted.steering(3, 2.0, clean=clean)
    narrow = made(torch.zeros(6, 16), metadata=fitted.metadata)
    with pytest.raises(ValueError, match=r"\[prompt, \*\(16,\)\]"):
        narrow.steering(3, 2.0, clean=fitted.read(six.model, PROMPTS, prompt_format="plain"))


def test_values_of_another_number_of_prompts_than_are_run_are_refused(six: Any, six_fits: Any, forwards: Any) -> None:
    fitted = six_fits["z"]
    steering = fitted.steering(3, 2.0, clean=fitted.read(six.model, PROMPTS[:3], prompt_format="plain"))
    steering.points(six.model)  # each kind of point is tried once
    with forwards(six) as calls:
        for use in (
            lambda: generate(six.model, PROMPTS[:2], steering, **PLAIN),
            lambda: score(six.model, PROMPTS[:2], ["a", "b"], steering, **PLAIN),
            lambda: score_options(six.model, PROMPTS[:2], [[[7]], [[8]]], [None, steering], **PLAIN),
        ):
            with pytest.raises(ValueError, match=r"for 3 prompts, but 2 prompts were given"):
                use()
        assert calls == []
    with pytest.raises(ValueError, match=r"3 values but the batch .* has 1 rows"), steering.on(six.model):
        six.hf(torch.tensor([[5, 6, 7]]))


def test_a_fit_is_refused_on_a_model_of_another_shape_or_architecture(six: Any, six_fits: Any, llama, gpt2) -> None:
    fitted = six_fits["z"]
    with pytest.raises(ValueError, match=r"6 layers of width 32.*does not fit.*4 of 32"):
        fitted.read(llama.model, PROMPTS)
    with pytest.raises(ValueError, match=r"LlamaForCausalLM.*does not fit GPT2LMHeadModel"):
        fitted.read(gpt2.model, PROMPTS)
    with pytest.raises(ValueError, match="does not fit"):
        generate(llama.model, PROMPTS, fitted.steering(3, 2.0, mode="live"), **PLAIN)


@pytest.mark.parametrize(
    ("pairs", "options", "error", "words"),
    [
        ([], {}, ValueError, "no pairs were given"),
        ([AnswerPair("Why", " ", "no")], {}, ValueError, "pair 0 has an empty prompt or answer"),
        ([AnswerPair("Why", "no", "no ")], {}, ValueError, "same answer 'no' on both sides"),
        ([AnswerPair("x" * 200, "yes", "no")], {}, ValueError, "201 tokens.*context of 128"),
        ([AnswerPair("x" * 120, "y" * 20, "no")], {}, ValueError, r"121 \+ 21 tokens.*context of 128"),
        (PAIRS, {"element": "layer"}, ValueError, "element must be one of .*'head'.*got 'layer'"),
        (PAIRS, {"element": "hidden", "hidden_site": "z"}, ValueError, "hidden_site must be one of .*'resid_post'"),
    ],
)
def test_a_bad_fit_is_refused_before_any_pass(six: Any, forwards: Any, pairs, options, error, words: str) -> None:
    with forwards(six) as calls, pytest.raises(error, match=words):
        sadi.fit(six.model, pairs, **options, progress=False)
    assert calls == []


def test_no_elements_are_refused(six: Any) -> None:
    with pytest.raises(ValueError, match="no elements were given; name some of"):
        sadi.fit_all(six.model, PAIRS, [], progress=False)


def test_a_site_that_the_element_does_not_have_or_that_was_not_read_is_refused(seen: Contrast) -> None:
    with pytest.raises(ValueError, match=r"site.*'resid_post'.*head.*'z'"):
        sadi.from_contrast(seen, "head", "resid_post")
    with pytest.raises(ValueError, match="element must be one of"):
        sadi.from_contrast(seen, "layer")  # type: ignore[arg-type]


def test_a_contrast_of_some_layers_is_refused_since_layers_would_be_misnumbered(six: Any) -> None:
    some = contrast(six.model, PAIRS, ["z"], layers=[4, 5], progress=False)
    with pytest.raises(ValueError, match=r"2 of 6 layers.*all layers"):
        sadi.from_contrast(some, "head")
    turned = contrast(six.model, PAIRS, ["z"], layers=[5, 4, 3, 2, 1, 0], progress=False)
    with pytest.raises(ValueError, match=r"6 of 6 layers of 'z' in another order"):
        sadi.from_contrast(turned, "head")
    with pytest.raises(ValueError, match=r"site 'neuron' was not read; there are \['z'\]"):
        sadi.from_contrast(some, "neuron")


def test_activations_that_are_not_finite_are_named_by_layer() -> None:
    with pytest.raises(ValueError, match=r"at 'mlp_out' hold NaN or inf in layers \[1, 2\]"):
        made([[0.0, 1.0], [float("nan"), 0.0], [1.0, float("inf")]])


def test_scores_of_another_shape_or_with_nan_are_refused() -> None:
    for scores in (torch.zeros(4, 6), torch.full((6, 4), float("nan"))):
        with pytest.raises(ValueError, match=r"scores must be \[layer, head\] = \(6, 4\) without NaN"):
            GIVEN.ranked_by(scores)


def test_switching_elements_off_is_an_edit_of_its_own(six: Any, six_fits: Any) -> None:
    mask, prompt = six_fits["z"].mask(24), ids_of(six, PROMPTS[0])
    edits = [(f"blocks.{i}.attn.hook_z", ScaleElements(torch.ones(4, 8, dtype=torch.bool), -1.0)) for i in range(6)]
    with oracles.changed(six.hf, [oracles.Change("z", i, torch.zeros_like) for i in range(6)], len(prompt)):
        expected = logits(six.hf, prompt)
    torch.testing.assert_close(both_faces(six, prompt, len(prompt), Steering(edits))[0], expected, atol=1e-5, rtol=1e-5)
    assert mask.all()
