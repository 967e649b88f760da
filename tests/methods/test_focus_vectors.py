"""Focus vectors against plain forward hooks, one unpadded prompt at a time, and weights by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any

import focus_toy
import numpy as np
import oracles
import pytest
import torch

import lensteer as ls
from lensteer.capture import capture
from lensteer.data.focus import TRAINING, FocusExample, Wording
from lensteer.methods import focus_vectors
from lensteer.methods.directions import Directions, fit_directions
from lensteer.methods.focus_pairs import until_labels_part
from lensteer.methods.focus_vectors import after_instruction, cell_weights, focus_pairs, label_leakage, vectors

TASK, EXAMPLES = focus_toy.TASK, focus_toy.examples()
QUIET: dict[str, Any] = {"progress": False}


@pytest.fixture(scope="module")
def case(fresh: Any) -> Any:
    return fresh("llama", max_position_embeddings=1024)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def either(request: Any, fresh: Any) -> Any:
    longer = {"gpt2": "n_positions", "llama": "max_position_embeddings"}[request.param]
    return fresh(request.param, **{longer: 1024})


def last(case: Any, text: str, site: str = "resid_post") -> torch.Tensor:
    """[layer, width] at the last token of a text, from plain hooks."""
    ids = case.tokenizer(text)["input_ids"]
    return torch.stack([x[-1] for x in oracles.read(case.hf, ids, site, range(4))]).double()


def brute_force(case: Any, kinds: tuple[str, str], templates: tuple[int, ...], site: str) -> torch.Tensor:
    """[layer, width]: the mean over cells of the means over examples and templates."""
    cells = []
    for y, y_s in product("ab", "ab"):
        own = [e for e in EXAMPLES if (e.y, e.y_s) == (y, y_s)]
        found = []
        for example, template in product(own, templates):
            up, down = (TASK.ask(example, kind, template=template).prompt for kind in kinds)  # type: ignore[arg-type]
            found.append(last(case, up, site) - last(case, down, site))
        cells.append(torch.stack(found).mean(0))
    return torch.stack(cells).mean(0)


# --- the vectors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kinds", "site"),
    [
        (("focus(S)", "focus(C)"), "resid_post"),
        (("focus(S)+ignore(C)", "focus(C)+ignore(S)"), "mlp_out"),
        (("focus(S)", "empty"), "resid_post"),
    ],
)
def test_the_vector_is_the_mean_over_cells_of_plain_hooks(either: Any, kinds: tuple[str, str], site: str) -> None:
    found = vectors(
        either.model, TASK, EXAMPLES, positive=kinds[0], negative=kinds[1], templates=(1, 4), site=site, **QUIET
    )  # type: ignore[arg-type]
    expected = brute_force(either, kinds, (1, 4), site)
    torch.testing.assert_close(found.difference_norm.double(), expected.norm(dim=1), rtol=1e-4, atol=1e-5)
    cosine = torch.cosine_similarity(found.direction.double(), expected, dim=1)
    assert (cosine > 0.99999).all()
    torch.testing.assert_close(found.direction.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(found.cosine, torch.ones(4))


def test_what_labels_begin_with_is_read_after_the_prompt(either: Any) -> None:
    """With a token for each byte, labels after "Output:" share the blank, which is the token that predicts them."""
    task = replace(TASK, cue="Output:")
    found = vectors(either.model, task, EXAMPLES, templates=(1,), **QUIET)
    cells = []
    for y, y_s in product("ab", "ab"):
        own = [e for e in EXAMPLES if (e.y, e.y_s) == (y, y_s)]
        sides = [[task.ask(e, kind, template=1).prompt for e in own] for kind in ("focus(S)", "focus(C)")]  # type: ignore[arg-type]
        up, down = (torch.stack([last(either, f"{text} ") for text in side]).mean(0) for side in sides)
        cells.append(up - down)
    expected = torch.stack(cells).mean(0)
    torch.testing.assert_close(found.difference_norm.double(), expected.norm(dim=1), rtol=1e-4, atol=1e-5)
    assert (torch.cosine_similarity(found.direction.double(), expected, dim=1) > 0.99999).all()
    assert found.metadata["read_at"] == " "


def test_labels_that_part_at_once_are_read_at_the_prompts_last_token_itself(
    either: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    monkeypatch.setattr(
        focus_vectors,
        "capture",
        lambda model, rows, *args, **how: (read.extend(rows), capture(model, rows, *args, **how))[1],
    )
    found = vectors(either.model, TASK, EXAMPLES, templates=(1,), **QUIET)
    pairs = focus_pairs(TASK, EXAMPLES, templates=(1,))
    prompts = [asked.prompt for pair in pairs for asked in pair]
    assert [row.ids for row in read] == [either.tokenizer(prompt)["input_ids"] for prompt in prompts]
    assert "read_at" not in found.metadata
    plain = capture(either.model, prompts, "resid_post", prompt_format="plain", progress=False).stacked()
    weights = cell_weights(TASK, [pair[0].example for pair in pairs]).double()
    difference = torch.einsum("p,lpd->ld", weights / weights.sum(), (plain[:, 0::2] - plain[:, 1::2]).double())
    torch.testing.assert_close(found.difference_norm.double(), difference.norm(dim=1), rtol=1e-6, atol=0)


def test_steering_acts_where_it_was_read(case: Any) -> None:
    """At STEPS, on the prompt's last token and on the blank that labels begin with, when labels are scored."""
    task = replace(TASK, cue="Output:")
    found = vectors(case.model, task, EXAMPLES, templates=(0,), **QUIET)
    prompt = task.prompt(EXAMPLES[0])
    ids = case.tokenizer(prompt)["input_ids"]
    answer = case.tokenizer(" a")["input_ids"][1:]
    (scored,) = ls.log_probs(case.model, [prompt], [answer], found.add(1, 2.0), prompt_format="plain", **QUIET)
    change = oracles.add(found.direction[1] * found.difference_norm[1], 2.0)
    at = oracles.Change("resid_post", 1, change, slice(len(ids) - 1, None))
    torch.testing.assert_close(
        scored, oracles.response_log_probs(case.hf, ids, answer, [at]), rtol=1e-4, atol=1e-4
    )  # fmt: skip
    only = oracles.Change("resid_post", 1, change, slice(len(ids), None))
    assert (scored - oracles.response_log_probs(case.hf, ids, answer, [only])).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("labels", "common", "left"),
    [
        ([[5, 1], [5, 2], [5, 3]], [5], [[1], [2], [3]]),
        ([[1], [2]], [], [[1], [2]]),
        ([[5, 5, 1], [5, 5, 2, 7]], [5, 5], [[1], [2, 7]]),
        ([[5, 1], [5, 2], [6, 1]], [], [[5, 1], [5, 2], [6, 1]]),
    ],
)
def test_prompts_end_with_the_first_tokens_that_all_labels_have(
    case: Any, labels: list[list[int]], common: list[int], left: list[list[int]]
) -> None:
    row = ls.prompts.Row([7, 8], [False, True], "x:")
    (read,), (rest,) = until_labels_part(case.model, [row], [labels])
    assert (read.ids, read.own, rest) == ([7, 8, *common], [False, True, *[True] * len(common)], left)
    assert read.text == "x:" + (case.tokenizer.decode(common) if common else "")


