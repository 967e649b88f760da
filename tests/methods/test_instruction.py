"""Instruction vectors against plain hooks, the method's own identities, and the paper's procedure by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import oracles
import pytest
import torch

import lensteer as ls
from lensteer import instruction
from lensteer.methods.instruction import InstructionVectors, check_pairs, from_activations
from lensteer.prompts import Pair

QUERIES = [
    "Why is the sky blue?",
    "Name a river.",
    "What do bees eat in the spring?",
    "How far is it?",
    "Tell me more.",
]
TEXT = "Write in CAPITALS."
PAIRS = [Pair(f"{query} {TEXT}", query) for query in QUERIES]
STATISTICS = ("direction", "projection", "projection_without", "difference_norm", "residual_norm")


def ids_of(case: Any, prompt: str) -> list[int]:
    """Token ids as the plain tokenizer makes them: its own template where there is one, one BOS at most."""
    if case.tokenizer.chat_template:
        messages = [{"role": "user", "content": prompt}]
        text = case.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return list(case.tokenizer(text, add_special_tokens=False)["input_ids"])
    return list(case.tokenizer(prompt)["input_ids"])


def stops(case: Any) -> list[int]:
    listed = case.hf.generation_config.eos_token_id
    ends = listed if isinstance(listed, list) else [listed]
    chat_end = [case.tokenizer.convert_tokens_to_ids(t) for t in ("<|end|>", "<|im_end|>")]
    chat_end = [i for i in chat_end if i is not None and i != case.tokenizer.unk_token_id]
    return [*ends, case.tokenizer.eos_token_id, *(chat_end if case.tokenizer.chat_template else [])]


def reference(case: Any, pairs: Sequence[Pair]) -> dict[str, torch.Tensor]:
    """The fit from its definition: plain forward hooks, one prompt at a time, means in float64."""
    layers = range(case.hf.config.num_hidden_layers)

    def last(prompt: Any) -> torch.Tensor:
        return torch.stack([x[-1] for x in oracles.read(case.hf, ids_of(case, prompt), "resid_post", layers)]).double()

    with_, without = (torch.stack([last(pair[side]) for pair in pairs]) for side in (0, 1))
    m = with_.mean(0) - without.mean(0)
    u = m / m.norm(dim=1, keepdim=True)
    return {
        "direction": u,
        "projection": (with_ * u).sum(-1).mean(0),
        "projection_without": (without * u).sum(-1).mean(0),
        "difference_norm": m.norm(dim=1),
        "residual_norm": without.norm(dim=-1).mean(0),
    }


def require_equal_fit(found: InstructionVectors, expected: dict[str, torch.Tensor]) -> None:
    cosine = torch.cosine_similarity(found.direction.double(), expected["direction"], dim=1)
    assert (cosine >= 0.99999).all()
    torch.testing.assert_close(found.direction.norm(dim=1), torch.ones(found.n_layers))
    scale = float(expected["residual_norm"].max())
    for name in STATISTICS[1:]:
        torch.testing.assert_close(getattr(found, name).double(), expected[name], rtol=1e-4, atol=1e-5 * scale)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def made(n_layers: int = 3, pairs: int = 6, width: int = 8, seed: int = 0) -> InstructionVectors:
    positive = random(n_layers, pairs, width, seed=seed) + 1
    return from_activations(positive, random(n_layers, pairs, width, seed=seed + 100), name="made")


@pytest.fixture(scope="module")
def fitted(llama: Any) -> InstructionVectors:
    return instruction.fit(llama.model, PAIRS, name="capitals", progress=False)


@pytest.fixture(scope="module")
def length(llama: Any) -> InstructionVectors:
    return instruction.fit(llama.model, [Pair(f"{q} Be brief.", q) for q in QUERIES], name="brief", progress=False)


@pytest.fixture(scope="module")
def word(llama: Any) -> InstructionVectors:
    return instruction.fit(llama.model, [Pair(f'{q} Say "ocean".', q) for q in QUERIES], name="ocean", progress=False)


# --- the fit -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [2, "auto"])
def test_the_fit_equals_plain_forward_hooks_one_prompt_at_a_time(tiny: Any, batch_size: Any) -> None:
    found = instruction.fit(tiny.model, PAIRS, batch_size=batch_size, progress=False)
    require_equal_fit(found, reference(tiny, PAIRS))


@pytest.mark.slow
def test_the_fit_equals_plain_forward_hooks_on_the_real_model(smollm2: Any) -> None:
    pairs = ls.data.instruction_pairs(ls.data.FORMATS["capitals"], 6)
    require_equal_fit(instruction.fit(smollm2.model, pairs, progress=False), reference(smollm2, pairs))


def test_the_fit_takes_chat_messages_as_sides(llama: Any, fitted: InstructionVectors) -> None:
    pairs = [Pair(*([{"role": "user", "content": side}] for side in pair)) for pair in PAIRS]
    found = instruction.fit(llama.model, pairs, progress=False)
    torch.testing.assert_close(found.direction, fitted.direction)


def test_the_fit_records_the_model_and_a_hash_of_the_pairs(llama: Any, fitted: InstructionVectors) -> None:
    again = instruction.fit(llama.model, PAIRS, progress=False)
    other = instruction.fit(llama.model, PAIRS[:-1], progress=False)
    assert fitted.metadata["architecture"] == "LlamaForCausalLM"
    assert fitted.metadata["n_pairs"] == "5"
    assert again.metadata["data_hash"] == fitted.metadata["data_hash"] != other.metadata["data_hash"]


def test_an_interrupted_fit_goes_on_with_its_finished_batches(llama: Any, tmp_path: Any, forwards: Any) -> None:
    whole = instruction.fit(llama.model, PAIRS, batch_size=2, resume=tmp_path, progress=False)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 5
    files[0].unlink()
    with forwards(llama) as calls:
        again = instruction.fit(llama.model, PAIRS, batch_size=2, resume=tmp_path, progress=False)
    assert len(calls) == 1
    assert torch.equal(again.direction, whole.direction)


# --- identities of the method --------------------------------------------------------------------------------------


def test_the_difference_of_the_mean_projections_is_the_norm_of_the_mean_difference() -> None:
    vectors = made()
    torch.testing.assert_close(vectors.projection - vectors.projection_without, vectors.difference_norm)


def test_scaling_the_activations_leaves_the_direction_and_scales_the_projections() -> None:
    positive, negative = random(3, 6, 8) + 1, random(3, 6, 8, seed=1)
    once, thrice = from_activations(positive, negative), from_activations(3 * positive, 3 * negative)
    torch.testing.assert_close(thrice.direction, once.direction)
    torch.testing.assert_close(thrice.projection, 3 * once.projection)
    torch.testing.assert_close(thrice.residual_norm, 3 * once.residual_norm)
    torch.testing.assert_close(thrice.auroc, once.auroc)


def test_swapping_with_and_without_flips_the_direction_exactly() -> None:
    positive, negative = random(3, 6, 8) + 1, random(3, 6, 8, seed=1)
    one, other = from_activations(positive, negative), from_activations(negative, positive)
    assert torch.equal(other.direction, -one.direction)
    assert torch.equal(other.projection, -one.projection_without)
    assert torch.equal(other.difference_norm, one.difference_norm)


def test_the_direction_does_not_depend_on_the_order_of_the_pairs() -> None:
    positive, negative = random(3, 6, 8) + 1, random(3, 6, 8, seed=1)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(
        from_activations(positive[:, order], negative[:, order]).direction,
        from_activations(positive, negative).direction,
    )


def test_setting_the_projection_puts_every_position_at_the_target_and_twice_is_once() -> None:
    vectors = made()
    (_, edit), x = vectors.set_projection(1)[0], 10 * random(2, 7, 8, seed=5)
    once = edit(x)
    projection = once @ vectors.direction[1]
    torch.testing.assert_close(projection, vectors.projection[1].expand(2, 7), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(edit(once), once, rtol=1e-5, atol=1e-5)
    rest = x - (x @ vectors.direction[1])[..., None] * vectors.direction[1]
    torch.testing.assert_close(once - projection[..., None] * vectors.direction[1], rest, rtol=1e-4, atol=1e-4)


def test_value_zero_ablates_the_direction() -> None:
    vectors = made()
    _, edit = vectors.set_projection(0, value=0.0)[0]
    assert (edit(10 * random(2, 7, 8)) @ vectors.direction[0]).abs().max() < 1e-4


def test_adding_and_subtracting_is_the_identity() -> None:
    vectors, x = made(), random(2, 7, 8)
    (_, plus), (_, minus) = vectors.add(2, 4.5)[0], vectors.add(2, -4.5)[0]
    assert (plus(x) - x).norm() > 1
    torch.testing.assert_close(minus(plus(x)), x, rtol=1e-5, atol=1e-5)


def test_setting_the_projection_is_adding_where_all_positions_share_a_projection() -> None:
    vectors, x = made(), random(2, 7, 8)
    u, shared = vectors.direction[1], 0.75
    x = x + (shared - x @ u)[..., None] * u
    strength = float(vectors.projection[1]) - shared
    (_, setting), (_, adding) = vectors.set_projection(1)[0], vectors.add(1, strength)[0]
    assert abs(strength) > 0.1
    torch.testing.assert_close(setting(x), adding(x), rtol=1e-5, atol=1e-5)


def test_inside_the_model_every_position_reaches_the_target(llama: Any, fitted: InstructionVectors) -> None:
    with fitted.set_projection(1).on(llama.model):
        steered = ls.capture(llama.model, QUERIES, "resid_post", layers=1, tokens="all", progress=False)
    (x,) = steered.values()
    projections = (x @ fitted.direction[1])[steered.mask]
    torch.testing.assert_close(projections, fitted.projection[1].expand_as(projections), rtol=1e-3, atol=1e-3)


def test_strengths_count_in_the_unit_that_is_asked_for() -> None:
    vectors = made()
    for unit, size in (
        ("absolute", 1.0),
        ("residual", vectors.residual_norm[2]),
        ("difference", vectors.difference_norm[2]),
    ):
        _, edit = vectors.add(2, -1.5, unit=unit)[0]  # type: ignore[arg-type]
        x = torch.zeros(1, 4, 8)
        torch.testing.assert_close(edit(x)[0, 0], -1.5 * size * vectors.direction[2])


def test_strength_one_in_units_of_the_difference_moves_the_mean_to_the_mean_with_the_instruction() -> None:
    positive, negative = random(3, 6, 8) + 1, random(3, 6, 8, seed=1)
    vectors = from_activations(positive, negative)
    _, edit = vectors.add(1, 1.0, unit="difference")[0]
    torch.testing.assert_close(edit(negative[1].mean(0)[None, None])[0, 0], positive[1].mean(0))


def test_several_layers_give_one_edit_each_and_numpy_layers_are_layers() -> None:
    vectors = made()
    names = [name for name, _ in vectors.add(range(1, 3), 2.0)]
    assert names == ["blocks.1.hook_resid_post", "blocks.2.hook_resid_post"]
    assert [name for name, _ in vectors.set_projection(np.int64(1))] == ["blocks.1.hook_resid_post"]
    assert [name for name, _ in vectors.set_projection(np.array([0, 2]))] == [
        "blocks.0.hook_resid_post",
        "blocks.2.hook_resid_post",
    ]


@pytest.mark.parametrize("layer", [-1, 3, [0, 7], np.int64(-1)])
def test_a_layer_out_of_range_is_refused_and_minus_one_is_not_the_last(layer: Any) -> None:
    for operator in (lambda: made().add(layer, 1.0), lambda: made().set_projection(layer)):
        with pytest.raises(ValueError, match=r"out of range.*layers 0 to 2"):
            operator()


@pytest.mark.parametrize("layer", [1.0, "1", None, []])
def test_layers_that_are_no_whole_numbers_are_refused(layer: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="layer"):
        made().set_projection(layer)


def test_an_unknown_unit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unit must be one of .*'residual'.*got 'norms'"):
        made().add(0, 1.0, unit="norms")  # type: ignore[arg-type]


@pytest.mark.parametrize("strength", [float("nan"), float("inf")])
def test_a_strength_that_is_not_finite_is_refused(strength: float) -> None:
    with pytest.raises(ValueError, match="strength must be finite"):
        made().add(0, strength)


# --- separation statistics -----------------------------------------------------------------------------------------


def test_the_separation_statistics_equal_their_definitions() -> None:
    positive, negative = random(3, 9, 8) + 0.5, random(3, 9, 8, seed=1)
    positive[0, 3], positive[1, 4] = negative[0, 2], negative[1, 0]  # some ties
    vectors = from_activations(positive, negative)
    for layer in range(3):
        m = (positive[layer].double() - negative[layer].double()).mean(0)
        u = m / m.norm()
        a, b = (side[layer].double() @ u for side in (positive, negative))
        wins = sum((x > y) + 0.5 * (x == y) for x in a.tolist() for y in b.tolist()) / 81
        assert float(vectors.auroc[layer]) == pytest.approx(wins, abs=1e-6)
        d = (np.mean(a.numpy()) - np.mean(b.numpy())) / np.sqrt((np.var(a.numpy()) + np.var(b.numpy())) / 2)
        assert float(vectors.effect_size[layer]) == pytest.approx(d, rel=1e-5)


def test_the_split_half_cosine_is_one_for_equal_differences_and_near_zero_for_noise() -> None:
    negative = random(2, 12, 64)
    shift = random(2, 1, 64, seed=1)
    equal = from_activations(negative + shift, negative)
    noise = from_activations(negative + 5 * random(2, 12, 64, seed=2), negative)
    torch.testing.assert_close(equal.split_half_cosine, torch.ones(2))
    assert noise.split_half_cosine.abs().max() < 0.5
    again = from_activations(negative + 5 * random(2, 12, 64, seed=2), negative)
    assert torch.equal(noise.split_half_cosine, again.split_half_cosine)


def test_two_pairs_have_one_split_whose_cosine_is_known() -> None:
    positive, negative = random(2, 2, 8), torch.zeros(2, 2, 8)
    expected = torch.cosine_similarity(positive[:, 0], positive[:, 1], dim=1)
    torch.testing.assert_close(from_activations(positive, negative).split_half_cosine, expected)


def test_one_pair_fits_and_says_that_spread_and_stability_are_unknown() -> None:
    vectors = from_activations(random(2, 1, 8), random(2, 1, 8, seed=1))
    assert torch.isfinite(vectors.direction).all()
    assert vectors.split_half_cosine.isnan().all()
    assert vectors.effect_size.isnan().all()
    assert "InstructionVectors" in repr(vectors)


def test_the_separation_table_has_a_row_for_every_layer(fitted: InstructionVectors) -> None:
    table = fitted.separation
    assert table["layer"].tolist() == [0, 1, 2, 3]
    assert {"auroc", "effect_size", "split_half_cosine"} <= set(table.columns)
    assert table["auroc"].tolist() == fitted.auroc.tolist()


# --- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_activations_that_are_not_finite_are_refused_with_their_layers(bad: float) -> None:
    positive, negative = random(3, 4, 8), random(3, 4, 8, seed=1)
    positive[1, 2, 3] = bad
    with pytest.raises(ValueError, match=r"'capitals'.*NaN or inf at layers \[1\]"):
        from_activations(positive, negative, name="capitals")
    with pytest.raises(ValueError, match=r"NaN or inf at layers \[1\]"):
        from_activations(negative, positive)


def test_equal_sides_have_no_direction() -> None:
    x = random(3, 4, 8)
    with pytest.raises(ValueError, match="mean difference is zero"):
        from_activations(x, x.clone())


@pytest.mark.parametrize(
    ("one", "other"),
    [((3, 4, 8), (3, 5, 8)), ((3, 4, 8), (2, 4, 8)), ((4, 8), (4, 8)), ((3, 0, 8), (3, 0, 8))],
)
def test_activations_of_other_shapes_are_refused(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\[layer, pair, d_model\], equal in shape"):
        from_activations(torch.zeros(one), torch.ones(other))


def test_pairs_are_checked_before_any_work(llama: Any, forwards: Any) -> None:
    bad: list[tuple[Any, type[Exception], str]] = [
        ([], ValueError, "no pairs"),
        (["ab"], TypeError, "pair 0 is 'ab'"),
        ("ab", TypeError, "pair 0"),
        ([("a", "b"), ("a", "b", "c")], TypeError, "pair 1"),
        ([("a", "b"), 7], TypeError, "pair 1"),
        ([{"positive": "a", "negative": "b"}], TypeError, "pair 0"),
        ([("a", "")], ValueError, "pair 0 has an empty side"),
        ([([], "a")], ValueError, "pair 0 has an empty side"),
        ([("a", "b"), ("a", None)], (TypeError, ValueError), "pair 1"),
        ([("a", "a"), ("b", "b")], ValueError, "equal"),
    ]
    with forwards(llama) as calls:
        for pairs, error, message in bad:
            with pytest.raises(error, match=message):
                instruction.fit(llama.model, pairs, progress=False)
    assert calls == []


def test_checked_pairs_are_pairs_whatever_they_were_given_as() -> None:
    assert check_pairs([["a", "b"], ("c", "d")]) == [Pair("a", "b"), Pair("c", "d")]  # type: ignore[list-item]


# --- steered text against the paper's procedure --------------------------------------------------------------------


def require_same_tokens(case: Any, steering: Any, changes: Sequence[oracles.Change], new: int = 10) -> None:
    """lensteer's tokens are those of hooks on the plain model: no cache, one prompt at a time, whole sequence again."""
    table = ls.generate(case.model, QUERIES, steering, max_new_tokens=new, progress=False)
    bare = ls.generate(case.model, QUERIES, max_new_tokens=new, progress=False)
    sure = 0
    for query, ids in zip(QUERIES, table["token_ids"], strict=True):
        expected = oracles.greedy(case.hf, ids_of(case, query), new, changes, stops(case))
        assert ids[: len(expected.sure)] == expected.sure
        sure += len(expected.sure)
        if expected.sure == expected.ids:
            assert ids == expected.ids
    assert sure >= new  # the comparison is not empty,
    assert table["token_ids"].tolist() != bare["token_ids"].tolist()  # and the steering does something


