"""BBQ: the stereotype's answer, seen and unseen features, free answers."""

from __future__ import annotations

import copy
import json
import re
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from lensteer.data.focus import bbq, bbq_task
from lensteer.data.focus.bbq import CATEGORIES
from lensteer.data.focus.bbq_templates import own_bbq_rows

REAL = Path(__file__).resolve().parents[4] / "shared" / "data"
NAMES = ("Age", "Disability_status", "Nationality")
OWN = [row for _, row in own_bbq_rows()]


# A category, the annotation of a person of the group and of another one, and the groups, in BBQ's ways of writing.
STYLES: list[tuple[str, list[str], list[str], list[str]]] = [
    ("Age", ["the grandmother", "old"], ["the grandson", "nonOld"], ["old"]),
    ("Disability_status", ["in a wheelchair", "disabled"], ["baker", "nonDisabled"], ["disabled", "D/deaf"]),
    ("Gender_identity", ["the girl", "girl"], ["the boy", "boy"], ["F"]),
    ("Gender_identity", ["Ann", "F"], ["Bo", "M"], ["F"]),
    ("Gender_identity", ["the man", "man"], ["the woman", "woman"], ["men"]),
    ("Gender_identity", ["the trans woman", "trans"], ["the woman", "nonTrans"], ["Transgender women", "trans"]),
    ("Gender_identity", ["Ann", "trans_F"], ["Eve", "nonTrans_F"], ["Transgender women"]),
    ("Gender_identity", ["Bo", "trans_M"], ["Eve", "nonTrans_F"], ["Transgender women", "transgender men"]),
    ("Nationality", ["Malian", "Africa"], ["Icelandic", "Europe"], ["Kenyan", "Malian"]),
    ("Physical_appearance", ["fat", "obese"], ["slim", "nonObese"], ["obese"]),
    (
        "Physical_appearance",
        ["with a scar", "visibleDifference"],
        ["tall", "noVisibleDifference"],
        ["visible difference"],
    ),
    ("Race_ethnicity", ["Ann Low", "F-Black"], ["Eve High", "F-White"], ["Black", "African American"]),
    ("Race_ethnicity", ["Ed Low", "M-Latino"], ["Jo High", "M-white"], ["Hispanic", "Latino"]),
    ("Race_ethnicity", ["Al Low", "M-Middle Eastern"], ["Jo High", "M-White"], ["Arab", "Middle Eastern"]),
    ("Race_ethnicity", ["African American", "African American"], ["African", "African"], ["Black", "African American"]),
    ("Religion", ["the Muslim", "Muslim"], ["the Buddhist", "Buddhist"], ["Muslims"]),
    ("SES", ["the clerk", "lowSES"], ["the lawyer", "highSES"], ["low SES"]),
    ("Sexual_orientation", ["the gay man", "gay"], ["the straight man", "straight"], ["gay"]),
]


def row(**change: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "example_id": 0,
        "category": "Gender_identity",
        "question_polarity": "neg",
        "context_condition": "ambig",
        "context": "Ann and Bo came.",
        "question": "Who was late?",
        "ans0": "Bo",
        "ans1": "Unknown",
        "ans2": "Ann",
        "answer_info": {"ans0": ["Bo", "man"], "ans1": ["Unknown", "unknown"], "ans2": ["Ann", "woman"]},
        "additional_metadata": {"stereotyped_groups": ["F"]},
        "label": 1,
    }
    return copy.deepcopy({**made, **change})


def many(n: int = 40, **change: Any) -> list[dict[str, Any]]:
    return [row(**{"example_id": 4 * i, "context": f"Ann and Bo came on day {i}.", **change}) for i in range(n)]


def test_a_negative_question_takes_the_stereotyped_person_and_another_one_the_other() -> None:
    assert {e.y_s for e in bbq(many()).train} == {"3"}
    assert {e.y_s for e in bbq(many(question_polarity="nonneg")).train} == {"1"}
    example = bbq(many()).train[0]
    assert (example.y, example.s, example.spurious) == ("2", "F", "gender identity")
    assert example.options == ("Bo", "Unknown", "Ann")


