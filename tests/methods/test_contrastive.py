"""Contrastive directions against NumPy, scikit-learn and plain forward hooks."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import lensteer as ls
from lensteer import Activations, AnswerPair, Contrast, contrast
from lensteer.methods import contrastive, iti
from lensteer.methods.contrastive import Directions

PAIRS = [
    AnswerPair("Q: Is ice cold?\nA:", "yes", "no"),
    AnswerPair("Q: Sky?\nA:", "blue", "green"),
    AnswerPair("Q: Bees eat in the spring\nA:", "nectar", "stones"),
    AnswerPair("Two plus two is", "four", "five"),
]
PROMPTS = ["Name a river.", "How far is it to the sea?", "Why?"]
HOOKS = {"resid_post": "blocks.{}.hook_resid_post", "z": "blocks.{}.attn.hook_z", "neuron": "blocks.{}.hook_neuron"}
EVERY = tuple(contrastive.METHODS)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def seen_of(positive: torch.Tensor, negative: torch.Tensor, site: str = "resid_post", **metadata: str) -> Contrast:
    """A Contrast of given [layer, pair, *shape] activations."""
    names = [HOOKS[site].format(i) for i in range(len(positive))]
    pairs = [AnswerPair(f"question {i}", "yes", "no") for i in range(positive.shape[1])]
    sides = [Activations(dict(zip(names, side, strict=True))) for side in (positive, negative)]
    return Contrast(*sides, names={site: names}, pairs=pairs, metadata=metadata)


def made(n_layers: int = 3, pairs: int = 12, width: int = 8) -> Contrast:
    return seen_of(random(n_layers, pairs, width) + 1, random(n_layers, pairs, width, seed=1), n_pairs=str(pairs))


def last(case: Any, text: str, site: str) -> torch.Tensor:
    """[layer, width] at the last token of a text, from plain hooks."""
    ids = case.tokenizer(text)["input_ids"]
    return torch.stack([x[-1] for x in oracles.read(case.hf, ids, site, range(4))]).double()


def cosines(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return torch.cosine_similarity(one.flatten(1).double(), other.flatten(1).double(), dim=1)


# --- the directions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", ["resid_post", "resid_pre", "mlp_out", "attn_out", "z"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_caa_is_the_mean_difference_of_plain_hooks_at_the_last_answer_token(
    request: Any, architecture: str, site: str
) -> None:
    case = request.getfixturevalue(architecture)
    found = contrastive.fit(case.model, PAIRS, "caa", site, progress=False)
    right, wrong = (
        torch.stack([last(case, f"{pair[0]} {pair[i]}", site) for pair in PAIRS], 1) for i in (1, 2)
    )  # [layer, pair, width]
    expected = (right - wrong).mean(1)
    torch.testing.assert_close(found.difference_norm.double(), expected.norm(dim=1), rtol=1e-4, atol=1e-5)
    assert (cosines(found.direction, expected) > 0.99999).all()
    torch.testing.assert_close(found.direction.flatten(1).norm(dim=1), torch.ones(4))
    norms = torch.cat([right, wrong], 1).norm(dim=2).mean(1)
    torch.testing.assert_close(found.activation_norm.double(), norms, rtol=1e-4, atol=1e-5)
    assert found.direction.shape[1:] == ((4, 8) if site == "z" else (32,))
    torch.testing.assert_close(found.cosine, torch.ones(4))


@pytest.mark.parametrize("method", EVERY)
def test_one_at_a_time_and_batched_give_the_same_directions(llama: Any, method: str) -> None:
    one, other = (
        contrastive.fit(llama.model, PAIRS, method, "mlp_out", batch_size=size, progress=False) for size in (1, "auto")
    )
    assert (cosines(one.direction, other.direction) > 0.9999).all()
    torch.testing.assert_close(one.auroc, other.auroc, equal_nan=True)


def test_activations_are_read_once_for_all_methods_and_sites(llama: Any, forwards: Any) -> None:
    with forwards(llama) as calls:
        seen = contrast(llama.model, PAIRS, ["resid_post", "z"], progress=False)
        n = len(calls)
        fitted = [fitter(seen, site) for fitter in contrastive.METHODS.values() for site in ("resid_post", "z")]
    assert len(calls) == n
    alone = contrastive.fit(llama.model, PAIRS, "repe_centred", "z", progress=False)
    (together,) = (f for f in fitted if (f.method, f.site) == ("repe_centred", "z"))
    torch.testing.assert_close(together.direction, alone.direction, rtol=1e-3, atol=1e-4)
    assert {f.method for f in fitted} == set(EVERY)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("pairs", [3, 30])
def test_repe_is_the_first_singular_vector_of_numpy(centred: bool, pairs: int) -> None:
    seen = made(pairs=pairs)
    positive, negative = (side.numpy().astype(float) for side in seen.activations("resid_post"))
    found = contrastive.repe(seen, centred=centred)
    for layer in range(3):
        differences = positive[layer] - negative[layer]
        mean = differences.mean(0)
        axis = np.linalg.svd(differences - mean if centred else differences)[2][0]
        axis *= 1 if axis @ mean > 0 else -1
        np.testing.assert_allclose(found.direction[layer].numpy(), axis, atol=1e-5)
        assert (positive[layer] @ axis).mean() > (negative[layer] @ axis).mean()
    assert found.method == ("repe_centred" if centred else "repe_uncentred")


def planted(pairs: int = 200, width: int = 16) -> tuple[Contrast, torch.Tensor, torch.Tensor]:
    """Differences of 3·v in every pair, and of 4·w with a random factor from pair to pair."""
    v, w = torch.eye(width)[2], torch.eye(width)[5]
    base = random(2, pairs, width, seed=3)
    factor = random(2, pairs, 1, seed=4)
    return seen_of(base + 3 * v + 4 * factor * w + 0.1 * random(2, pairs, width, seed=5), base), v, w


@pytest.mark.parametrize("method", ["caa", "logistic"])
def test_a_planted_direction_is_found(method: str) -> None:
    seen, v, _ = planted()
    found = contrastive.METHODS[method](seen)
    assert (found.direction @ v > 0.95).all()
    assert (found.auroc > 0.95).all()


def test_centred_repe_finds_what_varies_between_pairs_and_uncentred_what_is_large() -> None:
    seen, v, w = planted()
    centred, uncentred = (contrastive.repe(seen, centred=c) for c in (True, False))
    assert ((centred.direction @ w).abs() > 0.99).all()
    assert (centred.direction @ v).abs().max() < 0.1
    assert (centred.auroc - 0.5).abs().max() < 0.1  # and so it need not tell the sides apart
    assert centred.cosine.abs().max() < 0.2
    # Uncentred: 4² along w is still more than 3² along v; with less spread it is the shift.
    assert ((uncentred.direction @ w).abs() > 0.9).all()
    base = random(2, 200, 16, seed=3)
    agreeing = seen_of(base + 3 * v + random(2, 200, 1, seed=4) * w, base)
    assert (contrastive.repe(agreeing).direction @ v > 0.99).all()


def test_with_the_sides_in_random_order_centred_is_nearly_uncentred() -> None:
    seen, v, _ = planted(pairs=2000)
    positive, negative = (side.clone() for side in seen.activations("resid_post"))
    positive = negative + 3 * v + 0.5 * random(2, 2000, 16, seed=9)
    swap = torch.rand(2000, generator=torch.Generator().manual_seed(0)) < 0.5
    mixed = seen_of(torch.where(swap[:, None], negative, positive), torch.where(swap[:, None], positive, negative))
    found = [contrastive.repe(mixed, centred=c).direction for c in (True, False)]
    for one in found:
        assert ((one @ v).abs() > 0.99).all()


@pytest.mark.parametrize("standardise", [True, False])
@pytest.mark.parametrize("c", [1.0, 0.05])
def test_the_logistic_direction_is_that_of_scikit_learn_in_activation_space(standardise: bool, c: float) -> None:
    seen = made()
    stretch = torch.logspace(-1, 1, 8)  # coordinates of very different sizes
    positive, negative = (side * stretch for side in seen.activations("resid_post"))
    found = contrastive.logistic(seen_of(positive, negative), c=c, standardise=standardise)
    for layer in range(3):
        x = torch.cat([positive[layer], negative[layer]]).double().numpy()
        labels = np.repeat([1, 0], 12)
        steps = [StandardScaler()] if standardise else []
        probe = make_pipeline(*steps, LogisticRegression(C=c, max_iter=1000)).fit(x, labels)
        scores = probe.decision_function(x)
        along = x @ found.direction[layer].double().numpy()
        # Equal up to the offset and a positive factor, so it ranks texts as the probe does.
        slope, offset = np.polyfit(along, scores, 1)
        assert slope > 0
        np.testing.assert_allclose(slope * along + offset, scores, atol=2e-2 if not standardise else 1e-3)
    assert found.metadata["c"] == f"{c:g}"


def test_the_auroc_counts_pairs_of_answers() -> None:
    seen = made()
    found = contrastive.caa(seen)
    positive, negative = seen.activations("resid_post")
    for layer in range(3):
        a, b = ((side[layer].double() @ found.direction[layer].double()).tolist() for side in (positive, negative))
        wins = np.mean([(x > y) + 0.5 * (x == y) for x in a for y in b])
        assert float(found.auroc[layer]) == pytest.approx(wins, abs=1e-6)


@pytest.mark.parametrize("method", ["caa", "repe_uncentred", "logistic"])
def test_swapping_the_sides_turns_the_direction_round(method: str) -> None:
    seen = made()
    swapped = seen_of(*reversed(seen.activations("resid_post")))
    one, other = (contrastive.METHODS[method](s).direction for s in (seen, swapped))
    torch.testing.assert_close(one, -other, rtol=1e-3, atol=1e-4)


def test_methods_on_the_same_pairs_agree_on_what_a_strength_means() -> None:
    seen = made()
    fitted = [contrastive.METHODS[m](seen) for m in EVERY if m != "act_add"]
    for one in fitted:
        assert torch.equal(one.difference_norm, fitted[0].difference_norm)
        assert torch.equal(one.activation_norm, fitted[0].activation_norm)
        assert float(one.add(1, 2.0)[0][1].edit.vector.norm()) == pytest.approx(float(one.difference_norm[1]), rel=1e-5)


# --- ActAdd --------------------------------------------------------------------------------------------------------


def test_act_add_is_the_difference_of_the_last_tokens_of_two_prompts(llama: Any, gpt2: Any) -> None:
    for case in (llama, gpt2):
        found = contrastive.act_add(case.model, "I love it", "I hate all of it", "resid_post")
        expected = last(case, "I love it", "resid_post") - last(case, "I hate all of it", "resid_post")
        assert (cosines(found.direction, expected) > 0.99999).all()
        torch.testing.assert_close(found.difference_norm.double(), expected.norm(dim=1), rtol=1e-4, atol=1e-5)
        assert found.auroc.isnan().all()
        assert "no AUROC" in repr(found)


def test_act_add_on_a_pair_of_a_contrast_is_caa_on_that_pair_alone() -> None:
    seen = made()
    sides = [side[:, 2:3] for side in seen.activations("resid_post")]
    found, alone = contrastive.one_pair(seen, pair=2), contrastive.caa(seen_of(*sides))
    assert torch.equal(found.direction, alone.direction)
    assert found.metadata["n_pairs"] == "1"
    with pytest.raises(ValueError, match="pair=12 is out of range: there are pairs 0 to 11"):
        contrastive.one_pair(seen, pair=12)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_aligned_act_add_adds_every_positions_difference_to_the_same_position(request: Any, architecture: str) -> None:
    case = request.getfixturevalue(architecture)
    ids = [case.tokenizer(text)["input_ids"] for text in ("Love", "Hatred")]
    blank = case.tokenizer(" ", add_special_tokens=False)["input_ids"]
    ids[0] = ids[0] + blank * 2
    one, other = (oracles.read(case.hf, own, "resid_pre", [2])[0] for own in ids)
    changes = [oracles.Change("resid_pre", 2, oracles.add(one[p] - other[p], 3.0), [p]) for p in range(len(one))]
    steering = contrastive.act_add_aligned(case.model, "Love", "Hatred", 2, 3.0)
    for prompt in PROMPTS[:2]:
        own = case.tokenizer(prompt)["input_ids"]
        expected = oracles.response_log_probs(case.hf, own, [20, 30, 40], changes)
        (found,) = ls.log_probs(case.model, [prompt], [[20, 30, 40]], steering, prompt_format="plain", progress=False)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert len(steering) <= len(one)


@pytest.mark.parametrize(("positive", "negative"), [("Love", "Love"), ("", "Hate"), ("Love", "")])
def test_act_add_needs_two_prompts_that_differ(llama: Any, forwards: Any, positive: str, negative: str) -> None:
    with forwards(llama) as calls:
        for call in (
            lambda: contrastive.act_add(llama.model, positive, negative),
            lambda: contrastive.act_add_aligned(llama.model, positive, negative, 1),
        ):
            with pytest.raises(ValueError, match="two prompts that differ"):
                call()
    assert calls == []


# --- steering ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", ["resid_post", "resid_pre", "mlp_out", "attn_out", "z"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_steering_equals_plain_hooks_at_the_last_prompt_token_and_every_one_after(
    request: Any, architecture: str, site: str
) -> None:
    case = request.getfixturevalue(architecture)
    fitted = contrastive.fit(case.model, PAIRS, "caa", site, progress=False)
    steering = fitted.add([1, 2], 2.0)
    changes = [
        oracles.Change(site, i, oracles.add(fitted.direction[i] * fitted.difference_norm[i], 2.0), slice(-1, None))
        for i in (1, 2)
    ]
    responses = [[20, 30, 40], [25, 35], [50]]
    found = ls.log_probs(case.model, PROMPTS, responses, steering, prompt_format="plain", progress=False)
    for prompt, response, own in zip(PROMPTS, responses, found, strict=True):
        ids = case.tokenizer(prompt)["input_ids"]
        torch.testing.assert_close(
            own, oracles.response_log_probs(case.hf, ids, response, changes), rtol=1e-4, atol=1e-4
        )
        bare = oracles.response_log_probs(case.hf, ids, response)
        assert (own - bare).abs().max() > 1e-3
    table = ls.generate(case.model, PROMPTS, steering, max_new_tokens=6, prompt_format="plain", progress=False)
    for prompt, ids in zip(PROMPTS, table["token_ids"], strict=True):
        expected = oracles.greedy(case.hf, case.tokenizer(prompt)["input_ids"], 6, changes, stop=[2, 4])
        assert ids[: len(expected.sure)] == expected.sure


def test_strength_zero_changes_nothing(llama: Any) -> None:
    fitted = contrastive.fit(llama.model, PAIRS, progress=False)
    one, other = (
        ls.log_probs(llama.model, PROMPTS, [[20, 30]] * 3, steering, progress=False)
        for steering in (None, fitted.add(range(4), 0.0))
    )
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b)


def test_a_strength_counts_in_the_unit_that_is_asked_for() -> None:
    fitted = contrastive.caa(made())
    sizes = {"difference": fitted.difference_norm[2], "activation": fitted.activation_norm[2], "absolute": 1.0}
    for unit, size in sizes.items():
        ((name, edit),) = fitted.add(2, -1.5, unit=unit, tokens="all")  # type: ignore[arg-type]
        assert name == "blocks.2.hook_resid_post"
        torch.testing.assert_close(edit(torch.zeros(1, 4, 8))[0, 0], -1.5 * size * fitted.direction[2])


def test_strength_one_takes_the_mean_of_the_wrong_answers_to_that_of_the_right_ones() -> None:
    seen = made()
    positive, negative = seen.activations("resid_post")
    ((_, edit),) = contrastive.caa(seen).add(1, 1.0, tokens="all")
    torch.testing.assert_close(edit(negative[1].mean(0)[None, None])[0, 0], positive[1].mean(0))


def test_the_random_control_pushes_as_far_in_another_direction() -> None:
    fitted = contrastive.caa(made())
    control = fitted.random(seed=3)
    for unit in ("difference", "activation", "absolute"):
        one, other = (f.add(1, 2.0, unit=unit)[0][1].edit.vector.norm() for f in (fitted, control))  # type: ignore[arg-type]
        torch.testing.assert_close(one, other)
    assert cosines(fitted.direction, control.direction).abs().max() < 0.9
    assert torch.equal(control.direction, fitted.random(seed=3).direction)
    assert not torch.equal(control.direction, fitted.random(seed=4).direction)
    assert control.auroc.isnan().all()
    assert "random" in control.name and "seed 3" in control.metadata["control"]


def test_some_layers_keep_their_numbers(llama: Any) -> None:
    every = contrastive.fit(llama.model, PAIRS, progress=False)
    some = contrastive.fit(llama.model, PAIRS, layers=[1, 3], progress=False)
    assert some.layers == [1, 3]
    torch.testing.assert_close(some.direction, every.direction[[1, 3]], rtol=1e-3, atol=1e-5)
    assert [name for name, _ in some.add(np.array([3, 1, 3]), 1.0)] == [
        "blocks.3.hook_resid_post",
        "blocks.1.hook_resid_post",
    ]
    with pytest.raises(ValueError, match=r"layer 2 is out of range.*\[1, 3\]"):
        some.add(2, 1.0)
    assert some.separation["layer"].tolist() == [1, 3]


def test_plain_neurons_are_steered_at_post_and_gated_ones_cannot_be(llama: Any, gpt2: Any) -> None:
    plain = contrastive.fit(gpt2.model, PAIRS, "caa", "neuron", progress=False)
    same = contrastive.fit(gpt2.model, PAIRS, "caa", "post", progress=False)
    assert plain.add(1, 1.0)[0][0] == same.add(1, 1.0)[0][0] == "blocks.1.mlp.hook_post"
    torch.testing.assert_close(plain.direction, same.direction)
    gated = contrastive.fit(llama.model, PAIRS, "caa", "neuron", progress=False)
    with pytest.raises(ValueError, match=r"gated MLPs can only be read.*'post'"):
        gated.add(1, 1.0)


def test_the_steering_says_where_it_came_from(llama: Any) -> None:
    fitted = contrastive.fit(llama.model, PAIRS, "repe_centred", "attn_out", progress=False)
    steering = fitted.add(1, 1.0, unit="activation")
    assert steering.metadata["method"] == "repe_centred"
    assert steering.metadata["unit"] == "activation"
    assert steering.metadata["n_pairs"] == "4"
    assert "repe_centred at attn_out" in repr(steering)
    assert "4 pairs" in repr(fitted)
    assert "<table" in fitted._repr_html_()


def test_saved_directions_come_back_bit_for_bit(llama: Any, tmp_path: Any) -> None:
    for method in ("caa", "act_add"):
        fitted = contrastive.fit(llama.model, PAIRS, method, "z", progress=False)
        loaded = Directions.load(fitted.save(tmp_path / "deep" / f"{method}.safetensors"))
        for name, value in vars(fitted).items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(getattr(loaded, name), value, rtol=0, atol=0, equal_nan=True)
            elif name == "hooks":
                assert list(loaded.hooks) == list(value)
            else:
                assert getattr(loaded, name) == value
        assert loaded.add(1, 2.0).content_hash() == fitted.add(1, 2.0).content_hash()
    other = ls.Steering([("blocks.0.hook_resid_post", ls.Add(torch.ones(3)))]).save(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="directions"):
        Directions.load(other)


# --- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("method", EVERY)
def test_activations_that_are_not_finite_are_refused_with_their_layers(method: str, bad: float) -> None:
    positive, negative = random(3, 4, 8), random(3, 4, 8, seed=1)
    positive[1, 0, 3] = bad
    for sides in ((positive, negative), (negative, positive)):
        with pytest.raises(ValueError, match=r"'resid_post' hold NaN or inf in layers \[1\]"):
            contrastive.METHODS[method](seen_of(*sides))


@pytest.mark.parametrize("method", EVERY)
def test_a_layer_whose_sides_are_equal_has_no_direction(method: str) -> None:
    positive, negative = random(3, 6, 8) + 1, random(3, 6, 8, seed=1)
    positive[0] = negative[0] * (1 + 1e-7)  # what rounding makes of equal activations
    fitted = contrastive.METHODS[method](seen_of(positive, negative))
    assert not fitted.direction[0].any()
    assert fitted.direction[1].any()
    with pytest.raises(ValueError, match="no direction at layer 0"):
        fitted.add(0, 1.0)
    with pytest.raises(ValueError, match="at no layer do the sides"):
        contrastive.METHODS[method](seen_of(negative, negative.clone()))


def test_one_pair_cannot_be_centred_but_has_a_difference() -> None:
    seen = made(pairs=1)
    with pytest.raises(ValueError, match="two pairs or more"):
        contrastive.repe(seen, centred=True)
    assert torch.allclose(contrastive.repe(seen).direction, contrastive.caa(seen).direction, atol=1e-6)


def test_equal_differences_have_nothing_that_varies() -> None:
    negative = random(2, 6, 8)
    seen = seen_of(negative + 1, negative)
    with pytest.raises(ValueError, match="repe_centred found no direction"):
        contrastive.repe(seen, centred=True)


@pytest.mark.parametrize("layer", [-1, 3, [0, 7]])
def test_a_layer_out_of_range_is_refused_and_minus_one_is_not_the_last(layer: Any) -> None:
    with pytest.raises(ValueError, match=r"out of range.*layers 0 to 2"):
        contrastive.caa(made()).add(layer, 1.0)


@pytest.mark.parametrize("layer", [1.0, "1", None, []])
def test_layers_that_are_no_whole_numbers_are_refused(layer: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="layer"):
        contrastive.caa(made()).add(layer, 1.0)


def test_bad_units_strengths_methods_penalties_and_sites_are_refused(llama: Any, forwards: Any) -> None:
    fitted = contrastive.caa(made())
    with pytest.raises(ValueError, match=r"unit must be one of .*got 'norms'"):
        fitted.add(0, 1.0, unit="norms")  # type: ignore[arg-type]
    for strength in (math.nan, math.inf):
        with pytest.raises(ValueError, match="strength must be finite"):
            fitted.add(0, strength)
    for c in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="inverse strength of the penalty"):
            contrastive.logistic(made(), c=c)
    with pytest.raises(ValueError, match=r"site 'z' was not read; there are \['resid_post'\]"):
        contrastive.caa(made(), "z")
    with forwards(llama) as calls:
        with pytest.raises(ValueError, match=r"method must be one of .*got 'pca'"):
            contrastive.fit(llama.model, PAIRS, "pca")
        with pytest.raises(ValueError, match="no pairs"):
            contrastive.fit(llama.model, [])
    assert calls == []
    with pytest.raises(ValueError, match="no hook point"):
        contrastive.fit(llama.model, PAIRS, "caa", "nowhere")


@pytest.mark.parametrize("fitter", [*contrastive.METHODS.values(), iti.from_contrast])
def test_fitters_of_a_contrast_ask_for_one(fitter: Any, llama: Any) -> None:
    for given in (llama.model, PAIRS):
        with pytest.raises(TypeError, match=r"expected a Contrast, got .*contrast\(model, pairs, site\), or .*fit"):
            fitter(given)


@pytest.mark.parametrize("strength", ["1", "abc", None])
def test_a_strength_that_is_no_number_is_refused(strength: Any) -> None:
    with pytest.raises(TypeError, match=f"strength must be a number, or .*, got {strength!r}"):
        contrastive.caa(made()).add(0, strength)


def test_moments_alone_are_refused(llama: Any) -> None:
    seen = contrast(llama.model, PAIRS, "resid_post", reduce="moments", progress=False)
    with pytest.raises(ValueError, match="only the moments"):
        contrastive.caa(seen)


def test_without_scikit_learn_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(ImportError, match=r"lensteer\[eval\]"):
        contrastive.logistic(made())
    assert contrastive.caa(made()).direction.any()  # the others need none