def test_one_at_a_time_and_batched_give_the_same_vector_and_each_prompt_is_read_once(case: Any, forwards: Any) -> None:
    one, other = (
        vectors(case.model, TASK, EXAMPLES, negative="empty", templates=(0, 2), batch_size=size, **QUIET)
        for size in (1, "auto")
    )
    torch.testing.assert_close(one.direction, other.direction, rtol=1e-3, atol=1e-4)
    with forwards(case) as calls:
        vectors(case.model, TASK, EXAMPLES, negative="empty", templates=(0, 2), batch_size=1, **QUIET)
    assert len(calls) == len(EXAMPLES) * 3  # the empty prompt has no template


def test_more_examples_of_a_cell_do_not_move_the_vector(case: Any) -> None:
    again = [replace(e, id=f"{e.id}-{i}") for i in range(3) for e in EXAMPLES if (e.y, e.y_s) == ("a", "b")]
    for method in ("mean", "pca"):
        one, other = (
            vectors(case.model, TASK, own, method=method, templates=(0, 5), **QUIET)  # type: ignore[arg-type]
            for own in (EXAMPLES, [*EXAMPLES, *again])
        )
        torch.testing.assert_close(one.direction, other.direction, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one.difference_norm, other.difference_norm)
        torch.testing.assert_close(one.activation_norm, other.activation_norm)
    plain = [last(case, a.prompt) - last(case, b.prompt) for a, b in focus_pairs(TASK, EXAMPLES, templates=(0, 5))]
    unweighted = torch.stack(plain).mean(0)
    assert torch.cosine_similarity(one.direction.double(), unweighted, dim=1).min() < 0.9999