def setting(vectors: InstructionVectors, layer: int, strength: float = 1.0) -> oracles.Change:
    formula = oracles.set_projection(vectors.direction[layer], float(vectors.projection[layer]), strength)
    return oracles.Change("resid_post", layer, formula)


def adding(vectors: InstructionVectors, layer: int, strength: float) -> oracles.Change:
    return oracles.Change("resid_post", layer, oracles.add(vectors.direction[layer], strength))


def test_a_format_gives_the_tokens_of_the_papers_procedure(tiny: Any) -> None:
    vectors = instruction.fit(tiny.model, PAIRS, progress=False)
    expected = reference(tiny, PAIRS)
    formula = oracles.set_projection(expected["direction"][2].float(), float(expected["projection"][2]), 1.0)
    require_same_tokens(tiny, vectors.set_projection(2), [oracles.Change("resid_post", 2, formula)])


@pytest.mark.parametrize("layer", [0, 3])
def test_a_length_gives_the_tokens_of_the_papers_procedure(llama: Any, length: InstructionVectors, layer: int) -> None:
    strength = 1.5 * float(length.residual_norm[layer])
    steering = length.add(layer, 1.5, unit="residual")
    require_same_tokens(llama, steering, [adding(length, layer, strength)])


def test_a_word_gives_the_tokens_of_the_papers_procedure(gpt2: Any) -> None:
    word = instruction.fit(gpt2.model, [Pair(f'{q} Say "ocean".', q) for q in QUERIES], progress=False)
    strength = 2 * float(word.difference_norm[2])
    require_same_tokens(gpt2, word.add(2, 2.0, unit="difference"), [adding(word, 2, strength)])


