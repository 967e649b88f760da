"""SMNLI: genres, exact counts, and whole premises."""

from __future__ import annotations

import json
from collections import Counter
from importlib.resources import files
from typing import Any

import pytest

from lensteer.data.focus import NLI, nli
from lensteer.data.focus.nli import SHIFTED, STANDARD

ROWS = [json.loads(line) for line in files("lensteer.data").joinpath("focus_nli.jsonl").read_text().splitlines()]


def multi_nli(each: int, genres: Any = (*STANDARD, *SHIFTED, "slate"), start: int = 0) -> list[dict[str, Any]]:
    """Rows like those of MultiNLI: three hypotheses for each premise."""
    return [
        {"premise": f"{genre} {i}.", "hypothesis": f"{label} {genre} {i}.", "genre": genre, "label": label}
        for genre in genres
        for i in range(start, start + each)
        for label in range(3)
    ]


def test_own_pairs_have_three_hypotheses_for_each_premise_and_no_text_twice() -> None:
    by_premise: dict[str, list[Any]] = {}
    for row in ROWS:
        by_premise.setdefault(row["premise"], []).append(row)
    assert all(sorted(row["label"] for row in rows) == [0, 1, 2] for rows in by_premise.values())
    assert all(len({(row["genre"], row["split"]) for row in rows}) == 1 for rows in by_premise.values())
    assert len({row["hypothesis"] for row in ROWS}) == len(ROWS) == 270
    assert Counter(rows[0]["genre"] for rows in by_premise.values()) == {
        **dict.fromkeys(STANDARD, 20),
        **dict.fromkeys(SHIFTED, 10),
    }
    assert all(len(row["premise"].split()) <= 22 and len(row["hypothesis"].split()) <= 14 for row in ROWS)


def test_no_own_text_names_its_genre() -> None:
    assert not [row for row in ROWS if row["genre"] in f"{row['premise']} {row['hypothesis']}".lower()]


def test_own_splits_have_the_documented_sizes() -> None:
    found = nli()
    sizes = {split: len(examples) for split, examples in found.splits().items()}
    names = ("iid", "high", "low", "flipped")
    assert sizes == {
        "train": 72, "validation": 18, **dict.fromkeys(names, 30), **{f"shifted_{name}": 30 for name in names}
    }  # fmt: skip
    assert nli().splits() == found.splits() != nli(seed=1).splits()


def test_own_splits_say_the_rho_that_ten_pairs_of_a_genre_allow(recwarn: pytest.WarningsRecorder) -> None:
    found = nli()
    assert not list(recwarn)  # it is documented
    for prefix in ("", "shifted_"):
        for split, rho in {"iid": 0.3, "high": 0.9, "low": 0.1, "flipped": 0}.items():
            assert {example.rho for example in found.tests[prefix + split]} == {rho}
    assert {example.rho for example in (*found.train, *found.validation)} == {1 / 3}


def test_a_number_of_pairs_that_was_given_is_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"30 examples .*'iid' has 0.3 \(asked: 0.333\), 'flipped' has 0"):
        nli(n_test=30)
    with pytest.warns(UserWarning, match=r"'flipped' has 0"):
        nli(multi_nli(60), n_test=30)


def test_published_sizes_have_the_counts_of_the_paper() -> None:
    found = nli(
        {"train": multi_nli(1000, STANDARD), "test": multi_nli(300, (*STANDARD, *SHIFTED), start=1000)},
        n_train=7200,
        n_validation=1800,
        n_test=900,
    )
    assert len(found.train) == 7200 and len(found.validation) == 1800
    for meaning, prefix in ((STANDARD, ""), (SHIFTED, "shifted_")):
        for split, counts in {
            "iid": (100, 100, 100),
            "high": (270, 15, 15),
            "low": (30, 135, 135),
            "flipped": (15, 270, 15),
        }.items():
            cells = Counter((row.s, row.y) for row in found.tests[prefix + split])
            for genre, y_s in meaning.items():
                start = NLI.labels.index(y_s)
                turned = [NLI.labels[(start + step) % 3] for step in range(3)]  # y_s first, then the next one
                assert tuple(cells[genre, label] for label in turned) == counts
        rho = [sum(row.informative is False for row in found.tests[prefix + s]) / 900 for s in ("iid", "high", "low")]
        assert rho == pytest.approx([1 / 3, 0.9, 0.1])
        assert sum(not row.informative for row in found.tests[f"{prefix}flipped"]) / 900 == pytest.approx(0.05)
    assert Counter((row.s, row.y) for row in found.train) == {
        (genre, label): 800 for genre in STANDARD for label in NLI.labels
    }


def test_a_genre_means_the_label_of_training_and_shifted_genres_are_never_trained_on() -> None:
    found = nli()
    assert {row.s for row in (*found.train, *found.validation)} == set(STANDARD)
    for split, examples in found.tests.items():
        meaning = SHIFTED if split.startswith("shifted") else STANDARD
        assert {row.s: row.y_s for row in examples} == meaning
    assert sorted(STANDARD.values()) == sorted(SHIFTED.values()) == sorted(NLI.labels)


def test_undivided_rows_are_divided_by_premise() -> None:
    found = nli(multi_nli(30))
    assert len(found.train) > 3 * len(found.validation)
    assert {row.s for row in found.tests["shifted_iid"]} == set(SHIFTED)
    assert not {row.source for row in found.train} & {row.source for row in found.tests["iid"]}


def test_rows_of_other_genres_and_without_a_label_are_left_out() -> None:
    rows = multi_nli(30)
    extra = [{**rows[0], "label": -1}, {"sentence1": "x", "sentence2": "y", "genre": "travel", "gold_label": "-"}]
    assert nli([*rows, *extra]).splits() == nli(rows).splits()
    assert not [split for split in nli(multi_nli(30, STANDARD)).tests if "shifted" in split]


def test_the_names_of_multinli_and_of_its_tables_are_both_read() -> None:
    rows = multi_nli(30)
    tables = [
        {
            "sentence1": row["premise"],
            "sentence2": row["hypothesis"],
            "genre": row["genre"],
            "gold_label": NLI.labels[row["label"]],
        }
        for row in rows
    ]
    assert nli(tables).splits() == nli(rows).splits()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"n_train": 10}, r"10 examples for 'train'.*multiple of 3"),
        ({"n_test": 900}, r"the split 'iid' cannot reach .*90 of the 100 rows with \(government, contradiction\)"),
        ({"source": [{"premise": "p", "hypothesis": "h", "label": 0}]}, r"row 1: field 'genre' is"),
        ({"source": [{**multi_nli(1)[0], "label": 5}]}, r"row 1: label 5; a label is one of entailment"),
        ({"source": [{**multi_nli(1)[0], "premise": ""}]}, r"row 1: field 'premise' or 'sentence1' is ''"),
        ({"source": multi_nli(1)[:3]}, r"no rows for|no split can be made"),
    ],
)
def test_bad_input_is_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        nli(**arguments)
