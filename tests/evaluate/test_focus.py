"""Focus accuracy against one-at-a-time log-probabilities of the plain model, and its columns by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import oracles
import pandas as pd
import pytest
import torch

from lensteer import STEPS, Add, Steering, at
from lensteer.data.focus import KINDS, FocusExample, FocusTask, Wording
from lensteer.evaluate import focus_accuracy, focus_accuracy_grid, focus_prompts, label_log_probs
from lensteer.evaluate.focus import _line
from lensteer.evaluate.label_scores import distinct, label_ids

POST = "blocks.1.hook_resid_post"
MEANINGS = {"fruit": {"pear": "bad", "plum": "good"}}
SLOTS = {"mood": "mood", "fruit": "fruit"}
TASK = FocusTask("tiny", "Say it.", {"text": "Input:"}, "Output:", ("good", "bad", "mixed"), "mood", SLOTS, MEANINGS)
WORDS = Wording("short", ("On {focused}.", "See {focused}."), ("Not {ignored}.",), ("{focused}, not {ignored}.",))


def example(name: str, text: str, y: str, s: str, **more: Any) -> FocusExample:
    return FocusExample(name, {"text": text}, y, "fruit", s, MEANINGS["fruit"][s], **more)


TESTS = [
    example("t0", "A dull pear.", "bad", "pear", split="iid"),
    example("t1", "A pear that is in many ways quite fine.", "good", "pear", split="iid"),
    example("t2", "A plum.", "mixed", "plum", split="high"),
]
TRAIN = [example(f"d{i}", f"No. {i}.", "bad", ("pear", "plum")[i % 2]) for i in range(5)]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def wide(fresh) -> Any:
    """Tiny models with room for these prompts: a token is a byte."""
    made: dict[str, Any] = {}

    def make(name: str = "llama", seed: int = 0) -> Any:
        if (name, seed) not in made:
            made[name, seed] = fresh(
                name, seed, **{("n_positions" if name == "gpt2" else "max_position_embeddings"): 640}
            )
        return made[name, seed]

    return make


@pytest.fixture(scope="module")
def model(wide) -> Any:
    return wide()


def ask(case: Any, examples: Any = TESTS, steering: Any = None, **options: Any) -> pd.DataFrame:
    return focus_accuracy(case.model, TASK, examples, steering, **{"wording": WORDS, "progress": False, **options})


def plain(case: Any, prompt: str, changes: Any = ()) -> list[float]:
    """The sums of the log-probabilities of every label's tokens, after a blank."""
    ids = case.tokenizer(prompt)["input_ids"]
    labels = (case.tokenizer(f" {label}", add_special_tokens=False)["input_ids"] for label in TASK.labels)
    return [float(oracles.response_log_probs(case.hf, ids, label, changes).double().sum()) for label in labels]


def likelihoods(found: pd.DataFrame) -> np.ndarray:
    return np.array(found["log_likelihoods"].tolist())


NAMES = ["gpt2", "llama", "gemma2", "mistral", "qwen2", "neox"]
SCOPED = Steering([(POST, at(Add(random(32), 3.0), STEPS))])
CHANGE = oracles.Change("resid_post", 1, oracles.add(random(32), 3.0), STEPS)


@pytest.mark.parametrize("name", NAMES)
def test_every_label_scores_as_the_plain_model_does_one_at_a_time(wide, name) -> None:
    case = wide(name)
    kinds: Any = ["empty", "focus(S)", "focus(S)+ignore(C)"]
    for steering, changes in ((None, []), (SCOPED, [CHANGE])):
        found = ask(case, steering=steering, kinds=kinds)
        asked = focus_prompts(TASK, TESTS, kinds=kinds, wording=WORDS)
        for one, row in zip(asked, found.itertuples(), strict=True):
            expected = plain(case, one.prompt, changes)
            assert row.log_likelihoods == pytest.approx(expected, abs=1e-3)
            assert row.predicted == TASK.labels[int(np.argmax(expected))]
            assert (row.example_id, row.kind, row.template) == (one.example.id, one.kind, one.template)
            assert (row.target, row.correct) == (one.target, row.predicted == one.target)
            assert row.probability_inside == pytest.approx(sum(map(math.exp, expected)), rel=1e-2)