def test_excluding_a_word_is_its_inclusion_vector_at_negative_strength(llama: Any, word: InstructionVectors) -> None:
    exclusion = word.add(2, -30.0)
    (_, edit), (_, mirrored) = exclusion[0], word.add(2, 30.0)[0]
    x = random(1, 3, 32)
    torch.testing.assert_close(edit(x) - x, x - mirrored(x), rtol=1e-4, atol=1e-4)
    require_same_tokens(llama, exclusion, [adding(word, 2, -30.0)])


def test_the_exclusion_vector_of_the_ablation_is_fitted_on_exclusion_phrasings_and_added(llama: Any) -> None:
    exclude, include = ls.data.exclude_word("ocean"), ls.data.include_word("ocean")
    pairs = ls.data.instruction_pairs(exclude, 4)
    ablation = instruction.fit(llama.model, pairs, name=exclude.name, progress=False)
    require_equal_fit(ablation, reference(llama, pairs))
    other = instruction.fit(llama.model, ls.data.instruction_pairs(include, 4), progress=False)
    assert (torch.cosine_similarity(ablation.direction, -other.direction, dim=1) < 0.99).all()
    require_same_tokens(llama, ablation.add(2, 30.0), [adding(ablation, 2, 30.0)])


@pytest.mark.parametrize("use_cache", [True, False])
def test_cached_and_full_reruns_give_equal_tokens(
    llama: Any, fitted: InstructionVectors, length: InstructionVectors, use_cache: bool
) -> None:
    steering = fitted.set_projection(1) + length.add(2, 20.0)
    one_by_one = [
        ls.generate(llama.model, [q], steering, max_new_tokens=10, progress=False)["token_ids"][0] for q in QUERIES
    ]
    together = ls.generate(llama.model, QUERIES, steering, max_new_tokens=10, use_cache=use_cache, progress=False)
    assert together["token_ids"].tolist() == one_by_one


