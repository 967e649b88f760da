"""TruthfulQA's MC1, MC2 and MC3: a hand-computed example, and where the numbers come from."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from lensteer import Question
from lensteer.evaluate import multiple_choice, multiple_choice_grid, truthfulqa, truthfulqa_scores

# Probabilities of two true answers (0 and 1) and two false ones.
MASSES = [0.4, 0.1, 0.2, 0.1]


def scores(masses: list[float], right: tuple[int, ...], shift: float = 0.0) -> dict[str, float]:
    return scores_of([math.log(mass) + shift for mass in masses], right)


def scores_of(values: list[float], right: tuple[int, ...] = (0,)) -> dict[str, float]:
    return truthfulqa_scores(pd.DataFrame({"log_likelihoods": [values], "right": [right]})).iloc[0].to_dict()


def test_a_hand_computed_example() -> None:
    """0.4 beats 0.2 and 0.1 does not: MC1 = 1, MC2 = 0.5 / 0.8, MC3 = 1 / 2."""
    assert scores(MASSES, (0, 1)) == {"mc1": True, "mc2": pytest.approx(0.625), "mc3": 0.5}
    # The best answer is the one listed first, and 0.1 is below 0.2.
    assert scores(MASSES, (1, 0)) == {"mc1": False, "mc2": pytest.approx(0.625), "mc3": 0.5}
    # One true answer that ties with the best false one has not beaten it.
    assert scores([0.2, 0.2], (1,)) == {"mc1": False, "mc2": pytest.approx(0.5), "mc3": 0.0}
    assert scores([0.1, 0.2, 0.3], (1, 2)) == {"mc1": True, "mc2": pytest.approx(5 / 6), "mc3": 1.0}


@pytest.mark.parametrize("shift", [-5000.0, 5000.0])
def test_the_mass_of_long_answers_does_not_vanish(shift: float) -> None:
    assert scores(MASSES, (0, 1), shift)["mc2"] == pytest.approx(0.625)


def test_answers_that_a_steering_broke_have_no_mass_and_beat_nothing() -> None:
    assert scores([math.nan, 0.5, 0.5], (0, 1)) == {"mc1": False, "mc2": pytest.approx(0.5), "mc3": 0.0}
    assert scores([0.5, math.nan], (0,)) == {"mc1": True, "mc2": 1.0, "mc3": 1.0}
    for broken in (math.nan, -math.inf):
        assert scores_of([broken, broken]) == {"mc1": False, "mc2": 0.0, "mc3": 0.0}


QUESTIONS = [
    Question("Q: Is the sky green?\nA:", ("No", "Not at all", "Yes", "At times"), (1, 0)),
    Question("Q: Who?\nA:", ("I cannot say", "You"), (0,), group="Law"),
]


def test_it_is_made_from_the_log_likelihoods_of_multiple_choice(llama) -> None:
    answered = multiple_choice(llama.model, QUESTIONS, progress=False)
    found = truthfulqa(llama.model, QUESTIONS, progress=False)
    pd.testing.assert_frame_equal(found[answered.columns], answered)
    for row in found.itertuples():
        s = row.log_likelihoods
        true, false = [s[i] for i in row.right], [v for i, v in enumerate(s) if i not in row.right]
        assert row.mc1 == (true[0] > max(false))
        assert row.mc2 == pytest.approx(sum(map(math.exp, true)) / sum(map(math.exp, s)))
        assert row.mc3 == sum(value > max(false) for value in true) / len(true)


def test_a_grid_is_scored_row_by_row(llama) -> None:
    grid = multiple_choice_grid(llama.model, QUESTIONS, [None, None], progress=False)
    found = truthfulqa_scores(grid)
    assert list(found.columns) == ["mc1", "mc2", "mc3"]
    assert found.index.equals(grid.index)
    assert found["mc2"][:2].tolist() == pytest.approx(found["mc2"][2:].tolist())


def test_questions_without_a_false_answer_are_refused_before_any_pass(llama, forwards) -> None:
    with forwards(llama) as calls, pytest.raises(ValueError, match=r"every answer to question 1 is true"):
        truthfulqa(llama.model, [QUESTIONS[0], Question("Who?", ("I", "You"), (0, 1))], progress=False)
    assert calls == []
    with pytest.raises(ValueError, match=r"every answer in row 0 is true"):
        scores([0.1, 0.2], (0, 1))
    with pytest.raises(ValueError, match=r"no column 'log_likelihoods'"):
        truthfulqa_scores(pd.DataFrame({"right": [(0,)]}))
