"""Activation transport on public data: less toxicity, and from negative to positive, on prompts that were held out.

    .venv/bin/python benchmarks/held_out_transport.py --data ../shared/data
    .venv/bin/python benchmarks/held_out_transport.py --tasks sentiment --quick

Toxicity: toxic sentences (RealToxicityPrompts) are left for true answers of TruthfulQA with their questions, or for
lensteer's civil and neutral sentences; toxic beginnings of sentences are continued. Sentiment: negative sentences of
SST-5 are left for positive ones; the first words of negative sentences are continued. Every method tries the same
strengths on the validation prompts, takes the best one that its budget of damage allows, and is reported on the test
prompts, at that strength and at 1.

A run that was stopped goes on where it was: maps, batches, perplexities and tasks are kept in ``--out``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

if TYPE_CHECKING:
    import pandas as pd

    from lensteer.methods.transport import Transport

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
STRENGTHS = (0.25, 0.5, 1.0, 1.5)
SITES = {"linear": "norms", "mean": "norms", "gaussian": "norms", "aura": "mlp_linears", "iti_m": "attention"}
TEXT_RATIO = 1.1  # of the perplexity of neutral texts: what a setting may cost on the validation prompts
EACH = ["method", "condition", "strength"]
CURVES = ("linear", "mean")  # the paper's two, whose whole curve is shown


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    fit: int = 100  # sentences a side
    validation: int = 24
    test: int = 60
    texts: int = 40
    new_tokens: int = 20


@dataclass(frozen=True)
class Task:
    """What is fitted on, continued, and measured.

    ``probability`` gives for each text how much it has of what is to be had less of; ``trust`` says in words how well
    it does on texts whose label is known.
    """

    title: str
    source: list[str]
    target: list[str]
    prompts: dict[str, list[str]]
    support: tuple[float, float] | None
    probability: Callable[[Sequence[str]], Sequence[float]]
    trust: str
    judge_from: float | None = None  # p(Yes) from which the judge's answer counts as toxic; None: nobody is asked


def main(arguments: list[str] | None = None) -> int:
    """Study the tasks that were asked for, and print and write their tables."""
    options = _options(arguments)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    import torch
    from transformers.utils.logging import disable_progress_bar

    from lensteer import load_model

    torch.set_num_threads(options.threads)
    disable_progress_bar()
    if not options.data.is_dir():
        print(f"{options.data} is not a folder; --data must hold toxic_sentences.jsonl and the others", file=sys.stderr)
        return 2
    sizes = Sizes(12, 4, 6, 8, 8) if options.quick else Sizes()
    given = {name: getattr(options, name) for name in ("fit", "validation", "test") if getattr(options, name)}
    model, parts = load_model(), []
    for name in options.tasks:
        task = TASKS[name](model, options.data, replace(sizes, **given))
        parts.append(_markdown(task, *_study(model, task, replace(sizes, **given), options.out)))
        print(f"\n{parts[-1]}", flush=True)
    (options.out / "table.md").write_text("\n\n".join(parts) + "\n")
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the JSON-lines files")
    parser.add_argument("--out", type=Path, default=Path("lensteer-demo/held-out-transport"), help="what is kept")
    parser.add_argument("--tasks", nargs="+", choices=tuple(TASKS), default=list(TASKS), metavar="TASK")
    for name in ("fit", "validation", "test"):
        parser.add_argument(f"--{name}", type=int, help=f"how many for {name}")
    parser.add_argument("--quick", action="store_true", help="a few rows, to see that it runs")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    return parser.parse_args(arguments)


def _rows(folder: Path, name: str) -> list[dict[str, Any]]:
    """The rows of a file, in an order that depends on each row alone."""
    from lensteer.data import data_hash

    rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
    return sorted(rows, key=lambda row: data_hash([row]))


def _toxicity(model: Any, folder: Path, sizes: Sizes, civil: bool = False) -> Task:
    from lensteer import data, evaluate

    toxic = list(dict.fromkeys(row["text"] for row in _rows(folder, "toxic_sentences")))
    answers = [f"{row['question']} {row['best_answer']}." for row in _rows(folder, "truthfulqa")]
    if civil:  # the neutral ones after those whose perplexity is measured
        answers = [*data.tone("fit").target, *data.neutral_sentences()[sizes.texts :]]
    source, others = toxic[: sizes.fit], toxic[sizes.fit : sizes.fit + 300]
    prompts = [row["prompt"] for row in _rows(folder, "toxicity_prompts")]
    prompts = [p for p in dict.fromkeys(prompts) if not any(p in text or text in p for text in source)]
    plain = [row["text"] for row in _rows(folder, "sst5_test") if row["label"] == 2][:200]

    def probability(texts: Sequence[str]) -> list[float]:
        return list(evaluate.toxicity(texts)["toxicity"])

    judged = {name: list(_judged(model, texts[:60])) for name, texts in (("toxic", others), ("plain", plain))}
    trust = (
        f"{len(others)} other toxic sentences against {len(plain)} neutral ones of SST-5: AUROC of the classifier "
        f"{_auroc(probability(others), probability(plain)):.2f}, of the judge (60 of each) "
        f"{_auroc(judged['toxic'], judged['plain']):.2f}"
    )
    # A small judge seldom says Yes; its odds rank texts all the same.
    known = sorted([*judged["toxic"], *judged["plain"]])
    split, middle = _split(prompts, sizes), known[len(known) // 2]
    title = "Toxicity, civil sentences" if civil else "Toxicity, true answers"
    return Task(title, source, answers[: sizes.fit], split, (0, 100), probability, trust, middle)


def _judged(model: Any, texts: Sequence[str]) -> Any:
    from lensteer.evaluate.toxicity import toxicity_judge

    return toxicity_judge(model, [text if text.strip() else "." for text in texts], progress=False)["p_yes"]


def _sentiment(model: Any, folder: Path, sizes: Sizes) -> Task:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    train, test = _rows(folder, "sst5_train"), _rows(folder, "sst5_test")
    negative = [row["text"] for row in train if row["label"] < 2]
    positive = [row["text"] for row in train if row["label"] > 2]
    source, target = negative[: sizes.fit], positive[: sizes.fit]
    others = negative[sizes.fit :], positive[sizes.fit :]
    classify = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10.0))
    classify.fit([*others[0], *others[1]], [1] * len(others[0]) + [0] * len(others[1]))

    def probability(texts: Sequence[str]) -> list[float]:
        # Without words there is nothing but the prior.
        return [p if t.strip() else 0.5 for p, t in zip(classify.predict_proba(texts)[:, 1], texts, strict=True)]

    bad, good = ([row["text"] for row in test if side(row["label"])] for side in ((2).__gt__, (2).__lt__))
    beginnings = [" ".join(text.split()[:6]).capitalize() for text in bad if len(text.split()) > 8]
    rest = bad[len(bad) // 2 :], good
    trust = f"AUROC of the classifier on {len(rest[0])} negative and {len(rest[1])} positive test sentences: "
    trust += f"{_auroc(probability(rest[0]), probability(rest[1])):.2f}"
    split = _split(list(dict.fromkeys(beginnings)), sizes)
    return Task("Sentiment", source, target, split, None, probability, trust)


TASKS: dict[str, Callable[[Any, Path, Sizes], Task]] = {
    "toxicity": _toxicity,
    "civil": partial(_toxicity, civil=True),
    "sentiment": _sentiment,
}


def _split(prompts: Sequence[str], sizes: Sizes) -> dict[str, list[str]]:
    ends = sizes.validation, sizes.validation + sizes.test
    assert len(prompts) >= ends[1], f"{len(prompts)} prompts, {ends[1]} are needed"
    return {"validation": list(prompts[: ends[0]]), "test": list(prompts[ends[0] : ends[1]])}


def _auroc(high: Sequence[float], low: Sequence[float]) -> float:
    import torch

    from lensteer.methods.transport_samples import auroc

    sides = (torch.tensor(values, dtype=torch.float64)[None].sort().values for values in (high, low))
    return float(auroc(*sides))


def _study(model: Any, task: Task, sizes: Sizes, out: Path) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, float]]:
    """Validation and test results, one row per setting and prompt, and each method's chosen strength."""
    import numpy as np

    from analysis.transport_choice import TransportBudget, choose_strength
    from analysis.transport_settings import transport_settings
    from analysis.transport_sweep import strength_sweep, sweep_settings
    from lensteer.data import neutral_sentences

    print(f"{task.title}: {len(task.source)} + {len(task.target)} sentences", flush=True)
    fitted = {method: _fitted(model, task, method, out) for method in SITES}
    named = {**fitted, "random shift": fitted["linear"].random()}
    about: dict[str, Any] = {
        "check": lambda texts: 1 - np.asarray(task.probability(list(texts))),
        "texts": neutral_sentences(sizes.texts),
        "max_new_tokens": sizes.new_tokens,
        "cache": out / "cache",
    }
    options: dict[str, Any] = {"strengths": STRENGTHS, "controls": 0}
    validation = strength_sweep(model, named, task.prompts["validation"], **options, **about)
    choices = choose_strength(validation, budget=TransportBudget(text_rise=None, text_ratio=TEXT_RATIO))
    chosen = dict(choices[choices["chosen"]].set_index("method")["strength"])
    settings = transport_settings(named, STRENGTHS, ["default"], 0, 0)
    none, *others = settings
    wanted = [s for s in others if s.candidate.condition != "none" and s.candidate.strength in (1.0, chosen[s.method])]
    test = sweep_settings(model, [none, *wanted], task.prompts["test"], **about)
    if task.judge_from is not None:
        said = list(dict.fromkeys(test["response"]))
        answers = dict(zip(said, _judged(model, said), strict=True))
        test["judged"] = test["response"].map(answers) >= task.judge_from
    return validation, test, chosen


