"""The main job: instructions, key elements, transport and focus on one model, in one report: ``lensteer demo``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pandas as pd

from analysis import figures
from analysis.choices import Selection
from analysis.element_study import ElementSize, ElementStudy, add_to_report, element_study
from analysis.focus_report import add_focus_to_report, packaged_results
from analysis.geometry import cosine_matrix, logit_lens, token_projections
from analysis.layer_selection import Budget, choose, paper_rule
from analysis.report import Report
from analysis.study import Size, Study, saved_files, study
from analysis.tables import write_table
from analysis.tasks import named_task
from analysis.transport_choice import TransportBudget
from analysis.transport_report import add_transport_to_report
from analysis.transport_study import TransportSize, TransportStudy, transport_study
from lensteer import data, evaluate
from lensteer.models import fingerprint

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

# What SmolLM2-135M can be steered to: capitals, JSON and quotation marks it follows neither in text nor by steering.
INSTRUCTIONS = ("numbered", "french", "spanish", "german", "very_short", "include:ocean")
QUICK = ("numbered", "french")
_DEPTH = 30  # layers of the embedded model, which the sizes are for
ELEMENT_TASK = "sentiment"
_QUESTIONS, _QUICK_QUESTIONS = {"fit": 48, "validation": 24, "test": 48}, {"fit": 20, "validation": 12, "test": 24}
_QUICK_ELEMENTS = ElementSize(ks=(1, 4), strengths=(1.0, 4.0), layers=(14, 22), patched_heads=6, patched_pairs=6)
CONCEPT = "ocean"
_SENTENCES, _QUICK_SENTENCES = 24, 8
# To induce a behaviour the paper moves values everywhere; of a Llama's sites attention costs it least.
_TRANSPORT = TransportSize(support=None, strengths=(0.5, 0.75, 1.0), texts=6, max_new_tokens=20)
_QUICK_TRANSPORT = replace(
    _TRANSPORT, methods=("mean",), strengths=(0.5, 1.0), validation=4, test=6, texts=3, max_new_tokens=16
)
# A model of 135M parameters has a perplexity of a hundred on short sentences, of which the paper's 1 is no budget.
_TRANSPORT_BUDGET = TransportBudget(text_rise=None, text_ratio=2.0)
_FOCUS, _QUICK_FOCUS = 12, 3  # test sentences
_QUICK_SIZE = Size(pairs=24, validation=4, test=8, layers=(20, 24), max_new_tokens=20)


@dataclass(frozen=True)
class Finished:
    """What the demo found and where it wrote it; `focus` is None on another model than the default one."""

    study: Study
    elements: ElementStudy
    transport: TransportStudy
    focus: pd.DataFrame | None
    table: pd.DataFrame
    files: list[Path]


def run_demo(
    model: TransformerBridge,
    folder: str | Path,
    *,
    quick: bool = False,
    seed: int = 0,
    say: Callable[[str], Any] = lambda message: None,
    progress: bool = True,
) -> Finished:
    """Study instructions, the key heads of a task and a transport to a concept; write ``report.html`` and steerings.

    Results are ``results``, ``elements`` and ``transport.parquet``, or ``.csv`` without pyarrow. Layers are those of
    the embedded model, moved to the same relative depth in a model of another depth.

    Args:
        quick: fewer instructions, layers, prompts and tokens.
    """
    folder = Path(folder)
    tasks = [named_task(name) for name in (QUICK if quick else INSTRUCTIONS)]
    size = _for_depth(_QUICK_SIZE if quick else Size(), int(model.cfg.n_layers))
    done = study(model, tasks, folder, size=size, seed=seed, progress=progress, say=say)
    few = _for_depth(_QUICK_ELEMENTS if quick else ElementSize(), int(model.cfg.n_layers))
    counts = _QUICK_QUESTIONS if quick else _QUESTIONS
    questions = {split: data.questions(ELEMENT_TASK, split, n) for split, n in counts.items()}
    elements = element_study(
        model, questions, folder, name=ELEMENT_TASK, size=few, seed=seed, progress=progress, say=say
    )
    transported = transport_study(
        model,
        data.concept(CONCEPT, _QUICK_SENTENCES if quick else _SENTENCES, seed),
        folder,
        name=CONCEPT,
        check=lambda responses: evaluate.concept_presence(responses, CONCEPT),
        size=_QUICK_TRANSPORT if quick else _TRANSPORT,
        budget=_TRANSPORT_BUDGET,
        seed=seed,
        progress=progress,
        say=say,
    )
    focus = packaged_results(model, _QUICK_FOCUS if quick else _FOCUS, progress=progress, say=say)
    ending = "parquet" if find_spec("pyarrow") else "csv"
    results = write_table(done.results, folder / f"results.{ending}")
    choices = write_table(elements.results.drop(columns="options", errors="ignore"), folder / f"elements.{ending}")
    continued = write_table(transported.results, folder / f"transport.{ending}")
    report = add_transport_to_report(add_to_report(study_report(model, done, seed), elements), transported)
    if focus is not None:
        report = add_focus_to_report(report, focus)
    page = report.save(folder / "report.html")
    asked = [] if focus is None else [write_table(_plain(focus), folder / f"focus.{ending}")]
    files = [page, results, choices, continued, *asked, *saved_files(done, folder), *transported.files]
    return Finished(done, elements, transported, focus, short_table(done.confirmed), files)


def _plain(focus: pd.DataFrame) -> pd.DataFrame:
    return focus.drop(columns="log_likelihoods")


Sized = TypeVar("Sized", Size, ElementSize)


def _for_depth(size: Sized, n_layers: int) -> Sized:
    moved = (layer * n_layers // _DEPTH for layer in size.layers)
    return replace(size, layers=tuple(dict.fromkeys(moved)))


def short_table(confirmed: pd.DataFrame) -> pd.DataFrame:
    """The confirmation table in six columns, for a terminal; "at" is the layer and the strength."""

    def rate(row: Any) -> str:
        return f"{row.success:.2f} [{row.success_low:.2f}, {row.success_high:.2f}]"

    lines = [
        {
            "instruction": row.instruction,
            "condition": row.condition,
            "at": "" if row.layer < 0 else f"layer {int(row.layer)}, {row.strength:g}",
            "success": rate(row),
            "perplexity": f"{row.perplexity:.1f}",
            "degenerate": f"{row.degenerate:.2f}",
        }
        for row in confirmed.itertuples()
    ]
    return pd.DataFrame(lines)


def study_report(model: TransformerBridge, done: Study, seed: int) -> Report:
    """Figures, tables and side-by-side texts of a study, with every fact it depends on."""
    size = done.size
    facts = {**fingerprint(model), **_versions(), "seed": seed, "pairs": size.pairs, "new tokens": size.max_new_tokens}
    facts["fluency budget"] = (
        f"perplexity up to {done.budget.perplexity_ratio:g} times the unsteered, "
        f"degenerate share up to {done.budget.degenerate_rise:g} more"
    )
    facts["validation / test queries"] = f"{size.validation} / {size.test}"
    report = Report("Instruction steering", facts)
    report.section("Confirmed on test queries").text(
        "Layer and strength were chosen on the validation queries under the fluency budget, and run once on the test "
        "queries. Each is compared with **no steering**, with a **random direction** of the same norm at the same "
        "place, and with the **instruction in the text** of the prompt. Intervals are 95 % bootstrap intervals over "
        "queries; perplexity is that of the response given its prompt under the unsteered model."
    )
    report.table(done.confirmed).figure(figures.confirmation_bars(done.confirmed))
    report.section("How the choice was made")
    report.table(done.selection.table(), caption="Chosen on validation queries; layer −1 is no steering.")
    report.table(
        _published_rule(done).table(),
        caption="The published decision rule on the same responses (formats, strength 1), with a repetition flag in "
        "place of the low perplexity under GPT-2, at these layers and with these checks.",
    )
    for task in done.tasks:
        report.figure(figures.layer_strength_map(done.selection.candidates, instruction=task.name))
        report.figure(figures.success_fluency(done.selection.candidates, instruction=task.name))
    _directions(report, model, done)
    report.section("Texts")
    for task in done.tasks:
        report.text(f"**{task.name}**").texts(done.test, instruction=task.name, limit=4)
    return report


def _published_rule(done: Study) -> Selection:
    """The paper's layer rule knows one strength: its own, 1, of the format instructions."""
    formats = [task.name for task in done.tasks if task.operator == "set_projection"]
    rows = done.validation[done.validation["instruction"].isin(formats)]
    return paper_rule(rows[rows["strength"].isin([0.0, 1.0])], instructions=formats)