def test_the_first_component_is_that_of_numpy_with_the_weights(case: Any) -> None:
    found = vectors(case.model, TASK, EXAMPLES, method="pca", templates=(3,), **QUIET)
    pairs = focus_pairs(TASK, EXAMPLES, templates=(3,))
    x = torch.stack([last(case, a.prompt) - last(case, b.prompt) for a, b in pairs], 1).numpy()
    counts = {(y, y_s): count for y, y_s, count in focus_toy.CELLS}
    share = np.array([1 / (4 * counts[e.y, e.y_s]) for e in EXAMPLES])
    for layer in range(4):
        values, axes = np.linalg.eigh(np.einsum("p,pi,pj->ij", share, x[layer], x[layer]))
        axis = axes[:, values.argmax()]
        axis = axis * np.sign(axis @ (share @ x[layer]))
        np.testing.assert_allclose(found.direction[layer].numpy(), axis, atol=1e-4)
    assert found.method == "focus_pca" and (found.cosine > 0).all()


def test_swapped_kinds_turn_the_vector_round(case: Any) -> None:
    there = vectors(case.model, TASK, EXAMPLES, templates=(0,), **QUIET)
    back = vectors(case.model, TASK, EXAMPLES, positive="focus(C)", negative="focus(S)", templates=(0,), **QUIET)
    torch.testing.assert_close(there.direction, -back.direction, rtol=1e-4, atol=1e-5)


def test_a_number_of_templates_is_drawn_by_each_example_and_the_same_again() -> None:
    pairs = focus_pairs(TASK, EXAMPLES, templates=4)
    drawn = {e.id: [up.template for up, _ in pairs if up.example is e] for e in EXAMPLES}
    assert all(len(set(own)) == 4 for own in drawn.values())
    assert len({tuple(own) for own in drawn.values()}) > 1
    assert focus_pairs(TASK, EXAMPLES, templates=4) == pairs != focus_pairs(TASK, EXAMPLES, templates=4, seed=1)
    for up, down in pairs:
        assert (up.template, up.example) == (down.template, down.example)
        assert (up.kind, down.kind) == ("focus(S)", "focus(C)")
        assert (up.target, down.target) == (up.example.y_s, up.example.y)


def test_the_vector_says_what_it_was_made_of_and_survives_a_file(case: Any, tmp_path: Any) -> None:
    found = vectors(case.model, TASK, EXAMPLES, templates=(2, 0), layers=[1, 3], **QUIET)
    about = {"task": "toy", "positive": "focus(S)", "negative": "focus(C)", "templates": "0 2", "spurious": "fruit"}
    assert about.items() <= found.metadata.items() and found.metadata["n_pairs"] == str(2 * len(EXAMPLES))
    assert found.layers == [1, 3] and found.method == "focus_mean"
    other = vectors(case.model, TASK, EXAMPLES[::-1], templates=(2, 0), layers=[1, 3], **QUIET)
    assert other.metadata["data_hash"] != found.metadata["data_hash"]
    loaded = Directions.load(found.save(tmp_path / "vectors.safetensors"))
    assert loaded.add(3, 2.0).content_hash() == found.add(3, 2.0).content_hash()


def test_an_interrupted_fit_goes_on_where_it_stopped(case: Any, tmp_path: Any, forwards: Any) -> None:
    first = vectors(case.model, TASK, EXAMPLES, templates=(0,), resume=tmp_path, **QUIET)
    with forwards(case) as calls:
        again = vectors(case.model, TASK, EXAMPLES, templates=(0,), resume=tmp_path, **QUIET)
    assert calls == [] and torch.equal(first.direction, again.direction)


def test_the_random_control_is_as_long_at_every_strength(case: Any) -> None:
    found = vectors(case.model, TASK, EXAMPLES, templates=(0,), **QUIET)
    for own in (found, found.random(1)):
        edit = own.add(2, -1.5)[0][1].edit  # type: ignore[attr-defined]
        torch.testing.assert_close((edit.strength * edit.vector).norm(), 1.5 * found.difference_norm[2])


