"""Where rows come from, and how they are divided."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lensteer.data.focus.sources import HubParts, divide, read_parts, text_of, three_parts

HUB = HubParts("someone/set", {"train": ("train",), "test": ("a", "b")}, config="c", revision="r")
ROWS = [{"text": "one"}, {"text": "two"}]


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def found(source: Any) -> dict[str, list[Any]]:
    return {part: [row for _, row in rows] for part, rows in read_parts(source, "focus_nli.jsonl", HUB).items()}


def test_rows_come_from_paths_lists_and_mappings(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", ROWS)
    assert found(path) == found(str(path)) == found(ROWS) == {"all": ROWS}
    assert found([path, str(path)]) == {"all": ROWS * 2}
    assert found({"train": path, "test": ROWS[:1]}) == {"train": ROWS, "test": ROWS[:1]}


def test_rows_that_name_their_split_are_divided_by_it() -> None:
    rows = [{"split": split, "text": split} for split in ("train", "test", "train")]
    assert found(rows) == {"train": [rows[0], rows[2]], "test": [rows[1]]}
    with pytest.raises(ValueError, match=r"row 3: no split, although other rows have one"):
        found([*rows[:2], {"text": "x"}])
    with pytest.raises(ValueError, match=r"row 1: unknown split 'fit'; the splits are train, validation, test"):
        found([{"split": "fit"}])


def test_tables_with_tabs_are_read_as_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "table.txt"
    path.write_text('gold_label\tsentence1\nentailment\tThe "doctor" ran\n')
    ((where, row),) = read_parts(path, "", HUB)["all"]
    assert row == {"gold_label": "entailment", "sentence1": 'The "doctor" ran'} and where.endswith("table.txt, line 2")
    path.write_text("gold_label\n")
    with pytest.raises(ValueError, match=r"has no rows below the names"):
        found(path)
    with pytest.raises(FileNotFoundError, match=r"columns with tabs"):
        found(tmp_path / "missing.tsv")


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        (3, TypeError, r"source is 3; it must be 'own', 'hub', a path"),
        ([], ValueError, r"an empty list"),
        ([3], TypeError, r"entry 1 of the source is 3"),
        ({"fit": ROWS}, ValueError, r"has the parts \['fit'\]"),
        ({}, ValueError, r"has the parts \[\]"),
        ("missing.jsonl", FileNotFoundError, r"missing\.jsonl is not a file"),
    ],
)
def test_a_source_of_another_kind_is_refused(source: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        found(source)


def test_the_hub_is_asked_for_every_split_of_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(*arguments: Any, **names: Any) -> list[dict[str, str]]:
        asked.append((*arguments, names["split"], names["revision"]))
        return [{"from": names["split"]}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert found("hub") == {"train": [{"from": "train"}], "test": [{"from": "a"}, {"from": "b"}]}
    assert asked == [("someone/set", "c", split, "r") for split in ("train", "a", "b")]


def test_without_the_hub_the_error_says_what_works(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=offline))
    with pytest.raises(OSError, match=r"'someone/set' \(ConnectionError: no network\).*source='own' works"):
        found("hub")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'lensteer\[eval\]'"):
        found("hub")


def test_a_text_is_taken_from_the_first_field_that_is_there() -> None:
    assert text_of({"b": " x "}, ("a", "b"), "row 1") == "x"
    for row in ({}, {"a": 3}, {"a": " "}):
        with pytest.raises(ValueError, match=r"row 1: field 'a' or 'b' is"):
            text_of(row, ("a", "b"), "row 1")


ITEMS = [(f"source {i // 2}", "ab"[i // 2 % 2], i) for i in range(200)]


def test_sources_are_divided_whole_and_in_equal_shares_of_every_group() -> None:
    parts = divide(ITEMS, {"train": 0.8, "test": 0.2}, source=lambda each: each[0], group=lambda each: each[1], seed=0)
    assert {part: Counter(group for _, group, _ in items) for part, items in parts.items()} == {
        "train": {"a": 80, "b": 80},
        "test": {"a": 20, "b": 20},
    }
    assert not {source for source, _, _ in parts["train"]} & {source for source, _, _ in parts["test"]}
    assert sorted(item[2] for items in parts.values() for item in items) == list(range(200))


def test_three_parts_are_made_of_what_there_is() -> None:
    def made(parts: Any, seed: int = 0) -> dict[str, Any]:
        return three_parts(parts, source=lambda each: each[0], group=lambda each: each[1], seed=seed)

    undivided = made({"all": ITEMS})
    assert {part: len(items) for part, items in undivided.items()} == {"train": 128, "validation": 32, "test": 40}
    assert undivided == made({"all": ITEMS}) != made({"all": ITEMS}, seed=1)
    # What is in two parts stays in the one that is tested.
    two = made({"train": ITEMS, "test": ITEMS[:20]})
    assert two["test"] == ITEMS[:20] and len(two["train"]) + len(two["validation"]) == 180
    given = {"train": ITEMS[:10], "validation": ITEMS[10:14], "test": ITEMS[14:]}
    assert made(given) == given
    with pytest.raises(ValueError, match=r"no rows for 'test'"):
        made({"train": ITEMS})
