"""Beam search over labels against one-at-a-time log-probabilities of the plain model, for every label."""

from __future__ import annotations

import math
from typing import Any

import oracles
import pytest
import torch

from lensteer import STEPS, Add, Steering, at
from lensteer.evaluate import label_beams
from lensteer.evaluate.label_scores import label_ids, label_scores

POST = "blocks.1.hook_resid_post"
PROMPTS = ["Is the sky blue?\nOutput:", "Who?\n", "It was a fine day in the hills, they say.\nOutput:", "Who?\n"]
# They share first tokens, and are of several lengths, one of them above the five new tokens of the paper.
LABELS = ("yes", "yonder", "nope", "not at all")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def search(case: Any, prompts: Any = PROMPTS, labels: Any = LABELS, steering: Any = None, **options: Any) -> Any:
    return label_beams(case.model, prompts, labels, steering, **{"progress": False, **options})


def exact(case: Any, prompts: Any = PROMPTS, labels: Any = LABELS, changes: Any = ()) -> torch.Tensor:
    """[prompt, label], the sum of the log-probabilities of each label's tokens, by plain forward passes."""

    def one(prompt: str, label: str) -> float:
        blank = "" if prompt[-1].isspace() else " "
        ids = case.tokenizer(blank + label, add_special_tokens=False)["input_ids"]
        found = oracles.response_log_probs(case.hf, case.tokenizer(prompt)["input_ids"], ids, changes)
        return float(found.double().sum())

    return torch.tensor([[one(prompt, label) for label in labels] for prompt in prompts], dtype=torch.float64)


def test_beams_score_and_choose_as_the_plain_model_does_for_every_label(tiny) -> None:
    found, expected = search(tiny), exact(tiny)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert found.argmax(-1).tolist() == expected.argmax(-1).tolist()


@pytest.mark.parametrize("scope", ["all", "prompt", "last", "generated", STEPS], ids=str)
def test_edits_act_at_the_same_tokens_under_beams(tiny, scope) -> None:
    edit = Add(random(32), 3.0)
    steering = Steering([(POST, edit if scope == "all" else at(edit, scope))])
    expected = exact(tiny, changes=[oracles.Change("resid_post", 1, oracles.add(random(32), 3.0), scope)])
    found = search(tiny, steering=steering, batch_size=3)  # batches of several lengths, padded on the left
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)
    assert found.argmax(-1).tolist() == expected.argmax(-1).tolist()
    assert (expected - exact(tiny)).abs().max() > 0.1


def test_a_batch_is_as_one_by_one(llama) -> None:
    alone = torch.cat([search(llama, [prompt]) for prompt in PROMPTS])
    for batch_size in (1, 3, "auto"):
        torch.testing.assert_close(search(llama, batch_size=batch_size), alone, atol=1e-4, rtol=0)


def test_a_steering_that_is_open_already_takes_part(llama) -> None:
    steering = Steering([(POST, at(Add(random(32), 3.0), STEPS))])
    with steering.on(llama.model):
        found = search(llama)
    torch.testing.assert_close(found, search(llama, steering=steering), atol=1e-5, rtol=0)


def test_points_that_only_the_lens_has_are_edited_too(llama) -> None:
    steering = Steering([("blocks.1.attn.hook_q", Add(random(4, 8), 3.0))])
    rows, ids = label_ids(llama.model, PROMPTS, LABELS)
    (expected,) = label_scores(llama.model, rows, ids, [steering], progress=False)
    torch.testing.assert_close(search(llama, steering=steering), expected, atol=2e-4, rtol=0)
    assert (expected - exact(llama)).abs().max() > 0.1


def test_equal_prompts_are_searched_once(llama, forwards) -> None:
    search(llama)
    with forwards(llama) as calls:
        search(llama)
    # Three of the four prompts differ; each has four beams, and no label has more than eleven tokens.
    assert calls[0][0] == 3 * 4 and len(calls) <= 12
    assert all(columns == 1 for _, columns in calls[1:])


def test_labels_of_one_token_need_one_pass_and_their_end(llama, forwards) -> None:
    prompts = ["Who?\n", "Where?\n"]
    search(llama, prompts, ("A", "B"))
    with forwards(llama) as calls:
        found = search(llama, prompts, ("A", "B"))
    torch.testing.assert_close(found, exact(llama, prompts, ("A", "B")), atol=1e-4, rtol=0)
    assert len(calls) <= 2


