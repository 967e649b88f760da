"""Results tables on disk: what is written comes back, in both formats."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.tables import read_table, write_table

TEXTS = ["", "NA", "None", "null", "nan", "12", "1e3", "True", " blanks ", 'a "quote", comma', "two\nlines", "日本 🌍"]


def results() -> pd.DataFrame:
    n = len(TEXTS)
    return pd.DataFrame(
        {
            "instruction": "shout",
            "condition": "none",
            "layer": -1,
            "strength": 0.5,
            "prompt_id": range(n),
            "prompt": "None",
            "response": TEXTS,
            "n_tokens": range(n),
            "finish_reason": "stop",
            "success": [float("nan"), *[1.0] * (n - 1)],
            "perplexity": [float("nan"), float("inf"), *[1.0 / 3] * (n - 2)],
            "degenerate": [True, *[False] * (n - 1)],
        }
    )


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_a_table_comes_back_as_it_was(tmp_path: Path, ending: str) -> None:
    path = write_table(results(), tmp_path / "new" / f"results{ending}")
    found = read_table(path)
    pd.testing.assert_frame_equal(found, results(), check_dtype=False)
    assert found["response"].tolist() == TEXTS
    assert found["degenerate"].dtype == bool
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("texts", [["1", "2"], ["", ""], ["None", "NA"], ["True", "False"]])
def test_responses_stay_text_whatever_they_look_like(tmp_path: Path, texts: list[str]) -> None:
    table = pd.DataFrame({"response": texts, "success": [1.0, 0.0]})
    found = read_table(write_table(table, tmp_path / "results.csv"))
    assert found["response"].tolist() == texts
    assert found["success"].tolist() == [1.0, 0.0]


def test_carriage_returns_survive_a_csv(tmp_path: Path) -> None:
    texts = ["a\r\nb", "a\rb", "\r", "\n"]
    found = read_table(write_table(pd.DataFrame({"response": texts}), tmp_path / "results.csv"))
    assert found["response"].tolist() == texts


@pytest.mark.parametrize("name", ["results.xlsx", "results", "results.json"])
def test_other_endings_are_refused_both_ways(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=rf"\.parquet or \.csv file, not '{name}'"):
        write_table(results(), tmp_path / name)
    (tmp_path / name).write_text("x")
    with pytest.raises(ValueError, match=rf"\.parquet or \.csv file, not '{name}'"):
        read_table(tmp_path / name)


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_a_missing_file_and_one_that_is_no_table_are_told_apart(tmp_path: Path, ending: str) -> None:
    with pytest.raises(FileNotFoundError, match="no file at"):
        read_table(tmp_path / f"none{ending}")
    for content in (b"", b"\xff\xfe\x00\x81" * 9, b'"open quote,\n1,2'):
        path = tmp_path / f"bad{ending}"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"bad\.\w+ cannot be read as a table"):
            read_table(path)


def test_a_parquet_file_cut_off_is_refused(tmp_path: Path) -> None:
    path = write_table(results(), tmp_path / "results.parquet")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="cannot be read as a table"):
        read_table(path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write .*results\.csv"):
        write_table(results(), tmp_path / "file" / "results.csv")


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *arguments: Any, **options: Any) -> Any:
        if name.split(".")[0] in ("pyarrow", "fastparquet"):
            raise ImportError(f"No module named {name!r}")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"lensteer\[eval\]"):
        write_table(results(), tmp_path / "results.parquet")
    (tmp_path / "there.parquet").write_bytes(b"")
    with pytest.raises(ImportError, match=r"lensteer\[eval\]"):
        read_table(tmp_path / "there.parquet")
    assert write_table(results(), tmp_path / "results.csv").is_file()