# --- composition ---------------------------------------------------------------------------------------------------


def test_a_format_and_a_length_compose_as_hooks_in_order(
    llama: Any, fitted: InstructionVectors, length: InstructionVectors
) -> None:
    steering = fitted.set_projection(2) + length.add(1, 25.0)
    assert [name for name, _ in steering] == ["blocks.2.hook_resid_post", "blocks.1.hook_resid_post"]
    require_same_tokens(llama, steering, [setting(fitted, 2), adding(length, 1, 25.0)])


def test_a_format_and_excluded_words_share_a_layer_in_the_order_given(
    llama: Any, fitted: InstructionVectors, word: InstructionVectors
) -> None:
    first = word.add(2, -30.0) + fitted.set_projection(2)
    last = fitted.set_projection(2) + word.add(2, -30.0)
    require_same_tokens(llama, first, [adding(word, 2, -30.0), setting(fitted, 2)])
    require_same_tokens(llama, last, [setting(fitted, 2), adding(word, 2, -30.0)])
    x = 10 * random(1, 4, 32)

    def run(steering: Any) -> torch.Tensor:
        y = x
        for _, edit in steering:
            y = edit(y)
        return y

    u, target = fitted.direction[2], fitted.projection[2]
    torch.testing.assert_close(run(first) @ u, target.expand(1, 4), rtol=1e-3, atol=1e-3)
    assert ((run(last) @ u - target).abs() > 0.1).all()  # so the order matters here