def test_too_few_beams_drop_labels_but_never_change_a_score(llama) -> None:
    labels = ("able", "baker", "cake", "dale", "else", "fire")
    expected = exact(llama, labels=labels)
    all_kept, some = search(llama, labels=labels, num_beams=6), search(llama, labels=labels, num_beams=2)
    torch.testing.assert_close(all_kept, expected, atol=1e-4, rtol=0)
    kept = some.isfinite()
    assert (kept.sum(1) <= 2).all() and kept.any(1).all()
    torch.testing.assert_close(some[kept], expected[kept], atol=1e-4, rtol=0)
    assert (some[~kept] == -math.inf).all()
    # With one token shared by all (the blank), the two that are kept are the two likeliest first letters.
    after = [" " if not prompt[-1].isspace() else "" for prompt in PROMPTS]
    for row, (prompt, blank) in enumerate(zip(PROMPTS, after, strict=True)):
        ids = llama.tokenizer(prompt + blank)["input_ids"]
        letters = [llama.tokenizer(label[0], add_special_tokens=False)["input_ids"][0] for label in labels]
        first = oracles.next_log_probs(llama.hf, ids, [], len(ids))[letters]
        assert set(first.topk(2).indices.tolist()) >= set(kept[row].nonzero().flatten().tolist())


def test_a_label_may_end_at_the_edge_of_the_context(gpt2) -> None:
    prompts = ["x" * (128 - len(" not at all")), "y" * 20]
    torch.testing.assert_close(search(gpt2, prompts), exact(gpt2, prompts), atol=1e-4, rtol=0)


def test_what_the_model_has_as_its_own_settings_of_generation_plays_no_part(fresh) -> None:
    case = fresh("llama")
    expected = search(case)
    own = case.hf.generation_config
    own.repetition_penalty, own.length_penalty, own.num_beam_groups, own.bad_words_ids = 3.0, 2.0, 1, [[100]]
    torch.testing.assert_close(search(case), expected, atol=0, rtol=0)
    assert case.hf.generation_config is own


def test_scores_that_a_steering_broke_are_those_of_no_label(llama) -> None:
    broken = search(llama, steering=[(POST, Add(torch.full((32,), 3e38), 10.0))])
    assert (broken == -math.inf).all()


LONG = "z" * 130
PER_ROW = Steering([(POST, Add(random(32), torch.ones(4)))])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompts": []}, r"no prompts were given"),
        ({"labels": ("yes",)}, r"a choice needs two labels or more, got \('yes',\)"),
        ({"labels": "yes"}, r"a choice needs two labels or more, got 'yes'"),
        ({"labels": ("yes", "")}, r"prompt 0: an answer to .* is empty"),
        (
            {"labels": ("no", "not")},
            r"the label 'no' is the beginning of 'not' for this model \(\[' ', 'n', 'o'\] and \[' ', 'n', 'o', 't'\]\)",
        ),
        ({"labels": ("no", "no ")}, r"the label 'no' is the beginning of 'no '"),
        ({"prompts": ["Who?", LONG]}, r"prompt 1 has 131 tokens before its answer.*context of 128.*never cut"),
        ({"prompts": ["z" * 125]}, r"prompt 0: the prompt .* and its answer have 126 \+ 4 tokens"),
        ({"steering": PER_ROW}, r"values for 4 prompts; beam search copies and reorders rows.*scoring='exact'"),
        ({"steering": [("blocks.9.hook_resid_post", Add(random(32)))]}, r"no hook point"),
        ({"num_beams": 1}, r"num_beams must be 2 or more, got 1"),
        ({"batch_size": 0}, r"batch_size must be"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_any_pass(llama, forwards, changes, words) -> None:
    search(llama, steering=[(POST, Add(random(32)))])  # the survey of hook points
    with forwards(llama) as calls, pytest.raises(ValueError, match=words):
        search(llama, **changes)
    assert calls == []


@pytest.mark.slow
def test_a_label_that_merges_with_its_prompt_is_refused(smollm2) -> None:
    with pytest.raises(ValueError, match=r"prompt 0: the answer 'Paris' merges with the end of its prompt"):
        search(smollm2, ["The capital of France is: "], ("Paris", "Rome"))
