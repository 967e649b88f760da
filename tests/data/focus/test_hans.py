"""SHANS: the grammar's pairs and the splits."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lensteer.data.focus import HANS, hans
from lensteer.data.focus.hans_grammar import FRAMES, hans_rows


def words(text: str) -> list[str]:
    return text.lower().replace(",", "").rstrip(".").split()


def contiguous(part: list[str], whole: list[str]) -> bool:
    return any(whole[i : i + len(part)] == part for i in range(len(whole)))


ROWS = hans_rows(60, "0\ntest")


def test_a_pair_shares_its_words_as_its_heuristic_says() -> None:
    for row in ROWS:
        premise, hypothesis = words(row["sentence1"]), words(row["sentence2"])
        assert not Counter(hypothesis) - Counter([*premise, "the"])
        assert contiguous(hypothesis, premise) == (row["heuristic"] != "lexical_overlap"), row


def test_each_kind_has_as_many_pairs_and_no_premise_twice() -> None:
    assert Counter((row["heuristic"], row["gold_label"]) for row in ROWS) == dict.fromkeys(FRAMES, 60)
    for kind in FRAMES:
        premises = [row["sentence1"] for row in ROWS if (row["heuristic"], row["gold_label"]) == kind]
        assert len(set(premises)) == 60
    nouns = [[word for word in words(row["sentence1"]) if word not in ("the", "and", "that")] for row in ROWS]
    assert all(len(set(found)) == len(found) for found in nouns)


def test_pairs_depend_on_the_key_only_and_too_many_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hans_rows(5, "a") == hans_rows(5, "a") != hans_rows(5, "b")
    with pytest.raises(ValueError, match=r"0 pairs of each kind"):
        hans_rows(0, "a")
    monkeypatch.setitem(FRAMES, ("constituent", "entailment"), (("If so, the {a} {i}.", "The {a} {i}."),))
    with pytest.raises(ValueError, match=r"200 pairs with \(constituent, entailment\) were asked for; .* makes 192"):
        hans_rows(200, "a")  # 16 people, 12 verbs


def test_own_splits_have_the_documented_sizes_and_predictivity() -> None:
    found = hans()
    assert len(found.train) == 480 and len(found.validation) == 120
    for split, rho in (("iid", 0.5), ("high", 0.9), ("low", 0.25), ("flipped", 0.1)):
        for name in (split, f"shifted_{split}"):
            assert len(found.tests[name]) == 200
            for value in {row.s for row in found.tests[name]}:
                rows = [row for row in found.tests[name] if row.s == value]
                assert sum(row.y == row.y_s for row in rows) / len(rows) == pytest.approx(rho)
    assert {row.s for row in found.train} == {"lexical_overlap", "constituent"}
    assert {row.s for row in found.tests["shifted_iid"]} == {"subsequence"}
    assert hans().splits() == found.splits() != hans(seed=1).splits()


def test_y_s_is_the_label_that_the_heuristic_was_given() -> None:
    assert {row.s: row.y_s for rows in hans().splits().values() for row in rows} == {
        "lexical_overlap": "entailment",
        "constituent": "contradiction",
        "subsequence": "entailment",
    }


def test_tables_of_hans_are_read_and_non_entailment_is_contradiction(tmp_path: Path) -> None:
    path = tmp_path / "heuristics_train_set.txt"
    names = ["gold_label", "sentence1", "sentence2", "pairID", "heuristic"]
    rows = hans_rows(40, "table")
    lines = ["\t".join(names)]
    for i, row in enumerate(rows):
        label = "non-entailment" if row["gold_label"] == "contradiction" else "entailment"
        lines.append("\t".join([label, row["sentence1"], row["sentence2"], f"ex{i}", row["heuristic"]]))
    path.write_text("\n".join(lines) + "\n")
    found = hans(path)
    assert {row.y for row in found.train} == set(HANS.labels)
    assert {row.s for row in found.tests["shifted_high"]} == {"subsequence"}
    assert not {row.source for row in found.train} & {row.source for row in found.tests["iid"]}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"n_train": 7}, r"7 examples for 'train'.*multiple of 2"),
        ({"n_test": 0}, r"0 pairs of each kind"),
        (
            {"source": [{"gold_label": "maybe", "heuristic": "constituent", "sentence1": "a", "sentence2": "b"}]},
            r"row 1: label 'maybe'",
        ),
        ({"source": [{"gold_label": "entailment", "sentence1": "a", "sentence2": "b"}]}, r"row 1: field 'heuristic'"),
    ],
)
def test_bad_input_is_named(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        hans(**arguments)