def test_several_formats_at_once_keep_their_order_and_layers(
    llama: Any, fitted: InstructionVectors, length: InstructionVectors, word: InstructionVectors
) -> None:
    steering = fitted.set_projection(3) + length.set_projection(0) + word.set_projection([1, 2], 0.5)
    require_same_tokens(
        llama, steering, [setting(fitted, 3), setting(length, 0), setting(word, 1, 0.5), setting(word, 2, 0.5)]
    )


@pytest.mark.slow
def test_composed_steering_gives_the_tokens_of_plain_hooks_on_the_real_model(smollm2: Any) -> None:
    capitals, brief, word = (
        instruction.fit(smollm2.model, ls.data.instruction_pairs(ls.data.find_instruction(name), 8), progress=False)
        for name in ("capitals", "very_short", "include:ocean")
    )
    require_same_tokens(smollm2, capitals.set_projection(24), [setting(capitals, 24)], new=8)
    steering = capitals.set_projection(24) + brief.add(20, 60.0) + word.add(26, -80.0)
    changes = [setting(capitals, 24), adding(brief, 20, 60.0), adding(word, 26, -80.0)]
    require_same_tokens(smollm2, steering, changes, new=8)


# --- transfer ------------------------------------------------------------------------------------------------------


def test_vectors_and_targets_carry_over_to_a_model_of_the_same_shape(
    llama: Any, fresh: Any, fitted: InstructionVectors
) -> None:
    base = fresh("llama", seed=1)
    moved = fitted.for_model(base.model)
    for name in STATISTICS:
        assert torch.equal(getattr(moved, name), getattr(fitted, name))
    assert moved.metadata["transferred_from"] == fitted.metadata["model"]
    require_same_tokens(base, moved.set_projection(2), [setting(fitted, 2)])
    own = instruction.fit(base.model, PAIRS, progress=False)
    assert (own.direction - moved.direction).norm() > 0.1  # the other model's own vectors are others