def both_ways(category: str, of_group: list[str], other: list[str], groups: list[str]) -> list[dict[str, Any]]:
    """Eight rows as BBQ makes them: either person first, two questions, without and with what settles them."""
    made: list[dict[str, Any]] = []
    for people in ((of_group, other), (other, of_group)):
        for polarity, right in (("neg", 0), ("nonneg", 2)):
            for condition in ("ambig", "disambig"):
                does, does_not = people[0][0], people[1][0]
                more = f" {does} was late; {does_not} was not." if condition == "disambig" else ""
                made.append(
                    row(
                        example_id=len(made),
                        category=category,
                        question_polarity=polarity,
                        context_condition=condition,
                        context=f"I saw {does} and {does_not}.{more}",
                        **{f"ans{k}": text for k, text in ((0, does), (1, "Unknown"), (2, does_not))},
                        answer_info={"ans0": people[0], "ans1": ["Unknown", "unknown"], "ans2": people[1]},
                        additional_metadata={"stereotyped_groups": groups},
                        label=1 if condition == "ambig" else right,
                    )
                )
    return made


def test_the_styles_are_those_of_all_nine_categories() -> None:
    assert {category for category, *_ in STYLES} == set(CATEGORIES)


@pytest.mark.parametrize(("category", "of_group", "other", "groups"), STYLES)
def test_in_every_style_the_stereotype_is_right_in_a_quarter(
    category: str, of_group: list[str], other: list[str], groups: list[str], recwarn: pytest.WarningsRecorder
) -> None:
    eight = both_ways(category, of_group, other, groups)
    rows = [{**one, "example_id": 8 * i + k, "context": f"{one['context']} Day {i}."} for i in range(20)
            for k, one in enumerate(eight)]  # fmt: skip
    found = bbq(rows, unseen=())
    examples = [example for split in found.splits().values() for example in split]
    assert len(examples) == 160 and not list(recwarn)  # none is left out
    assert sum(e.y == e.y_s for e in examples) / 160 == 0.25
    for example in examples:
        person = example.options[int(example.y_s) - 1]
        negative = rows[int(example.id.rsplit("-", 1)[1])]["question_polarity"] == "neg"
        assert person == (of_group if negative else other)[0]
        assert example.s in groups and example.spurious == category.replace("_", " ").lower()


@pytest.mark.parametrize(
    ("groups", "info"),
    [
        (["Black", "African American"], {"ans0": ["African", "African"], "ans2": ["Roma", "Roma"]}),
        (["Black", "African American"], {"ans0": ["Ann", "F-African"], "ans2": ["Eve", "F-White"]}),
        (["Black", "African American"], {"ans0": ["Ann", "F-Black"], "ans2": ["Eve", "F-African American"]}),
        (["Transgender women"], {"ans0": ["Ann", "trans_F"], "ans2": ["Bo", "trans_M"]}),
        (["Transgender women"], {"ans0": ["Ann", "nonTrans_F"], "ans2": ["Bo", "nonTrans_M"]}),
        (["F"], {"ans0": ["Ann", "trans_F"], "ans2": ["Bo", "nonTrans_M"]}),
        ([], {"ans0": ["clerk", "lowSES"], "ans2": ["lawyer", "highSES"]}),
    ],
)
def test_rows_of_neither_group_of_both_or_of_none_are_left_out(groups: list[str], info: dict[str, Any]) -> None:
    lost = row(
        example_id=999,
        answer_info={"ans1": ["Unknown", "unknown"], **info},
        additional_metadata={"stereotyped_groups": groups},
    )
    with pytest.warns(UserWarning, match=r"1 of 41 rows are left out.*the first is row 41"):
        found = bbq([*many(), lost])
    assert sum(len(rows) for rows in found.splits().values()) == 40


