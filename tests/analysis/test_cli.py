"""The terminal front on a tiny model in a folder: every command, the files they hand on, and plain errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner, Result

import analysis.demo
import lensteer as ls
from analysis import cli
from analysis.element_study import ElementSize
from analysis.study import Size
from analysis.tables import read_table, write_table
from lensteer.methods.instruction import InstructionVectors
from lensteer.prompts import Pair

COMMANDS = ("demo", "fit", "transport", "sweep", "generate", "export", "report", "models")
QUERIES = ["Why is the sky blue?", "Name a river.", "How far is it?"]
ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: Any) -> Result:
    """One command; anything but success fails the test with what it printed."""
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def main(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> Any:
    """The program as it is installed: what it exits with."""
    monkeypatch.setattr(sys, "argv", ["lensteer", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code


def plain(text: str) -> str:
    """Without colours, boxes and the line breaks of a narrow terminal."""
    import re

    return " ".join(re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", " ", text).split())


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    """A folder with pairs and prompts, and what `fit` and `sweep` made of them."""
    folder = tmp_path_factory.mktemp("cli")
    pairs = [{"positive": f"{q} Shout!", "negative": q} for q in QUERIES]
    jsonl(folder / "shout.jsonl", pairs)
    jsonl(folder / "prompts.jsonl", [{"prompt": q} for q in QUERIES])
    run("fit", "--pairs", folder / "shout.jsonl", "--out", folder / "shout.safetensors", "--model", model_folder)
    return folder


def sweep_arguments(work: Path, model_folder: Path, out: Path, *more: Any) -> list[Any]:
    files = ["sweep", work / "shout.safetensors", "--out", out, "--prompts", work / "prompts.jsonl"]
    how = ["--layers", "1:4:2", "--strengths", "1,2.5", "--check", "no_commas", "--max-new-tokens", 4]
    return [*files, *how, "--cache", out.parent / "cache", "--model", model_folder, *more]


# --- light to start ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [(), *((c,) for c in COMMANDS)])
def test_help_names_every_option(command: tuple[str, ...]) -> None:
    output = plain(run(*command, "--help").output)
    assert "Usage" in output
    if not command:
        assert all(name in output for name in (*COMMANDS, "lm-eval"))


def test_help_and_the_packages_start_without_a_heavy_library() -> None:
    heavy = ("torch", "transformers", "transformer_lens", "pandas", "numpy", "plotly", "lm_eval")
    for start in (
        "import analysis",
        "import analysis.cli",
        "from typer.testing import CliRunner; from analysis.cli import app; "
        + "; ".join(f"assert CliRunner().invoke(app, {[c, '--help']}).exit_code == 0" for c in COMMANDS),
    ):
        code = f"{start}\nimport sys\nprint([name for name in {heavy!r} if name in sys.modules])"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert done.stdout.strip() == "[]", (start, done.stdout, done.stderr)


def test_no_command_shows_the_help() -> None:
    result = CliRunner().invoke(cli.app, [])
    assert "Usage" in result.output


# --- the commands --------------------------------------------------------------------------------------------------


def test_fit_from_pairs_writes_the_vectors_that_the_library_fits(work: Path, model_folder: Path) -> None:
    found = InstructionVectors.load(work / "shout.safetensors")
    model = ls.load_model(model_folder)
    expected = ls.instruction.fit(model, [Pair(f"{q} Shout!", q) for q in QUERIES], name="shout", progress=False)
    assert found.name == "shout"
    assert torch.equal(found.direction, expected.direction)
    assert dict(found.metadata) == dict(expected.metadata)


def test_fit_of_a_built_in_instruction_prints_a_row_for_every_layer(tmp_path: Path, model_folder: Path) -> None:
    out = tmp_path / "ocean.safetensors"
    arguments = ["--instruction", "include:ocean", "--n", 3, "--prompt-format", "plain", "--seed", 3]
    output = run("fit", *arguments, "--out", out, "--model", model_folder).output
    found = InstructionVectors.load(out)
    assert (found.name, found.metadata["n_pairs"], found.metadata["prompt_format"], found.metadata["seed"]) == (
        "include:ocean",
        "3",
        "plain",
        "3",
    )
    assert "auroc" in output and str(out) in output.replace("\n", "")
    lines = [line.split() for line in output.splitlines()]
    assert [line[0] for line in lines if line and line[0].isdigit()] == ["0", "1", "2", "3"]


def test_sweep_writes_the_table_of_the_library_and_prints_a_line_for_every_candidate(
    work: Path, model_folder: Path, tmp_path: Path
) -> None:
    from analysis.sweep import baseline, grid, sweep

    output = run(*sweep_arguments(work, model_folder, tmp_path / "results.csv")).output
    found = read_table(tmp_path / "results.csv")
    fitted = InstructionVectors.load(work / "shout.safetensors")
    candidates = [baseline("shout"), *grid(fitted, layers=[1, 3], strengths=[1.0, 2.5])]
    checks = {"shout": lambda r: [bool(t.strip()) and "," not in t for t in r]}
    model = ls.load_model(model_folder)
    expected = sweep(model, candidates, QUERIES, checks=checks, max_new_tokens=4, progress=False)
    pd.testing.assert_frame_equal(found, expected, check_dtype=False, rtol=1e-3)
    lines = [line.split() for line in output.splitlines()]
    printed = [(line[0], line[1]) for line in lines if len(line) > 3 and (line[0] == "none" or line[0].isdigit())]
    assert printed == [("none", "0"), ("1", "1"), ("1", "2.5"), ("3", "1"), ("3", "2.5")]


def test_sweep_then_report_is_a_page_that_opens_offline(work: Path, model_folder: Path, tmp_path: Path) -> None:
    for ending in ("csv", "parquet"):
        out = tmp_path / f"results.{ending}"
        run(*sweep_arguments(work, model_folder, out))
        page = tmp_path / f"{ending}.html"
        output = run("report", out, "--out", page, "--perplexity-ratio", 3).output
        text = page.read_text(encoding="utf-8")
        assert str(page) in output.replace("\n", "")
        assert text.count("plotly.js v") == 1
        assert "<script src=" not in text and "<link href=http" not in text
        assert "shout" in text and "perplexity budget" in text


def test_a_second_sweep_reads_the_cache(work: Path, model_folder: Path, tmp_path: Path) -> None:
    run(*sweep_arguments(work, model_folder, tmp_path / "one.csv"))
    files = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    run(*sweep_arguments(work, model_folder, tmp_path / "two.csv"))
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()} == files
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()


def test_sweep_adds_in_the_unit_asked_for(work: Path, model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.csv"
    run(*sweep_arguments(work, model_folder, out, "--operator", "add", "--unit", "residual", "--n", 2))
    found = read_table(out)
    assert found["prompt_id"].max() == 1
    fitted = InstructionVectors.load(work / "shout.safetensors")
    steering = fitted.add(3, 2.5, unit="residual")
    expected = ls.generate(ls.load_model(model_folder), QUERIES[:2], steering, max_new_tokens=4, progress=False)
    own = found[(found["layer"] == 3) & (found["strength"] == 2.5)]
    assert own["response"].tolist() == expected["response"].tolist()


def test_chat_messages_stay_messages(work: Path, model_folder: Path, tmp_path: Path) -> None:
    chats = [[{"role": "system", "content": "Be kind."}, {"role": "user", "content": q}] for q in QUERIES]
    prompts = jsonl(tmp_path / "chats.jsonl", [{"prompt": chat} for chat in chats])
    model = ls.load_model(model_folder)
    expected = ls.generate(model, chats, max_new_tokens=4, progress=False)["response"].tolist()
    out = tmp_path / "out.parquet"
    run("generate", "--prompts", prompts, "--out", out, "--max-new-tokens", 4, "--model", model_folder)
    assert read_table(out)["unsteered"].tolist() == expected
    arguments = sweep_arguments(work, model_folder, tmp_path / "sweep.parquet")
    arguments[arguments.index("--prompts") + 1] = prompts
    run(*arguments)
    found = read_table(tmp_path / "sweep.parquet")
    assert found.loc[found["layer"] == -1, "response"].tolist() == expected


def test_generate_shows_unsteered_and_steered_from_a_saved_steering(
    work: Path, model_folder: Path, tmp_path: Path
) -> None:
    fitted = InstructionVectors.load(work / "shout.safetensors")
    saved, out = fitted.set_projection(2, 2.0).save(tmp_path / "steering.safetensors"), tmp_path / "texts.csv"
    model = ls.load_model(model_folder)

    def expected(steering: Any) -> list[str]:
        return ls.generate(model, QUERIES, steering, max_new_tokens=4, progress=False)["response"].tolist()

    arguments = ["generate", *QUERIES, "--out", out, "--max-new-tokens", 4, "--model", model_folder]
    output = run(*arguments, "--steering", saved).output
    found = write_and_read(out)
    assert found["prompt"].tolist() == QUERIES
    assert found["unsteered"].tolist() == expected(None)
    assert found["steered"].tolist() == expected(fitted.set_projection(2, 2.0))
    assert "SetProjection[32]" in output and "blocks.2.hook_resid_post" in output

    run(*arguments, "--steering", saved, "--strength", 0.5)
    assert write_and_read(out)["steered"].tolist() == expected(fitted.set_projection(2, 0.5))
    run(*arguments, "--vectors", work / "shout.safetensors", "--layer", 1)
    assert write_and_read(out)["steered"].tolist() == expected(fitted.set_projection(1))
    added = ["--operator", "add", "--unit", "absolute", "--strength", -7]
    run(*arguments, "--vectors", work / "shout.safetensors", "--layer", 1, *added)
    assert write_and_read(out)["steered"].tolist() == expected(fitted.add(1, -7.0))


def write_and_read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, keep_default_na=False, dtype=str)


def test_generate_without_steering_and_sampled_is_reproducible(model_folder: Path, tmp_path: Path) -> None:
    texts = []
    for seed in (1, 1, 2):
        out = tmp_path / "texts.csv"
        arguments = ["--temperature", 1.0, "--seed", seed, "--max-new-tokens", 6, "--out", out]
        run("generate", "Why?", *arguments, "--model", model_folder)
        found = write_and_read(out)
        assert list(found) == ["prompt", "unsteered"]
        texts.append(found["unsteered"][0])
    assert texts[0] == texts[1] != texts[2]


def test_what_a_model_wrote_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    cli._show(pd.DataFrame({"a [bold]column": ["[/b] closing", "[red]INST[/red]", "[INST] :smile:"]}), "title [/x]")
    output = capsys.readouterr().out
    for text in ("[bold]", "[/b] closing", "[red]INST[/red]", "[INST] :smile:", "title [/x]"):
        assert text in output


def test_models_says_what_is_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LENSTEER_CACHE", str(tmp_path))
    output = plain(run("models").output)
    assert "smollm2-135m-instruct" in output and "nothing yet" in output
    (tmp_path / "made-abc").mkdir()
    (tmp_path / "made-abc" / "config.json").write_text("{}")
    assert "made-abc" in run("models").output


def test_demo_writes_its_files_and_prints_the_table(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = Size(pairs=3, validation=2, test=2, layers=(20,), max_new_tokens=3)
    monkeypatch.setattr(analysis.demo, "_QUICK_SIZE", size)
    elements = ElementSize(ks=(1,), strengths=(1.0,), layers=(14,), patched_heads=3, patched_pairs=2)
    monkeypatch.setattr(analysis.demo, "_QUICK_ELEMENTS", elements)
    monkeypatch.setattr(analysis.demo, "_QUICK_QUESTIONS", {"fit": 3, "validation": 2, "test": 2})
    monkeypatch.setattr(analysis.demo, "QUICK", ("very_short", "no_commas"))
    output = run("demo", "--quick", "--out", tmp_path / "demo", "--model", model_folder).output
    assert (tmp_path / "demo" / "report.html").is_file()
    for name in ("results", "elements"):
        assert (tmp_path / "demo" / f"{name}.parquet").is_file()
        assert f"{name}.parquet" in output
    assert "very_short" in output and "no_commas" in output and "perplexity" in output and "done in" in output
    second = output[output.index("Key heads for sentiment") :]
    for word in ("method", "exact", "against none", "SADI head", "random head", "fixed head", "ITI", "CAA"):
        assert word in second, word


def test_lm_eval_gets_every_word_as_it_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    from lensteer.evaluate import lm_eval_model

    seen: list[list[str]] = []
    monkeypatch.setattr(sys, "argv", ["lensteer"])
    monkeypatch.setattr(lm_eval_model, "main", lambda: seen.append(list(sys.argv)))
    words = ["--model", "lensteer", "--model_args", "steering=a b.safetensors,strength=-0.5", "--tasks", "copa,boolq"]
    for own in (words, [*words, "--limit", "5", "-h"], ["--help"], ["ls", "tasks"], []):
        run("lm-eval", *own)
        assert seen.pop() == ["lm_eval", *own]


def test_lm_eval_explains_itself(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(monkeypatch, "lm-eval", "--help") == 0
    output = capsys.readouterr().out
    assert "usage: lm" in output.lower() and "Steer language models" not in output


def test_without_lm_eval_its_command_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "lensteer.evaluate.lm_eval_model", raising=False)
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    assert main(monkeypatch, "lm-eval", "--tasks", "copa") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and 'pip install "lensteer[eval]"' in error and "Traceback" not in error


# --- errors --------------------------------------------------------------------------------------------------------


def test_bad_input_is_one_line_without_a_traceback(
    work: Path,
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def no_model(*arguments: Any) -> Any:
        raise AssertionError("bad input must be found before the model is loaded")

    monkeypatch.setattr(cli, "_load", no_model)
    vectors, out = work / "shout.safetensors", tmp_path / "out.csv"
    steering = InstructionVectors.load(vectors).set_projection(2).save(tmp_path / "steering.safetensors")
    (tmp_path / "bad.jsonl").write_text('{"positive": "a"}\n')
    (tmp_path / "bad.safetensors").write_text("nothing")
    write_table(pd.DataFrame({"a": [1]}), tmp_path / "bad.csv")
    cases: list[tuple[list[Any], str]] = [
        (["fit", "--out", out, "--pairs", tmp_path / "none.jsonl"], "none.jsonl is not a file"),
        (["fit", "--out", out, "--pairs", tmp_path / "bad.jsonl"], "line 1: a pair needs the fields"),
        (["fit", "--out", out, "--instruction", "capital"], "unknown instruction 'capital'"),
        (["fit", "--out", out, "--instruction", "capitals", "--n", 9999], "n=9999"),
        (["sweep", tmp_path / "none.safetensors", "--out", out], "no file at"),
        (["sweep", tmp_path / "bad.safetensors", "--out", out], "cannot be read as safetensors"),
        (["sweep", steering, "--out", out], "is not a lensteer.instruction.v1 file"),
        (["sweep", vectors, "--out", tmp_path / "out.xlsx"], "a .parquet or .csv file, not 'out.xlsx'"),
        (["sweep", vectors, "--out", out, "--layers", "8,12"], "layer 8 is out of range"),
        (["sweep", vectors, "--out", out, "--layers", "two"], "layers 'two' cannot be read"),
        (["sweep", vectors, "--out", out, "--layers", "3:1"], "layers '3:1' cannot be read, or name none"),
        (["sweep", vectors, "--out", out, "--layers", "1:"], "layers '1:' cannot be read"),
        (["sweep", vectors, "--out", out, "--strengths", "1,x"], "'1,x' is not a list of numbers"),
        (["sweep", vectors, "--out", out, "--strengths", "nan"], "strength must be finite"),
        (["sweep", vectors, "--out", out, "--operator", "plus"], "operator must be 'set_projection' or 'add'"),
        (["sweep", vectors, "--out", out, "--operator", "add", "--unit", "x"], "unit must be one of"),
        (["sweep", vectors, "--out", out, "--check", "shouting"], "unknown instruction 'shouting'"),
        (["sweep", vectors, "--out", out, "--prompts", tmp_path / "bad.jsonl"], "no field 'prompt'"),
        (["generate", "a", "--steering", vectors], "is not a lensteer.steering.v1 file"),
        (["generate", "a", "--vectors", vectors, "--layer", -1], "layer -1 is out of range"),
        (["generate", "a", "--vectors", vectors, "--layer", 1, "--operator", "plus"], "operator must be"),
        (["generate", "a", "--out", tmp_path / "out.txt"], "a .parquet or .csv file, not 'out.txt'"),
        (["report", tmp_path / "none.csv"], "no file at"),
        (["report", tmp_path / "bad.csv"], "no success column"),
        (["report", work / "prompts.jsonl"], "a .parquet or .csv file, not 'prompts.jsonl'"),
    ]
    for arguments, message in cases:
        assert main(monkeypatch, *arguments) == 1, arguments
        output = capsys.readouterr()
        assert output.err.startswith("error: "), arguments
        assert message in output.err
        assert "Traceback" not in output.err + output.out
    assert not out.exists()


def test_a_model_that_cannot_be_had_is_one_line_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(monkeypatch, "generate", "a", "--model", tmp_path / "none") == 1
    output = capsys.readouterr()
    assert output.err.startswith("error: no folder at") and "Traceback" not in output.err


def test_wrong_options_are_usage_errors(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    vectors = work / "shout.safetensors"
    cases: list[tuple[list[Any], str]] = [
        (["fit", "--out", "x"], "either --pairs FILE or --instruction NAME"),
        (["fit", "--out", "x", "--pairs", "a", "--instruction", "b"], "either --pairs FILE or --instruction NAME"),
        (["fit", "--instruction", "capitals"], "--out"),
        (["fit", "--out", "x", "--instruction", "capitals", "--n", 0], "--n"),
        (["sweep", vectors, "--out", "x.csv", "--n", -1], "--n"),
        (["generate"], "give prompts as arguments or with --prompts"),
        (["generate", "a", "--vectors", vectors], "--vectors needs --layer"),
        (["generate", "a", "--vectors", vectors, "--steering", vectors, "--layer", 1], "either --steering or"),
        (["generate", "a", "--strength", 2], "--strength needs --steering or --vectors"),
        (["paint"], "paint"),
    ]
    for arguments, message in cases:
        assert main(monkeypatch, *arguments) == 2, arguments
        error = capsys.readouterr().err
        assert message in plain(error), (arguments, error)
        assert "Traceback" not in error


def test_ctrl_c_says_that_the_command_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_load", stop)
    assert main(monkeypatch, "demo", "--out", tmp_path) == 130
    error = capsys.readouterr().err
    assert "run the same command again" in error and "Traceback" not in error


def test_a_steering_for_another_model_is_refused(
    work: Path, tmp_path: Path, fresh: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = fresh("gpt2")
    other.hf.save_pretrained(tmp_path / "gpt2")
    other.tokenizer.save_pretrained(tmp_path / "gpt2")
    arguments = ["--vectors", work / "shout.safetensors", "--layer", 1, "--model", tmp_path / "gpt2"]
    assert main(monkeypatch, "generate", "a", *arguments) == 1
    assert "does not fit" in capsys.readouterr().err
