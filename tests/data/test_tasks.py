from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from jsonl import write

from lensteer.data import TASKS, OpenQuestion, contrastive_pairs, open_questions, questions

REAL = Path(__file__).resolve().parents[3] / "shared" / "data"


def only(task: str, file: Path, row: dict, **options):
    read = open_questions if TASKS[task].is_open else questions
    return read(task, "test", source=write(file, row), **options)[0]


def review(text: str, label: int, **more: str) -> dict:
    return {"text": text, "label": label, **more}


# Rows of public sets, in the shapes in which they are found


@pytest.mark.parametrize("answer", [True, "True", "true", 1, "yes"])
def test_a_label_may_be_a_truth_value_a_number_or_text(file: Path, answer: object) -> None:
    question = only("boolq", file, {"question": "is it so", "passage": "So it is.", "answer": answer})
    assert question.gold == "Yes"
    assert "So it is." in question.prompt and "is it so?" in question.prompt


@pytest.mark.parametrize(
    "row",
    [
        {"choices": ["red", "green", "blue"], "answer": 1},
        {"choices": ["red", "green", "blue"], "answer": "B"},
        {"choices": ["red", "green", "blue"], "answer": "green"},
        {"options": "A. red\nB. green\nC. blue", "answer": "B. green"},
        {"options": "\nA. red\nB. green\nC. blue?", "answer": "B. green", "subject": ""},
    ],
)
def test_options_are_read_from_lists_and_from_lettered_lines(file: Path, row: dict) -> None:
    question = only("mmlu", file, {"question": "Which?", **row})
    assert (question.options, question.right) == (("A", "B", "C"), (1,))
    assert "\nA. red\nB. green\nC. blue" in question.prompt
    cloze = only("mmlu", file, {"question": "Which?", **row}, layout="cloze")
    assert (cloze.options[:2], cloze.gold) == (("red", "green"), "green")
    assert "red" not in cloze.prompt


def test_the_subject_is_the_group(file: Path) -> None:
    row = {"question": "Which?", "choices": ["x", "y"], "answer": 0, "subject": "law"}
    assert only("mmlu", file, row).group == "law"


def test_hub_rows_of_commonsense_qa_copa_winogrande_storycloze_and_xnli_are_understood(file: Path) -> None:
    choices = {"label": ["A", "B"], "text": ["bed", "sea"]}
    assert only("commonsense_qa", file, {"question": "Q?", "choices": choices, "answerKey": "B"}).right == (1,)
    copa = {"premise": "It fell.", "question": "effect", "choice1": "It broke.", "choice2": "It sang.", "label": 0}
    question = only("copa", file, copa, layout="cloze")
    assert question.gold == "It broke."
    assert question.prompt != only("copa", file, {**copa, "question": "cause"}, layout="cloze").prompt
    blank = {"sentence": "_ ran.", "option1": "Ann", "option2": "Bob", "answer": "2"}
    assert only("winogrande", file, blank, layout="cloze").gold == "Bob"
    story = {f"input_sentence_{i}": f"S{i}." for i in range(1, 5)}
    story |= {"sentence_quiz1": "E1.", "sentence_quiz2": "E2.", "answer_right_ending": 1}
    assert only("storycloze", file, story).prompt.startswith("S1. S2. S3. S4.")
    assert only("storycloze", file, story, layout="cloze").gold == "E1."
    pair = {"premise": "P.", "hypothesis": "H.", "label": 2}
    assert only("xnli", file, pair).gold == "False"
    assert only("xnli", file, {**pair, "label": "neutral"}).gold == "Unclear"


def test_truthfulqa_has_all_answers_best_first_or_the_best_and_the_wrong_ones(file: Path) -> None:
    row = {
        "question": "Q?",
        "category": "Law",
        "best_answer": "r2",
        "correct_answers": ["r1", "r2", "both", "r1"],
        "incorrect_answers": ["w1", "both", "w1", "w2"],
    }
    question = only("truthfulqa", file, row)
    assert (question.options, question.right) == (("r2", "r1", "w1", "w2"), (0, 1))
    assert (question.prompt, question.group) == ("Q: Q?\nA:", "Law")
    assert only("truthfulqa", file, row, layout="mc1").options == ("r2", "w1", "w2")
    with pytest.raises(ValueError, match="line 1: no wrong answer"):
        only("truthfulqa", file, {**row, "incorrect_answers": ["both"]})


