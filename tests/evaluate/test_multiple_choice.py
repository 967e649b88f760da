"""Multiple choice against one-at-a-time log-probabilities of the plain model, and its columns by hand."""

from __future__ import annotations

import math
from typing import Any

import oracles
import pandas as pd
import pytest
import torch

from lensteer import STEPS, Add, AnswerPair, Question, ScaleElements, Steering, at, sadi
from lensteer.evaluate import multiple_choice, multiple_choice_grid, require_single_token
from lensteer.evaluate.multiple_choice import _best, _inside

POST = "blocks.1.hook_resid_post"
QUESTIONS = [
    Question("Is the sky blue, on a clear day in the spring?\nAnswer:", ("Yes", "No", "Perhaps so"), (0,), "sky"),
    Question("Who?", ("I", "You and me"), (1,)),
    Question("Name a fruit:", ("a pear", "an oak", "a fig"), (0, 2), "food"),
]
# The prompts end in white space, so that a letter follows as a single token.
LETTERS = [
    Question("Sky?\nA. blue\nB. red\nAnswer:\n", ("A", "B"), (0,)),
    Question("Sun?\nA. cold\nB. hot\nAnswer:\n", ("A", "B"), (1,)),
]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ask(case: Any, questions: Any, steering: Any = None, **options: Any) -> pd.DataFrame:
    return multiple_choice(case.model, questions, steering, **{"progress": False, **options})


def plain(case: Any, question: Question, changes: Any = ()) -> list[torch.Tensor]:
    """The log-probabilities of every token of every option, the answer after a blank."""
    ids, blank = case.tokenizer(question.prompt)["input_ids"], "" if question.prompt[-1].isspace() else " "
    options = (case.tokenizer(blank + option, add_special_tokens=False)["input_ids"] for option in question.options)
    return [oracles.response_log_probs(case.hf, ids, option, changes) for option in options]


def forcing(case: Any, text: str, strength: float = 100.0) -> Steering:
    """The model says this character and nothing else."""
    token = case.tokenizer(text, add_special_tokens=False)["input_ids"][0]
    vector = case.hf.get_output_embeddings().weight[token].detach().clone()
    return Steering([("blocks.3.hook_resid_post", at(Add(vector, strength), STEPS))])


def test_every_option_scores_as_the_plain_model_does_one_at_a_time(tiny) -> None:
    edits = [(POST, at(Add(random(32), 3.0), STEPS))]
    change = oracles.Change("resid_post", 1, oracles.add(random(32), 3.0), STEPS)
    for steering, changes in ((None, []), (edits, [change])):
        found = ask(tiny, QUESTIONS, steering)
        for question, row in zip(QUESTIONS, found.itertuples(), strict=True):
            expected = plain(tiny, question, changes)
            sums = [float(line.sum()) for line in expected]
            means = [float(line.mean()) for line in expected]
            assert row.log_likelihoods == pytest.approx(sums, abs=1e-3)
            assert row.chosen == sums.index(max(sums))
            assert row.correct == (row.chosen in question.right)
            assert row.chosen_normalised == means.index(max(means))
            assert row.correct_normalised == (row.chosen_normalised in question.right)
            assert row.probability_inside == pytest.approx(sum(map(math.exp, sums)), rel=1e-2)


def test_the_table_has_a_row_for_each_question(llama) -> None:
    found = ask(llama, QUESTIONS)
    assert found["question_id"].tolist() == [0, 1, 2]
    assert found["group"].tolist() == ["sky", "", "food"]
    assert found["prompt"].tolist() == [question.prompt for question in QUESTIONS]
    assert found["options"].tolist() == [question.options for question in QUESTIONS]
    assert found["right"].tolist() == [(0,), (1,), (0, 2)]
    kinds = found[["chosen", "correct", "exact", "probability_inside", "said_inside"]].dtypes.astype(str).tolist()
    assert kinds == ["int64", "bool", "bool", "float64", "bool"]
    assert "steering" not in found


