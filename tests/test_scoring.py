"""Teacher-forced log-probabilities against one pass for every token of every response."""

from __future__ import annotations

from typing import Any

import oracles
import pytest
import torch

from lensteer import Add, SetProjection, Steering, at, generate, log_probs, per_row
from lensteer.points import resolve
from lensteer.prompts import Row

PROMPTS = ["The sky", "A", "Rain falls on the roof, and on us"]
RESPONSES = ["is", " b", "x"]
SCOPES: list[Any] = ["all", "prompt", "generated", "last", 1, -2, slice(-3, None), slice(1, -1), [0, -1, 4]]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def score(case: Any, prompts: Any, responses: Any, steering: Any = None, **options: Any) -> list[torch.Tensor]:
    return log_probs(
        case.model, prompts, responses, steering, **{"prompt_format": "plain", "progress": False, **options}
    )


def wanted(case: Any, prompts: Any, responses: Any, changes: Any) -> list[torch.Tensor]:
    ids = case.tokenizer
    return [
        oracles.response_log_probs(case.hf, ids(p)["input_ids"], ids(r, add_special_tokens=False)["input_ids"], changes)
        for p, r in zip(prompts, responses, strict=True)
    ]


def assert_same(found: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float = 2e-4) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, theirs, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("scope", SCOPES, ids=str)
def test_scores_equal_those_of_one_pass_per_token_in_every_scope(tiny, scope: Any) -> None:
    steering = Steering(
        [
            ("blocks.1.hook_resid_post", at(Add(random(32), 3.0), scope)),
            ("blocks.2.attn.hook_z", at(SetProjection(random(4, 8), 5.0), scope)),
        ]
    )
    changes = [
        oracles.Change("resid_post", 1, oracles.add(random(32), 3.0), scope),
        oracles.Change("z", 2, oracles.set_projection(random(4, 8), 5.0, 1.0), scope),
    ]
    expected = wanted(tiny, PROMPTS, RESPONSES, changes)
    assert_same(score(tiny, PROMPTS, RESPONSES, steering), expected)
    # The same with prompts that several responses share, which are then read once.
    prompts, responses = [*PROMPTS, PROMPTS[2], PROMPTS[0]], [*RESPONSES, "else", ""]
    expected += [*wanted(tiny, prompts[3:4], responses[3:4], changes), torch.zeros(0)]
    assert_same(score(tiny, prompts, responses, steering, batch_size=2), expected)


@pytest.mark.parametrize("batch_size", [1, 2, "auto"])
def test_unsteered_scores_equal_the_plain_models_in_any_batch(tiny, batch_size: Any) -> None:
    assert_same(score(tiny, PROMPTS, RESPONSES, batch_size=batch_size), wanted(tiny, PROMPTS, RESPONSES, []))