@pytest.mark.parametrize(
    ("groups", "info", "y_s"),
    [
        (["low SES"], {"ans0": ["clerk", "lowSES"], "ans2": ["lawyer", "highSES"]}, "1"),
        (["Malian", "Kenyan"], {"ans0": ["Icelandic", "Europe"], "ans2": ["Malian", "Africa"]}, "3"),
        (["Transgender women"], {"ans0": ["Ann", "nonTrans"], "ans2": ["Bo", "trans"]}, "3"),
        (["obese"], {"ans0": ["fat", "obese"], "ans2": ["thin", "nonObese"]}, "1"),
    ],
)
def test_groups_are_found_by_tag_or_text_in_every_spelling(groups: list[str], info: dict[str, Any], y_s: str) -> None:
    rows = many(
        answer_info={"ans1": ["Unknown", "unknown"], **info}, additional_metadata={"stereotyped_groups": groups}
    )
    assert {e.y_s for e in bbq(rows).train} == {y_s}


def test_rows_whose_group_cannot_be_told_are_left_out_and_counted() -> None:
    lost = row(example_id=999, additional_metadata={"stereotyped_groups": ["old"]})
    with pytest.warns(UserWarning, match=r"1 of 41 rows are left out.*the first is row 41"):
        found = bbq([*many(), lost])
    assert sum(len(rows) for rows in found.splits().values()) == 40


def test_own_rows_say_the_stereotype_in_a_quarter_of_all_cases() -> None:
    found = bbq()
    report = found.report().set_index("split")
    assert [report.loc[split, "rho"] for split in found.splits()] == pytest.approx([0.25] * 4)
    assert {split: len(rows) for split, rows in found.splits().items()} == {
        "train": 240, "validation": 72, "seen": 72, "unseen": 128
    }  # fmt: skip
    assert {e.spurious for e in found.tests["unseen"]} == {"hobby"}
    assert not {e.spurious for e in (*found.train, *found.validation, *found.tests["seen"])} & {"hobby"}


def test_own_rows_have_the_design_of_bbq() -> None:
    assert len(OWN) == 512 and len({row["example_id"] for row in OWN}) == 512
    kinds = Counter((row["question_polarity"], row["context_condition"]) for row in OWN)
    assert set(kinds.values()) == {128}
    for row in OWN:
        options = [row[f"ans{i}"] for i in range(3)]
        unknown = [i for i in range(3) if row["answer_info"][f"ans{i}"][1] == "unknown"]
        assert len(set(options)) == 3 and len(unknown) == 1
        assert (row["label"] == unknown[0]) == (row["context_condition"] == "ambig")
        people = [option.lower() for i, option in enumerate(options) if i != unknown[0]]
        assert all(person in row["context"].lower() for person in people)
        assert "{" not in row["context"] and row["context"][0].isupper()
    places = Counter(row["label"] for row in OWN)
    assert all(140 < count < 200 for count in places.values())


def test_in_own_rows_the_order_of_the_two_people_does_not_tell_the_answer() -> None:
    settled = [row for row in OWN if row["context_condition"] == "disambig"]
    first = 0
    for row in settled:
        people = [i for i in range(3) if row["answer_info"][f"ans{i}"][1] != "unknown"]
        places = {i: row["context"].lower().index(row[f"ans{i}"].lower()) for i in people}
        first += min(places, key=places.__getitem__) == row["label"]
    assert first / len(settled) == pytest.approx(0.5)


def test_the_rows_of_one_context_stay_together() -> None:
    rows = [
        row(example_id=i, question_polarity=("neg", "nonneg")[i % 2], context=f"On day {i // 4} they came.")
        for i in range(160)
    ]
    parts = [{e.source for e in examples} for examples in bbq(rows).splits().values()]
    assert [len(part) for part in parts] == [32, 4, 4]
    assert len(set.union(*parts)) == 40


PEOPLE = {"ans0": ["Bo", "man"], "ans1": ["Unknown", "unknown"], "ans2": ["Ann", "woman"]}
ANN: dict[str, Any] = {"context": "Ann.", "question_index": "7", "answer_info": PEOPLE}