@pytest.mark.parametrize("name", NAMES)
def test_beam_search_and_exact_scores_agree(wide, name) -> None:
    for steering in (None, SCOPED):
        exact, beam = (ask(wide(name), steering=steering, scoring=scoring) for scoring in ("exact", "beam"))
        np.testing.assert_allclose(likelihoods(beam), likelihoods(exact), atol=1e-4)
        pd.testing.assert_frame_equal(beam.drop(columns="log_likelihoods"), exact.drop(columns="log_likelihoods"))


def test_the_table_has_a_row_for_each_example_and_kind(model) -> None:
    found = ask(model)
    assert (
        found.columns.tolist()
        == (
            "example_id source split spurious kind template y s y_s target predicted correct informative says_y "
            "says_y_s probability_inside log_likelihoods"
        ).split()
    )
    assert found["example_id"].tolist() == [test.id for test in TESTS for _ in KINDS]
    assert found["kind"].tolist() == list(KINDS) * 3
    assert found["split"].tolist() == ["iid"] * 12 + ["high"] * 6
    assert found["y"].tolist() == ["bad"] * 6 + ["good"] * 6 + ["mixed"] * 6
    assert found["y_s"].tolist() == ["bad"] * 12 + ["good"] * 6
    assert found["s"].tolist() == ["pear"] * 12 + ["plum"] * 6
    assert set(found["spurious"]) == {"fruit"}
    assert found["target"].tolist() == ["bad"] * 6 + ["good"] * 4 + ["bad"] * 2 + ["mixed"] * 4 + ["good"] * 2
    assert found["informative"].tolist() == [False] * 6 + [True] * 12
    assert (found["correct"] == (found["predicted"] == found["target"])).all()
    assert (found["says_y"] == (found["predicted"] == found["y"])).all()
    assert (found["says_y_s"] == (found["predicted"] == found["y_s"])).all()
    types = found[["template", "correct", "informative", "says_y", "says_y_s", "probability_inside"]].dtypes
    assert types.astype(str).tolist() == ["int64", "bool", "bool", "bool", "bool", "float64"]


def forcing(case: Any, text: str, strength: float = 100.0) -> Steering:
    """Raises this character above all others wherever a token of the answer is predicted."""
    token = case.tokenizer(text, add_special_tokens=False)["input_ids"][0]
    vector = case.hf.get_output_embeddings().weight[token].detach().clone()
    return Steering([("blocks.3.hook_resid_post", at(Add(vector, strength), "generated"))])


def test_a_model_that_says_one_label_is_right_where_that_is_the_target(model) -> None:
    found = ask(model, steering=forcing(model, "b"))
    assert set(found["predicted"]) == {"bad"}
    assert found["correct"].tolist() == (found["target"] == "bad").tolist()
    assert found["says_y"].tolist() == [True] * 6 + [False] * 12
    assert found["says_y_s"].tolist() == [True] * 12 + [False] * 6


def test_a_batch_is_as_one_by_one(model) -> None:
    alone = [likelihoods(ask(model, [test], kinds=[kind])) for test in TESTS for kind in KINDS]
    for batch_size in (1, 4, "auto"):
        np.testing.assert_allclose(likelihoods(ask(model, batch_size=batch_size)), np.concatenate(alone), atol=1e-4)


@pytest.mark.parametrize("scoring", ["exact", "beam"])
def test_equal_prompts_of_several_splits_are_scored_once_and_as_alone(model, forwards, scoring) -> None:
    splits = [[replace(test, split=split) for test in TESTS] for split in ("iid", "flipped")]  # with the same ids
    ask(model, scoring=scoring)  # the survey of hook points
    with forwards(model) as once:
        ask(model, splits[0], scoring=scoring)
    with forwards(model) as both:
        found = ask(model, splits[0] + splits[1], scoring=scoring)
    assert sum(rows for rows, _ in both) == sum(rows for rows, _ in once)
    alone = pd.concat([ask(model, own, scoring=scoring) for own in splits], ignore_index=True)
    pd.testing.assert_frame_equal(found, alone)


