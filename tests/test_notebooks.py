"""Notebooks: as they are kept, whole and clean; and executed from the first cell to the last, at small sizes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
# Where files of a machine are on Linux, macOS and Windows; a URL's path is none.
MACHINE_PATH = re.compile(r"(?<![\w./:-])/(?:home|root|Users|tmp|work|mnt|opt|usr|var)/\w|\b[A-Z]:\\+\w|site-packages")
MEGABYTE = 1_000_000

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path: Path) -> list[Any]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def outputs(path: Path) -> Iterator[Any]:
    for cell in code_cells(path):
        yield from cell.outputs


def test_there_are_notebooks() -> None:
    assert [path.name for path in NOTEBOOKS][:2] == ["01_instruction_steering.ipynb", "02_key_elements.ipynb"]


@each_notebook
def test_it_is_a_valid_notebook_of_the_current_format(path: Path) -> None:
    nbformat.validate(json.loads(path.read_text(encoding="utf-8")))
    assert nbformat.read(path, as_version=nbformat.NO_CONVERT).nbformat == 4


@each_notebook
def test_it_is_kept_as_it_came_out_of_one_run_from_top_to_bottom(path: Path) -> None:
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert sum(bool(cell.outputs) for cell in cells) > len(cells) / 2


@each_notebook
def test_no_output_is_an_error_or_a_warning(path: Path) -> None:
    assert [output.ename for output in outputs(path) if output.output_type == "error"] == []
    assert [output.text for output in outputs(path) if output.get("name") == "stderr"] == []


@each_notebook
def test_it_names_no_path_of_the_machine_it_ran_on(path: Path) -> None:
    assert [match.group() for match in MACHINE_PATH.finditer(path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('File "/home/ann/x.py"', True),
        ("/Users/ann/x", True),
        (r"C:\\Users", True),
        ("https://example.org/home/x", False),
        ("docs/home/x", False),
        ("a/tmp/b", False),
    ],
)
def test_the_search_for_paths_finds_paths_and_leaves_addresses_alone(text: str, found: bool) -> None:
    assert bool(MACHINE_PATH.search(text)) == found


@each_notebook
def test_it_is_small_because_figures_do_not_carry_their_library(path: Path) -> None:
    assert path.stat().st_size < 3 * MEGABYTE


@each_notebook
def test_every_figure_shows_in_jupyter_and_in_an_exported_page(path: Path) -> None:
    figures = [output.data for output in outputs(path) if "application/vnd.plotly.v1+json" in output.get("data", {})]
    assert figures
    assert all("Plotly.newPlot" in figure["text/html"] for figure in figures)


@each_notebook
def test_its_sizes_are_chosen_in_the_first_cell(path: Path) -> None:
    first, *others = [cell.source for cell in code_cells(path)]
    assert "LENSTEER_QUICK" in first
    assert not any("QUICK" in source for source in others)


@pytest.mark.slow
@each_notebook
def test_it_runs_from_top_to_bottom_at_small_sizes(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nbclient import NotebookClient

    from lensteer.checkpoints import EMBEDDED, ModelUnavailable, folder_for

    try:
        folder_for(EMBEDDED)
    except ModelUnavailable as error:
        pytest.skip(f"the default model cannot be had here: {error}")
    monkeypatch.setenv("LENSTEER_QUICK", "1")
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where).execute()
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