def test_characters_count_where_tokens_do_not(llama) -> None:
    """A token is a byte here and the blank before an answer is one, so that 1 + characters are its tokens."""
    by_characters = ask(llama, QUESTIONS, length="characters")
    for question, row in zip(QUESTIONS, by_characters.itertuples(), strict=True):
        values = [s / len(o) for s, o in zip(row.log_likelihoods, question.options, strict=True)]
        assert row.chosen_normalised == values.index(max(values))
    with pytest.raises(ValueError, match=r"length must be 'tokens' or 'characters', got 'words'"):
        ask(llama, QUESTIONS, length="words")


def test_exact_match_counts_the_whole_vocabulary_and_no_letter_case(llama) -> None:
    says_a, says_other = ask(llama, LETTERS, forcing(llama, "A")), ask(llama, LETTERS, forcing(llama, "q"))
    assert says_a["said"].tolist() == ["A", "A"]
    assert says_a["exact"].tolist() == says_a["correct"].tolist() == [True, False]
    assert says_a["said_inside"].all()
    # One of the options is still ahead of the other, though the model says neither.
    assert says_other["said"].tolist() == ["q", "q"]
    assert not says_other["exact"].any() and not says_other["said_inside"].any()
    assert (says_other["probability_inside"] < 0.01).all()
    assert says_other["correct"].sum() == (says_other["chosen"] == [0, 1]).sum()
    small = [Question(LETTERS[0].prompt, ("a", "b"), (0,)), Question(LETTERS[0].prompt, ("aa.", "b"), (0,))]
    found = ask(llama, small, forcing(llama, "A"))
    assert found["exact"].tolist() == [True, False]  # "AAA", of the three tokens of "aa."
    assert not found["said_inside"].any()


def test_exact_match_needs_every_token_of_the_first_right_answer(llama) -> None:
    questions = [
        Question("?\n", ("AAA", "B"), (0,)),
        Question("?\n", ("AAB", "B"), (0,)),
        Question("?\n", ("AA", "AB"), (1, 0)),
        Question("?\n", ("A.", "B"), (0,)),
    ]
    assert ask(llama, questions, forcing(llama, "A"))["exact"].tolist() == [True, False, False, False]


def test_an_option_that_continues_another_adds_no_probability(llama) -> None:
    question = Question("?\n", ("A", "AB", "C", "ABC"), (0,))
    first = oracles.next_log_probs(llama.hf, llama.tokenizer("?\n")["input_ids"], [], 0).exp()
    a, c = (float(first[llama.tokenizer(letter, add_special_tokens=False)["input_ids"][0]]) for letter in "AC")
    assert ask(llama, [question])["probability_inside"][0] == pytest.approx(a + c, rel=1e-3)
    assert _inside([[5], [5, 6], [7]], [math.log(0.5), math.log(0.4), math.log(0.25)]) == pytest.approx(0.75)
    assert _inside([[5, 6], [5, 7]], [math.log(0.5), math.log(0.4)]) == pytest.approx(0.9)
    assert _inside([[5], [6]], [1e-9, -50.0]) == 1.0


def test_a_tie_goes_to_the_first_and_is_not_correct_unless_all_that_tie_are(fresh) -> None:
    case = fresh("llama")
    with torch.no_grad():
        case.hf.get_output_embeddings().weight.zero_()  # every token is equally likely
    questions = [Question("?\n", ("A", "B"), (0,)), Question("?\n", ("A", "B", "CC"), (0, 1))]
    found = ask(case, questions)
    assert found["chosen"].tolist() == [0, 0]
    assert found["correct"].tolist() == [False, True]
    assert found["correct_normalised"].tolist() == [False, False]  # per token all three tie
    assert found["probability_inside"][0] == pytest.approx(2 / 262)


def test_scores_that_a_steering_broke_choose_nothing_right() -> None:
    assert _best([math.nan, -3.0, -2.0], (2,)) == (2, True)
    assert _best([math.nan, math.nan], (0,)) == (0, False)
    assert _best([-math.inf, -math.inf], (0,)) == (0, False)
    assert _inside([[5], [6]], [math.nan, -1.0]) == pytest.approx(math.exp(-1.0))
    assert _inside([[5], [5, 6]], [math.nan, math.nan]) == 0.0  # so that a mean is over all questions