def test_another_shape_is_refused_by_name_and_numbers(fresh: Any, fitted: InstructionVectors) -> None:
    deeper, wider = fresh("llama", num_hidden_layers=5), fresh("llama", hidden_size=48)
    with pytest.raises(ValueError, match=r"'capitals' has 4 layers of width 32; .* has 5 of 32"):
        fitted.for_model(deeper.model)
    with pytest.raises(ValueError, match=r"has 4 layers of width 32; .* has 4 of 48"):
        fitted.for_model(wider.model)
    with pytest.raises(ValueError, match=r"4 layers of width 32\) and does not fit .* \(4 of 48\)"):
        ls.generate(wider.model, ["a"], fitted.set_projection(1), max_new_tokens=2, progress=False)


def test_another_architecture_refuses_the_steering_until_the_vectors_are_transferred(
    gpt2: Any, fitted: InstructionVectors
) -> None:
    with pytest.raises(ValueError, match=r"LlamaForCausalLM.*does not fit.*GPT2LMHeadModel"):
        ls.generate(gpt2.model, ["a"], fitted.set_projection(1), max_new_tokens=2, progress=False)
    moved = fitted.for_model(gpt2.model).set_projection(1)
    assert len(ls.generate(gpt2.model, ["a"], moved, max_new_tokens=2, progress=False)) == 1


