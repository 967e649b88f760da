"""Templates of focus instructions."""

from __future__ import annotations

import re

import pytest

from lensteer.data.focus import EMPTY, TRAINING, UNSEEN, Wording, focus_on, ignore

FAMILIES = {"focus": focus_on("core"), "ignore": ignore("other"), "both": focus_on("core") & ignore("other")}
SLOTS = {"core": "the sentiment", "other": "the genre"}
BOTH = pytest.mark.parametrize("wording", [TRAINING, UNSEEN], ids=lambda wording: wording.name)


@BOTH
def test_there_are_ten_different_templates_in_each_of_the_three_families(wording: Wording) -> None:
    every = [template for family in FAMILIES for template in getattr(wording, family)]
    assert [len(getattr(wording, family)) for family in FAMILIES] == [10, 10, 10]
    assert len(set(every)) == 30


def test_half_of_the_combined_templates_of_training_say_the_focus_first() -> None:
    first = [template.index("{focused}") < template.index("{ignored}") for template in TRAINING.both]
    assert sum(first) == 5


def test_the_two_wordings_share_no_sentence() -> None:
    def sentences(wording: Wording) -> set[str]:
        every = [template for family in FAMILIES for template in getattr(wording, family)]
        return {part.strip().lower() for template in every for part in re.split(r"[.;]", template) if part.strip()}

    assert not sentences(TRAINING) & sentences(UNSEEN)


@BOTH
def test_every_template_names_its_features_and_leaves_no_slot_open(wording: Wording) -> None:
    for instruction in FAMILIES.values():
        names = [SLOTS[feature] for feature in instruction.features]
        texts = [wording.text(instruction, SLOTS, i) for i in range(10)]
        assert all(text.count(name) == 1 for text in texts for name in names)
        assert not any("{" in text or text[0].islower() or text[-1] != "." for text in texts)
        assert len(set(texts)) == 10


def test_the_empty_instruction_has_no_words_whatever_the_template() -> None:
    assert TRAINING.templates(EMPTY) == ()
    assert TRAINING.text(EMPTY, SLOTS, 7) == ""


def test_a_slot_text_with_braces_stays_as_it_is() -> None:
    assert "{ignored}" in TRAINING.text(focus_on("core"), {"core": "the {ignored} tag"})


def test_unknown_templates_and_features_are_named() -> None:
    with pytest.raises(ValueError, match=r"template 10 of focus\(core\): 'training' has 0 to 9"):
        TRAINING.text(focus_on("core"), SLOTS, 10)
    with pytest.raises(ValueError, match=r"template -1"):
        TRAINING.text(focus_on("core"), SLOTS, -1)
    with pytest.raises(ValueError, match=r"unknown feature 'tone' in ignore\(tone\); the features are core, other"):
        TRAINING.text(ignore("tone"), SLOTS)


@pytest.mark.parametrize(
    ("family", "template"),
    [
        ("focus", "Attend to it."),
        ("focus", "Attend to {focused}, not {ignored}."),
        ("ignore", "Drop {focused}."),
        ("both", "Attend to {focused}."),
    ],
)
def test_a_template_with_the_wrong_slots_is_refused(family: str, template: str) -> None:
    good = {"focus": ("Use {focused}.",), "ignore": ("Drop {ignored}.",), "both": ("Use {focused}, drop {ignored}.",)}
    assert Wording("own", **good).text(focus_on("core"), SLOTS) == "Use the sentiment."
    with pytest.raises(ValueError, match=rf"family '{family}' must hold"):
        Wording("own", **{**good, family: (template,)})
    for nothing in ((), "Use {focused}."):
        with pytest.raises(ValueError, match=r"needs a list of templates for 'focus'"):
            Wording("own", **{**good, "focus": nothing})  # type: ignore[arg-type]