def _directions(report: Report, model: TransformerBridge, done: Study) -> None:
    layers = {choice.instruction: choice.layer if choice.steered else done.size.layers[-1] for choice in done.selection}
    separation = pd.concat([v.separation.assign(instruction=name) for name, v in done.vectors.items()])
    rows = {name: vectors.direction[layers[name]] for name, vectors in done.vectors.items()}
    report.section("The directions")
    report.figure(figures.separation_by_layer(separation), "In-sample, on the fitting pairs.")
    if len(rows) > 1:
        report.figure(figures.cosine_map(cosine_matrix(rows)), "Between instructions, each at its own layer.")
    words = []
    for name, direction in rows.items():
        lens = logit_lens(model, direction, k=8)
        sides = {side: " ".join(map(repr, lens[side])) for side in ("promoted", "demoted")}
        words.append({"instruction": name, "layer": layers[name], **sides})
    report.table(
        pd.DataFrame(words), caption="Tokens that each direction promotes and demotes through the unembedding."
    )
    name, direction = next(iter(rows.items()))
    prompt = str(done.test["prompt"].iloc[0])
    strip = token_projections(model, prompt, direction, layer=layers[name])
    caption = f"Projection of every token on `{name}` after layer {layers[name]}."
    report.figure(figures.projection_strip(strip["token"].tolist(), strip["projection"].to_numpy()), caption)


def sweep_report(results: pd.DataFrame, budget: Budget) -> Report:
    """A report of one sweep's results: the choice under the budget, maps, trade-offs and texts of the chosen setting.

    Raises:
        ValueError: results without a success column, which `sweep` adds where it is given a check.
    """
    if "success" not in results:
        raise ValueError("these results have no success column to choose by; sweep with a check (--check NAME)")
    selection = choose(results, budget=budget)
    report = Report("Sweep", {"responses": len(results), "perplexity budget": budget.perplexity_ratio})
    report.section("Choice").table(selection.table(), caption="Layer −1 is no steering.")
    for choice in selection:
        name = choice.instruction
        own = results[results["instruction"] == name]
        chosen = (own["layer"] == choice.layer) & (own["strength"] == choice.strength)
        report.section(name)
        report.figure(figures.layer_strength_map(selection.candidates, instruction=name))
        report.figure(figures.success_fluency(selection.candidates, instruction=name))
        report.figure(figures.length_distributions(own[own["condition"] != "none"], by="strength"))
        report.texts(own[chosen | (own["condition"] == "none")])
    return report


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "transformers", "transformer-lens")}