# --- weights -------------------------------------------------------------------------------------------------------


def test_every_cell_has_the_same_weight() -> None:
    weights = cell_weights(TASK, EXAMPLES)
    assert float(weights.sum()) == pytest.approx(1)
    for y, y_s, _ in focus_toy.CELLS:
        own = [float(w) for w, e in zip(weights, EXAMPLES, strict=True) if (e.y, e.y_s) == (y, y_s)]
        assert sum(own) == pytest.approx(0.25) and len(set(own)) == 1


def test_labels_that_no_value_stands_for_are_no_cells() -> None:
    three = replace(TASK, labels=("a", "b", "c"))
    more = [*EXAMPLES, focus_toy.example(90, "a", "a"), focus_toy.example(91, "a", "b")]
    more[-2], more[-1] = replace(more[-2], y="c"), replace(more[-1], y="c")
    assert cell_weights(three, more)[-1] == pytest.approx(1 / 6)
    with pytest.raises(ValueError, match=r"\(y='a', y_s='c'\), \(y='b', y_s='c'\), \(y='c', y_s='c'\).*9 cells"):
        cell_weights(replace(three, meanings={}), more)


def test_equal_weights_are_the_unweighted_fit_and_others_are_checked() -> None:
    draw = torch.Generator().manual_seed(0)
    sides = [torch.randn(2, 5, 8, generator=draw) for _ in range(2)]
    hooks = [f"blocks.{i}.hook_resid_post" for i in range(2)]

    def fit(weights: torch.Tensor | None) -> Directions:
        def find(a: torch.Tensor, b: torch.Tensor, small: float) -> torch.Tensor:
            return (a - b).mean(0)

        return fit_directions(sides, "resid_post", "caa", find, hooks, {}, None, weights=weights)

    for name in ("direction", "difference_norm", "activation_norm", "cosine", "auroc"):
        torch.testing.assert_close(getattr(fit(torch.full((5,), 3.0)), name), getattr(fit(None), name))
    one = fit(torch.tensor([1e9, 1.0, 1.0, 1.0, 1.0]))
    torch.testing.assert_close(one.difference_norm, (sides[0] - sides[1])[:, 0].norm(dim=1))
    for bad in (torch.ones(4), torch.tensor([1.0, 1, 1, 1, 0]), torch.tensor([1.0, 1, 1, 1, math.nan])):
        with pytest.raises(ValueError, match="weights must be 5 positive numbers"):
            fit(bad)


# --- refusals ------------------------------------------------------------------------------------------------------


def test_an_empty_cell_is_named(case: Any, forwards: Any) -> None:
    some = [e for e in EXAMPLES if (e.y, e.y_s) != ("b", "a")]
    with forwards(case) as calls, pytest.raises(ValueError, match=r"no examples of 'toy' have \(y='b', y_s='a'\)"):
        vectors(case.model, TASK, some, **QUIET)
    assert calls == []


OTHER = FocusExample("x", {"text": "t"}, "a", "colour", "red", "b")
SHORT = Wording("short", focus=("{focused}!",), ignore=("not {ignored}", "no {ignored}"), both=TRAINING.both)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"positive": "focus(C)"}, r"positive and negative are both 'focus\(C\)'"),
        ({"positive": "look(S)"}, "kinds must be some of"),
        ({"method": "median"}, r"method must be one of \('mean', 'pca'\), got 'median'"),
        ({"examples": [*EXAMPLES, OTHER]}, "unknown feature 'colour'.*'fruit'"),
        ({"examples": []}, "no examples"),
        ({"templates": 11}, "templates=11 of them cannot be drawn; the wording 'training' has 10"),
        ({"templates": 0}, "templates=0"),
        ({"templates": (0, 10)}, "numbers from 0 to 9"),
        ({"templates": (1, 1)}, "each once"),
        ({"templates": ()}, "give numbers"),
        (
            {"negative": "focus(C)+ignore(S)", "wording": SHORT, "templates": 1},
            r"'focus\(S\)' and 'focus\(C\)\+ignore\(S\)' have 1 and 10 templates in the wording 'short'",
        ),
        ({"site": "nowhere"}, "no hook point"),
        ({"layers": [4]}, "layer 4 is out of range"),
    ],
)
def test_what_cannot_be_fitted_is_refused_before_any_work(
    case: Any, forwards: Any, changes: dict[str, Any], said: str
) -> None:
    options: dict[str, Any] = {"examples": EXAMPLES, **changes, **QUIET}
    case.model  # noqa: B018
    with forwards(case) as calls, pytest.raises(ValueError, match=said):
        vectors(case.model, TASK, **options)
    assert calls == []


