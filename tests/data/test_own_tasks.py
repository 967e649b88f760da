from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

import lensteer.data as data
from lensteer.answers import Question
from lensteer.data import SPLITS, TASKS, find_task, open_questions, questions, task_from

SIZES = {
    "sentiment": (60, 30, 60),
    "causes": (40, 20, 40),
    "entailment": (30, 15, 30),
    "knowledge": (40, 20, 40),
    "yes_no": (30, 16, 30),
    "truthful": (24, 12, 24),
    "trivia": (24, 12, 24),
}
CHOICE = [name for name in SIZES if name != "trivia"]
BALANCED = ["sentiment", "causes", "entailment", "knowledge", "yes_no"]


def asked(name: str, split: str, **options):
    return (open_questions if TASKS[name].is_open else questions)(name, split, **options)


# lensteer's own sets


@pytest.mark.parametrize("name", SIZES)
def test_own_sets_have_the_documented_sizes_and_no_prompt_twice_in_or_across_splits(name: str) -> None:
    assert [len(asked(name, split)) for split in SPLITS] == list(SIZES[name])
    prompts = [question.prompt.casefold() for split in SPLITS for question in asked(name, split)]
    assert len(set(prompts)) == len(prompts)


@pytest.mark.parametrize("name", BALANCED)
@pytest.mark.parametrize("split", SPLITS)
def test_every_option_of_an_own_set_is_right_equally_often_in_each_split(name: str, split: str) -> None:
    counts = Counter(question.right for question in questions(name, split))
    assert len(set(counts.values())) == 1
    assert len(counts) == len(questions(name, split, 1)[0].options)


@pytest.mark.parametrize(("name", "field"), [("causes", "choice1"), ("entailment", "premise"), ("yes_no", "passage")])
def test_what_rows_have_in_common_stays_within_a_split(name: str, field: str) -> None:
    rows = [json.loads(line) for line in (Path(data.__file__).parent / f"{name}.jsonl").read_text().splitlines()]
    splits: dict[str, set[str]] = {}
    for row in rows:
        splits.setdefault(row[field], set()).add(row["split"])
    assert {len(where) for where in splits.values()} == {1}


def test_the_two_premises_of_a_pair_of_choices_want_different_ones() -> None:
    """No method can be right by looking at the choices alone."""
    for split in SPLITS:
        by_options: dict[tuple[str, ...], list[str]] = {}
        for question in questions("causes", split, layout="cloze"):
            by_options.setdefault(question.options, []).append(question.gold)
        assert all(sorted(golds) == sorted(options) for options, golds in by_options.items())


@pytest.mark.parametrize("name", SIZES)
def test_own_sets_are_plain_text_without_stray_white_space(name: str) -> None:
    for split in SPLITS:
        for question in asked(name, split):
            assert question.prompt == question.prompt.strip()
            assert "  " not in question.prompt and "{" not in question.prompt
            for text in getattr(question, "options", None) or question.answers:
                assert text == text.strip() != ""


# Descriptions


@pytest.mark.parametrize("name", TASKS)
def test_every_description_can_be_laid_out_and_has_rows_somewhere(name: str) -> None:
    task = find_task(name)
    assert task.own or task.hub
    assert task.about
    for layout, template in task.layouts.items():
        assert template == template.strip()
        assert ("options" in task.placeholders(layout)) == (layout == "letters")


def test_a_benchmark_s_name_never_stands_for_a_set_of_our_own() -> None:
    assert all(bool(task.own) != bool(task.hub) for task in TASKS.values())
    with pytest.raises(ValueError, match=r"no data of 'sst2'.*questions\('sentiment'\).*'hub'"):
        questions("sst2")
    with pytest.raises(ValueError, match="'sentiment' is lensteer's own and not on the hub"):
        questions("sentiment", source="hub")


def test_an_unknown_task_is_refused_with_what_is_near_and_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"'sentimant'; did you mean 'sentiment'\?.*boolq"):
        questions("sentimant")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"color": 1}, "unknown entries"),
        ({"like": "nothing"}, "like 'nothing', which is no task"),
        ({"options": {"labels": ["a", "b"], "field": "c"}}, "options of one kind"),
        ({"options": {"labels": ["a", "b"]}, "layouts": {"x": "{t}"}}, "which field holds the right answer"),
        ({"options": {"labels": ["a", "b"]}, "gold": {"field": "g"}}, "needs a layout"),
        (
            {"options": {"labels": ["a", "b"]}, "gold": {"field": "g", "values": {"0": "c"}}, "layouts": {"x": "{t}"}},
            r"names \['c'\]",
        ),
        (
            {
                "options": {"labels": ["a", "b"]},
                "gold": {"field": "g"},
                "layouts": {"x": "{t}"},
                "opposite": {"a": ["a"], "b": ["a"]},
            },
            "opposite to itself",
        ),
        ({"options": {"wrong": "w"}, "right": {"y": "r"}, "layouts": {"x": "{t}"}}, "right answers for"),
        ({"options": {"answers": "a"}, "layouts": {"x": "{t}"}, "hub": {"path": "p", "splits": {"dev": "d"}}}, "dev"),
    ],
)
def test_a_description_that_does_not_fit_together_is_refused(table: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task_from("mine", table)


def test_a_task_of_one_s_own_is_a_table(tmp_path: Path) -> None:
    table = {
        "options": {"labels": ["spam", "ham"]},
        "gold": {"field": "kind", "values": {"S": "spam", "H": "ham"}},
        "layouts": {"cloze": "Mail: {body}\nKind:"},
    }
    rows = {"body": "Win now", "kind": "S"}, {"body": "See you", "kind": "ham"}
    file = tmp_path / "mail.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert questions(task_from("mail", table), source=file) == [
        Question("Mail: Win now\nKind:", ("spam", "ham"), (0,)),
        Question("Mail: See you\nKind:", ("spam", "ham"), (1,)),
    ]
