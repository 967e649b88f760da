"""Which focus instruction is drawn, how often, and that a draw can be had again."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from focus_cases import TASK

from lensteer.data.focus import KINDS, FocusExample, FocusSampler

EXAMPLE = FocusExample("1", {"text": "x"}, "no", "word", "blue", "yes")


def test_a_hundred_thousand_draws_have_the_stated_frequencies() -> None:
    draws = [FocusSampler().draw(TASK, EXAMPLE, i) for i in range(100_000)]
    kinds = Counter(draw.kind for draw in draws)
    assert {kind: kinds[kind] / 1e5 for kind in KINDS} == pytest.approx(
        {kind: 0.05 if kind == "empty" else 0.19 for kind in KINDS}, abs=0.005
    )
    assert Counter(draw.target for draw in draws)["no"] / 1e5 == pytest.approx(0.62, abs=0.005)
    for kind in KINDS[1:]:
        templates = Counter(draw.template for draw in draws if draw.kind == kind)
        assert sorted(templates) == list(range(10))
        assert all(count / kinds[kind] == pytest.approx(0.1, abs=0.01) for count in templates.values())


def test_the_probabilities_are_those_of_the_paper_and_can_be_others() -> None:
    assert FocusSampler().probabilities() == pytest.approx({kind: 0.05 if kind == "empty" else 0.19 for kind in KINDS})
    seven = FocusSampler((*KINDS, "ignore(C)")).probabilities()
    assert seven["ignore(C)"] == pytest.approx(0.95 / 6) and sum(seven.values()) == pytest.approx(1)
    assert FocusSampler(("focus(S)",), p_empty=0).probabilities() == {"focus(S)": 1}
    assert FocusSampler(("empty",), p_empty=1).probabilities() == {"empty": 1}


def test_one_key_gives_one_draw_and_other_keys_give_others() -> None:
    sampler = FocusSampler()
    examples = [FocusExample(str(i), {"text": "x"}, "no", "word", "blue", "yes") for i in range(50)]
    first = [sampler.draw(TASK, example, "0\nepoch 1") for example in examples]
    assert first == [sampler.draw(TASK, example, "0\nepoch 1") for example in reversed(examples)][::-1]
    second = [sampler.draw(TASK, example, "0\nepoch 2") for example in examples]
    assert sum(a.prompt == b.prompt for a, b in zip(first, second, strict=True)) < 10
    assert len({draw.kind for draw in first}) > 3


def test_a_draw_asks_what_the_task_asks() -> None:
    draw = FocusSampler().draw(TASK, EXAMPLE, 3)
    assert draw == TASK.ask(EXAMPLE, draw.kind, template=draw.template)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"p_empty": 1.5}, r"must be between 0 and 1"),
        ({"p_empty": -0.1}, r"must be between 0 and 1"),
        ({"kinds": ("empty",)}, r"and 1 where only 'empty' is drawn"),
        ({"kinds": ("focus(S)",)}, r"'empty' is not among the kinds"),
        ({"kinds": ()}, r"kinds must be some of"),
    ],
)
def test_what_is_no_distribution_is_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        FocusSampler(**arguments)
