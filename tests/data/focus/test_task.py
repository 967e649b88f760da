"""Focus tasks: the prompt to the letter, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lensteer.data.focus import KINDS, UNSEEN, FocusExample, FocusTask, focus_on, ignore

TASK = FocusTask(
    name="toy",
    instruction="Say left or right.",
    headings={"text": "Input:"},
    cue="Output:",
    labels=("left", "right"),
    core="side",
    slots={"side": "the side", "colour": "the colour"},
    meanings={"colour": {"red": "left", "blue": "right"}},
)
EXAMPLE = FocusExample("1", {"text": " A blue arrow to the left. "}, "left", "colour", "blue", "right")


def test_the_prompt_without_a_focus_instruction_has_no_block_for_it() -> None:
    assert TASK.prompt(EXAMPLE) == (
        "<INSTRUCTION>\nSay left or right.\n<END OF INSTRUCTION>\n\nInput: A blue arrow to the left.\n\nOutput:"
    )
    assert "FEATURE" not in TASK.ask(EXAMPLE, "empty", template=3).prompt


def test_the_prompt_with_a_focus_instruction_has_its_words_in_tags() -> None:
    assert TASK.prompt(EXAMPLE, focus_on("colour") & ignore("side"), template=4) == (
        "<INSTRUCTION>\nSay left or right.\n<END OF INSTRUCTION>\n\n"
        "<FEATURE CONSIDERATIONS>\nPut the colour first. Take no notice of the side.\n"
        "<END FEATURE CONSIDERATIONS>\n\n"
        "Input: A blue arrow to the left.\n\nOutput:"
    )


def test_options_stand_numbered_below_the_fields() -> None:
    task = replace(TASK, headings={"context": "Context:", "question": "Question:"}, cue="Answer:")
    example = replace(EXAMPLE, fields={"question": "Who?", "context": "Two came."}, options=("Ann", "Bo", "Nobody"))
    assert task.prompt(example).endswith(
        "\n\nContext: Two came.\nQuestion: Who?\nAnswer options:\n(1) Ann\n(2) Bo\n(3) Nobody\n\nAnswer:"
    )


def test_asking_gives_the_target_of_the_kind() -> None:
    targets = {kind: TASK.ask(EXAMPLE, kind).target for kind in KINDS}
    assert targets == {kind: "right" if kind.startswith("focus(S)") else "left" for kind in KINDS}
    asked = TASK.ask(EXAMPLE, "focus(S)", wording=UNSEEN, template=2)
    assert (asked.kind, asked.template, asked.example) == ("focus(S)", 2, EXAMPLE)
    assert "Ask yourself what the colour says, then answer." in asked.prompt


def test_the_slot_texts_do_not_give_away_a_value() -> None:
    from lensteer.data.focus import HANS, NLI

    for task in (NLI, HANS):  # SS names both keywords, of which a text holds one
        said = " ".join(task.slots.values()).lower().split()
        assert not [value for meaning in task.meanings.values() for value in meaning if value in said]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": " "}, r"needs a text as its name"),
        ({"instruction": ""}, r"needs a text as its instruction"),
        ({"labels": ("left",)}, r"two or more different ones"),
        ({"labels": ("left", "left")}, r"two or more different ones"),
        ({"core": "size"}, r"must name the core feature 'size'"),
        ({"slots": {"side": "the side"}}, r"and a spurious one"),
        ({"meanings": {"size": {}}}, r"unknown feature 'size'; 'toy' has 'side' \(core\) and 'colour'"),
        ({"meanings": {"colour": {"red": "up"}}}, r"means \{'red': 'up'\}, but the labels are"),
    ],
)
def test_a_task_that_does_not_hold_together_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(TASK, **change)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fields": {"premise": "x"}}, r"example '1' has the fields \['premise'\]; 'toy' reads \['text'\]"),
        ({"spurious": "side"}, r"names the core feature 'side' as its spurious one"),
        ({"spurious": "size"}, r"unknown feature 'size'"),
        ({"s": "green"}, r"colour='green' stands for 'right'"),
        ({"y_s": "left"}, r"colour='blue' stands for 'left'"),
        ({"y": "up"}, r"has the label 'up'; the labels are"),
    ],
)
def test_an_example_that_does_not_fit_the_task_is_named(change: dict[str, Any], words: str) -> None:
    assert TASK.require([EXAMPLE]) == [EXAMPLE]
    with pytest.raises(ValueError, match=words):
        TASK.require([replace(EXAMPLE, **change)])


def test_a_task_without_labels_takes_any_answer() -> None:
    task = replace(TASK, labels=(), meanings={})
    assert task.require([replace(EXAMPLE, y="both ways", y_s="nowhere")])


def test_a_prompt_about_an_unknown_feature_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown feature 'size'"):
        TASK.prompt(EXAMPLE, focus_on("size"))