def test_rows_are_equal_by_their_tokens(model) -> None:
    rows, ids = label_ids(model.model, ["one", "two", "one", "three", "two"], TASK.labels)
    assert distinct(rows) == ([0, 1, 3], [0, 1, 0, 2, 1])
    assert len(ids) == 5 and ids[0] == ids[2]


def test_a_steering_may_hold_a_row_for_every_prompt_in_the_order_asked(model) -> None:
    kinds: Any = ["empty", "focus(S)"]
    strengths = torch.tensor([0.0, 1.0, -2.0, 3.0, 0.5, -1.0])
    twins = [TESTS[0], replace(TESTS[0], id="twin"), TESTS[1]]  # equal prompts, steered differently
    found = ask(model, twins, [(POST, at(Add(random(32), strengths), STEPS))], kinds=kinds)
    asked = focus_prompts(TASK, twins, kinds=kinds, wording=WORDS)
    for one, strength, row in zip(asked, strengths, likelihoods(found), strict=True):
        change = oracles.Change("resid_post", 1, oracles.add(random(32), float(strength)), STEPS)
        assert row == pytest.approx(plain(model, one.prompt, [change]), abs=1e-3)
    assert abs(likelihoods(found)[0] - likelihoods(found)[2]).max() > 0.1


def test_a_grid_is_one_table_after_the_other_on_one_reading_of_the_prompts(model, forwards) -> None:
    tried = {"none": None, "late": SCOPED, ("last", 2): [(POST, at(Add(random(32), 2.0), "last"))]}
    options: Any = {"wording": WORDS, "progress": False}
    focus_accuracy_grid(model.model, TASK, TESTS, tried, **options)
    with forwards(model) as one:
        focus_accuracy_grid(model.model, TASK, TESTS, {"late": SCOPED}, **options)
    with forwards(model) as calls:
        grid = focus_accuracy_grid(model.model, TASK, TESTS, tried, **options)
    # Tokens that are read: every prompt once, not three times.
    assert sum(rows * columns for rows, columns in calls) < 1.5 * sum(rows * columns for rows, columns in one)
    assert grid.columns[0] == "steering"
    assert grid["steering"].tolist() == [name for name in tried for _ in range(18)]
    for number, steering in enumerate(tried.values()):
        alone, part = ask(model, steering=steering), grid.iloc[18 * number : 18 * number + 18].reset_index(drop=True)
        np.testing.assert_allclose(likelihoods(part), likelihoods(alone), atol=1e-4)
        dropped = ["log_likelihoods", "probability_inside"]
        pd.testing.assert_frame_equal(part.drop(columns=["steering", *dropped]), alone.drop(columns=dropped))
    beams = focus_accuracy_grid(model.model, TASK, TESTS, tried, scoring="beam", **options)
    np.testing.assert_allclose(likelihoods(beams), likelihoods(grid), atol=1e-4)


def test_without_being_told_every_kind_gives_the_empty_answer_to_its_own_target(model) -> None:
    told, untold = ask(model), ask(model, told=False)
    assert untold["target"].tolist() == told["target"].tolist()
    assert untold["kind"].tolist() == told["kind"].tolist()
    empty = likelihoods(told[told["kind"] == "empty"]).repeat(6, axis=0)
    np.testing.assert_allclose(likelihoods(untold), empty, atol=1e-4)
    assert (untold["correct"] == (untold["predicted"] == untold["target"])).all()


def test_demonstrations_are_read_before_the_query(model) -> None:
    options: Any = {"shots": 2, "demonstrations": TRAIN, "kinds": ["focus(S)"], "seed": 3}
    found = ask(model, **options)
    for one, row in zip(focus_prompts(TASK, TESTS, wording=WORDS, **options), found.itertuples(), strict=True):
        assert one.prompt.count("<INSTRUCTION>") == 3
        assert row.log_likelihoods == pytest.approx(plain(model, one.prompt), abs=1e-3)
        assert row.target == one.example.y_s