def test_the_real_models_scores_are_right_under_steering(smollm2) -> None:
    prompts, responses = ["The capital of France is", "Rain", "Rain"], [" Paris.", " falls", " is wet"]
    steering = Steering([("blocks.20.hook_resid_post", at(Add(random(576), 1.0), "generated"))])
    change = oracles.Change("resid_post", 20, oracles.add(random(576), 1.0), "generated")
    expected = wanted(smollm2, prompts, responses, [change])
    assert_same(score(smollm2, prompts, responses, steering), expected, 1e-3)
    assert_same(score(smollm2, prompts[:2], responses[:2], steering), expected[:2], 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("scope", SCOPES, ids=str)
def test_the_real_models_scores_are_right_in_every_scope(smollm2, scope: Any) -> None:
    prompts, responses = ["The capital of France is", "Rain", "Rain"], [" Paris, of course.", " falls", " is very wet"]
    steering = Steering([("blocks.20.hook_resid_post", at(SetProjection(random(576), 40.0), scope))])
    change = oracles.Change("resid_post", 20, oracles.set_projection(random(576), 40.0, 1.0), scope)
    expected = wanted(smollm2, prompts, responses, [change])
    assert_same(score(smollm2, prompts, responses, steering), expected, 1e-3)
    assert_same(score(smollm2, prompts[:2], responses[:2], steering), expected[:2], 1e-3)


def test_strengths_per_row_score_every_row_alone(tiny) -> None:
    strengths = torch.tensor([0.0, 3.0, -2.0, 1.0])
    prompts, responses = [*PROMPTS, PROMPTS[0]], [*RESPONSES, "xyz"]
    edit = at(Add(random(32), strengths), "generated")
    together = score(tiny, prompts, responses, [("blocks.1.hook_resid_post", edit)], batch_size=2)
    for i, strength in enumerate(strengths.tolist()):
        single = [("blocks.1.hook_resid_post", edit.at_strength(strength))]
        assert_same(score(tiny, [prompts[i]], [responses[i]], single), [together[i]])


def test_several_steerings_in_one_batch_score_each_alone(tiny) -> None:
    v, u = Add(random(32), 3.0), SetProjection(random(32, seed=1), 15.0)
    post = "blocks.1.hook_resid_post"
    candidates = [Steering([(post, v), (post, u)]), Steering([(post, u), (post, v)]), Steering()]
    together = score(tiny, ["Why"] * 3, ["not?"] * 3, per_row(candidates))
    for candidate, found in zip(candidates, together, strict=True):
        assert_same([found], score(tiny, ["Why"], ["not?"], candidate))


def test_an_edit_at_a_point_of_the_lens_alone_is_scored_through_the_lens(tiny) -> None:
    vector = random(*resolve(tiny.model, "v", 1)[0].shape)
    name = "blocks.1.attn.hook_v"
    ids, new = tiny.tokenizer("Why")["input_ids"], tiny.tokenizer("not", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = tiny.model.run_with_hooks(torch.tensor([ids + new]), fwd_hooks=[(name, lambda x, hook: x + vector)])
    expected = logits[0, len(ids) - 1 : -1].log_softmax(-1).gather(1, torch.tensor(new)[:, None])[:, 0]
    assert_same(score(tiny, ["Why"], ["not"], [(name, Add(vector))]), [expected])


def test_an_open_steering_is_scored_too(tiny) -> None:
    steering = Steering([("blocks.1.hook_resid_post", at(Add(random(32), 3.0), "generated"))])
    inside = score(tiny, PROMPTS, RESPONSES, steering)
    shared = score(tiny, PROMPTS[:1] * 2, RESPONSES[:2], steering)
    with steering.on(tiny.model):
        assert_same(score(tiny, PROMPTS, RESPONSES), inside)
        assert_same(score(tiny, PROMPTS[:1] * 2, RESPONSES[:2]), shared)


def test_greedy_tokens_score_highest_token_by_token(tiny) -> None:
    """The ids that generate returns go back in as they are, whatever text they decode to."""
    table = generate(tiny.model, PROMPTS, max_new_tokens=4, prompt_format="plain", progress=False)
    found = score(tiny, PROMPTS, table["token_ids"].tolist())
    for prompt, ids, line in zip(PROMPTS, table["token_ids"], found, strict=True):
        prompt_ids = tiny.tokenizer(prompt)["input_ids"]
        for i, value in enumerate(line):
            best = oracles.next_log_probs(tiny.hf, [*prompt_ids, *ids[:i]], [], len(prompt_ids)).max()
            torch.testing.assert_close(value, best, atol=2e-4, rtol=2e-4)


def test_an_empty_response_has_no_scores(llama) -> None:
    assert [line.tolist() for line in score(llama, ["Why", "A"], ["", []])] == [[], []]
    assert [len(line) for line in score(llama, ["Why", "Why", "Why"], ["", "a", ""])] == [0, 1, 0]


def test_each_distinct_prompt_is_read_once(llama, forwards) -> None:
    with forwards(llama) as calls:
        score(llama, ["A long prompt about nothing"] * 6, ["yes", "no", "maybe", "so", "who", "knows"])
    prompt = len("A long prompt about nothing") + 1
    assert [shape for shape in calls if shape[1] >= prompt] == [(1, prompt)]


def test_a_prompt_and_its_response_fit_together_or_not_by_themselves(llama, forwards) -> None:
    """A long response beside a long prompt of another row is no reason to refuse."""
    found = score(llama, ["x" * 100, "x"], ["y", "y" * 100])
    assert [len(line) for line in found] == [1, 100]
    with forwards(llama) as calls:
        with pytest.raises(ValueError, match=r"prompt 1 and its response have 101 \+ 60 tokens.*context of 128"):
            score(llama, ["x", "x" * 100], ["y", "y" * 60])
        assert calls == []


def test_a_response_may_fill_the_context_since_its_last_token_is_not_read(tiny, forwards) -> None:
    row = Row(tiny.tokenizer("x" * 100)["input_ids"], [], "")
    fits = [97] * (129 - len(row))
    expected = oracles.response_log_probs(tiny.hf, row.ids, fits)
    with forwards(tiny) as calls:
        alone = score(tiny, [row], [fits])
        shared = score(tiny, [row, row], [fits, fits[:1]])
    assert_same([alone[0], *shared], [expected, expected, expected[:1]])
    assert calls[0] == (1, 128)
    with pytest.raises(ValueError, match=r"more than the model's context of 128"):
        score(tiny, [row], [[*fits, 97]])


def test_long_responses_to_one_prompt_are_read_few_at_a_time(llama, forwards) -> None:
    """Each has logits over the whole vocabulary; on a CPU a pass has 512 tokens at most."""
    with forwards(llama) as calls:
        found = score(llama, ["x"] * 12, [chr(97 + i) * 101 for i in range(12)])
    assert sorted(calls[1:]) == [(2, 100), (5, 100), (5, 100)]
    assert_same(found[2:3], wanted(llama, ["x"], ["c" * 101], []))


@pytest.mark.parametrize(
    ("prompts", "responses", "steering", "error", "words"),
    [
        (PROMPTS, ["a"], None, ValueError, r"3 prompts but 1 responses; there must be one response per prompt"),
        (["a", "b"], "xy", None, TypeError, r"responses must be a list; for one response write \[response\]"),
        (["a"], [["b"]], None, TypeError, r"response 0.*token ids"),
        (["a"], [[300]], None, ValueError, r"response 0.*token 300.*262"),
        ([], [], None, ValueError, r"no prompts"),
        (["a"], ["b"], [("blocks.9.hook_resid_post", Add(random(32)))], ValueError, r"no hook point 'blocks.9.hook"),
        (
            ["a", "b"],
            ["c", "d"],
            [("blocks.1.hook_resid_post", Add(random(32), torch.ones(3)))],
            ValueError,
            r"values for 3 prompts, but 2 prompts were given",
        ),
    ],
)
def test_bad_requests_are_refused_before_any_pass(llama, forwards, prompts, responses, steering, error, words) -> None:
    resolve(llama.model, "resid_post", edit=True)
    with forwards(llama) as calls, pytest.raises(error, match=words):
        score(llama, prompts, responses, steering)
    assert calls == []