def test_truthfulqa_is_read_in_its_form_for_multiple_choice_too(file: Path) -> None:
    one = {"choices": ["r", "w1", "w2"], "labels": [1, 0, 0]}
    several = {"choices": ["w1", "r1", "r2", "w2", "r2"], "labels": [0, 1, 1, 0, 0]}
    row = {"question": "Q?", "mc1_targets": one, "mc2_targets": several}
    question = only("truthfulqa", file, row)
    assert (question.options, question.right) == (("r1", "w1", "w2"), (0,))  # r2 is on both sides
    question = only("truthfulqa", file, row, layout="mc1")
    assert (question.options, question.right, question.prompt) == (("r", "w1", "w2"), (0,), "Q: Q?\nA:")
    for labels in ([1, 0], [1, 0, 2], "100", 1):
        with pytest.raises(ValueError, match=r"field 'mc1_targets.labels' is .*1 or 0 for each choice"):
            only("truthfulqa", file, {**row, "mc1_targets": {**one, "labels": labels}}, layout="mc1")
    with pytest.raises(ValueError, match="no field 'incorrect_answers' or 'mc2_targets'; there are 'question'"):
        only("truthfulqa", file, {"question": "Q?"})


@pytest.mark.parametrize("source", [[{"question": "Q?"}], {"test": [{"question": "Q?"}]}, 5])
def test_rows_in_memory_are_no_source(source: object) -> None:
    with pytest.raises(TypeError, match=r"source is .*; it must be 'hub', the path of a JSON-lines file"):
        questions("mmlu", source=source)  # type: ignore[arg-type]


def test_open_answers_are_the_usual_one_and_its_other_spellings_each_once(file: Path) -> None:
    answer = {"value": "Rome", "aliases": ["Roma", "Rome "], "normalized_aliases": ["rome"]}
    question = only("triviaqa", file, {"question": "Capital of Italy", "answer": answer})
    assert question == OpenQuestion("Question: Capital of Italy?\nAnswer:", ("Rome", "Roma"))
    assert question.gold == "Rome"
    assert only("triviaqa", file, {"question": "Q?", "answer": "a"}).answers == ("a",)
    assert only("triviaqa", file, {"question": "Q?", "answer": ["a", "b"]}).answers == ("a", "b")


def test_equal_options_of_a_row_are_one_option(file: Path) -> None:
    row = {"question": "Q?", "options": "A. bent\nB. bent\nC. straight", "answer": "B. bent"}
    question = only("commonsense_qa", file, row, layout="cloze")
    assert (question.options, question.right) == (("bent", "straight"), (0,))
    assert only("commonsense_qa", file, row).options == ("A", "B")


@pytest.mark.parametrize(("answer", "right"), [("1", 0), ("0", 2), (1, 1), ("C", 2), ("B. 2", 1), ("3", 3)])
def test_an_answer_in_digits_is_the_option_that_says_so_and_a_number_is_a_number(
    file: Path, answer: str | int, right: int
) -> None:
    row = {"question": "Q?", "choices": ["1", "2", "0", "3"], "answer": answer}
    assert only("mmlu", file, row).right == (right,)
    spelled = {"question": "Q?", "choices": ["one", "two", "zero", "three"], "answer": "1"}
    assert only("mmlu", file, spelled).right == (1,)


# Bad input


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        ("sst5", {"text": "t"}, "no field 'label' or 'label_text'; there are 'text'"),
        ("sst5", {"text": "t", "label": 7}, "label 7 .*field 'label'.*'neutral'"),
        ("sst5", {"label": 1}, "no field 'text'"),
        ("sst5", {"label": 1, "text": " "}, "field 'text' is ' '"),
        ("mmlu", {"question": "Q?", "choices": [], "answer": 0}, r"field 'choices' or 'options' is \[\]"),
        ("mmlu", {"question": "Q?", "choices": ["a", ""], "answer": 0}, "none empty"),
        ("mmlu", {"question": "Q?", "choices": ["a"], "answer": 0}, "two or more options"),
        ("mmlu", {"question": "Q?", "choices": ["a", "b"], "answer": 2}, "answer 2 .*none of 0 to 1, A, B"),
        ("mmlu", {"question": "Q?", "options": "red, green", "answer": "A"}, "lines 'A. ...'"),
        ("winogrande", {"sentence": "_.", "option1": "a", "option2": "b", "answer": ""}, "answer '' .*1 to 2"),
        (
            "truthfulqa",
            {"question": "Q?", "best_answer": "a", "correct_answers": []},
            "no field 'incorrect_answers'|is",
        ),
        ("triviaqa", {"question": "Q?", "answer": {"value": ""}}, "none empty"),
        ("triviaqa", {"question": "Q?"}, "no answers in"),
        (
            "copa",
            {"premise": "P.", "question": "why", "choice1": "a", "choice2": "b", "label": 0},
            "'why'; it must be one of 'cause', 'effect'",
        ),
    ],
)
def test_a_bad_row_is_named_with_file_line_and_field(file: Path, task: str, row: dict, message: str) -> None:
    with pytest.raises(ValueError, match=rf"data\.jsonl, line 1: .*({message})"):
        only(task, file, row)


