"""`score_options`: a grid of steerings on one reading of the prompts, against one pass for every option token."""

from __future__ import annotations

import itertools
from typing import Any

import oracles
import pytest
import torch

from lensteer import STEPS, Add, ScaleElements, SetElements, SetProjection, Steering, at
from lensteer.points import resolve
from lensteer.prompts import Row
from lensteer.scoring import score, score_options


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_same(found: Any, expected: Any, tolerance: float = 2e-4) -> None:
    """Of `Scored` or log-probabilities, the same number of each."""
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(
            getattr(mine, "log_probs", mine), getattr(theirs, "log_probs", theirs), atol=tolerance, rtol=tolerance
        )


PROMPTS = ["Rain falls on the roof, and on us, and on the dog", "The sky", "A", "x"]
OPTIONS = [[" is", "ay, all day", "", "x"], [" b"], ["yes", " no!"], ["", " of course", "."]]
POST, Z = "blocks.1.hook_resid_post", "blocks.2.attn.hook_z"
VALUES, STRENGTHS = random(4, 4, 8, seed=3), torch.tensor([2.0, 0.0, -3.0, 1.0])
MASK = random(4, 8, seed=4) > 0


def asked(case: Any) -> tuple[list[Row], list[list[list[int]]]]:
    """The prompts as tokens, the last one a single token, also where the tokenizer puts a BOS before it."""
    ids = [case.tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    rows = [Row(own, [True] * len(own), prompt) for own, prompt in zip([*ids[:-1], ids[-1][-1:]], PROMPTS, strict=True)]
    return rows, [[case.tokenizer(o, add_special_tokens=False)["input_ids"] for o in own] for own in OPTIONS]


def scaled(x: torch.Tensor) -> torch.Tensor:
    return x * (1 + 4.0 * MASK.flatten())


def steerings() -> dict[str, tuple[Any, Any]]:
    """Steerings, and what each does to row i by its formula."""
    moved = oracles.add(random(32), 3.0)
    found: dict[str, tuple[Any, Any]] = {"none": (None, lambda i: [])}
    for scope in ("last", "generated", STEPS, "all"):
        edits = [(POST, at(Add(random(32), 3.0), scope)), (Z, at(ScaleElements(MASK, 4.0), scope))]
        changes = [oracles.Change("resid_post", 1, moved, scope), oracles.Change("z", 2, scaled, scope)]
        found[str(scope)] = (Steering(edits), lambda i, changes=changes: changes)
    found["values per row"] = (
        Steering([(Z, at(SetElements(VALUES, per_row=True), "last")), (Z, at(ScaleElements(MASK, 4.0), "generated"))]),
        lambda i: [
            oracles.Change("z", 2, lambda x: VALUES[i].flatten().expand_as(x), "last"),
            oracles.Change("z", 2, scaled, "generated"),
        ],
    )
    found["strengths per row"] = (
        Steering([(POST, at(Add(random(32), STRENGTHS), STEPS))]),
        lambda i: [oracles.Change("resid_post", 1, oracles.add(random(32), float(STRENGTHS[i])), STEPS)],
    )
    return found


@pytest.mark.parametrize("batch_size", [2, "auto"])
def test_a_grid_of_steerings_scores_every_option_as_one_pass_per_token_does(tiny, batch_size: Any) -> None:
    rows, options = asked(tiny)
    tried = steerings()
    run = [steering for steering, _ in tried.values()]
    grid = score_options(tiny.model, rows, options, run, batch_size=batch_size, progress=False)
    for (steering, changes), found in zip(tried.values(), grid, strict=True):
        expected = [
            [oracles.response_log_probs(tiny.hf, row.ids, option, changes(i)) for option in options[i]]
            for i, row in enumerate(rows)
        ]
        (alone,) = score_options(tiny.model, rows, options, [steering], batch_size=batch_size, progress=False)
        firsts = [own[0] for own in options]
        first = score(tiny.model, rows, firsts, steering, batch_size=batch_size, progress=False)
        for i, own in enumerate(expected):
            assert_same(found[i], own)
            assert_same(alone[i], own)
            assert_same([first[i]], own[:1])


def test_what_the_model_would_have_said_comes_with_the_scores(tiny) -> None:
    rows, options = asked(tiny)
    steering, changes = steerings()[str(STEPS)]
    (found,) = score_options(tiny.model, rows, options, [steering], progress=False)
    for i, own in enumerate(options):
        for option, scored in zip(own, found[i], strict=True):
            assert len(scored.predicted) == len(option)
            for n, said in enumerate(scored.predicted.tolist()):
                line = oracles.next_log_probs(tiny.hf, rows[i].ids + option[:n], changes(i), len(rows[i]))
                assert line.max() - line[said] < 1e-3


@pytest.mark.parametrize("scope", ["last", STEPS, "all"], ids=str)
def test_strength_zero_is_bit_identical_to_no_steering(tiny, scope: Any) -> None:
    rows, options = asked(tiny)
    edits = [
        (POST, Add(random(32), 0.0)),
        (POST, SetProjection(random(32), 5.0, 0.0)),
        (Z, ScaleElements(MASK, 0.0)),
        (Z, SetElements(VALUES, MASK, 0.0, per_row=True)),
    ]
    zero = Steering((name, at(edit, scope)) for name, edit in edits)
    (plain,), (found,) = (score_options(tiny.model, rows, options, [s], progress=False) for s in (None, zero))
    for mine, theirs in zip(itertools.chain(*found), itertools.chain(*plain), strict=True):
        assert torch.equal(mine.log_probs, theirs.log_probs)
        assert torch.equal(mine.predicted, theirs.predicted)


def test_an_open_steering_adds_to_every_steering_of_a_grid(tiny) -> None:
    rows, options = asked(tiny)
    rows, options = rows[:2], options[:2]
    outer = Steering([(POST, at(SetProjection(random(32, seed=7), 9.0), "last"))])
    inner = Steering([(Z, at(ScaleElements(MASK, 4.0), STEPS))])
    expected = score_options(tiny.model, rows, options, [outer, outer + inner], progress=False)
    with outer.on(tiny.model):
        found = score_options(tiny.model, rows, options, [None, inner], progress=False)
    for mine, theirs in zip(found, expected, strict=True):
        for own, other in zip(mine, theirs, strict=True):
            assert_same(own, other)


def test_a_grid_with_a_point_of_the_lens_alone_is_the_grid_of_each(tiny) -> None:
    rows, options = asked(tiny)
    rows, options = rows[:2], options[:2]
    vector = random(*resolve(tiny.model, "v", 1)[0].shape)
    tried = [None, Steering([("blocks.1.attn.hook_v", at(Add(vector), "last"))]), steerings()["last"][0]]
    grid = score_options(tiny.model, rows, options, tried, progress=False)
    for steering, found in zip(tried, grid, strict=True):
        (alone,) = score_options(tiny.model, rows, options, [steering], progress=False)
        for own, other in zip(found, alone, strict=True):
            assert_same(own, other)


def test_a_short_answer_to_a_long_prompt_beside_a_long_answer_to_a_short_one(tiny) -> None:
    """Padded together they would reach past the context of 128."""
    rows = [Row(list(range(6, 106)), [True] * 100, "long"), Row([7] * 20, [True] * 20, "short")]
    options = [[[9, 8]], [list(range(50, 150))]]
    (found,) = score_options(tiny.model, rows, options, progress=False)
    for row, (option,), (scored,) in zip(rows, options, found, strict=True):
        assert_same([scored], [oracles.response_log_probs(tiny.hf, row.ids, option)])


def test_steerings_of_the_last_prompt_token_on_share_one_reading_of_the_prompt(llama, forwards) -> None:
    prompt = Row(list(range(6, 46)), [True] * 40, "long")
    late = [steerings()[key][0] for key in ("none", "last", "generated", str(STEPS))]
    with forwards(llama) as calls:
        score_options(llama.model, [prompt], [[[7, 8], [9]]], late, progress=False)
        assert [shape for shape in calls if shape[1] > 2] == [(1, 39)]
        score_options(llama.model, [prompt], [[[7, 8], [9]]], [*late, steerings()["all"][0]], progress=False)
    assert [shape for shape in calls if shape[1] > 2] == [(1, 39), (1, 39), (1, 40)]


@pytest.mark.parametrize(
    ("prompts", "options", "tried", "error", "words"),
    [
        (["a"], [], [None], ValueError, r"1 prompts, 0 lists of options and 1 steerings"),
        (["a"], [[[7]]], [], ValueError, r"0 steerings"),
        (["a", "b" * 100], [[[7]], [[7] * 60, [7]]], [None], ValueError, r"prompt 1 and its response have 101 \+ 60"),
        (["a"], [[[7], [999]]], [None], ValueError, r"response 0 holds token 999"),
        (["a"], [[[7]]], [Steering([(POST, Add(random(32), torch.ones(3)))])], ValueError, r"for 3 prompts, but 1"),
        (["a"], [[[7]]], [Steering([(POST, Add(random(31)))])], ValueError, r"has shape \(31,\)"),
    ],
)
def test_bad_options_are_refused_before_any_pass(llama, forwards, prompts, options, tried, error, words) -> None:
    resolve(llama.model, "resid_post", edit=True)
    with forwards(llama) as calls, pytest.raises(error, match=words):
        score_options(llama.model, prompts, options, tried, prompt_format="plain", progress=False)
    assert calls == []