@pytest.mark.parametrize("templates", ["0", 1.5, (0.0,), None])
def test_templates_that_are_no_numbers_are_refused(case: Any, templates: Any) -> None:
    with pytest.raises(TypeError, match="templates must be"):
        vectors(case.model, TASK, EXAMPLES, templates=templates, **QUIET)


def test_free_text_and_prompts_that_are_too_long_are_refused(case: Any, llama: Any) -> None:
    free = replace(TASK, labels=(), meanings={})
    with pytest.raises(ValueError, match="'toy' has free text for answers"):
        vectors(case.model, free, EXAMPLES, **QUIET)
    words = {"a": "a", "b": "ab"}
    begun = replace(TASK, labels=("a", "ab"), meanings={"fruit": {"fig": "a", "plum": "ab"}})
    with pytest.raises(ValueError, match="the label 'a' is the beginning of 'ab'"):
        vectors(case.model, begun, [replace(e, y=words[e.y], y_s=words[e.y_s]) for e in EXAMPLES], **QUIET)
    with pytest.raises(ValueError, match="context of 128"):
        vectors(llama.model, TASK, EXAMPLES, **QUIET)


# --- label leakage -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "neox"])
def test_leakage_is_the_cosine_with_the_unembedding_before_and_through_the_norm(fresh: Any, architecture: str) -> None:
    longer = {"gpt2": "n_positions"}.get(architecture, "max_position_embeddings")
    wide = {"sliding_window": 1024} if architecture == "gemma2" else {}  # layer 0 has to see the block
    case = fresh(architecture, **{longer: 1024}, **wide)
    task = replace(TASK, labels=("a", "b", "c"), meanings={}, cue="Output:")
    found = vectors(case.model, TASK, EXAMPLES, templates=(0,), **QUIET)
    table = label_leakage(case.model, found, task)
    assert len(table) == 4 * 3 and table["layer"].tolist() == sorted([0, 1, 2, 3] * 3)
    unembed = case.hf.get_output_embeddings().weight.detach().double()
    norm = {"gpt2": "transformer.ln_f", "neox": "gpt_neox.final_layer_norm"}.get(architecture, "model.norm")
    gain = case.hf.get_submodule(norm).weight.detach().double() + (architecture == "gemma2")
    for row in table.itertuples():
        ids = [case.tokenizer.convert_tokens_to_ids(label) for label in (row.label_a, row.label_b)]
        assert ids == [row.token_a, row.token_b]  # the blank before them is common
        difference = unembed[ids[0]] - unembed[ids[1]]
        folded = gain * difference
        folded = folded - folded.mean() * (architecture in ("gpt2", "neox"))
        u = found.direction[row.layer].double()
        assert row.cosine == pytest.approx(float(u @ difference / difference.norm()), abs=1e-6)
        assert row.cosine_folded == pytest.approx(float(u @ folded / folded.norm()), abs=1e-5)
    draws = torch.randn(200_000, 32, generator=torch.Generator().manual_seed(0))
    mean = (draws[:, 0] / draws.norm(dim=1)).abs().mean()
    assert table["expected_random"].iloc[0] == pytest.approx(float(mean), rel=0.02)


def test_the_folded_cosine_is_what_an_edit_at_the_last_layer_does_to_the_logits(case: Any) -> None:
    """Of directions of one length, added so strongly that the prompt does not matter: the logits part by the cosine."""
    found = vectors(case.model, TASK, EXAMPLES, templates=(0,), layers=[3], **QUIET)
    noise = torch.randn(4, 1, 32, generator=torch.Generator().manual_seed(3))
    shifts, cosines = [], []
    for direction in (found.direction, *noise / noise.norm(dim=2, keepdim=True)):
        own = replace(found, direction=direction)
        cosines.append(label_leakage(case.model, own, TASK)["cosine_folded"].iloc[0])
        steering = own.add(3, 1e6, unit="absolute")
        scored = ls.log_probs(case.model, ["so:\n"] * 2, ["a", "b"], steering, prompt_format="plain", **QUIET)
        shifts.append(float(scored[0][0] - scored[1][0]))
    slope = np.dot(shifts, cosines) / np.dot(cosines, cosines)
    assert slope > 1 and np.ptp(cosines) > 0.1
    np.testing.assert_allclose(shifts, slope * np.array(cosines), atol=1e-3)