def _fitted(model: Any, task: Task, method: str, out: Path) -> Transport:
    """The maps of a method, from the file that an earlier run has left or anew."""
    from lensteer import transport
    from lensteer.data import data_hash
    from lensteer.models import fingerprint

    about = [fingerprint(model), method, SITES[method], task.support, task.source, task.target]
    path = out / "maps" / f"{method}-{data_hash([about])[:16]}.safetensors"
    if not path.is_file():
        support = task.support if method in ("linear", "mean", "gaussian") else None
        made = transport.fit(model, task.source, task.target, method, SITES[method], support=support)
        path.parent.mkdir(parents=True, exist_ok=True)
        made.save(path)
    return transport.Transport.load(path, model)


def _markdown(task: Task, validation: pd.DataFrame, test: pd.DataFrame, chosen: dict[str, float]) -> str:
    from analysis.statistics import bootstrap_mean, paired_bootstrap
    from lensteer.evaluate import self_bleu

    test = test.assign(probability=1 - test["success"])
    unsteered = test[test["condition"] == "none"]
    base = unsteered.set_index("prompt_id")["probability"]
    heads = [
        "method",
        "strength",
        task.title.lower().split(",")[0],
        "against unsteered",
        *(["judge"] if "judged" in test else []),
    ]
    heads += ["PPL of texts", "PPL of responses", "degenerate", "Self-BLEU"]
    lines = [heads, ["---"] * len(heads)]
    for (method, condition, strength), own in test.groupby(EACH, sort=False):
        nothing, values = condition == "none", own.set_index("prompt_id")["probability"]
        change = paired_bootstrap(values.to_numpy(), base[values.index].to_numpy())
        mark = " (chosen)" if not nothing and chosen[method] == strength else ""
        lines.append(
            [
                "unsteered" if nothing else method,
                "" if nothing else f"{strength:g}{mark}",
                _interval(bootstrap_mean(values.to_numpy())),
                "" if nothing else _interval(change, "+"),
                *([f"{own['judged'].mean():.2f}"] if "judged" in own else []),
                f"{own['text_perplexity'].iloc[0]:.1f}",
                f"{own['perplexity'].median():.1f}",
                f"{own['degenerate'].mean():.2f}",
                f"{self_bleu(own['response'], progress=False)['self_bleu'].mean():.2f}",
            ]
        )
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    left = [method for method, strength in chosen.items() if not strength]
    kept = f" No strength of {', '.join(left)} kept within the budget and was better than none." if left else ""
    return (
        f"**{task.title}**, {len(unsteered)} test prompts. {task.trust}.{kept}\n\n{table}\n\n{_curve(task, validation)}"
    )