# --- control and files ---------------------------------------------------------------------------------------------


def test_the_random_control_pushes_as_far_at_every_position_along_another_direction(fitted: InstructionVectors) -> None:
    control = fitted.random(seed=3)
    torch.testing.assert_close(control.push.norm(dim=1), torch.ones(4))
    for name in STATISTICS:
        assert torch.equal(getattr(control, name), getattr(fitted, name))
    for unit in ("absolute", "residual", "difference"):
        sizes = [v.add(2, 2.0, unit=unit)[0][1].vector.norm() for v in (control, fitted)]
        torch.testing.assert_close(*sizes)
    x = 3 * random(2, 5, fitted.direction.shape[1], seed=8)
    pushes = [v.set_projection(2, 0.7)[0][1](x) - x for v in (control, fitted)]
    torch.testing.assert_close(pushes[0].norm(dim=-1), pushes[1].norm(dim=-1), rtol=1e-4, atol=1e-4)
    assert torch.cosine_similarity(control.push, fitted.direction, dim=1).abs().max() < 0.9
    assert torch.equal(control.push, fitted.random(seed=3).push)
    assert not torch.equal(control.push, fitted.random(seed=4).push)
    assert fitted.name in control.name and control.name != fitted.name


def test_saved_vectors_come_back_bit_for_bit(fitted: InstructionVectors, tmp_path: Any) -> None:
    path = fitted.save(tmp_path / "made" / "capitals.safetensors")
    loaded = InstructionVectors.load(path)
    assert loaded.name == fitted.name
    assert dict(loaded.metadata) == dict(fitted.metadata)
    for name in (*STATISTICS, "auroc", "effect_size", "split_half_cosine"):
        one, other = getattr(loaded, name), getattr(fitted, name)
        assert one.dtype == other.dtype
        assert torch.equal(one.view(torch.int32), other.view(torch.int32))
    assert loaded.set_projection(2).content_hash() == fitted.set_projection(2).content_hash()


def test_vectors_of_one_pair_survive_the_file_with_their_nan(tmp_path: Any) -> None:
    vectors = from_activations(random(2, 1, 8), random(2, 1, 8, seed=1), name="one")
    loaded = InstructionVectors.load(vectors.save(tmp_path / "one.safetensors"))
    assert loaded.split_half_cosine.isnan().all()


