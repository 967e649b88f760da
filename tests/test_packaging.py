from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.resources import files
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def name_of(requirement: str) -> str:
    return requirement.partition(">=")[0].partition("[")[0].strip()


@pytest.mark.parametrize("package", ["lensteer", "analysis"])
def test_both_packages_are_typed(package: str) -> None:
    assert files(package).joinpath("py.typed").is_file()


def test_the_version_is_the_same_in_the_package_and_in_the_project_file() -> None:
    assert import_module("lensteer").__version__ == PROJECT["version"]


@pytest.mark.parametrize("package", ["lensteer", "analysis"])
def test_every_folder_with_modules_is_a_package_and_so_gets_installed(package: str) -> None:
    folders = {path.parent for path in (ROOT / package).rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


@pytest.mark.parametrize("name", ["queries.jsonl", "instructions.jsonl"])
def test_package_data_is_readable(name: str) -> None:
    assert files("lensteer.data").joinpath(name).read_text(encoding="utf-8").startswith("{")


def test_every_data_file_is_covered_by_the_package_data_patterns() -> None:
    kinds = {path.suffix for path in (ROOT / "lensteer" / "data").iterdir() if path.is_file()}
    assert kinds == {".py", ".jsonl", ".toml"}


def test_importing_the_package_and_reading_data_load_nothing_heavier_than_torch() -> None:
    heavy = ("transformers", "transformer_lens", "pandas", "plotly", "lm_eval", "sklearn", "safetensors")
    code = (
        "import sys; import lensteer; from lensteer import data; data.queries('fit'); data.FORMATS['json']; "
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_every_direct_dependency_of_the_tested_extras_is_pinned() -> None:
    extras = PROJECT["optional-dependencies"]
    direct = [*PROJECT["dependencies"], *extras["eval"], *extras["dev"]]
    missing = {name_of(requirement) for requirement in direct} - {"lensteer"} - set(pins())
    assert missing == set()


def test_torch_is_pinned_without_a_build_suffix_so_that_any_build_fits() -> None:
    assert pins()["torch"] == "2.13.0"