# Product of experts ---------------------------------------------------------------


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def test_a_product_of_experts_is_what_numpy_says(model, wide) -> None:
    other = wide("gpt2", 1)
    mine = softmax(likelihoods(ask(model)))
    theirs = softmax(np.array([plain(other, TASK.prompt(test)) for test in TESTS])).repeat(6, axis=0)
    expected = mine * theirs / (mine * theirs).sum(axis=1, keepdims=True)
    found = ask(model, bias=other.model)
    np.testing.assert_allclose(np.exp(likelihoods(found)), expected, atol=1e-4)
    assert found["predicted"].tolist() == [TASK.labels[i] for i in expected.argmax(axis=1)]
    assert abs(expected - mine).max() > 0.01
    np.testing.assert_allclose(found["probability_inside"], ask(model)["probability_inside"])  # of the model itself
    empty = focus_prompts(TASK, TESTS, kinds=["empty"])
    predictions = label_log_probs(other.model, TASK, empty, progress=False)
    for given in (predictions, predictions.numpy(), predictions.tolist(), predictions + 7):
        pd.testing.assert_frame_equal(ask(model, bias=given), found)


def test_an_example_of_two_splits_has_a_prediction_of_the_bias_in_each(model) -> None:
    splits = [replace(TESTS[0], split=split) for split in ("iid", "high")]
    bias = [[0.0, -900.0, -900.0], [-900.0, -900.0, 0.0]]
    assert ask(model, splits, bias=bias)["predicted"].tolist() == ["good"] * 6 + ["mixed"] * 6


def test_a_bias_that_is_sure_decides_and_one_that_knows_nothing_changes_no_answer(model) -> None:
    sure = np.full((3, 3), -500.0)
    sure[[0, 1, 2], [2, 0, 1]] = 0.0
    assert ask(model, bias=sure)["predicted"].tolist() == ["mixed"] * 6 + ["good"] * 6 + ["bad"] * 6
    flat = ask(model, bias=torch.zeros(3, 3))
    assert flat["predicted"].tolist() == ask(model)["predicted"].tolist()
    np.testing.assert_allclose(np.exp(likelihoods(flat)).sum(axis=1), 1.0)


def test_log_probabilities_are_over_the_labels_alone(model) -> None:
    asked = focus_prompts(TASK, TESTS, wording=WORDS)
    for steering, changes in ((None, []), (SCOPED, [CHANGE])):
        found = label_log_probs(model.model, TASK, asked, steering, progress=False)
        assert found.shape == (18, 3)
        expected = softmax(np.array([plain(model, one.prompt, changes) for one in asked]))
        np.testing.assert_allclose(found.exp().numpy(), expected, atol=1e-4)


# What counts as an answer ---------------------------------------------------------


def test_a_tie_goes_to_the_first_label_and_is_right_about_nothing(fresh) -> None:
    case = fresh("llama", max_position_embeddings=640)
    with torch.no_grad():
        case.hf.get_output_embeddings().weight.zero_()  # every token is equally likely
    task = replace(TASK, labels=("good", "evil"), meanings={"fruit": {"pear": "evil", "plum": "good"}})
    tests = [FocusExample("t", {"text": "A."}, "good", "fruit", "plum", "good")]
    found = focus_accuracy(case.model, task, tests, progress=False)
    assert set(found["predicted"]) == {"good"} and set(found["target"]) == {"good"}
    assert not found[["correct", "says_y", "says_y_s"]].to_numpy().any()


@pytest.mark.parametrize(
    ("values", "predicted", "correct", "inside"),
    [
        ([math.nan, -3.0, -2.0], "mixed", False, math.exp(-3) + math.exp(-2)),
        ([math.nan, -1.0, -2.0], "bad", True, math.exp(-1) + math.exp(-2)),
        ([math.nan] * 3, "good", False, 0.0),
        ([-math.inf] * 3, "good", False, 0.0),
        ([-math.inf, -1.0, -math.inf], "bad", True, math.exp(-1)),
        ([-50.0, 1e-9, -50.0], "bad", True, 1.0),
    ],
)
def test_scores_that_a_steering_broke_are_never_the_largest(values, predicted, correct, inside) -> None:
    line = _line(TASK, TASK.ask(TESTS[0], "empty"), values, values)
    assert (line["predicted"], line["correct"]) == (predicted, correct)
    assert line["probability_inside"] == pytest.approx(inside)


# Refusals -------------------------------------------------------------------------