def test_the_random_control_and_transferred_vectors_can_be_saved_too(
    llama: Any, fitted: InstructionVectors, tmp_path: Any
) -> None:
    for number, vectors in enumerate((fitted.random(0), fitted.for_model(llama.model))):
        loaded = InstructionVectors.load(vectors.save(tmp_path / f"{number}.safetensors"))
        assert torch.equal(loaded.direction, vectors.direction)
        assert loaded.metadata == vectors.metadata
        assert loaded.set_projection(2).content_hash() == vectors.set_projection(2).content_hash()


def test_a_damaged_missing_or_other_file_is_refused(fitted: InstructionVectors, tmp_path: Any) -> None:
    path = fitted.save(tmp_path / "capitals.safetensors")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="damaged, truncated or another format"):
        InstructionVectors.load(path)
    with pytest.raises(FileNotFoundError, match="no file at"):
        InstructionVectors.load(tmp_path / "none.safetensors")
    steering = fitted.set_projection(1).save(tmp_path / "steering.safetensors")
    with pytest.raises(ValueError, match=r"not a lensteer\.instruction\.v1 file"):
        InstructionVectors.load(steering)


def test_the_steering_says_where_it_came_from(fitted: InstructionVectors) -> None:
    about = fitted.add(1, 2.0, unit="residual").metadata
    assert (about["method"], about["name"], about["operator"], about["unit"]) == (
        "instruction",
        "capitals",
        "add",
        "residual",
    )
    assert about["data_hash"] == fitted.metadata["data_hash"]


def test_only_the_tokens_asked_for_are_steered(llama: Any, fitted: InstructionVectors) -> None:
    formula = oracles.set_projection(fitted.direction[2], float(fitted.projection[2]), 3.0)
    change = oracles.Change("resid_post", 2, formula, "generated")
    require_same_tokens(llama, fitted.set_projection(2, 3.0, tokens="generated"), [change])


# --- several instructions at once ----------------------------------------------------------------------------------


def test_several_instructions_in_one_pass_equal_fitting_each_alone(llama: Any) -> None:
    pairs = {
        "shout": PAIRS,
        "brief": [Pair(f"{q} Be brief.", q) for q in QUERIES[:3]],
        "chat": [Pair([{"role": "user", "content": f"{q} Sing."}], q) for q in QUERIES[1:]],
        "again": PAIRS[::-1],
    }
    together = instruction.fit_all(llama.model, pairs, seed=5, progress=False)
    assert list(together) == list(pairs)
    for name, own in pairs.items():
        require_equal_fit(together[name], reference_of_any(llama, own))
        alone = instruction.fit(llama.model, own, name=name, seed=5, progress=False)
        torch.testing.assert_close(together[name].direction, alone.direction, rtol=1e-4, atol=1e-5)
        assert together[name].name == name
        assert dict(together[name].metadata) == dict(alone.metadata)


def reference_of_any(case: Any, pairs: Sequence[Pair]) -> dict[str, torch.Tensor]:
    texts = [Pair(*(side if isinstance(side, str) else side[0]["content"] for side in pair)) for pair in pairs]
    return reference(case, texts)


def test_a_request_that_instructions_share_is_read_once(llama: Any, forwards: Any) -> None:
    pairs = {name: [Pair(f"{q} {name}!", q) for q in QUERIES] for name in ("shout", "sing", "rhyme")}
    with forwards(llama) as calls:
        instruction.fit_all(llama.model, pairs, batch_size=1, progress=False)
    assert len(calls) == 4 * len(QUERIES)  # each query once, and once with each of the three


def test_no_instructions_and_bad_pairs_of_one_are_refused_before_any_work(llama: Any, forwards: Any) -> None:
    with forwards(llama) as calls:
        with pytest.raises(ValueError, match="no instructions were given"):
            instruction.fit_all(llama.model, {}, progress=False)
        with pytest.raises(ValueError, match="pair 0 has an empty side"):
            instruction.fit_all(llama.model, {"shout": PAIRS, "bad": [Pair("", "a")]}, progress=False)
    assert calls == []