def test_a_grid_is_one_table_after_the_other_on_one_reading_of_the_prompts(llama, forwards) -> None:
    mask = random(4, 8) > 0
    tried = {
        "none": None,
        "add": Steering([(POST, at(Add(random(32), 3.0), "last"))]),
        ("scale", 4): [("blocks.2.attn.hook_z", at(ScaleElements(mask, 4.0), STEPS))],
    }
    with forwards(llama) as calls:
        grid = multiple_choice_grid(llama.model, LETTERS, tried, progress=False)
    prompt = len(llama.tokenizer(LETTERS[0].prompt)["input_ids"])
    assert sum(rows for rows, columns in calls if columns >= prompt - 2) == 2  # every prompt once
    assert list(grid["steering"]) == [name for name in tried for _ in LETTERS]
    for name, steering in tried.items():
        alone = ask(llama, LETTERS, steering)
        part = grid[[own == name for own in grid["steering"]]].drop(columns="steering").reset_index(drop=True)
        pd.testing.assert_frame_equal(part.drop(columns="log_likelihoods"), alone.drop(columns="log_likelihoods"))
        for mine, theirs in zip(part["log_likelihoods"], alone["log_likelihoods"], strict=True):
            assert mine == pytest.approx(theirs, abs=1e-4)
    numbered = multiple_choice_grid(llama.model, LETTERS, list(tried.values()), progress=False)
    assert numbered["steering"].tolist() == [0, 0, 1, 1, 2, 2]


def test_frozen_sadi_has_a_row_for_every_question(tiny) -> None:
    pairs = [AnswerPair(q.prompt, q.gold, q.options[q.wrong[0]]) for q in QUESTIONS]
    for element in ("head", "neuron"):
        fitted = sadi.fit(tiny.model, pairs, element, progress=False)

        def steering(questions: Any, fitted: Any = fitted) -> Steering:
            clean = fitted.read(tiny.model, [q.prompt for q in questions], prompt_format="plain")
            return fitted.steering(3, 4.0, clean=clean)

        together = ask(tiny, QUESTIONS, steering(QUESTIONS), batch_size=2)
        for i, question in enumerate(QUESTIONS):
            alone = ask(tiny, [question], steering([question]))
            assert together["log_likelihoods"][i] == pytest.approx(alone["log_likelihoods"][0], abs=1e-3)
        assert together["log_likelihoods"].tolist() != ask(tiny, QUESTIONS)["log_likelihoods"].tolist()
        with pytest.raises(ValueError, match=r"the steering has values for 3 questions, but 1 were given"):
            ask(tiny, QUESTIONS[:1], steering(QUESTIONS))


def test_strength_zero_and_no_elements_change_nothing(tiny) -> None:
    mask = random(4, 8) > 0
    pairs = [AnswerPair(q.prompt, q.gold, q.options[q.wrong[0]]) for q in QUESTIONS]
    fitted = sadi.fit(tiny.model, pairs, progress=False)
    zero = Steering([("blocks.2.attn.hook_z", at(ScaleElements(mask, 0.0), STEPS))])
    tried = [None, zero, fitted.steering(0, 4.0), fitted.steering(3, 0.0)]
    first, *others = (ask(tiny, QUESTIONS, steering) for steering in tried)
    for other in others:
        pd.testing.assert_frame_equal(other, first, check_exact=True)


def test_a_chat_model_can_be_asked_through_its_template(llama) -> None:
    text = llama.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Who?"}], tokenize=False, add_generation_prompt=True
    )
    ids = llama.tokenizer(text, add_special_tokens=False)["input_ids"]
    options = [llama.tokenizer(option, add_special_tokens=False)["input_ids"] for option in ("I", "You")]
    expected = [float(oracles.response_log_probs(llama.hf, ids, option).sum()) for option in options]
    for prompt in ("Who?", [{"role": "user", "content": "Who?"}]):
        found = ask(llama, [Question(prompt, ("I", "You"), (1,))], prompt_format="chat")
        assert found["log_likelihoods"][0] == pytest.approx(expected, abs=1e-3)


