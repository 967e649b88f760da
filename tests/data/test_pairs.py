from __future__ import annotations

import random

import pytest

from lensteer.data import FORMATS, LENGTHS, Instruction, instruction_pairs, queries, with_text

BULLETS = FORMATS["bullets"]


def test_a_pair_is_a_query_with_and_without_one_phrasing_and_nothing_else() -> None:
    for pair, query in zip(instruction_pairs(BULLETS, 20), queries("fit", 20), strict=True):
        assert pair.negative == query
        assert pair.positive in {f"{query} {phrasing}" for phrasing in BULLETS.phrasings}


def test_without_n_there_is_one_pair_for_every_query_of_the_split() -> None:
    assert [pair.negative for pair in instruction_pairs(BULLETS, split="validation")] == queries("validation")


def test_every_phrasing_is_used() -> None:
    for instruction in (*FORMATS.values(), *LENGTHS.values()):
        text = "\n".join(str(pair.positive) for pair in instruction_pairs(instruction))
        assert all(phrasing in text for phrasing in instruction.phrasings), instruction.name


def test_draws_depend_on_seed_instruction_and_query_but_not_on_number_order_or_global_state() -> None:
    many = instruction_pairs(BULLETS, 40)
    random.seed(1)
    instruction_pairs(FORMATS["json"], 7)
    assert instruction_pairs(BULLETS, 10) == many[:10]
    assert [with_text(pair.negative, BULLETS) for pair in reversed(many)] == [p.positive for p in reversed(many)]
    assert instruction_pairs(BULLETS, 40, seed=1) != many


def test_drawing_leaves_the_global_generator_alone() -> None:
    random.seed(0)
    expected = random.random()
    random.seed(0)
    instruction_pairs(BULLETS, 5, place="mixed")
    assert random.random() == expected


def test_the_instruction_can_stand_before_the_query_or_on_either_side() -> None:
    one = Instruction("one", "format", ("Do it so.",))
    assert with_text("Why?", one) == "Why? Do it so."
    assert with_text("Why?", one, place="before") == "Do it so. Why?"
    before = [with_text(query, one, place="mixed").startswith("Do it so.") for query in queries("fit")]
    assert 40 < sum(before) < 80  # 120 fair coins, more than 3.5 standard deviations either way


def test_a_mixed_place_keeps_the_phrasing_of_the_fixed_places() -> None:
    for query in queries("fit", 30):
        sides = {with_text(query, BULLETS, place="before"), with_text(query, BULLETS, place="after")}
        assert with_text(query, BULLETS, place="mixed") in sides


def test_more_pairs_than_queries_are_refused_with_the_number_there_are() -> None:
    with pytest.raises(ValueError, match=r"n=500 .*'fit'.* 120"):
        instruction_pairs(BULLETS, 500)


def test_an_unknown_place_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"'middle'.*'after', 'before', 'mixed'"):
        with_text("Why?", BULLETS, place="middle")  # type: ignore[arg-type]
