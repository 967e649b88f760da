from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lensteer.data import Sides, concept, sides, tone

SUBSETS = {
    "ants": [f"ant {i}" for i in range(10)],
    "bees": [f"bee {i}" for i in range(30)],
    "cats": [f"cat {i}" for i in range(21)],
}
SCRIPT = """
from lensteer.data import concept, sides, tone
names = set("abcdefgh")
subsets = {name: [f"{name}{i}" for i in range(20)] for name in names}
assert list(names) != sorted(names)
print(sides(subsets, names - {"d"}, {"d"}, 9, seed=5), concept("music", 7, seed=1), tone("test", 5, seed=2))
"""


def kinds(texts: list[str]) -> dict[str, int]:
    """How many sentences come from each subset."""
    names = [text.split()[0] + "s" for text in texts]
    return {name: names.count(name) for name in sorted(set(names))}


def test_both_sides_have_the_size_of_the_smaller_subset_and_share_no_sentence() -> None:
    drawn = sides(SUBSETS, "bees", "ants")
    assert kinds(drawn.source) == {"bees": 10} and kinds(drawn.target) == {"ants": 10}
    assert len({*drawn.source, *drawn.target}) == 20


def test_several_subsets_of_a_side_contribute_equally_to_within_one_sentence() -> None:
    assert kinds(sides(SUBSETS, ["ants", "bees"], "cats", 8).source) == {"ants": 4, "bees": 4}
    assert kinds(sides(SUBSETS, ["bees", "ants"], "cats", 9).source) == {"ants": 5, "bees": 4}
    most = sides(SUBSETS, ["ants", "bees"], "cats")
    assert kinds(most.source) == {"ants": 10, "bees": 10} and kinds(most.target) == {"cats": 20}


def test_a_subset_on_both_sides_is_shared_out_without_overlap() -> None:
    drawn = sides(SUBSETS, "cats", "cats")
    assert len(drawn.source) == len(drawn.target) == 10
    assert len({*drawn.source, *drawn.target}) == 20
    mixed = sides(SUBSETS, ["ants", "cats"], "cats", 12)
    assert kinds(mixed.source) == {"ants": 6, "cats": 6} and kinds(mixed.target) == {"cats": 12}
    assert not set(mixed.source) & set(mixed.target)


def test_a_sentence_of_several_subsets_or_twice_in_one_is_drawn_once() -> None:
    subsets = {"insults": ["x", "y", "y", "z"], "toxic": ["z", "y", "x", "u", "v", "w"]}
    for seed in range(20):
        both = sides(subsets, "insults", "toxic", seed=seed)
        assert len(both.source) == len(both.target) >= 1
        assert len({*both.source, *both.target}) == 2 * len(both.source)


def test_unequal_sides_are_had_by_two_numbers() -> None:
    drawn = sides(SUBSETS, "bees", "ants", (25, 4))
    assert (len(drawn.source), len(drawn.target)) == (25, 4)
    assert len(set(drawn.source)) == 25


def test_the_first_of_a_larger_draw_are_the_smaller_draw() -> None:
    whole = sides(SUBSETS, ["ants", "bees"], "cats", seed=3)
    for n in (1, 7, 20):
        assert sides(SUBSETS, ["ants", "bees"], "cats", n, seed=3) == Sides(whole.source[:n], whole.target[:n])


def test_the_seed_and_nothing_else_decides_what_is_drawn() -> None:
    drawn = sides(SUBSETS, ["ants", "bees"], "cats", 8, seed=1)
    turned = {name: SUBSETS[name] for name in reversed(SUBSETS)}
    assert sides(turned, ["bees", "ants"], "cats", 8, seed=1) == drawn
    assert sides({**SUBSETS, "dogs": ["dog 1"]}, ("ants", "bees"), ["cats"], 8, seed=1) == drawn
    assert sides(SUBSETS, ["ants", "bees"], "cats", 8, seed=2) != drawn
    assert drawn.target != SUBSETS["cats"][:8]


def test_the_draw_is_the_same_in_a_process_with_another_hash_seed() -> None:
    environment = {**os.environ, "PYTHONHASHSEED": "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"}
    command = [sys.executable, "-c", SCRIPT]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    subsets = {name: [f"{name}{i}" for i in range(20)] for name in "abcdefgh"}
    drawn = sides(subsets, list("abcefgh"), "d", 9, seed=5), concept("music", 7, seed=1), tone("test", 5, seed=2)
    assert printed == " ".join(map(str, drawn)) + "\n"


@pytest.mark.parametrize(
    ("source", "target", "n", "message"),
    [
        ("wasps", "ants", None, r"source: no subset 'wasps'; there are 'ants' \(10\), 'bees' \(30\), 'cats' \(21\)"),
        ("ants", ["bees", "wasps"], None, "target: no subset 'wasps'"),
        ([], "ants", None, "the source names no subset; there are 'ants'"),
        (["bees", "bees"], "ants", None, "source: the subset 'bees' is named 2 times"),
        ("bees", "ants", 0, "n=0: each side needs at least 1"),
        ("bees", "ants", (3, -1), r"n=\(3, -1\)"),
        ("bees", "ants", 11, r"n=11: the 10 different ones of the subset 'ants' ran out after 11 source and 10 target"),
        (
            ["ants", "cats"],
            "bees",
            22,
            r"'ants' ran out .* source 'ants' \(10\), 'cats' \(21\) and target 'bees' \(30\)",
        ),
        ("ants", "ants", 6, "n=6: the 10 different ones of the subset 'ants' ran out after 5 source and 5 target"),
    ],
)
def test_a_wrong_name_or_number_is_refused_with_what_there_is(source, target, n, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sides(SUBSETS, source, target, n)


def test_a_subset_that_is_empty_or_used_up_by_the_other_side_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"too few sentences for one sentence a side: the 0 .* 'none' .*'none' \(0\)"):
        sides({**SUBSETS, "none": []}, "ants", "none")
    with pytest.raises(ValueError, match="the 1 different ones of the subset 'copy' ran out after 1 source and 0"):
        sides({"one": ["x"], "copy": ["x", "x"]}, "one", "copy")


def test_no_names_of_a_wrong_type_pass() -> None:
    with pytest.raises(TypeError, match=r"the subset 'ants' is one string, 'a b c'; it must be a list"):
        sides({"ants": "a b c", "bees": ["x"]}, "ants", "bees")
    for n in (2.5, True, "3", (1, 2, 3)):
        with pytest.raises(TypeError, match="it must be a whole number, two of them"):
            sides(SUBSETS, "ants", "bees", n)  # type: ignore[arg-type]