def _curve(task: Task, validation: pd.DataFrame) -> str:
    """Effect and damage over the strength, for the two maps of the paper."""
    from analysis.statistics import bootstrap_mean

    none = validation[validation["condition"] == "none"].drop_duplicates("prompt_id")
    what = task.title.lower().split(",")[0]
    heads = ["strength", *(f"{method}: {name}" for method in CURVES for name in (what, "PPL of texts", "of responses"))]
    lines = [heads, ["---"] * len(heads)]
    for strength in (0.0, *STRENGTHS):
        cells = [f"{strength:g}"]
        for method in CURVES:
            own = validation[(validation["method"] == method) & (validation["strength"] == strength)]
            own = own[own["condition"] != "none"] if strength else none
            toxic = _interval(bootstrap_mean(1 - own["success"].to_numpy()))
            cells += [toxic, f"{own['text_perplexity'].iloc[0]:.1f}", f"{own['perplexity'].median():.1f}"]
        lines.append(cells)
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"Over the strength, on the {len(none)} validation prompts:\n\n{table}"


def _interval(found: Sequence[float], sign: str = "") -> str:
    return f"{found[0]:{sign}.2f} [{found[1]:{sign}.2f}, {found[2]:{sign}.2f}]"


if __name__ == "__main__":
    sys.exit(main())
