"""What focus accuracy asks, against prompts that are written out here."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from lensteer.data.focus import KINDS, UNSEEN, FocusExample, FocusTask, Wording
from lensteer.evaluate import focus_prompts

MEANINGS = {"keyword": {"pear": "bad", "plum": "good"}, "age": {"old": "bad", "young": "good"}}
TASK = FocusTask(
    "tiny",
    "Label it.",
    {"text": "Input:"},
    "Output:",
    ("bad", "good"),
    "mood",
    {"mood": "the mood", "keyword": "the fruit", "age": "the age"},
    MEANINGS,
)
WORDS = Wording("short", ("On {focused}.", "See {focused}."), ("Not {ignored}.",), ("{focused}, not {ignored}.",))


def example(name: str, text: str, y: str, s: str, *, spurious: str = "keyword", **more: Any) -> FocusExample:
    return FocusExample(name, {"text": text}, y, spurious, s, MEANINGS[spurious][s], **more)


TESTS = [example("t0", "A dull pear.", "bad", "pear"), example("t1", "A dull plum.", "bad", "plum")]
TRAIN = [example(f"d{i}", f"Text {i}.", ("bad", "good")[i % 2], ("pear", "plum")[i % 3 == 0]) for i in range(12)]
OLD = example("old", "A kind old man.", "good", "old", spurious="age")


def ask(examples: Any = TESTS, **options: Any) -> list[Any]:
    return focus_prompts(TASK, examples, **options)


def test_every_example_is_asked_under_every_kind_and_keeps_its_order() -> None:
    asked = ask()
    assert [(one.example.id, one.kind) for one in asked] == [(test.id, kind) for test in TESTS for kind in KINDS]
    assert [one.target for one in asked] == ["bad"] * 6 + ["bad"] * 4 + ["good"] * 2
    for one in asked:
        assert one == TASK.ask(one.example, one.kind, template=one.template)
    some = ask(kinds=["focus(S)", "ignore(C)"], wording=UNSEEN, template=3)
    assert [one.kind for one in some] == ["focus(S)", "ignore(C)"] * 2
    assert all(one == TASK.ask(one.example, one.kind, wording=UNSEEN, template=3) for one in some)


def test_templates_are_drawn_uniformly_and_by_the_seed_alone() -> None:
    many = [example(f"t{i}", f"Text {i}.", "bad", "pear") for i in range(2000)]
    asked = ask(many, kinds=["empty", "focus(S)"])
    assert {one.template for one in asked if one.kind == "empty"} == {0}
    counts = Counter(one.template for one in asked if one.kind == "focus(S)")
    assert set(counts) == set(range(10)) and all(140 < count < 260 for count in counts.values())  # 200 +- 4.5 sigma
    assert ask(many) == ask(many)
    drawn = [one.template for one in asked]
    assert [one.template for one in ask(many[::-1], kinds=["empty", "focus(S)"])][1::2] == drawn[1::2][::-1]
    assert [one.template for one in ask(many, kinds=["empty", "focus(S)"], seed=1)] != drawn


def test_the_same_input_in_two_splits_has_the_same_prompts() -> None:
    twice = [replace(TESTS[0], split=split) for split in ("iid", "high")]
    assert [one.example.split for one in ask(twice, kinds=["empty"])] == ["iid", "high"]
    for options in ({}, {"shots": 3, "demonstrations": TRAIN}):
        first, second = ask(twice[:1], **options), ask(twice[1:], **options)
        assert [one.prompt for one in first] == [one.prompt for one in second]
    # Other texts draw other templates.
    templates = [[one.template for one in ask([test])] for test in (TESTS[0], *TRAIN)]
    assert len(set(map(tuple, templates))) > 5


def test_without_being_told_the_prompt_is_the_empty_one_and_the_target_stays() -> None:
    told, untold = ask(), ask(told=False)
    assert [one.target for one in untold] == [one.target for one in told]
    assert [one.kind for one in untold] == [one.kind for one in told]
    assert {one.prompt for one in untold} == {TASK.prompt(test) for test in TESTS}
    assert {one.template for one in untold} == {0}


def test_demonstrations_are_written_exactly_so() -> None:
    demonstrations = [example("d", "A sad plum.", "bad", "plum"), OLD]
    asked = ask(TESTS[:1], kinds=["focus(S)+ignore(C)", "empty"], wording=WORDS, shots=2, demonstrations=demonstrations)
    first, second = ("plum", "old") if asked[0].prompt.index("plum") < asked[0].prompt.index("old") else ("old", "plum")

    def block(words: str, text: str, answer: str) -> str:
        told = f"<FEATURE CONSIDERATIONS>\n{words}\n<END FEATURE CONSIDERATIONS>\n\n" if words else ""
        return f"<INSTRUCTION>\nLabel it.\n<END OF INSTRUCTION>\n\n{told}Input: {text}\n\nOutput:{answer}"

    # Each demonstration is asked of its own spurious feature, and answers what is asked of it.
    both = {
        "plum": block("the fruit, not the mood.", "A sad plum.", " good"),
        "old": block("the age, not the mood.", "A kind old man.", " bad"),
    }
    query = block("the fruit, not the mood.", "A dull pear.", "")
    assert asked[0].prompt == "\n\n".join([both[first], both[second], query])
    none = {"plum": block("", "A sad plum.", " bad"), "old": block("", "A kind old man.", " good")}
    assert asked[1].prompt == "\n\n".join([none[first], none[second], block("", "A dull pear.", "")])
    assert [(one.target, one.kind, one.example) for one in asked] == [
        ("bad", "focus(S)+ignore(C)", TESTS[0]),
        ("bad", "empty", TESTS[0]),
    ]


def test_demonstrations_carry_the_template_of_their_query() -> None:
    for number, words in enumerate(("On the fruit.", "See the fruit.")):
        (one,) = ask(TESTS[:1], kinds=["focus(S)"], wording=WORDS, template=number, shots=3, demonstrations=TRAIN)
        assert one.prompt.count(words) == 4 and one.template == number
    untold = ask(TESTS[:1], told=False, shots=3, demonstrations=TRAIN)
    assert not any("FEATURE" in one.prompt for one in untold)
    (asked,) = {one.prompt.count("Output: ") for one in untold}
    assert asked == 3


def test_demonstrations_are_drawn_uniformly_for_each_item_and_not_twice() -> None:
    many = [example(f"t{i}", f"Test {i}.", "bad", "pear") for i in range(600)]
    asked = ask(many, kinds=["empty"], shots=4, demonstrations=TRAIN)
    shown = [tuple(d.id for d in TRAIN if f"Input: {d.fields['text']}\n" in one.prompt) for one in asked]
    assert all(len(ids) == 4 for ids in shown)
    counts = Counter(name for ids in shown for name in ids)
    assert len(counts) == 12 and all(150 < count < 250 for count in counts.values())  # 200 +- 4.3 sigma
    # All kinds of an item have the same demonstrations, in the same order.
    texts = [
        [line for line in one.prompt.splitlines() if line.startswith("Input: ")]
        for one in ask(TESTS[:1], shots=4, demonstrations=TRAIN)
    ]
    assert len(texts) == 6 and all(line == texts[0] for line in texts)
    assert ask(shots=4, demonstrations=TRAIN) != ask(shots=4, demonstrations=TRAIN, seed=1)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"kinds": []}, ValueError, r"kinds must be some of"),
        ({"kinds": "empty"}, TypeError, r"kinds must be several"),
        ({"kinds": ["focus"]}, ValueError, r"kinds must be some of"),
        ({"template": 10}, ValueError, r"template 10 of focus\(mood\): 'training' has 0 to 9"),
        ({"template": -1}, ValueError, r"template -1"),
        ({"template": "0"}, TypeError, r"template must be a number or None, got '0'"),
        ({"shots": -1}, ValueError, r"shots must be a whole number, 0 or more, got -1"),
        ({"shots": 1.0}, ValueError, r"shots must be a whole number"),
        ({"shots": 2}, ValueError, r"shots=2 needs 2 demonstrations or more to draw from, got 0"),
        ({"shots": 3, "demonstrations": TRAIN[:2]}, ValueError, r"needs 3 demonstrations or more.*got 2"),
        ({"shots": 1, "demonstrations": TESTS[1:]}, ValueError, r"'t1' \(source 't1'\) is among the test examples"),
        (
            {"shots": 1, "demonstrations": [TRAIN[0], replace(TRAIN[1], source="t0")]},
            ValueError,
            r"the demonstration 'd1' \(source 't0'\) is among the test examples; take demonstrations from the training",
        ),
        (
            {"shots": 1, "demonstrations": [replace(TRAIN[1], fields={"premise": "x"})]},
            ValueError,
            r"example 'd1' has the fields",
        ),
    ],
)
def test_bad_requests_are_refused(options, error, words) -> None:
    with pytest.raises(error, match=words):
        ask(**options)


def test_examples_that_are_not_the_tasks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"example 'x' has the label 'fine'"):
        ask([replace(TESTS[0], id="x", y="fine")])
    with pytest.raises(ValueError, match=r"no examples were given"):
        ask([])
    with pytest.raises(ValueError, match=r"two examples have the id 't0'"):
        ask([TESTS[0], TESTS[1], TESTS[0]])
    with pytest.raises(TypeError, match=r"examples must be a list of FocusExample, .*, got FocusExample"):
        ask(TESTS[0])
    with pytest.raises(TypeError, match=r"example 0 is 'A pear.'"):
        ask(["A pear."])
    with pytest.raises(ValueError, match=r"example 'x' has no value of its spurious feature 'keyword'"):
        FocusExample("x", {"text": "A pear."}, "bad", "keyword", None, "bad")  # type: ignore[arg-type]