FREE = replace(TASK, labels=(), meanings={})
ALIKE = replace(TASK, labels=("good", "bad", "mixed", "badly"))
PER_ROW = Steering([(POST, Add(random(32), torch.ones(3)))])
LONG = example("long", "z" * 700, "bad", "pear")


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"task": FREE}, ValueError, r"the answers of 'tiny' are free text, so there are no labels"),
        ({"task": "ss"}, TypeError, r"task must be a lensteer.data.focus.FocusTask, got str"),
        (
            {"task": ALIKE},
            ValueError,
            r"the label 'bad' is the beginning of 'badly' for this model \(\[' ', 'b', 'a', 'd'\] and \[' ', 'b'",
        ),
        ({"examples": []}, ValueError, r"no examples were given"),
        ({"examples": [replace(TESTS[0], y="fine")]}, ValueError, r"example 't0' has the label 'fine'"),
        (
            {"examples": [*TESTS, LONG]},
            ValueError,
            r"example 'long' \(empty\) has 7\d\d tokens before its answer.*context of 640",
        ),
        (
            {"shots": 5, "demonstrations": TRAIN},
            ValueError,
            r"example 't0' \(focus\(C\)\) has \d+ tokens.*context of 640; give shorter texts or fewer demonstrations",
        ),
        ({"shots": 6, "demonstrations": TRAIN}, ValueError, r"shots=6 needs 6 demonstrations or more.*got 5"),
        ({"shots": 1, "demonstrations": TESTS}, ValueError, r"'t0' .*is among the test examples"),
        ({"scoring": "greedy"}, ValueError, r"scoring must be 'exact' or 'beam', got 'greedy'"),
        ({"scoring": "beam", "bias": torch.zeros(3, 3)}, ValueError, r"needs the scores of all labels"),
        ({"bias": torch.zeros(18, 3)}, ValueError, r"bias holds predictions of shape \(18, 3\).*\[example, label\]"),
        ({"bias": [[0.0, 1.0, math.inf]] * 3}, ValueError, r"3 of them not finite"),
        ({"steering": PER_ROW}, ValueError, r"has values for 3 prompts, but 18 are asked \(examples times kinds\)"),
        ({"steering": PER_ROW, "kinds": ["empty"], "scoring": "beam"}, ValueError, r"scoring='exact'"),
        ({"steering": [("blocks.9.hook_resid_post", Add(random(32)))]}, ValueError, r"no hook point"),
        ({"steering": 3}, TypeError, r"steering must be a Steering"),
        ({"steering": [SCOPED]}, TypeError, r"a list of Steerings is no steering; .*focus_accuracy_grid"),
        ({"kinds": ["none"]}, ValueError, r"kinds must be some of"),
        ({"batch_size": 0}, ValueError, r"batch_size must be"),
        ({"batch_size": 0, "scoring": "beam"}, ValueError, r"batch_size must be"),
    ],
)
def test_bad_requests_are_refused_before_any_pass(model, forwards, changes, error, words) -> None:
    ask(model, steering=[(POST, Add(random(32)))])  # the survey of hook points
    options = {"task": TASK, "examples": TESTS, "wording": WORDS, "progress": False, **changes}
    with forwards(model) as calls, pytest.raises(error, match=words):
        focus_accuracy(
            model.model, options.pop("task"), options.pop("examples"), options.pop("steering", None), **options
        )
    assert calls == []


@pytest.mark.parametrize(
    ("steerings", "error", "words"),
    [
        ({}, ValueError, r"no steerings were given"),
        ([None], TypeError, r"steerings must be a mapping, name -> steering, got list.*use focus_accuracy"),
        (SCOPED, TypeError, r"got Steering; for a single one use focus_accuracy"),
        ({"mine": PER_ROW}, ValueError, r"the steering 'mine' has values for 3 prompts, but 18 are asked"),
    ],
)
def test_bad_grids_are_refused_before_any_pass(model, forwards, steerings, error, words) -> None:
    with forwards(model) as calls, pytest.raises(error, match=words):
        focus_accuracy_grid(model.model, TASK, TESTS, steerings, wording=WORDS, progress=False)
    assert calls == []


def test_nothing_asked_has_no_log_probabilities(model) -> None:
    with pytest.raises(ValueError, match="no prompts were given"):
        label_log_probs(model.model, TASK, [])
