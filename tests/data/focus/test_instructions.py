"""Focus instructions: the algebra, and the answer that each asks for."""

from __future__ import annotations

import pytest

from lensteer.data.focus import CORE_KINDS, EMPTY, KINDS, FocusInstruction, focus_label, focus_on, ignore
from lensteer.data.focus.instructions import check_kinds, instruction_of

C, S, T = "sentiment", "keyword", "length"


@pytest.mark.parametrize(
    ("instruction", "answer"),
    [
        (EMPTY, "y"),
        (focus_on(C), "y"),
        (ignore(S), "y"),
        (focus_on(C) & ignore(S), "y"),
        (ignore(S) & focus_on(C), "y"),
        (focus_on(S), "y_s"),
        (focus_on(S) & ignore(C), "y_s"),
        (focus_on(S) & ignore(T), "y_s"),
        (ignore(C), "y_s"),
        (ignore(T), "y"),
        (focus_on(C) & ignore(T), "y"),
    ],
    ids=repr,
)
def test_every_instruction_asks_for_the_answer_of_the_table(instruction: FocusInstruction, answer: str) -> None:
    assert focus_label(instruction, C, S, "y", "y_s") == answer


@pytest.mark.parametrize("instruction", [focus_on(T), focus_on(T) & ignore(C), focus_on(T) & ignore(S)], ids=repr)
def test_a_focus_on_a_feature_that_the_input_does_not_carry_has_no_answer(instruction: FocusInstruction) -> None:
    with pytest.raises(ValueError, match=r"focuses on 'length', which this input does not carry"):
        focus_label(instruction, C, S, "y", "y_s")


def test_focus_and_ignore_of_one_feature_contradict_each_other() -> None:
    with pytest.raises(ValueError, match=r"focus\(keyword\) and ignore\(keyword\) contradict"):
        focus_on(S) & ignore(S)
    with pytest.raises(ValueError, match=r"contradict"):
        FocusInstruction(C, C)


def test_two_focuses_and_two_ignores_cannot_be_put_together() -> None:
    with pytest.raises(ValueError, match=r"focus\(sentiment\) and focus\(keyword\) cannot be put together"):
        focus_on(C) & focus_on(S)
    with pytest.raises(ValueError, match=r"ignore\(sentiment\) and ignore\(keyword\) cannot"):
        ignore(C) & ignore(S)
    with pytest.raises(TypeError):
        focus_on(C) & "keyword"  # type: ignore[operator]


@pytest.mark.parametrize("name", ["", "  ", 3])
def test_a_feature_without_a_name_is_refused(name: object) -> None:
    with pytest.raises(ValueError, match=r"names its features by text"):
        focus_on(name)  # type: ignore[arg-type]


def test_empty_is_neutral_and_instructions_are_values() -> None:
    assert EMPTY & focus_on(C) == focus_on(C) == focus_on(C) & EMPTY
    assert focus_on(C) & ignore(S) == ignore(S) & focus_on(C)
    assert len({focus_on(C), focus_on(C), ignore(C)}) == 2
    assert (focus_on(C) & ignore(S)).features == (C, S)
    assert EMPTY.features == ()
    assert [repr(each) for each in (EMPTY, ignore(S))] == ["empty", "ignore(keyword)"]


def test_a_kind_gives_the_instruction_that_its_name_says() -> None:
    made = {kind: instruction_of(kind, C, S) for kind in (*KINDS, "ignore(C)")}
    assert made == {
        "empty": EMPTY,
        "focus(C)": focus_on(C),
        "focus(C)+ignore(S)": focus_on(C) & ignore(S),
        "ignore(S)": ignore(S),
        "focus(S)": focus_on(S),
        "focus(S)+ignore(C)": focus_on(S) & ignore(C),
        "ignore(C)": ignore(C),
    }


def test_of_the_six_kinds_the_core_ones_ask_for_y_and_the_others_for_y_s() -> None:
    answers = {kind: focus_label(instruction_of(kind, C, S), C, S, "y", "y_s") for kind in KINDS}
    assert [kind for kind, answer in answers.items() if answer == "y"] == list(CORE_KINDS)
    assert [kind for kind, answer in answers.items() if answer == "y_s"] == ["focus(S)", "focus(S)+ignore(C)"]


def test_kinds_are_checked() -> None:
    with pytest.raises(ValueError, match=r"both 'keyword'; they must differ"):
        instruction_of("empty", S, S)
    for kinds in ([], ["empty", "empty"], ["focus(X)"]):
        with pytest.raises(ValueError, match=r"kinds must be some of empty, focus\(C\)"):
            check_kinds(kinds)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"got the text 'empty'"):
        check_kinds("empty")  # type: ignore[arg-type]