def test_leakage_of_what_is_no_residual_vector_or_of_another_model_is_refused(case: Any, gpt2: Any) -> None:
    found = vectors(case.model, TASK, EXAMPLES, templates=(0,), site="z", **QUIET)
    with pytest.raises(ValueError, match=r"'z' have shape \[4, 8\].*width 32"):
        label_leakage(case.model, found, TASK)
    with pytest.raises(ValueError, match="does not fit"):
        label_leakage(gpt2.model, found, TASK)
    own = vectors(case.model, TASK, EXAMPLES, templates=(0,), **QUIET)
    with pytest.raises(ValueError, match="free text"):
        label_leakage(case.model, own, replace(TASK, labels=(), meanings={}))
    with pytest.raises(ValueError, match="labels 'a' and 'ab' have the same tokens"):
        label_leakage(case.model, own, replace(TASK, labels=("a", "ab"), meanings={}))
    nothing = replace(own, direction=torch.cat([torch.zeros(1, 32), own.direction[1:]]))
    table = label_leakage(case.model, nothing, TASK)
    assert table["cosine"].isna().tolist() == [True, False, False, False]


# --- after the instruction -----------------------------------------------------------------------------------------


def test_the_slice_begins_after_the_instruction_of_every_prompt(either: Any) -> None:
    where = after_instruction(either.model, TASK)
    for example in EXAMPLES:
        for kind in ("empty", "focus(S)", "focus(C)+ignore(S)"):
            text = TASK.ask(example, kind).prompt  # type: ignore[arg-type]
            ids = either.tokenizer(text)["input_ids"]
            before, after = either.tokenizer.decode(ids[: where.start]), either.tokenizer.decode(ids[where.start :])
            assert before.endswith("<END OF INSTRUCTION>\n\n")
            assert after.startswith("Input:" if kind == "empty" else "<FEATURE CONSIDERATIONS>")


def test_steering_after_the_instruction_is_right_with_padding(either: Any) -> None:
    """Prompts of several lengths in one batch, against plain hooks on each alone."""
    found = vectors(either.model, TASK, EXAMPLES, templates=(0,), **QUIET)
    where = after_instruction(either.model, TASK)
    steering = found.add(1, 2.0, tokens=where)
    kinds = ("empty", "focus(S)", "focus(C)+ignore(S)")
    prompts = [TASK.ask(e, kind).prompt for e in EXAMPLES[:2] for kind in kinds]  # type: ignore[arg-type]
    scored = ls.log_probs(either.model, prompts, [[20, 30]] * 6, steering, prompt_format="plain", **QUIET)
    change = oracles.Change("resid_post", 1, oracles.add(found.direction[1] * found.difference_norm[1], 2.0), where)
    for prompt, own in zip(prompts, scored, strict=True):
        ids = either.tokenizer(prompt)["input_ids"]
        expected = oracles.response_log_probs(either.hf, ids, [20, 30], [change])
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4)
        bare = oracles.response_log_probs(either.hf, ids, [20, 30])
        assert (own - bare).abs().max() > 1e-3


def test_a_tokenizer_that_joins_the_end_of_the_block_to_what_follows_is_refused(
    fresh: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = fresh("gpt2", n_positions=1024)
    case.tokenizer.add_tokens(["\n\nInput"])  # one token over the end of the block, in some prompts only
    with pytest.raises(ValueError, match="does not end at the same token in every prompt"):
        after_instruction(case.model, TASK)
    plain = fresh("gpt2", n_positions=1024)
    plain.tokenizer.add_tokens([">\n\n"])  # the block's own end
    assert (
        after_instruction(plain.model, TASK).start
        == len(plain.tokenizer("<INSTRUCTION>\nSay a or b.\n<END OF INSTRUCTION")["input_ids"]) + 1
    )
    slow = fresh("gpt2", n_positions=1024)
    monkeypatch.setattr(focus_vectors, "tokenize", lambda model, prompts, **how: [ls.prompts.Row([7], [True], "")])
    with pytest.raises(ValueError, match="does not end at the same token"):
        after_instruction(slow.model, TASK)
