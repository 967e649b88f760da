"""The commands `transport` and `export`: what they refuse before a model is loaded, and saved maps as input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

import lensteer as ls
from analysis import cli
from analysis.terminal import show, steering_in
from lensteer.methods.transport import Transport
from lensteer.steering import Steering

SOURCE = ["The sea is deep.", "A wave broke.", "Salt in the wind.", "The tide came in."]
TARGET = ["The oven is warm.", "Bread on a table.", "She stirred the soup.", "Steam on the window."]
GIVEN = ["--concept", "ocean", "--n", "2"]


def said(*arguments: Any) -> str:
    """What a refused command says, without boxes."""
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments], env={"COLUMNS": "1000"})
    assert result.exit_code != 0, result.output
    return " ".join(result.output.replace("│", " ").split()) + str(result.exception)


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.cli_transport.load", lambda *given: pytest.fail("a model was loaded"))


@pytest.fixture(scope="module")
def maps(llama: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    fitted = ls.transport.fit(llama.model, SOURCE, TARGET, "linear", "mlp", layers=[1, 2], progress=False)
    return fitted.save(tmp_path_factory.mktemp("maps") / "maps.safetensors")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "same.safetensors", "--steering", "./same.safetensors"], "need a file each"),
        (["--out", "a.safetensors", "--strength", "2"], "--strength is of the steering that --steering"),
        (["--out", "a.safetensors", "--steering", "b.safetensors", "--strength", "nan"], "strength must be finite"),
        (["--out", "a.safetensors", "--method", "best"], "method must be one of"),
        (["--out", "a.safetensors", "--order", "backwards"], "order must be one of"),
        (["--out", "a.safetensors", "--support", "60-40"], "is no range"),
        (["--out", "a.safetensors", "--support", "0-nan"], "is no range"),
        (["--out", "a.pt"], "--out must end in .safetensors, got 'a.pt'"),
        (["--out", "a.safetensors", "--steering", "b"], "--steering must end in .safetensors, got 'b'"),
    ],
)
def test_transport_refuses_bad_options_before_a_model_is_loaded(
    no_model: None, arguments: list[str], message: str
) -> None:
    assert message in said("transport", *GIVEN, *arguments)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"caf\xe9\nth\xe9\n", "source.txt is not UTF-8 (byte 3)"),
        (b"\n \n", "source.txt is empty"),
        (b"alone\n", "source.txt holds one text"),
    ],
)
def test_a_text_file_that_cannot_be_used_is_named(no_model: None, tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "source.txt").write_bytes(content)
    texts = ["--source", tmp_path / "source.txt", "--target", tmp_path / "source.txt"]
    assert message in said("transport", *texts, "--out", tmp_path / "maps.safetensors")


@pytest.mark.parametrize(
    ("to", "name", "message"),
    [
        ("folded", "file.txt", "is a file; give a new folder"),
        ("folded", "full", "holds files already; give a new or an empty folder"),
        ("hooks", "a.txt", "--to hooks writes a file that ends in .py"),
        ("hooks", "my-steering.py", "cannot be imported"),
        ("lm-eval", "a.py", "ends in .pt or .pth"),
        ("gguf", "full", "ends in .gguf"),
    ],
)
def test_export_refuses_a_place_it_cannot_write_before_a_model_is_loaded(
    no_model: None, maps: Path, tmp_path: Path, to: str, name: str, message: str
) -> None:
    (tmp_path / "file.txt").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    assert message in said("export", maps, tmp_path / name, "--to", to)


def test_export_takes_saved_maps_at_a_strength_and_a_support(model_folder: Path, maps: Path, tmp_path: Path) -> None:
    how = ["--strength", 0.5, "--support", "everywhere", "--model", model_folder]
    arguments = ["export", maps, tmp_path / "maps.py", "--to", "hooks", *how]
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    expected = Transport.load(maps).steering(0.5, support=None)
    assert Steering.load(tmp_path / "maps.hooks.safetensors").content_hash() == expected.content_hash()
    assert steering_in(maps).content_hash() == Transport.load(maps).steering(1.0).content_hash()


def test_a_support_for_a_steering_is_refused(no_model: None, maps: Path, tmp_path: Path) -> None:
    saved = Transport.load(maps).steering().save(tmp_path / "steering.safetensors")
    assert "--support is for maps" in said("export", saved, tmp_path / "a.py", "--to", "hooks", "--support", "0-100")


def test_sites_are_split_on_commas(model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "maps.safetensors"
    arguments = ["transport", *GIVEN, "--sites", "attention, mlp", "--layers", "1", "--out", out]
    result = CliRunner().invoke(cli.app, [*map(str, arguments), "--model", str(model_folder)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert list(Transport.load(out).maps) == ["blocks.1.attn.hook_out", "blocks.1.mlp.hook_out"]


def test_a_wide_table_breaks_its_headers_and_cuts_no_cell(capsys: pytest.CaptureFixture[str]) -> None:
    show(pd.DataFrame({"hook": ["blocks.11.mlp.hook_out"], **{f"a long header {i}": [0.125] for i in range(9)}}), "")
    output = capsys.readouterr().out
    assert "blocks.11.mlp.hook_out" in output and output.count("0.125") == 9 and output.count("header") == 9
    assert max(map(len, output.splitlines())) <= 120
