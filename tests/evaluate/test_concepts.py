"""Concepts by their words, and by a judge that knows what they mean."""

from __future__ import annotations

import pandas as pd
import pytest

from lensteer import data
from lensteer.evaluate import concept_judge, concept_presence, judge

RAIN = data.Concept("rain", "Water that falls from clouds.", ("rain", "rains", "rainy"))
TEXTS = pd.Series(["It RAINS; such rain!", "The train is restrained.", ""], index=list("abc"))


@pytest.mark.parametrize("words", [RAIN, RAIN.words, [list(RAIN.words)] * 3])
def test_any_whole_word_will_do_and_they_are_counted(words) -> None:
    found = concept_presence(TEXTS, words)
    assert found["success"].to_dict() == {"a": True, "b": False, "c": False}
    assert found["count"].tolist() == [2, 0, 0]
    assert found["share"].tolist() == pytest.approx([2 / 3, 0, 0])


@pytest.mark.parametrize("name", data.CONCEPTS)
def test_the_words_of_a_packaged_concept_tell_its_sentences_from_the_others(name: str) -> None:
    sides = data.concept(name)
    assert concept_presence(sides.target, name)["success"].all()
    assert not concept_presence(sides.source, name)["success"].any()


def test_the_judge_is_told_the_name_and_the_meaning_of_the_concept(fresh) -> None:
    roomy = fresh("llama", max_position_embeddings=1024)
    texts = TEXTS.drop("c")
    asked = []

    def by_hand(text: str) -> str:
        asked.append(text)
        return f"Text: {text}\n\nIs this text about the concept? Answer Yes or No."

    system = (
        "You decide whether a text is about a concept. The concept is rain: Water that falls from clouds. A text may "
        "be about it without using the word. Answer Yes if the text is about the concept, and No if it is not."
    )
    found = concept_judge(roomy.model, texts, RAIN, progress=False)
    pd.testing.assert_frame_equal(found, judge(roomy.model, texts, by_hand, system=system, progress=False))
    assert asked == texts.tolist()
    other = concept_judge(roomy.model, texts, RAIN._replace(gloss="Sorrow"), progress=False)
    assert (other["log_odds"] - found["log_odds"]).abs().min() > 1e-3


def test_a_concept_that_is_not_there_is_refused() -> None:
    for ask in (lambda c: concept_presence(["x"], c), lambda c: concept_judge(None, ["x"], c)):
        with pytest.raises(ValueError, match=r"unknown concept 'unicorn'; there are "):
            ask("unicorn")
    with pytest.raises(TypeError, match=r"concept must be the name of one or a data.Concept"):
        concept_judge(None, ["x"], ["rain"])


@pytest.mark.slow
def test_the_default_model_ranks_sentences_about_music_above_others_and_says_yes_to_none(smollm2) -> None:
    sides = data.concept("music", n=20)
    found = concept_judge(smollm2.model, [*sides.target, *sides.source], "music", progress=False)
    odds = found["log_odds"].to_numpy()
    assert (odds[:20, None] > odds[None, 20:]).mean() > 0.7
    assert (found["p_yes"] < 0.5).all()