def test_single_tokens_are_required_where_that_is_asked_for(llama, forwards) -> None:
    assert len(ask(llama, LETTERS, single_token=True)) == 2
    require_single_token(llama.model, LETTERS)
    words = r"the answer 'hot' to question 1 \('Sun.*\) is 3 tokens for this model, \['h', 'o', 't'\]"
    mixed = [LETTERS[0], Question(LETTERS[1].prompt, ("A", "hot"), (1,))]
    with forwards(llama) as calls:
        with pytest.raises(ValueError, match=words):
            ask(llama, mixed, single_token=True)
        with pytest.raises(ValueError, match=words):
            require_single_token(llama.model, mixed)
    assert calls == []


def test_an_answer_that_merges_with_its_prompt_is_refused(smollm2) -> None:
    question = Question("The capital of France is: ", ("Paris", "Rome"), (0,))
    with pytest.raises(ValueError, match=r"question 1: the answer 'Paris' merges with the end of its prompt"):
        ask(smollm2, [Question("The capital of France is:", ("Paris", "Rome"), (0,)), question])


LONG = Question("x" * 300, ("A", "B"), (0,))
EDGE = Question("y" * 120, ("no", "it is far too long"), (0,))
PER_ROW = Steering([(POST, Add(random(32), torch.ones(3)))])


@pytest.mark.parametrize(
    ("questions", "options", "error", "words"),
    [
        ([], {}, ValueError, r"no questions were given"),
        (QUESTIONS[0], {}, TypeError, r"questions must be a list of Question, got Question"),
        (["Who?"], {}, TypeError, r"question 0 is 'Who\?'; each is lensteer.Question"),
        ([*LETTERS, LONG], {}, ValueError, r"question 2 \('xxx.*\) has 300 tokens before its answer.*context of 128"),
        ([*LETTERS, EDGE], {}, ValueError, r"question 2: the prompt 'yyy.*121 \+ 19 tokens.*context of 128"),
        (LETTERS, {"steering": PER_ROW}, ValueError, r"the steering has values for 3 questions, but 2 were given"),
        (LETTERS, {"steering": [("blocks.9.hook_resid_post", Add(random(32)))]}, ValueError, r"no hook point"),
        (LETTERS, {"batch_size": 0}, ValueError, r"batch_size must be"),
        (LETTERS, {"prompt_format": "none"}, ValueError, r"prompt_format='none' is unknown"),
    ],
)
def test_bad_questions_are_refused_before_any_pass(llama, forwards, questions, options, error, words) -> None:
    ask(llama, LETTERS, [(POST, Add(random(32)))])  # the survey of hook points
    with forwards(llama) as calls, pytest.raises(error, match=words):
        ask(llama, questions, **options)
    assert calls == []


@pytest.mark.parametrize(
    ("steerings", "error", "words"),
    [
        ({}, ValueError, r"no steerings were given"),
        (None, TypeError, r"steerings must be several.*got NoneType.*use multiple_choice"),
        (Steering([(POST, Add(random(32)))]), TypeError, r"got Steering; for a single one use multiple_choice"),
        ([(POST, Add(random(32)))], TypeError, r"holds the edit at 'blocks.1.hook_resid_post'"),
        ({"mine": PER_ROW}, ValueError, r"the steering 'mine' has values for 3 questions, but 2 were given"),
        ({"mine": 3}, TypeError, r"steering must be a Steering"),
    ],
)
def test_bad_grids_are_refused_before_any_pass(llama, forwards, steerings, error, words) -> None:
    with forwards(llama) as calls, pytest.raises(error, match=words):
        multiple_choice_grid(llama.model, LETTERS, steerings, progress=False)
    assert calls == []


def test_a_list_of_steerings_is_refused_where_one_belongs(llama) -> None:
    with pytest.raises(TypeError, match=r"a list of Steerings is no steering; .*multiple_choice_grid"):
        ask(llama, LETTERS, [Steering([(POST, Add(random(32)))])])
