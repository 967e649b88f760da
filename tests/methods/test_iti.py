"""ITI against scikit-learn and NumPy by hand, and its steering against plain forward hooks."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from joblib import parallel_config
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupShuffleSplit

import lensteer as ls
from lensteer import Activations, AnswerPair, Contrast, Question, answer_pairs, contrast
from lensteer.methods import iti
from lensteer.methods.iti import ITI

QUESTIONS = [
    Question("Q: Is ice cold?\nA:", ("yes", "no", "never"), 0),
    Question("Q: Sky?\nA:", ("blue", "green"), 0),
    Question("Q: Bees eat\nA:", ("nectar", "stones", "honey"), (0, 2)),
    Question("Two plus two is", ("four", "five"), 0),
    Question("Q: Rome is in\nA:", ("Spain", "Italy"), 1),
    Question("Grass is", ("red", "green", "pink"), 1),
]
PAIRS = answer_pairs(QUESTIONS, wrong="all")
ROWS = [
    (n, option, int(i in q.right))
    for side in (1, 0)
    for n, q in enumerate(QUESTIONS)
    for i, option in enumerate(q.options)
    if int(i in q.right) == side
]  # 7 right and 8 wrong answers, each once
PROMPTS = ["Name a river.", "How far is it to the sea?", "Why?"]
NAMES = [f"blocks.{i}.attn.hook_z" for i in range(4)]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def seen_of(positive: torch.Tensor, negative: torch.Tensor, pairs: list[AnswerPair] | None = None) -> Contrast:
    """A Contrast of given [layer, pair, head, d_head] activations."""
    names = NAMES[: len(positive)]
    pairs = pairs or [AnswerPair(f"question {i}", "yes", "no") for i in range(positive.shape[1])]
    sides = [Activations(dict(zip(names, side, strict=True))) for side in (positive, negative)]
    return Contrast(*sides, names={"z": names}, pairs=pairs)


def made(n_layers: int = 3, pairs: int = 20, heads: int = 5, width: int = 4) -> Contrast:
    return seen_of(random(n_layers, pairs, heads, width) + 0.7, random(n_layers, pairs, heads, width, seed=1))


def z_of(case: Any) -> np.ndarray:
    """[row, layer, head, d_head] of the distinct answers, from plain hooks, one text at a time."""
    rows = []
    for number, answer, _ in ROWS:
        ids = case.tokenizer(f"{QUESTIONS[number].prompt} {answer}")["input_ids"]
        rows.append(torch.stack([x[-1] for x in oracles.read(case.hf, ids, "z", range(4))]).view(4, 4, 8))
    return torch.stack(rows).double().numpy()


@pytest.fixture(scope="module")
def fitted(llama: Any) -> ITI:
    return iti.fit(llama.model, PAIRS, progress=False)


# --- the fit -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", ["mass_mean", "probe"])
@pytest.mark.parametrize("splits", [1, 3])
def test_accuracies_directions_and_sigmas_are_those_of_scikit_learn_and_numpy(
    request: Any, architecture: str, kind: Any, splits: int
) -> None:
    case = request.getfixturevalue(architecture)
    found = iti.fit(case.model, PAIRS, direction=kind, validation=0.4, splits=splits, seed=5, progress=False)
    z, labels = z_of(case), np.array([label for _, _, label in ROWS])
    groups = np.array([number for number, _, _ in ROWS])
    parts = list(GroupShuffleSplit(splits, test_size=0.4, random_state=5).split(z, groups=groups))
    for layer in range(4):
        for head in range(4):
            x = z[:, layer, head]
            probes = [LogisticRegression(max_iter=1000).fit(x[train], labels[train]) for train, _ in parts]
            right = [np.mean(p.predict(x[held]) == labels[held]) for p, (_, held) in zip(probes, parts, strict=True)]
            assert float(found.accuracy[layer, head]) == pytest.approx(np.mean(right), abs=1e-6)
            theta = x[labels == 1].mean(0) - x[labels == 0].mean(0)
            if kind == "probe":
                theta = np.mean([p.coef_[0] for p in probes], 0)
            theta = theta / np.linalg.norm(theta)
            np.testing.assert_allclose(found.direction[layer, head].numpy(), theta, atol=2e-3)
            assert float(found.sigma[layer, head]) == pytest.approx(np.std(x @ theta), rel=2e-3)


def test_random_directions_are_unit_and_reproducible_and_keep_the_accuracies(fitted: ITI, llama: Any) -> None:
    one, again, other = (
        iti.from_contrast(contrast(llama.model, PAIRS, "z", progress=False), direction="random", seed=s, progress=False)
        for s in (0, 0, 1)
    )
    torch.testing.assert_close(one.direction.norm(dim=-1), torch.ones(4, 4))
    assert torch.equal(one.direction, again.direction)
    assert not torch.equal(one.direction, other.direction)
    assert torch.equal(one.accuracy, fitted.accuracy)


def test_the_probes_never_see_an_answer_to_a_validation_question(monkeypatch: pytest.MonkeyPatch) -> None:
    n = 10
    pairs = [AnswerPair(f"question {i}", f"right {j}", f"wrong {j}") for i in range(n) for j in range(3)]
    numbers = torch.arange(n).repeat_interleave(3).float()
    sides = [random(1, 3 * n, 2, 4, seed=i) for i in (0, 1)]
    for side in sides:  # every activation carries the number of its question
        side[..., 0] = numbers[None, :, None]
    trained, measured = [], []
    plain_fit, plain_score = LogisticRegression.fit, LogisticRegression.score

    def fit(self: Any, x: np.ndarray, y: np.ndarray) -> Any:
        trained.append(set(x[:, 0].tolist()))
        return plain_fit(self, x, y)

    def score(self: Any, x: np.ndarray, y: np.ndarray) -> Any:
        measured.append(set(x[:, 0].tolist()))
        assert len(y) == 6 * len(measured[-1])  # all answers, right and wrong, of each
        return plain_score(self, x, y)

    monkeypatch.setattr(LogisticRegression, "fit", fit)
    monkeypatch.setattr(LogisticRegression, "score", score)
    iti.from_contrast(seen_of(*sides, pairs), validation=0.3, splits=4, progress=False)
    assert len(trained) == len(measured) == 2 * 4
    for one, other in zip(trained, measured, strict=True):
        assert one.isdisjoint(other) and len(one | other) == n
        assert len(other) == 3
    assert len({tuple(sorted(m)) for m in measured}) > 1  # splits differ


def test_splits_are_by_question() -> None:
    questions = np.repeat(np.arange(25), 3)
    parts = iti.split_by_question(questions, validation=0.2, splits=5, seed=1)
    for train, held in parts:
        assert not set(questions[train]) & set(questions[held])
        assert len(set(questions[held])) == 5
        assert sorted([*train, *held]) == list(range(75))


def test_a_text_that_occurs_in_several_pairs_counts_once(llama: Any, fitted: ITI) -> None:
    again = iti.fit(llama.model, [*PAIRS, *PAIRS[:7]], progress=False)
    for name in ("accuracy", "direction", "sigma"):
        torch.testing.assert_close(getattr(again, name), getattr(fitted, name))
    assert (fitted.metadata["n_texts"], fitted.metadata["n_questions"]) == ("15", "6")
    z, labels, questions = iti.answers_once(contrast(llama.model, PAIRS, "z", progress=False))
    assert labels.tolist() == [label for _, _, label in ROWS]
    assert questions.tolist() == [number for number, _, _ in ROWS]
    assert z.shape == (4, 15, 4, 8)


def test_one_at_a_time_and_batched_give_the_same_fit(llama: Any, fitted: ITI) -> None:
    one = iti.fit(llama.model, PAIRS, batch_size=1, progress=False)
    for name in ("accuracy", "direction", "sigma"):
        torch.testing.assert_close(getattr(one, name), getattr(fitted, name), rtol=1e-3, atol=1e-4)


def test_a_planted_head_comes_first_with_its_direction() -> None:
    v = torch.tensor([0.0, 0.6, 0.8, 0.0])
    positive, negative = random(3, 60, 5, 4), random(3, 60, 5, 4, seed=1)
    positive[2, :, 3] += 6 * v
    positive[1, :, 0] += 2 * v
    seen = seen_of(positive, negative)
    for kind in ("mass_mean", "probe"):
        found = iti.from_contrast(seen, direction=kind, splits=5, progress=False)  # type: ignore[arg-type]
        assert found.top(2).tolist() == [[2, 3], [1, 0]]
        assert float(found.direction[2, 3] @ v) > 0.95
        assert float(found.accuracy[2, 3]) > 0.95
    assert found.table(1)[["layer", "head"]].iloc[0].tolist() == [2, 3]


def test_sigma_is_taken_from_tuning_activations_where_they_are_given() -> None:
    seen = made()
    tuning = Activations({name: random(30, 5, 4, seed=i + 7) * 3 for i, name in enumerate(NAMES[:3])})
    own, other = (iti.from_contrast(seen, tuning=t, progress=False) for t in (None, tuning))
    assert torch.equal(own.direction, other.direction)
    expected = [
        np.std((tuning[name].double() * other.direction[i]).sum(-1).numpy(), axis=0) for i, name in enumerate(tuning)
    ]
    np.testing.assert_allclose(other.sigma.numpy(), np.stack(expected), rtol=1e-5)
    assert other.metadata["sigma_from"] == "30 other texts"
    with pytest.raises(ValueError, match=r"tuning lacks 'blocks.1.attn.hook_z'"):
        iti.from_contrast(seen, tuning={NAMES[0]: tuning[NAMES[0]]}, progress=False)


def test_tuning_activations_come_from_capture(llama: Any) -> None:
    tuning = ls.capture(llama.model, PROMPTS, "z", progress=False)
    found = iti.fit(llama.model, PAIRS, tuning=tuning, progress=False)
    for i, name in enumerate(NAMES):
        along = torch.einsum("nhd,hd->nh", tuning[name], found.direction[i])
        torch.testing.assert_close(found.sigma[i], along.std(0, correction=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["threading", pytest.param("loky", marks=pytest.mark.slow)])
def test_several_workers_find_the_same(backend: str) -> None:
    seen = made(n_layers=2)
    with parallel_config(backend=backend):  # loky, the default, starts processes
        one, two = (iti.from_contrast(seen, n_jobs=n, progress=False) for n in (1, 2))
    assert torch.equal(one.accuracy, two.accuracy)
    assert torch.equal(one.direction, two.direction)


def test_the_majority_is_what_always_answering_the_larger_class_would_get(llama: Any) -> None:
    found = iti.fit(llama.model, PAIRS, validation=0.4, seed=5, progress=False)
    groups, labels = (np.array([row[i] for row in ROWS]) for i in (0, 2))
    ((_, held),) = GroupShuffleSplit(1, test_size=0.4, random_state=5).split(labels, groups=groups)
    share = labels[held].mean()
    assert found.metadata["majority"] == f"{max(share, 1 - share):.3f}"


def test_a_head_whose_answers_are_equal_is_left_alone() -> None:
    positive, negative = random(2, 20, 3, 4), random(2, 20, 3, 4, seed=1)
    positive[1, :, 2] = negative[1, :, 2] = 0.5
    found = iti.from_contrast(seen_of(positive, negative), progress=False)
    assert not found.direction[1, 2].any() and float(found.sigma[1, 2]) == 0
    ((_, edit), *_) = reversed(found.steering(6, 15.0, tokens="all"))
    assert not edit(torch.zeros(1, 1, 3, 4))[..., 2, :].any()


# --- ranking -------------------------------------------------------------------------------------------------------


def ranked(accuracy: list[list[float]], layers: list[int] | None = None) -> ITI:
    a = torch.tensor(accuracy)
    direction = torch.nn.functional.normalize(random(*a.shape, 4), dim=-1)
    return ITI("mass_mean", direction, torch.full(a.shape, 2.0), a, layers or list(range(len(a))))


def test_ties_go_to_the_lower_layer_then_the_lower_head() -> None:
    found = ranked([[0.5, 0.9], [0.9, 0.5], [0.9, 1.0]])
    assert found.top(6).tolist() == [[2, 1], [0, 1], [1, 0], [2, 0], [0, 0], [1, 1]]
    assert found.table(2)["accuracy"].tolist() == pytest.approx([1.0, 0.9])
    assert found.table(2)["rank"].tolist() == [1, 2]


def test_the_first_k_are_nested(fitted: ITI) -> None:
    order = fitted.top(16).tolist()
    for k in range(17):
        assert fitted.top(k).tolist() == order[:k]
    assert len({tuple(head) for head in order}) == 16
    accuracies = [float(fitted.accuracy[layer, head]) for layer, head in order]
    assert accuracies == sorted(accuracies, reverse=True)


def test_the_random_control_draws_other_heads_and_keeps_their_directions(fitted: ITI) -> None:
    control = fitted.random(seed=2)
    assert torch.equal(control.direction, fitted.direction) and torch.equal(control.sigma, fitted.sigma)
    assert control.top(16).tolist() != fitted.top(16).tolist()
    assert sorted(control.top(16).tolist()) == sorted(fitted.top(16).tolist())
    assert control.top(5).tolist() == fitted.random(seed=2).top(5).tolist()
    assert control.top(5).tolist() != fitted.random(seed=3).top(5).tolist()
    assert "random heads, seed 2" in repr(control)
    assert "random heads" in control.steering(2, 1.0).metadata["name"]


# --- steering ------------------------------------------------------------------------------------------------------


def test_a_layer_has_one_edit_with_zero_rows_for_the_other_heads() -> None:
    found = ranked([[0.5, 0.9, 0.1], [0.2, 0.1, 0.3], [0.8, 1.0, 0.4]], layers=[1, 4, 6])
    steering = found.steering(3, -3.0, tokens="all")
    assert [name for name, _ in steering] == ["blocks.1.attn.hook_z", "blocks.6.attn.hook_z"]
    x = random(2, 5, 3, 4)
    (_, first), (_, last) = steering
    for edit, row, heads in ((first, 0, {1}), (last, 2, {0, 1})):
        change = edit(x) - x
        for head in range(3):
            expected = -3.0 * 2.0 * found.direction[row, head] if head in heads else torch.zeros(4)
            torch.testing.assert_close(change[..., head, :], expected.expand(2, 5, 4), rtol=1e-4, atol=1e-5)
            assert head in heads or torch.equal(edit(x)[..., head, :], x[..., head, :])


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_steering_equals_plain_hooks_at_the_last_position_of_each_step(request: Any, architecture: str) -> None:
    case = request.getfixturevalue(architecture)
    found = iti.fit(case.model, PAIRS, progress=False)
    alpha, k = 8.0, 5
    chosen: dict[int, torch.Tensor] = {}
    for layer, head in found.top(k).tolist():
        chosen.setdefault(layer, torch.zeros(4, 8))[head] = found.sigma[layer, head] * found.direction[layer, head]
    changes = [oracles.Change("z", i, oracles.add(v, alpha), slice(-1, None)) for i, v in chosen.items()]
    steering = found.steering(k, alpha)
    responses = [[20, 30, 40], [25, 35], [50]]
    scored = ls.log_probs(case.model, PROMPTS, responses, steering, prompt_format="plain", progress=False)
    for prompt, response, own in zip(PROMPTS, responses, scored, strict=True):
        ids = case.tokenizer(prompt)["input_ids"]
        expected = oracles.response_log_probs(case.hf, ids, response, changes)
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4)
        assert (own - oracles.response_log_probs(case.hf, ids, response)).abs().max() > 1e-3
    table = ls.generate(case.model, PROMPTS, steering, max_new_tokens=6, prompt_format="plain", progress=False)
    for prompt, ids in zip(PROMPTS, table["token_ids"], strict=True):
        expected_tokens = oracles.greedy(case.hf, case.tokenizer(prompt)["input_ids"], 6, changes, stop=[2, 4])
        assert ids[: len(expected_tokens.sure)] == expected_tokens.sure


def test_no_heads_or_no_strength_change_nothing(llama: Any, fitted: ITI) -> None:
    assert len(fitted.steering(0, 15.0)) == 0
    bare, *others = (
        ls.log_probs(llama.model, PROMPTS, [[20, 30]] * 3, steering, progress=False)
        for steering in (None, fitted.steering(0, 15.0), fitted.steering(7, 0.0))
    )
    for other in others:
        for a, b in zip(bare, other, strict=True):
            assert torch.equal(a, b)


def test_the_strength_can_be_set_afterwards_and_by_row(fitted: ITI) -> None:
    one, other = fitted.steering(3, 15.0), fitted.steering(3, 1.0).at_strength(15.0)
    assert one.content_hash() == other.content_hash()
    assert fitted.steering(3, torch.tensor([0.0, 15.0])).n_rows == 2


@pytest.mark.parametrize("kind", ["mass_mean", "probe", "random"])
def test_saved_heads_come_back_bit_for_bit(llama: Any, tmp_path: Any, kind: Any) -> None:
    found = iti.fit(llama.model, PAIRS, direction=kind, progress=False)
    for one in (found, found.random(1)):
        loaded = ITI.load(one.save(tmp_path / "deep" / "iti.safetensors"))
        for name, value in vars(one).items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(getattr(loaded, name), value)
            else:
                assert getattr(loaded, name) == value
        assert loaded.steering(5, 15.0).content_hash() == one.steering(5, 15.0).content_hash()
        assert repr(loaded) == repr(one)
    assert "15 answers to 6 questions" in repr(found)
    assert "<table" in found._repr_html_()


def test_some_layers_keep_their_numbers(llama: Any, fitted: ITI) -> None:
    some = iti.fit(llama.model, PAIRS, layers=[1, 3], progress=False)
    torch.testing.assert_close(some.accuracy, fitted.accuracy[[1, 3]])
    assert {name for name, _ in some.steering(8, 1.0)} == {NAMES[1], NAMES[3]}
    assert set(some.top(8)[:, 0].tolist()) == {1, 3}


# --- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [-1, 17, 2.0, "3", None, True])
def test_k_is_a_whole_number_of_the_heads_there_are(fitted: ITI, k: Any) -> None:
    for call in (fitted.top, fitted.table, lambda k: fitted.steering(k, 1.0)):
        with pytest.raises(ValueError, match="4 layers of 4 heads, so K is a whole number from 0 to 16"):
            call(k)
    assert len(fitted.top(np.int64(3))) == 3


@pytest.mark.parametrize("strength", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("k", [0, 3])
def test_a_strength_that_is_not_finite_is_refused(fitted: ITI, strength: float, k: int) -> None:
    with pytest.raises(ValueError, match="strength must be finite"):
        fitted.steering(k, strength)


def test_bad_options_are_refused_before_any_reading(llama: Any, forwards: Any) -> None:
    bad: list[tuple[dict[str, Any], str]] = [
        ({"direction": "mean"}, "direction must be one of .*'mean'"),
        ({"validation": 0.0}, "validation=0.0"),
        ({"validation": 1.0}, "validation=1.0"),
        ({"splits": 0}, "splits=0"),
        ({"splits": 1.5}, "splits=1.5"),
        ({"tuning": {}}, "tuning lacks"),
    ]
    with forwards(llama) as calls:
        for options, message in bad:
            with pytest.raises(ValueError, match=message):
                iti.fit(llama.model, PAIRS, progress=False, **options)
        with pytest.raises(ValueError, match="no pairs"):
            iti.fit(llama.model, [])
        with pytest.raises(ValueError, match="1 question cannot be split"):
            iti.fit(llama.model, PAIRS[:2], progress=False)
    assert calls == []


def test_questions_that_cannot_be_split_are_refused() -> None:
    same = [AnswerPair("one question", f"right {i}", f"wrong {i}") for i in range(20)]
    with pytest.raises(ValueError, match="1 question cannot be split"):
        iti.from_contrast(seen_of(random(2, 20, 3, 4), random(2, 20, 3, 4, seed=1), same), progress=False)
    with pytest.raises(ValueError, match=r"3 questions cannot be split with a share of 0\.9"):
        iti.split_by_question(np.array([0, 0, 1, 2]), validation=0.9)


def test_activations_that_are_missing_or_not_finite_are_refused(llama: Any) -> None:
    with pytest.raises(ValueError, match=r"site 'z' was not read; there are \['mlp_out'\]"):
        iti.from_contrast(contrast(llama.model, PAIRS, "mlp_out", progress=False))
    with pytest.raises(ValueError, match="only the moments"):
        iti.from_contrast(contrast(llama.model, PAIRS, "z", reduce="moments", progress=False))
    positive, negative = random(3, 20, 5, 4), random(3, 20, 5, 4, seed=1)
    positive[1, 2, 3, 0] = math.nan
    with pytest.raises(ValueError, match=r"'z' hold NaN or inf in layers \[1\]"):
        iti.from_contrast(seen_of(positive, negative), progress=False)


def test_without_scikit_learn_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("sklearn.model_selection", "sklearn.linear_model"):
        with monkeypatch.context() as missing:
            missing.setitem(sys.modules, module, None)
            with pytest.raises(ImportError, match=r"lensteer\[eval\]"):
                iti.from_contrast(made(), progress=False)
