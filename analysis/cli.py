"""The terminal front, ``lensteer demo | fit | sweep | generate | …``: each command is one library call.

It stands beside the analysis modules because it uses both packages, and ``lensteer`` never imports ``analysis``.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from analysis.cli_focus import focus
from analysis.cli_transport import export, transport
from analysis.terminal import DEFAULT, Device, Model, layers_in
from analysis.terminal import load as _load
from analysis.terminal import say as _say
from analysis.terminal import show as _show

app = typer.Typer(
    help="Steer language models with TransformerLens hook functions.", no_args_is_help=True, rich_markup_mode="markdown"
)

Operator = Annotated[str, typer.Option(help="set_projection (formats) or add (length, words).")]
Unit = Annotated[str, typer.Option(help="For add: absolute, residual or difference.")]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for report, results, vectors and steerings.")] = Path(
        "lensteer-demo"
    ),
    quick: Annotated[
        bool, typer.Option("--quick", help="About a minute: fewer instructions, layers and prompts.")
    ] = False,
    model: Model = DEFAULT,
    device: Device = None,
    seed: int = 0,
) -> None:
    """Fit, sweep, choose, confirm and report on the embedded model: the whole procedure in one command."""
    from analysis.demo import run_demo
    from analysis.element_study import short_table
    from analysis.focus_report import short_table as focus_table
    from analysis.transport_report import short_table as transport_table

    started = time.monotonic()
    lens = _load(model, device)
    finished = run_demo(lens, out, quick=quick, seed=seed, say=_say)
    _show(finished.table, "On test prompts the choice has not seen (95 % intervals)")
    title = f"Key heads for {finished.elements.name}, {finished.elements.by} match on test questions (95 % intervals)"
    _show(short_table(finished.elements), title)
    title = f"Transport to {finished.transport.name}: test prompts that reach it, and what it costs (95 % intervals)"
    _show(transport_table(finished.transport), title)
    if finished.focus is not None:
        title = "Focus instructions: answers by the feature named, test sentences (95 % intervals)"
        _show(focus_table(finished.focus), title)
    for path in finished.files:
        _say(f"wrote {path}")
    _say(f"done in {time.monotonic() - started:.0f} s")


@app.command()
def fit(
    out: Annotated[Path, typer.Option(help="Where to write the vectors (.safetensors).")],
    pairs: Annotated[Path | None, typer.Option(help="JSONL of positive/negative pairs.")] = None,
    instruction: Annotated[
        str | None, typer.Option(help="Or a built-in one: capitals, very_short, include:WORD …")
    ] = None,
    n: Annotated[int, typer.Option(help="Pairs of a built-in instruction.", min=1)] = 48,
    model: Model = DEFAULT,
    device: Device = None,
    prompt_format: str = "auto",
    resume: Annotated[Path | None, typer.Option(help="Keep finished batches here.")] = None,
    seed: int = 0,
) -> None:
    """Fit instruction vectors at all layers and print how well each layer separates the classes."""
    from lensteer import data
    from lensteer.methods.instruction import fit as fit_vectors

    if (pairs is None) == (instruction is None):
        raise typer.BadParameter("give either --pairs FILE or --instruction NAME")
    if pairs is not None:
        chosen, name = data.load_pairs(pairs), pairs.stem
    else:
        wanted = data.find_instruction(str(instruction))
        if wanted.name.startswith("exclude:"):
            _say("excluding a word is its inclusion vector at negative strength; fitting that one")
            wanted = data.include_word(wanted.name.removeprefix("exclude:"))
        chosen, name = data.instruction_pairs(wanted, n, seed=seed), wanted.name
    vectors = fit_vectors(
        _load(model, device), chosen, name=name, prompt_format=prompt_format, seed=seed, resume=resume
    )
    _show(vectors.separation.round(3), repr(vectors))
    _say(f"wrote {vectors.save(out)}")


@app.command()
def sweep(
    vectors: Annotated[Path, typer.Argument(help="Vectors from `lensteer fit`.")],
    out: Annotated[Path, typer.Option(help="Results table, .csv or .parquet.")],
    prompts: Annotated[
        Path | None, typer.Option(help="JSONL with a field prompt. Default: validation queries.")
    ] = None,
    layers: Annotated[str, typer.Option(help="As 10:30:2 or 8,12,16. Default: the upper half, every second.")] = "",
    strengths: Annotated[str, typer.Option(help="Comma-separated. Default: those of --check, else 0.7,1,1.5.")] = "",
    operator: Annotated[str, typer.Option(help="set_projection or add. Default: that of --check.")] = "",
    unit: Unit = "difference",
    check: Annotated[
        str | None, typer.Option(help="Whose check and operator: french, sentences:2, include:WORD …")
    ] = None,
    n: Annotated[int, typer.Option(help="Number of prompts.", min=1)] = 8,
    max_new_tokens: int = 32,
    prompt_format: Annotated[str, typer.Option(help="Default: the one that the vectors were fitted in.")] = "",
    cache: Annotated[Path, typer.Option(help="Finished batches; a second run resumes.")] = Path("lensteer-cache"),
    model: Model = DEFAULT,
    device: Device = None,
) -> None:
    """Run every layer with every strength on the prompts; print success and damage of each."""
    from analysis.sweep import baseline, grid
    from analysis.sweep import sweep as run_sweep
    from analysis.tables import table_ending, write_table
    from analysis.tasks import named_task
    from lensteer import data
    from lensteer.methods.instruction import InstructionVectors

    table_ending(out)
    fitted = InstructionVectors.load(vectors)
    task = named_task(check) if check else None
    operator = operator or (task.operator if task else "set_projection")
    tried = _numbers(strengths) if strengths else list(task.strengths if task else (0.7, 1.0, 1.5))
    prompt_format = prompt_format or fitted.metadata.get("prompt_format", "auto")
    texts = data.load_prompts(prompts)[:n] if prompts else data.queries("validation", n)
    chosen = layers_in(layers, fitted.n_layers)
    steered = grid(fitted, layers=chosen, strengths=tried, **_how(operator, unit))
    candidates = [baseline(fitted.name), *steered]
    lens = _load(model, device)
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "prompt_format": prompt_format, "cache": cache}
    results = run_sweep(lens, candidates, texts, checks={fitted.name: task.check} if task else {}, **options)
    measures = [c for c in ("success", "perplexity", "degenerate", "n_tokens") if c in results]
    _show(results.groupby(["layer", "strength"])[measures].mean().round(3).reset_index(), f"{fitted.name}: means")
    _say(f"wrote {write_table(results, out)}")


@app.command()
def generate(
    prompt: Annotated[list[str] | None, typer.Argument(help="Prompts.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="JSONL with a field prompt.")] = None,
    steering: Annotated[Path | None, typer.Option(help="A saved steering.")] = None,
    vectors: Annotated[Path | None, typer.Option(help="Or vectors from `lensteer fit`, with --layer.")] = None,
    layer: int | None = None,
    strength: Annotated[float | None, typer.Option(help="Overrides that of a saved steering.")] = None,
    operator: Operator = "set_projection",
    unit: Unit = "difference",
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    prompt_format: Annotated[str, typer.Option(help="Default: the one that the vectors were fitted in.")] = "",
    seed: int = 0,
    out: Annotated[Path | None, typer.Option(help="Also write a table, .csv or .parquet.")] = None,
    model: Model = DEFAULT,
    device: Device = None,
) -> None:
    """Generate with and without steering, side by side."""
    from analysis.sweep import grid
    from analysis.tables import table_ending, write_table
    from lensteer import data
    from lensteer.generate import generate as run_generate
    from lensteer.methods.instruction import InstructionVectors
    from lensteer.steering import Steering

    texts = [*(prompt or []), *(data.load_prompts(prompts) if prompts else [])]
    if not texts:
        raise typer.BadParameter("give prompts as arguments or with --prompts FILE")
    if steering and vectors:
        raise typer.BadParameter("give either --steering or --vectors")
    if strength is not None and not (steering or vectors):
        raise typer.BadParameter("--strength needs --steering or --vectors")
    if out is not None:
        table_ending(out)
    chosen = Steering.load(steering) if steering else None
    if vectors is not None:
        if layer is None:
            raise typer.BadParameter("--vectors needs --layer")
        fitted = InstructionVectors.load(vectors)
        [candidate] = grid(
            fitted, layers=[layer], strengths=[1.0 if strength is None else strength], **_how(operator, unit)
        )
        chosen = candidate.steering
    elif chosen is not None and strength is not None:
        chosen = chosen.at_strength(strength)
    lens = _load(model, device)
    if chosen is not None:
        chosen.points(lens)
    made_in = chosen.metadata.get("prompt_format") if chosen is not None else None
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
    options["prompt_format"] = prompt_format or made_in or "auto"
    table = run_generate(lens, texts, **options)[["prompt", "response"]].rename(columns={"response": "unsteered"})
    if chosen is not None:
        table["steered"] = run_generate(lens, texts, chosen, **options)["response"]
    _show(table, "" if chosen is None else repr(chosen))
    if out is not None:
        _say(f"wrote {write_table(table, out)}")


app.command()(transport)
app.command()(export)
app.add_typer(focus, name="focus")


@app.command()
def report(
    results: Annotated[Path, typer.Argument(help="A results table from `lensteer sweep`.")],
    out: Annotated[Path, typer.Option(help="HTML file.")] = Path("report.html"),
    perplexity_ratio: Annotated[float, typer.Option(help="Fluency budget: how much perplexity may grow.")] = 4.0,
) -> None:
    """Turn a results table into one HTML file with figures, the choice under the budget, and texts."""
    from analysis.demo import sweep_report
    from analysis.layer_selection import Budget
    from analysis.tables import read_table

    _say(f"wrote {sweep_report(read_table(results), Budget(perplexity_ratio)).save(out)}")


@app.command()
def models() -> None:
    """What can be loaded, and what is in the cache."""
    import pandas as pd

    from lensteer.checkpoints import EMBEDDED, cache_dir

    kinds = [
        (EMBEDDED, "embedded default, fetched once through pip"),
        ("org/name", "a hub id, with --device auto to spread it"),
        ("./folder", "a Hugging Face folder"),
        ("./file.gguf", "dequantised once into the cache"),
    ]
    _show(pd.DataFrame(kinds, columns=["name", "what it is"]), "")
    made = sorted(p.parent.name for p in cache_dir().glob("*/config.json"))
    _say(f"in {cache_dir()}: {', '.join(made) or 'nothing yet'}")


@app.command(
    "lm-eval", add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
)
def lm_eval(context: typer.Context) -> None:
    """lm-eval's own command line with the model `lensteer`: `--model lensteer --model_args steering=FILE --tasks …`."""
    from lensteer.evaluate.lm_eval_model import main as run_lm_eval

    sys.argv = ["lm_eval", *context.args]
    run_lm_eval()


def main() -> None:
    """Entry point: errors that explain themselves are printed without a traceback (``LENSTEER_DEBUG=1`` shows it)."""
    try:
        app()
    except (ValueError, TypeError, OSError, ImportError) as error:
        if os.environ.get("LENSTEER_DEBUG"):
            raise
        typer.secho(f"error: {error}", fg="red", err=True)
        sys.exit(1)
    except SystemExit as end:
        if end.code == 130:  # what typer makes of Ctrl-C
            typer.secho("stopped; what was finished is kept: run the same command again to go on", err=True)
        raise


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{text!r} is not a list of numbers; write for instance 0.5,1,2") from None


def _how(operator: str, unit: str) -> dict[str, Any]:
    """Arguments of `grid`; the unit counts for "add" only."""
    return {"operator": operator, **({"unit": unit} if operator == "add" else {})}


if __name__ == "__main__":
    main()
