"""Counts and draws of a chosen predictivity."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from lensteer.data.focus import HANS, NLI, FocusExample, FocusTask
from lensteer.data.focus.nli import STANDARD
from lensteer.data.focus.predictivity import (
    THREE_LABELS,
    TWO_LABELS,
    balanced_split,
    cell_counts,
    cells_of,
    draw,
    held_out_splits,
    next_label,
)

SEEN = {"lexical_overlap": "entailment", "constituent": "contradiction"}


def pool(task: FocusTask, feature: str, meaning: dict[str, str], each: int) -> list[FocusExample]:
    return [
        FocusExample(f"{value} {label} {i}", {"premise": "p", "hypothesis": "h"}, label, feature, value, meaning[value])
        for value in meaning
        for label in task.labels
        for i in range(each)
    ]


MANY = pool(NLI, "genre", STANDARD, 800)


def test_the_counts_of_smnli_are_those_of_the_paper() -> None:
    counts = {
        split: cell_counts(300, STANDARD, NLI.labels, rho, split == "flipped") for split, rho in THREE_LABELS.items()
    }
    row = {split: [found["travel", label] for label in NLI.labels] for split, found in counts.items()}
    # travel stands for entailment; entailment, neutral, contradiction in this order
    assert row == {"iid": [100, 100, 100], "high": [270, 15, 15], "low": [30, 135, 135], "flipped": [15, 270, 15]}
    assert [counts["flipped"]["government", label] for label in NLI.labels] == [270, 15, 15]
    assert [counts["flipped"]["fiction", label] for label in NLI.labels] == [15, 15, 270]


def test_the_next_label_is_a_derangement_and_with_two_labels_the_other_one() -> None:
    for task in (NLI, HANS):
        after = [next_label(label, task.labels) for label in task.labels]
        assert sorted(after) == sorted(task.labels)
        assert all(a != b for a, b in zip(after, task.labels, strict=True))
    assert next_label("contradiction", HANS.labels) == "entailment"


@pytest.mark.parametrize("n", [1, 7, 10, 20, 100, 301])
@pytest.mark.parametrize("rho", [0, 0.1, 0.25, 1 / 3, 0.5, 0.9, 1])
@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize(("task", "meaning"), [(NLI, STANDARD), (HANS, SEEN)])
def test_counts_add_up_and_keep_the_labels_balanced_for_every_rho(
    n: int, rho: float, flipped: bool, task: FocusTask, meaning: dict[str, str]
) -> None:
    counts = cell_counts(n, meaning, task.labels, rho, flipped)
    of_value, of_label = Counter[str](), Counter[str]()
    for (value, label), count in counts.items():
        of_value[value] += count
        of_label[label] += count
    assert set(of_value.values()) == set(of_label.values()) == {n}
    tied = {value: next_label(label, task.labels) if flipped else label for value, label in meaning.items()}
    assert all(abs(counts[value, label] - rho * n) <= 0.5 for value, label in tied.items())


def test_counts_of_nothing_and_shares_beyond_one_are_refused() -> None:
    with pytest.raises(ValueError, match=r"n=0 rows of each value"):
        cell_counts(0, STANDARD, NLI.labels, 0.5)
    with pytest.raises(ValueError, match=r"rho=1.1 is a share"):
        cell_counts(3, STANDARD, NLI.labels, 1.1)


def test_published_sizes_give_exact_splits_without_repeats() -> None:
    train = balanced_split(NLI, MANY, STANDARD, 7200, split="train")
    assert {cell: len(rows) for cell, rows in cells_of(train).items()} == {
        (genre, label): 800 for genre in STANDARD for label in NLI.labels
    }
    tests = held_out_splits(NLI, MANY, STANDARD, THREE_LABELS, 900)
    for split, rows in tests.items():
        assert len(rows) == len({row.id for row in rows}) == 900
        assert {row.split for row in rows} == {split}
        for genre in STANDARD:
            of_genre = [row for row in rows if row.s == genre]
            measured = sum(row.y == row.y_s for row in of_genre) / len(of_genre)
            assert measured == pytest.approx({"iid": 1 / 3, "high": 0.9, "low": 0.1, "flipped": 0.05}[split])
            assert of_genre[0].rho == pytest.approx(measured)


@pytest.mark.parametrize(("task", "meaning", "rhos"), [(NLI, STANDARD, THREE_LABELS), (HANS, SEEN, TWO_LABELS)])
@pytest.mark.parametrize("each", [3, 5, 9, 10, 27, 50])
@pytest.mark.filterwarnings("ignore:.*cannot have the rho")
def test_examples_of_a_test_split_carry_the_rho_that_was_reached(
    task: FocusTask, meaning: dict[str, str], rhos: dict[str, float], each: int
) -> None:
    rows = pool(task, "genre" if task is NLI else "heuristic", meaning, 50)
    for split in held_out_splits(task, rows, meaning, rhos, each * len(meaning)).values():
        of_value = {s: [row for row in split if row.s == s] for s in meaning}
        for found in of_value.values():
            assert {row.rho for row in found} == {sum(row.y == row.y_s for row in found) / each}


def test_a_rho_that_rounding_moves_is_said_once_with_the_number_that_reaches_it() -> None:
    rows = pool(HANS, "heuristic", SEEN, 40)
    with pytest.warns(UserWarning) as warned:
        held_out_splits(HANS, rows, SEEN, TWO_LABELS, 10, prefix="shifted_")
    (only,) = [str(one.message) for one in warned]
    assert only == (
        "10 examples cannot have the rho, P(Y = y_s), that was asked for: 'shifted_iid' has 0.4 (asked: 0.5), "
        "'shifted_high' has 0.8 (asked: 0.9), 'shifted_low' has 0.2 (asked: 0.25), 'shifted_flipped' has 0.2 "
        "(asked: 0.1); 40 can"
    )
    with pytest.warns(UserWarning, match=r"9 examples .*'flipped' has 0 \(asked: 0.05\); 180 can"):
        held_out_splits(NLI, MANY, STANDARD, {"iid": 1 / 3, "high": 0.9, "flipped": 0.9}, 9)
    with pytest.warns(UserWarning, match=r"'high' has 1 \(asked: 0.707\)$"):  # no number of rows reaches it
        held_out_splits(HANS, rows, SEEN, {"high": 2**-0.5}, 2)


@pytest.mark.parametrize(("n", "rhos"), [(40, TWO_LABELS), (78, TWO_LABELS), (98, {"iid": 0.5})])
def test_a_rho_that_is_reached_or_nearly_needs_no_warning(
    n: int, rhos: dict[str, float], recwarn: pytest.WarningsRecorder
) -> None:
    held_out_splits(HANS, pool(HANS, "heuristic", SEEN, 40), SEEN, rhos, n)
    assert not list(recwarn)


def test_without_warnings_the_examples_say_it_all_the_same(recwarn: pytest.WarningsRecorder) -> None:
    made = held_out_splits(HANS, pool(HANS, "heuristic", SEEN, 40), SEEN, TWO_LABELS, 10, warn=False)
    assert not list(recwarn) and made["iid"][0].rho == 0.4


def test_training_examples_carry_one_nth_unless_rounding_moves_it_far(recwarn: pytest.WarningsRecorder) -> None:
    rows = pool(HANS, "heuristic", SEEN, 40)
    assert {row.rho for row in balanced_split(HANS, rows, SEEN, 102, split="train")} == {0.5}  # 26 or 25 of 51
    assert not list(recwarn)
    with pytest.warns(UserWarning, match=r"6 examples .*'train' has 0.667 \(asked: 0.5\); 8 can"):
        few = balanced_split(HANS, rows, SEEN, 6, split="train")
    assert {row.rho for row in few} == {2 / 3}


def test_y_s_keeps_the_meaning_of_training_in_every_split() -> None:
    tests = held_out_splits(NLI, MANY, STANDARD, THREE_LABELS, 90, prefix="shifted_")
    assert list(tests) == ["shifted_iid", "shifted_high", "shifted_low", "shifted_flipped"]
    assert all(row.y_s == STANDARD[row.s] for rows in tests.values() for row in rows)


def test_a_draw_depends_on_seed_and_split_and_not_on_the_order_of_the_pool_within_cells() -> None:
    counts = cell_counts(9, STANDARD, NLI.labels, 1 / 3)

    def ids(seed: int = 0, split: str = "iid") -> list[str]:
        return [row.id for row in draw(MANY, counts, split=split, rho=1 / 3, seed=seed)]

    assert ids() == ids() and len(ids()) == 27
    assert ids() != ids(seed=1) and ids() != ids(split="low")


def test_missing_rows_are_counted_and_named() -> None:
    few = pool(HANS, "heuristic", SEEN, 5)
    with pytest.raises(ValueError) as error:
        held_out_splits(HANS, few, SEEN, {"high": 0.9}, 20)
    assert "the split 'high' cannot reach rho=0.9" in str(error.value)
    assert "4 of the 9 rows with (lexical_overlap, entailment) are missing" in str(error.value)
    assert "4 of the 9 rows with (constituent, contradiction) are missing" in str(error.value)


def test_a_size_that_the_values_cannot_share_is_refused() -> None:
    for n in (0, -3, 10):
        with pytest.raises(ValueError, match=rf"{n} examples for 'train'.* multiple of 3"):
            balanced_split(NLI, MANY, STANDARD, n, split="train")


def test_without_a_size_a_split_is_as_large_as_the_pool_allows() -> None:
    few = pool(HANS, "heuristic", SEEN, 5)
    assert len(balanced_split(HANS, few, SEEN, None, split="train")) == 20
    tests = held_out_splits(HANS, few, SEEN, TWO_LABELS, None)
    assert {len(rows) for rows in tests.values()} == {12}  # 5 of the 6 rows with one value at rho 0.9
    with pytest.raises(ValueError, match=r"no split can be made from the rows there are, 0 \(lexical_overlap, ent"):
        balanced_split(HANS, few[5:6], SEEN, None, split="train")


def test_of_one_source_a_split_takes_one_version_where_it_must() -> None:
    versions = [
        replace(row, id=f"{row.s} {row.y} {i}", source=f"{row.y} {i}")
        for row in pool(HANS, "heuristic", SEEN, 1)
        for i in range(10)
    ]
    for rho in (0.5, 0.9, 0.25, 0):
        counts = cell_counts(10, SEEN, HANS.labels, rho)
        drawn = draw(versions, counts, split="test", rho=rho, one_per_source=True)
        assert len(drawn) == len({row.source for row in drawn}) == 20
    assert len(balanced_split(HANS, versions, SEEN, None, split="train", one_per_source=True)) == 20
    with pytest.raises(ValueError, match=r"are missing"):
        draw(versions, cell_counts(11, SEEN, HANS.labels, 0.5), split="test", rho=0.5, one_per_source=True)
