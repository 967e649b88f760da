"""A whole study of transports on a tiny model, its report, and the commands of the terminal."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import lensteer as ls
from analysis import cli
from analysis.report import Report
from analysis.transport_choice import TransportBudget
from analysis.transport_report import add_transport_to_report, short_table
from analysis.transport_study import TransportSize, TransportStudy, transport_study
from analysis.transport_support import untouched
from lensteer.data import Sides
from lensteer.methods.transport import Transport
from lensteer.steering import Steering

SIDES = Sides(
    ["The sea is calm.", "Ships sail at night on the water.", "A wave!", "Tides rise and fall twice."],
    ["The kitchen is warm.", "Bread is baked at dawn in the oven.", "A pan!", "Soup boils on the stove."],
)
PROMPTS = ["A quiet day", "Nobody knew why", "So", "There was a shop", "When I came home"]
TEXTS = ["It rained in the morning.", "The bus was late again.", "She put the keys away.", "He sat down."]
SIZE = TransportSize(strengths=(0.5, 2.0), validation=2, test=3, texts=2, max_new_tokens=4)
LAX = TransportBudget(text_rise=1e9, degenerate_rise=None)


def steered_wins(responses: Any) -> list[bool]:
    """A sweep asks about the unsteered responses first, of two validation prompts."""
    return [number >= 2 for number in range(len(responses))]


def run(case: Any, folder: Path, **changes: Any) -> TransportStudy:
    options = {"name": "warm kitchen", "check": steered_wins, "prompts": PROMPTS, "texts": TEXTS, "size": SIZE}
    return transport_study(case.model, SIDES, folder, **{**options, "budget": LAX, "progress": False, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("transport")


@pytest.fixture(scope="module")
def done(llama: Any, folder: Path) -> TransportStudy:
    return run(llama, folder)


def test_choices_are_made_on_validation_and_run_on_other_prompts_and_texts(done: TransportStudy) -> None:
    assert done.validation["prompt"].drop_duplicates().tolist() == PROMPTS[:2]
    assert done.test["prompt"].drop_duplicates().tolist() == PROMPTS[2:]
    assert set(done.validation["condition"]) == {"none", "steered"}
    unsteered = [table["text_perplexity"].iloc[0] for table in (done.validation, done.test)]
    assert unsteered[0] != unsteered[1]
    assert set(done.chosen) == {"linear", "mean"}
    for method, rows in done.test.groupby("method"):
        [best] = done.candidates[done.candidates["chosen"] & (done.candidates["method"] == method)].itertuples()
        assert set(rows["condition"]) == {"none", "steered", "random"}
        assert set(rows.loc[rows["condition"] != "none", "strength"]) == {best.strength} == {0.5}


def test_the_test_responses_are_those_of_the_saved_steering(llama: Any, done: TransportStudy, folder: Path) -> None:
    for method, steering in done.chosen.items():
        path = folder / "transport" / f"warm-kitchen-{method}-chosen.safetensors"
        loaded = Steering.load(path, llama.model)
        assert path in done.files and loaded.content_hash() == steering.content_hash()
        alone = ls.generate(
            llama.model, PROMPTS[2:], loaded, max_new_tokens=4, prompt_format="plain", batch_size=1, progress=False
        )
        rows = done.test[(done.test["method"] == method) & (done.test["condition"] == "steered")]
        assert rows["response"].tolist() == alone["response"].tolist()


def test_the_share_left_alone_is_that_of_the_chosen_steering(llama: Any, done: TransportStudy) -> None:
    for method, steering in done.chosen.items():
        expected = untouched(llama.model, steering, PROMPTS[2:], progress=False)
        found = done.untouched[done.untouched["method"] == method]
        assert found["hook"].tolist() == expected["hook"].tolist()
        np.testing.assert_allclose(found["untouched"], expected["untouched"])


def test_the_saved_maps_are_those_of_a_fit(llama: Any, done: TransportStudy, folder: Path) -> None:
    alone = ls.transport.fit(llama.model, *SIDES, "mean", "attention", progress=False)
    saved = Transport.load(folder / "transport" / "warm-kitchen-mean.safetensors", llama.model)
    for hook, maps in alone.maps.items():
        np.testing.assert_array_equal(saved.maps[hook].shift, maps.shift)
        for kept, own in zip(done.transports["mean"].samples[hook], alone.samples[hook], strict=True):
            np.testing.assert_array_equal(kept, own)


def test_a_second_run_computes_nothing_and_says_the_same(
    llama: Any, done: TransportStudy, folder: Path, forwards: Any
) -> None:
    said: list[str] = []
    with forwards(llama) as calls:
        again = run(llama, folder, say=said.append)
    assert calls == [] and len(said) == 3
    pd.testing.assert_frame_equal(again.confirmed, done.confirmed)
    pd.testing.assert_frame_equal(again.untouched, done.untouched)
    assert again.files == done.files
    hook = next(iter(done.transports["linear"].maps))
    np.testing.assert_array_equal(
        again.transports["linear"].samples[hook][1], done.transports["linear"].samples[hook][1]
    )


def test_other_texts_to_fit_on_are_not_taken_from_the_folder(llama: Any, done: TransportStudy, folder: Path) -> None:
    swapped = Sides(SIDES.target, SIDES.source)
    options = {"name": "sea", "check": steered_wins, "prompts": PROMPTS, "texts": TEXTS, "size": SIZE, "budget": LAX}
    other = transport_study(llama.model, swapped, folder, progress=False, **options)
    hook = next(iter(done.transports["mean"].maps))
    shifts = [study.transports["mean"].maps[hook].shift for study in (done, other)]
    np.testing.assert_allclose(shifts[0], -shifts[1], atol=1e-5)


@pytest.mark.filterwarnings("ignore:no steering was chosen")
def test_where_nothing_is_within_the_budget_nothing_is_chosen_or_left_behind(llama: Any, tmp_path: Path) -> None:
    lax = run(llama, tmp_path, check=lambda responses: [1.0 - (text == "") for text in responses])
    stale = [tmp_path / "transport" / f"warm-kitchen-{method}-chosen.safetensors" for method in ("linear", "mean")]
    for path in stale:
        Steering.save(next(iter(lax.transports.values())).steering(), path)
    strict = run(llama, tmp_path, check=lambda responses: [0.0] * len(responses))
    assert strict.chosen == {} and strict.untouched.empty and not any(path.exists() for path in stale)
    assert set(strict.test["condition"]) == {"none"}
    assert short_table(strict)["at"].tolist() == ["", "none chosen", "none chosen"]
    page = add_transport_to_report(Report("x"), strict).html()
    assert all(f"No steering was chosen for '{method}': within the budget" in page for method in ("linear", "mean"))
    assert repr(strict).count("none chosen") == 2


def test_the_report_and_the_short_table_show_the_confirmed_numbers(done: TransportStudy) -> None:
    page = add_transport_to_report(Report("x"), done).html()
    assert "Activation transport: warm kitchen" in page and str(LAX) in page
    table = short_table(done)
    steered = done.confirmed[done.confirmed["condition"] == "steered"]
    for row in steered.itertuples():
        [line] = table[table["method"] == row.method].to_dict("records")
        assert line["success"].startswith(f"{row.success:.2f} [") and f"λ = {row.strength:g}" in line["at"]
    assert table["method"].tolist().count("none") == 1


def test_a_study_is_one_line_and_writes_its_own_report(done: TransportStudy, tmp_path: Path) -> None:
    assert len(repr(done)) < 200 and "\n" not in repr(done) and "linear: λ = 0.5, support" in repr(done)
    page = done.report(tmp_path / "study.html").read_text()
    assert "Activation transport: warm kitchen" in page
    assert "effect and damage over strength" in page and "over the support" not in page  # one support per method
    [head] = re.findall("<thead>.*?</thead>", page.split("95 % bootstrap")[1], re.S)[:1]
    assert head.count("<th") == 1 + 9  # thead itself, and as many columns as a page holds


def test_one_method_may_be_a_string() -> None:
    assert TransportSize(methods="linear").methods == ("linear",)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"check": None}, "success for each.*got None"),
        ({"check": lambda responses: 0.5}, "for two responses it returned 0.5"),
        ({"check": lambda responses: [1.0]}, r"for two responses it returned \[1.0\]"),
        ({"check": lambda responses: pd.DataFrame({"other": [1, 0]})}, "for two responses it returned"),
        ({"sides": "ocean"}, r"data.concept\('ocean'\)"),
        ({"sides": Sides("one text", ["b"])}, r"data.Sides\(source, target\)"),
    ],
)
def test_sides_and_checks_of_the_wrong_kind_are_refused_before_any_work(
    llama: Any, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    options = {"check": steered_wins, "prompts": PROMPTS, "texts": TEXTS, "size": SIZE, **changes}
    with pytest.raises(TypeError, match=said):
        transport_study(llama.model, options.pop("sides", SIDES), tmp_path, name="x", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompts": PROMPTS[:4]}, "2 and 3 prompts were asked for; there are 4"),
        ({"texts": TEXTS[:3]}, "2 and 2 texts were asked for; there are 3"),
        ({"prompts": [*PROMPTS[:4], PROMPTS[0].upper()]}, "validation prompts and the test prompts"),
        ({"texts": [*TEXTS[:3], SIDES.source[0]]}, "among the texts to fit on"),
        ({"size": TransportSize(methods=("best",))}, "some of linear, .*'best'"),
        ({"size": TransportSize(methods=())}, "some of linear"),
        ({"size": TransportSize(strengths=(0.0,))}, "some besides 0"),
        ({"size": TransportSize(supports=((0, 200),))}, "200"),
        ({"size": TransportSize(sites="post_norms", validation=2, test=3, texts=2)}, "post_norms"),
    ],
)
def test_what_cannot_be_studied_is_refused_before_any_work(
    llama: Any, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        run(llama, tmp_path, **{"size": SIZE, **changes})
    assert list(tmp_path.iterdir()) == []


def command(*arguments: Any) -> Any:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def test_the_command_fits_saves_and_generates(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "sea.txt").write_text("\n".join(SIDES.source) + "\n\n")
    (tmp_path / "warm.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in SIDES.target))
    maps, steering = tmp_path / "maps.safetensors", tmp_path / "steering.safetensors"
    files = ["--source", tmp_path / "sea.txt", "--target", tmp_path / "warm.jsonl", "--sites", "mlp"]
    how = ["--layers", "1,2", "--support", "everywhere", "--steering", steering, "--strength", 0.5]
    result = command("transport", *files, *how, "--out", maps, "--model", model_folder)
    assert result.exit_code == 0, result.output
    assert "blocks.2.mlp.hook_out" in result.output
    model = ls.load_model(str(model_folder))
    expected = ls.transport.fit(model, *SIDES, "linear", "mlp", layers=[1, 2], support=None, progress=False)
    assert Transport.load(maps).name == "sea to warm"
    assert Steering.load(steering).content_hash() == expected.steering(0.5).content_hash()
    shown = command("generate", "A day", "--steering", steering, "--max-new-tokens", 2, "--model", model_folder)
    assert shown.exit_code == 0, shown.output


def test_the_command_reads_subsets_and_concepts(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "sets.json").write_text(json.dumps({"sea": SIDES.source, "warm": SIDES.target}))
    named = ["--subsets", tmp_path / "sets.json", "--source", "sea", "--target", "warm", "--n", 3]
    for given, name in ((named, "sea to warm"), (["--concept", "ocean", "--n", 2], "ocean")):
        out = tmp_path / f"{name}.safetensors"
        result = command("transport", *given, "--sites", "attention", "--out", out, "--model", model_folder)
        assert result.exit_code == 0, result.output
        assert Transport.load(out).name == name


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--concept", "ocean", "--source", "a.txt"], "either --concept"),
        (["--source", "a.txt"], "both --source and --target"),
        (["--source", "a.csv", "--target", "b.txt"], "not 'a.csv'"),
        (["--source", "none.txt", "--target", "b.txt"], "no file at none.txt"),
        (["--concept", "ocean", "--support", "wide"], "support 'wide' cannot be read"),
        (["--concept", "lava"], "unknown concept 'lava'"),
    ],
)
def test_the_command_says_what_is_wrong_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.setattr("analysis.cli_transport.load", lambda *given: pytest.fail("a model was loaded"))
    result = command("transport", *arguments, "--out", tmp_path / "out.safetensors")
    assert result.exit_code != 0
    assert said in " ".join(result.output.replace("│", " ").split()) + str(result.exception)


@pytest.mark.parametrize("way", ["folded", "gguf", "hooks", "lm-eval"])
def test_a_steering_is_exported_in_every_way(llama: Any, model_folder: Path, tmp_path: Path, way: str) -> None:
    import torch

    edit = ls.Add(torch.linspace(-1, 1, 32))
    pairs = [("blocks.1.hook_resid_post", edit)] if way in ("gguf", "lm-eval") else [("blocks.1.hook_mlp_out", edit)]
    steering = Steering(pairs).save(tmp_path / "steering.safetensors")
    out = tmp_path / {"folded": "folder", "gguf": "a.gguf", "hooks": "a.py", "lm-eval": "a.pt"}[way]
    result = command("export", steering, out, "--to", way, "--strength", 2.0, "--model", model_folder)
    assert result.exit_code == 0, result.output + str(result.exception)
    assert out.exists()
    if way == "folded":
        model, folded = ls.load_model(str(model_folder)), ls.load_model(str(out))
        expected = ls.generate(model, PROMPTS, Steering(pairs).at_strength(2.0), max_new_tokens=4, progress=False)
        found = ls.generate(folded, PROMPTS, max_new_tokens=4, progress=False)
        assert found["response"].tolist() == expected["response"].tolist()


def test_an_unknown_export_is_refused(tmp_path: Path) -> None:
    result = command("export", tmp_path / "x.safetensors", tmp_path / "y", "--to", "onnx")
    assert result.exit_code == 2 and "--to must be one of" in " ".join(result.output.replace("│", " ").split())