def sources(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Of every row by its number: the source of its example."""
    found = bbq([*rows, *many(60)], unseen=())
    return {e.id.rsplit("-", 1)[1]: e.source for split in found.splits().values() for e in split}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"context": "Ann and Bo came."}, {"context": "Bo and Ann came."}, True),
        ({"context": "An old man and a girl."}, {"context": "A girl, and an old man."}, True),
        ({"context": "Ann came."}, {"context": "Ann came.", "category": "Age"}, False),
        ({"context": "Ann came."}, {"context": "Bo came."}, False),
        (ANN, {**ANN, "context": "Then Ann."}, True),
        (ANN, {**ANN, "context": "Then Ann.", "question_index": "8"}, False),
        (ANN, {**ANN, "context": "Then Ann.", "category": "Age"}, False),
        (ANN, {**ANN, "context": "Then Ann.", "answer_info": {**PEOPLE, "ans2": ["Eve", "woman"]}}, False),
        (
            ANN,
            {**ANN, "context": "Now.", "answer_info": {**PEOPLE, "ans0": ["Ann", "woman"], "ans2": ["Bo", "man"]}},
            True,
        ),
    ],
)
def test_contexts_of_the_same_words_or_people_are_one_source_whatever_their_numbers(
    one: dict[str, Any], other: dict[str, Any], same: bool
) -> None:
    found = sources([row(example_id=4000, **one), row(example_id=8000, **other)])
    assert (found["0"] == found["1"]) == same


def test_rows_are_one_source_if_others_link_them() -> None:
    rows = [
        row(example_id=4000, context="Ann and Bo came."),
        row(example_id=8000, context="They left."),
        row(example_id=8001, context="Bo and Ann came."),
        row(example_id=9000, context="Left they?"),
    ]
    found = sources(rows)
    assert len({found[str(i)] for i in range(4)}) == 1 and found["0"] == "Gender_identity-1000"


def test_a_context_in_two_given_parts_is_only_tested() -> None:
    twice = row(example_id=4000, context="Bo and Ann came.")
    others = [row(example_id=4 * i, context=f"Day {i}.") for i in range(40)]
    found = bbq({"train": [*others, twice], "test": [row(example_id=5000)]}, unseen=())
    assert len(found.train) + len(found.validation) == 40 and len(found.tests["seen"]) == 1


def test_free_answers_are_the_texts_of_the_options() -> None:
    found, chosen = bbq(free=True), bbq()
    assert found.task.labels == () and found.task.name == "bbq-nlg"
    for split, examples in chosen.splits().items():
        for free, example in zip(found.splits()[split], examples, strict=True):
            assert free.options == () and free.id == example.id
            assert free.y == example.options[int(example.y) - 1] and free.y_s == example.options[int(example.y_s) - 1]
    assert "Answer options" not in found.task.prompt(found.train[0])
    assert "digit" not in found.task.instruction and "digit" in chosen.task.instruction


def test_features_are_named_by_their_category() -> None:
    task = bbq_task()
    assert len(task.spurious) == len(CATEGORIES) == 9
    assert task.core == "question context" and task.slots["gender identity"] == "gender identity"
    assert task.slots["ses"] == "socioeconomic status" and task.labels == ("1", "2", "3")


def test_crossed_categories_are_left_out() -> None:
    found = bbq([*many(), row(category="Race_x_SES", example_id=800)])
    assert {e.spurious for rows in found.splits().values() for e in rows} == {"gender identity"}


def test_unseen_features_can_be_chosen() -> None:
    found = bbq(unseen=("Age", "Region"))
    assert {e.spurious for e in found.tests["unseen"]} == {"age", "region"}
    assert {e.spurious for e in found.train} == {"profession", "hobby"}
    assert "unseen" not in bbq(unseen=()).tests


def test_without_any_of_the_usual_unseen_categories_it_says_so() -> None:
    rows = [row for row in OWN if row["category"] != "Hobby"]
    with pytest.warns(UserWarning, match="no split 'unseen' is made; give unseen= some of "):
        assert list(bbq(rows).tests) == ["seen"]


def test_sizes_cut_a_split_and_a_seed_gives_the_same_data() -> None:
    found = bbq(n_train=100, n_validation=10, n_test=20)
    assert {split: len(rows) for split, rows in found.splits().items()} == {
        "train": 100, "validation": 10, "seen": 20, "unseen": 20
    }  # fmt: skip
    assert found.splits() == bbq(n_train=100, n_validation=10, n_test=20).splits()
    assert bbq().train != bbq(seed=1).train


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"unseen": ("Religion",)}, r"no rows of the unseen category 'religion'; there are age, profession"),
        ({"source": many(), "unseen": ("Gender_identity",)}, r"all categories \(gender identity\) are unseen"),
        ({"n_test": 500}, r"500 rows for 'seen': it must be from 1 to 72"),
        ({"source": many(label=3)}, r"row 1: label 3; the right option is 0, 1 or 2"),
        ({"source": many(answer_info=None)}, r"row 1: answer_info is None"),
        ({"source": many(answer_info={"ans0": ["Bo", "man"]})}, r"row 1: answer_info is .*a row of BBQ has"),
        ({"source": many(additional_metadata={})}, r"additional_metadata \{\}; a row of BBQ has"),
        ({"source": many(ans1="")}, r"row 1: field 'ans1' is ''"),
    ],
)
def test_bad_input_is_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        bbq(**arguments)


def test_one_text_is_no_list_of_categories() -> None:
    with pytest.raises(TypeError, match=r"unseen must be several categories, got the text 'Age'"):
        bbq(unseen="Age")


@pytest.mark.parametrize("name", NAMES)
def test_in_real_bbq_the_stereotype_is_right_in_about_a_quarter(name: str) -> None:
    if not (REAL / f"bbq_{name}.jsonl").is_file():
        pytest.skip(f"no bbq_{name}.jsonl in the data folder beside the project")
    found = bbq(REAL / f"bbq_{name}.jsonl")
    examples = [example for rows in found.splits().values() for example in rows]
    assert len(examples) == 600  # none is left out
    # Full files lie in [0.24, 0.28]; these are samples of 600, with a standard error of 0.018.
    assert sum(e.y == e.y_s for e in examples) / 600 == pytest.approx(0.25, abs=0.04)
    assert not [e for e in examples if e.y_s == e.y and "nknown" in e.options[int(e.y) - 1]]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", NAMES)
def test_no_words_of_a_real_context_are_in_two_parts(name: str, seed: int) -> None:
    if not (REAL / f"bbq_{name}.jsonl").is_file():
        pytest.skip(f"no bbq_{name}.jsonl in the data folder beside the project")
    found = bbq(REAL / f"bbq_{name}.jsonl", seed=seed)
    rows = [json.loads(line) for line in (REAL / f"bbq_{name}.jsonl").read_text().splitlines()]
    bags: dict[str, set[Any]] = {}
    people: dict[str, set[Any]] = {}
    for split, examples in found.splits().items():
        bags[split] = {tuple(sorted(re.findall(r"\w+", e.fields["context"].lower()))) for e in examples}
        of = [rows[int(e.id.rsplit("-", 1)[1])] for e in examples]
        people[split] = {
            (
                one["question_index"],
                *sorted(text.lower() for text, tag in one["answer_info"].values() if tag != "unknown"),
            )
            for one in of
        }
    for parts in (bags, people):
        assert not any(a & b for a, b in combinations(parts.values(), 2))
    assert sum(map(len, found.splits().values())) == 600
    assert 0.06 < len(found.tests["seen"]) / 600 < 0.15 and len(found.validation) > 30


def test_real_files_of_some_categories_give_seen_and_unseen_splits() -> None:
    paths = [REAL / f"bbq_{name}.jsonl" for name in NAMES]
    if not all(path.is_file() for path in paths):
        pytest.skip("no files of BBQ in the data folder beside the project")
    found = bbq(paths, unseen=("Nationality",))
    assert len(found.tests["unseen"]) == 600 and {e.spurious for e in found.train} == {"age", "disability status"}
    assert "unseen" not in bbq(paths).tests  # none of the usual three is there
