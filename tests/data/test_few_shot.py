from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from jsonl import write

from lensteer.answers import Question
from lensteer.data import open_questions, questions, split_questions, with_shots


def review(text: str, label: int, **more: str) -> dict:
    return {"text": text, "label": label, **more}


# Splits of a file


def test_a_file_that_names_its_splits_has_those_and_no_others(file: Path) -> None:
    write(file, review("a", 0, split="fit"), review("b", 1, split="test"), review("c", 0, split="test"))
    assert [q.prompt.count("Review: a") for q in questions("sst2", "fit", source=file)] == [1]
    assert len(questions("sst2", source=file)) == 2
    with pytest.raises(ValueError, match=r"no rows of the split 'validation'; there are fit, test"):
        questions("sst2", "validation", source=file)


def test_division_is_disjoint_by_prompt_complete_and_independent_of_order() -> None:
    whole = [Question(f"q{i % 50}", ("a", "b"), (i % 2,)) for i in range(60)]
    parts = split_questions(whole, {"fit": 0.5, "validation": 0.2, "test": 0.3}, seed=3)
    prompts = {name: {q.prompt for q in part} for name, part in parts.items()}
    assert {name: len(part) for name, part in prompts.items()} == {"fit": 25, "validation": 10, "test": 15}
    assert not prompts["fit"] & prompts["test"] and not prompts["fit"] & prompts["validation"]
    assert sum(map(len, parts.values())) == 60
    turned = split_questions(whole[::-1], {"fit": 0.5, "validation": 0.2, "test": 0.3}, seed=3)
    assert {name: {q.prompt for q in part} for name, part in turned.items()} == prompts
    assert split_questions(whole, seed=4) != split_questions(whole, seed=3)
    assert parts["fit"] == [q for q in whole if q.prompt in prompts["fit"]]


def test_division_by_numbers_takes_that_many_prompts() -> None:
    whole = questions("knowledge") + questions("knowledge", "fit")
    parts = split_questions(whole, {"a": 7, "b": 30})
    assert [len(part) for part in parts.values()] == [7, 30]
    assert split_questions(whole, {"a": np.int64(7), "b": np.int32(30)}) == parts


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"a": 41}, "ask for 41 prompts, but there are 40"),
        ({"a": 0.7, "b": 0.4}, "1.1 together"),
        ({"a": 0.5, "b": 3}, "not both"),
        ({"a": 0}, "above 0"),
        ({}, "there must be a part"),
        ({"a": 0.001, "b": 0.9}, "leave a part empty"),
    ],
)
def test_impossible_divisions_are_refused(sizes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split_questions(questions("knowledge"), sizes)


# Few-shot examples


def test_examples_are_worked_questions_of_the_fit_split_in_front_of_every_question() -> None:
    plain, shot = questions("sentiment"), questions("sentiment", shots=4, seed=1)
    worked = {f"{q.prompt} {q.gold}" for q in questions("sentiment", "fit")}
    fronts = {s.prompt.removesuffix(p.prompt) for s, p in zip(shot, plain, strict=True)}
    assert len(fronts) == 1
    *examples, rest = fronts.pop().split("\n\n")
    assert rest == "" and len(examples) == 4 and set(examples) <= worked
    assert [s.options for s in shot] == [p.options for p in plain]


@pytest.mark.parametrize("layout", ["cloze", "letters"])
def test_examples_are_balanced_over_labels_and_drawn_by_seed(layout: str) -> None:
    options = {"n": 1, "layout": layout}
    prompts = [questions("sentiment", shots=6, seed=seed, **options)[0].prompt for seed in (0, 0, 1)]
    assert prompts[0] == prompts[1] != prompts[2]
    ends = Counter(part.split()[-1] for part in prompts[2].split("\n\n")[:-1])
    assert sorted(ends.values()) == [3, 3]
    five = questions("entailment", shots=5, **options)[0].prompt.split("\n\n")[:-1]
    assert sorted(Counter(part.split()[-1] for part in five).values()) == [1, 2, 2]


def test_open_questions_take_examples_too() -> None:
    question = open_questions("trivia", n=1, shots=2)[0]
    assert question.prompt.count("Answer:") == 3
    assert question.answers == open_questions("trivia", n=1)[0].answers


def test_examples_of_the_same_group_where_the_task_asks_for_it(file: Path) -> None:
    rows = [
        {"question": f"{g}{i}?", "choices": ["x", "y"], "answer": i % 2, "subject": g, "split": s}
        for g in ("law", "art")
        for i, s in enumerate(("fit", "fit", "test"))
    ]
    for question in questions("mmlu", source=write(file, *rows), shots=2):
        assert question.prompt.count(question.group) == 3
    with pytest.raises(ValueError, match="shots=3, but there are 2 examples of the group 'law'"):
        questions("mmlu", source=file, shots=3)


def test_truthfulqa_without_a_training_split_takes_the_examples_written_for_it(file: Path) -> None:
    row = {"question": "Q?", "category": "c", "best_answer": "r", "correct_answers": ["r"], "incorrect_answers": ["w"]}
    question = questions("truthfulqa", source=write(file, row), shots=6)[0]
    assert question.prompt.count("Q: ") == 7 and question.prompt.endswith("\n\nQ: Q?\nA:")
    assert "\n\n" in question.prompt and question.options == ("r", "w")
    with pytest.raises(ValueError, match="comes with 6 examples"):
        questions("truthfulqa", source=file, shots=7)


def test_examples_are_refused_where_they_would_come_from_the_questions(file: Path) -> None:
    write(file, review("a", 0), review("b", 1))
    with pytest.raises(ValueError, match="no training split"):
        questions("sst2", source=file, shots=1)
    with pytest.raises(ValueError, match="come from that split"):
        questions("sentiment", "fit", shots=1)
    with pytest.raises(ValueError, match="shots=-1"):
        questions("sentiment", shots=-1)
    with pytest.raises(ValueError, match="shots=61, but there are 60"):
        questions("sentiment", shots=61)
    test = questions("sentiment")
    with pytest.raises(ValueError, match="is one of the questions"):
        with_shots(test, test[:2], 1)
    with pytest.raises(TypeError, match="prompts that are text"):
        with_shots([Question([{"role": "user", "content": "q"}], ("a", "b"), (0,))], test, 1)


def test_a_sentence_that_a_public_set_repeats_is_no_example_of_itself(file: Path, tmp_path: Path) -> None:
    write(file, review("same", 0), review("other", 1))
    asked_file = write(tmp_path / "test.jsonl", review("same", 0))
    prompt = questions("sst2", source={"fit": file, "test": asked_file}, shots=1)[0].prompt
    assert prompt.count("same") == 1 and "other" in prompt
    with pytest.raises(ValueError, match="shots=2, but there are 1"):
        questions("sst2", source={"fit": file, "test": asked_file}, shots=2)