def test_unknown_splits_and_layouts_and_too_many_questions_are_refused(file: Path) -> None:
    with pytest.raises(ValueError, match=r"'train'; the splits are 'fit', 'validation', 'test'"):
        questions("sentiment", "train")
    with pytest.raises(ValueError, match=r"no layout 'poem'; there is 'cloze', 'letters'"):
        questions("sentiment", layout="poem")
    with pytest.raises(ValueError, match=r"n=61: the split 'test' of 'sentiment' has 60"):
        questions("sentiment", n=61)
    with pytest.raises(ValueError, match="n=0"):
        questions("sentiment", n=0)
    with pytest.raises(FileNotFoundError, match="missing"):
        questions("boolq", source=file.with_name("missing.jsonl"))
    with pytest.raises(ValueError, match=r"no split 'test'; it has 'fit'"):
        questions("boolq", source={"fit": file})
    with pytest.raises(ValueError, match=r"use open_questions\('trivia'\)"):
        questions("trivia")
    with pytest.raises(ValueError, match=r"use questions\('boolq'\)"):
        open_questions("boolq")


def test_n_takes_the_first_questions() -> None:
    assert questions("knowledge", n=3) == questions("knowledge")[:3]


# Contrastive pairs


@pytest.mark.parametrize("layout", ["cloze", "letters"])
def test_the_wrong_label_of_sst5_is_the_other_pole_at_the_same_intensity(file: Path, layout: str) -> None:
    write(file, *(review(f"t{i}", i % 5) for i in range(200)))
    asked_for = questions("sst5", source=file, layout=layout)
    pairs = contrastive_pairs("sst5", asked_for)
    names = TASKS["sst5"].options if layout == "cloze" else tuple("ABCDE")
    number = {name: i for i, name in enumerate(names)}
    drawn = Counter((number[pair.right], number[pair.wrong]) for pair in pairs)
    assert set(drawn) == {(0, 4), (4, 0), (1, 3), (3, 1), (2, 1), (2, 3)}
    assert min(drawn[2, 1], drawn[2, 3]) >= 8
    assert contrastive_pairs("sst5", asked_for[:30]) == pairs[:30]
    assert contrastive_pairs("sst5", asked_for, seed=1) != pairs


def test_tasks_without_opposites_draw_any_wrong_option_and_open_ones_another_answer() -> None:
    pairs = contrastive_pairs("knowledge", questions("knowledge", layout="letters"))
    assert all(pair.right != pair.wrong for pair in pairs) and len({pair.wrong for pair in pairs}) == 4
    trivia = open_questions("trivia")
    for pair, question in zip(contrastive_pairs("trivia", trivia), trivia, strict=True):
        assert pair.right == question.gold and pair.wrong not in question.answers
        assert pair.wrong in {other.gold for other in trivia}
    with pytest.raises(ValueError, match="no other question"):
        contrastive_pairs("trivia", trivia[:1])
    with pytest.raises(ValueError, match=r"'sst5' has \['very negative'"):
        contrastive_pairs("sst5", questions("sentiment", n=2))
    with pytest.raises(ValueError, match="no questions"):
        contrastive_pairs("sst5", [])


# The hub, without a network


def test_the_hub_is_asked_for_the_described_set_config_split_and_revision(monkeypatch) -> None:
    calls = []
    story = {f"input_sentence_{i}": "S." for i in range(1, 5)}
    story |= {"sentence_quiz1": "E1.", "sentence_quiz2": "E2.", "answer_right_ending": 3}

    def load_dataset(*arguments, **options):
        calls.append((arguments, options))
        return [story]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(ValueError, match=r"juletxara/xstory_cloze, split 'eval', row 0: the answer 3"):
        questions("storycloze", source="hub")
    assert calls == [(("juletxara/xstory_cloze", "en"), {"split": "eval", "revision": "refs/convert/parquet"})]


def test_a_hub_that_cannot_be_used_is_named_with_what_works_instead(monkeypatch) -> None:
    def load_dataset(*_, **__):
        raise ConnectionError("no route\nto host")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(OSError, match=r"'google/boolq' \(ConnectionError: no route\).*questions\('yes_no'\)"):
        questions("boolq", source="hub")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"lensteer\[eval\]"):
        questions("boolq", source="hub")
    with pytest.raises(ValueError, match=r"no labelled split 'validation'; there are 'fit', 'test'"):
        questions("boolq", "validation", source="hub")


# Real files


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the folder of real data {REAL} is absent")
@pytest.mark.parametrize(
    ("task", "name", "rows"),
    [
        ("sst5", "sst5_test", 1000),
        ("boolq", "boolq", 600),
        ("mmlu", "mmlu", 600),
        ("commonsense_qa", "commonsense_qa", 600),
        ("truthfulqa", "truthfulqa", 500),
    ],
)
def test_real_files_are_read_to_the_last_row_in_every_layout(task: str, name: str, rows: int) -> None:
    for layout in TASKS[task].layouts:
        read = questions(task, source=REAL / f"{name}.jsonl", layout=layout)
        assert len(read) == rows
        assert all(question.wrong for question in read)
