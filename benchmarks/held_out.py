"""Key elements on public data: every method's best setting on validation questions, reported on held-out questions.

    .venv/bin/python benchmarks/held_out.py --data ../shared/data
    .venv/bin/python benchmarks/held_out.py --tasks boolq --quick

SST-5, BoolQ, MMLU, CommonsenseQA and TruthfulQA; unsteered, CAA, ITI, SADI of heads, neurons and hidden units, SADI of
random heads, and the mean difference added at SADI's heads (fixed). All methods are fitted on the same pairs and try
the same number of settings. Answers are texts, not letters, which a small model cannot map to options; a setting is
chosen by the likeliest option, and the exact match of the released code stands beside it.

Which rows: prompts of up to ``prompt_tokens`` tokens, and for validation and test up to ``option_tokens`` tokens in
all options together after their first ones, which bounds the cost and looks at no label; of these a draw by hash.

A run that was stopped goes on where it was: finished batches, chunks and tasks are kept in ``--out``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

if TYPE_CHECKING:
    import pandas as pd

    from analysis.choice_settings import Setting
    from lensteer.answers import Question

    Make = Callable[[Sequence[Question]], list[Setting]]

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
ELEMENTS = ("head", "neuron", "hidden")
SITES = ("z", "pre", "mlp_out")  # what frozen steerings of these read in a prompt; SmolLM2's MLPs are gated
SEEDS = (0, 1)  # of the random heads
SETTING = ["method", "k", "layer", "strength"]
ENDS = ("", "_low", "_high")


@dataclass(frozen=True)
class Task:
    """Where a task's questions come from, and how many are taken."""

    title: str
    layout: str
    fit_file: str
    test_file: str
    fit: int = 80
    validation: int = 50
    test: int = 120
    prompt_tokens: int = 150
    option_tokens: int = 24


TASKS = {
    "sst5": Task("SST-5", "cloze", "sst5_train", "sst5_test"),
    "boolq": Task("BoolQ", "cloze", "boolq", "boolq", fit=60, prompt_tokens=110),
    "mmlu": Task("MMLU", "cloze", "mmlu", "mmlu", validation=40, test=100, option_tokens=16),
    "commonsense_qa": Task(
        "CommonsenseQA", "cloze", "commonsense_qa", "commonsense_qa", validation=40, test=100, option_tokens=3
    ),
    "truthfulqa": Task("TruthfulQA", "mc1", "truthfulqa", "truthfulqa", validation=30, test=60),
}
# Per method K (CAA: layers) and strengths: δ of SADI and fixed, α of ITI, multiples of the mean difference for CAA.
Grid = dict[str, tuple[tuple[int, ...], tuple[float, ...]]]
GRID: Grid = {
    "CAA": ((10, 18), (1.0, 3.0)),
    "ITI": ((16, 48), (5.0, 15.0)),
    "SADI head": ((4, 16), (1.0, 4.0)),
    "SADI neuron": ((10, 100), (4.0, 19.0)),
    "SADI hidden": ((4, 16), (1.0, 4.0)),
}
DENSE: Grid = {
    "CAA": ((10, 16, 22), (0.5, 1.0, 3.0)),
    "ITI": ((4, 16, 48), (5.0, 15.0, 30.0)),
    "SADI head": ((1, 4, 16), (1.0, 4.0, 9.0)),
    "SADI neuron": ((10, 100, 500), (4.0, 9.0, 29.0)),
    "SADI hidden": ((4, 10, 20), (1.0, 4.0, 9.0)),
}


def main(arguments: list[str] | None = None) -> int:
    """Study the tasks that were asked for, and print and write one table."""
    options = _options(arguments)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    import torch
    from transformers.utils.logging import disable_progress_bar

    from lensteer import load_model

    torch.set_num_threads(options.threads)
    disable_progress_bar()
    if not options.data.is_dir():
        print(f"{options.data} is not a folder; --data must hold sst5_train.jsonl and the other sets", file=sys.stderr)
        return 2
    model, parts = load_model(), []
    for name in options.tasks:
        task = _sized(TASKS[name], options)
        parts.append(_markdown(task, _study(model, name, task, DENSE if options.dense else GRID, options)))
        print(f"\n{parts[-1]}", flush=True)
    (options.out / "table.md").write_text("\n\n".join(parts) + "\n")
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the JSON-lines files")
    parser.add_argument(
        "--out", type=Path, default=Path("lensteer-demo/held-out"), help="folder of everything that is kept"
    )
    parser.add_argument("--tasks", nargs="+", choices=tuple(TASKS), default=list(TASKS), metavar="TASK")
    for name in ("fit", "validation", "test", "prompt-tokens", "option-tokens"):
        parser.add_argument(f"--{name}", type=int, help=f"instead of each task's own {name}")
    parser.add_argument("--dense", action="store_true", help="9 settings per method instead of 4")
    parser.add_argument("--quick", action="store_true", help="a few rows, to see that it runs")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    return parser.parse_args(arguments)


def _sized(task: Task, options: argparse.Namespace) -> Task:
    sizes: dict[str, Any] = {"fit": 12, "validation": 4, "test": 6} if options.quick else {}
    given = {n: getattr(options, n) for n in ("fit", "validation", "test", "prompt_tokens", "option_tokens")}
    return replace(task, **sizes | {name: value for name, value in given.items() if value is not None})


def _study(model: Any, name: str, task: Task, grids: Grid, options: argparse.Namespace) -> dict[str, Any]:
    """Everything that the table of one task says; a task that was finished with the same sizes is not run again."""
    from analysis.choice_selection import confirm_choice, optimism
    from analysis.choice_sweep import choice_sweep
    from lensteer.contrast import contrast
    from lensteer.data import contrastive_pairs, data_hash
    from lensteer.models import fingerprint
    from lensteer.storage import write_atomically

    questions = _questions(model, name, task, options.data)
    about = [fingerprint(model), grids, SEEDS, *(data_hash(map(asdict, part)) for part in questions.values())]
    kept = options.out / f"{name}-{data_hash([about])[:16]}.json"
    if kept.is_file():
        return json.loads(kept.read_text())
    print(f"{task.title}: {', '.join(f'{len(part)} {split}' for split, part in questions.items())}", flush=True)
    cache = options.out / "cache"
    pairs = contrastive_pairs(name, questions["fit"])
    seen = contrast(model, pairs, ["z", "neuron", "mlp_out", "resid_post"], resume=cache)
    make = _settings(model, seen, grids, cache)
    validation, test = (choice_sweep(model, make, questions[s], cache=cache) for s in ("validation", "test"))
    confirmed, claimed = confirm_choice(validation, test), optimism(validation, test)
    beside = test.groupby(SETTING)["exact"].mean()
    chosen = [_setting(row) for row in confirmed.itertuples()]
    confirmed["exact"] = [float(beside[setting]) for setting in chosen]
    rows = confirmed.merge(claimed[["method", "settings", "optimism", "optimism_low", "optimism_high"]], how="left")
    if name == "truthfulqa":
        asked = _questions(model, name, task, options.data, layout="all")["test"]
        rows = rows.join(_all_answers(model, make, asked, chosen))
    found = {"rows": json.loads(rows.to_json(orient="records")), **_levels(questions["test"])}
    write_atomically(kept, json.dumps(found, indent=1).encode())
    return found


def _setting(row: Any) -> tuple[str, int, int, float]:
    return (row.method if row.strength else "none", row.k, row.layer, row.strength)


def _questions(model: Any, name: str, task: Task, folder: Path, layout: str | None = None) -> dict[str, list[Question]]:
    """Disjoint fit, validation and test questions; ``layout`` for the same questions with other options."""
    from lensteer import data
    from lensteer.evaluate.multiple_choice import option_ids

    def read(file: str) -> dict[str, Question]:
        return {q.prompt: q for q in data.questions(name, source=folder / f"{file}.jsonl", layout=task.layout)}

    def draw(pool: dict[str, Question], most: int | None, **sizes: int) -> dict[str, list[Question]]:
        prompts, ids = option_ids(model, list(pool.values()))
        short = [
            question
            for question, prompt, own in zip(pool.values(), prompts, ids, strict=True)
            if len(prompt) <= task.prompt_tokens and (most is None or sum(len(i) - 1 for i in own) <= most)
        ]
        return data.split_questions(short, sizes)

    pool = read(task.fit_file)
    if task.test_file == task.fit_file:
        parts = draw(pool, task.option_tokens, validation=task.validation, test=task.test)
    else:
        parts = draw(pool, task.option_tokens, validation=task.validation)
        others = {prompt: q for prompt, q in read(task.test_file).items() if prompt not in pool}
        parts |= draw(others, task.option_tokens, test=task.test)
    taken = {question.prompt for part in parts.values() for question in part}
    parts |= draw({prompt: q for prompt, q in pool.items() if prompt not in taken}, None, fit=task.fit)
    if layout is not None:
        every = data.questions(name, source=folder / f"{task.test_file}.jsonl", layout=layout)
        other = {question.prompt: question for question in every}
        parts = {split: [other[question.prompt] for question in part] for split, part in parts.items()}
    return {split: parts[split] for split in ("fit", "validation", "test")}


def _settings(model: Any, seen: Any, grids: Grid, cache: Path) -> Make:
    """All settings for some questions, whose prompts are read once for every frozen steering."""
    from analysis.choice_settings import grid, unsteered
    from lensteer.capture import capture
    from lensteer.methods import contrastive, iti, sadi

    fitted = {element: sadi.from_contrast(seen, element) for element in ELEMENTS}
    random = {seed: fitted["head"].random(seed) for seed in SEEDS}
    heads, shift = iti.from_contrast(seen), contrastive.caa(seen)

    def over(method: str) -> dict[str, Any]:
        places, strengths = grids[method]
        return {"layers" if method == "CAA" else "ks": places, "strengths": strengths}

    def make(questions: Sequence[Question]) -> list[Setting]:
        prompts: list[Any] = [question.prompt for question in questions]
        clean = capture(model, prompts, SITES, prompt_format="plain", resume=cache, progress=False)

        def frozen(own: sadi.SADI) -> Callable[[int, float], Any]:
            return lambda k, strength: own.steering(k, strength, clean=clean)

        found = [unsteered(), *grid("CAA", shift.add, **over("CAA")), *grid("ITI", heads.steering, **over("ITI"))]
        for element, own in fitted.items():
            found += grid(f"SADI {element}", frozen(own), **over(f"SADI {element}"))
        for seed, own in random.items():
            found += grid("random heads", frozen(own), **over("SADI head"), seed=seed)
        return found + grid("fixed heads", fitted["head"].fixed, **over("SADI head"))

    return make


def _all_answers(
    model: Any, make: Make, questions: Sequence[Question], chosen: Sequence[tuple[str, int, int, float]]
) -> pd.DataFrame:
    """MC1, MC2 and MC3 over all true and false answers, a row for each chosen setting; seeds are averaged."""
    import pandas as pd

    from analysis.statistics import bootstrap_mean
    from lensteer.evaluate.multiple_choice import multiple_choice_grid
    from lensteer.evaluate.truthfulqa import truthfulqa_scores

    tables = []
    for start in range(0, len(questions), 20):
        part = questions[start : start + 20]
        tried = {setting.label: setting.steering for setting in make(part) if setting.label[:4] in chosen}
        answered = multiple_choice_grid(model, part, tried)
        own = answered[["steering", "question_id"]].join(truthfulqa_scores(answered).astype(float))
        numbers = [chosen.index(label[:4]) for label in own["steering"]]
        tables.append(own.assign(question_id=own["question_id"] + start, setting=numbers))
    means = pd.concat(tables).groupby(["setting", "question_id"])[["mc1", "mc2", "mc3"]].mean()
    lines = []
    for setting in chosen:
        ends = {name: bootstrap_mean(own.to_numpy()) for name, own in means.loc[chosen.index(setting)].items()}
        lines.append({f"{name}{end}": x for name, own in ends.items() for end, x in zip(ENDS, own, strict=True)})
    return pd.DataFrame(lines)


def _levels(questions: Sequence[Question]) -> dict[str, Any]:
    """What guessing evenly gives on these very questions, and what always saying one label does."""
    n = len(questions)
    counts = [sum(question.right[0] == i for question in questions) for i in range(len(questions[0].options))]
    guess = sum(len(question.right) / len(question.options) for question in questions) / n
    return {"n": n, "guess": guess, "commonest": max(counts) / n if len({q.options for q in questions}) == 1 else None}


def _markdown(task: Task, found: dict[str, Any]) -> str:
    levels = f"guessing {found['guess']:.2f}"
    if found["commonest"] is not None:
        levels += f", always the commonest label {found['commonest']:.2f}"
    shares = {"exact match": "exact", "said inside": "said_inside", "probability inside": "probability_inside"}
    mc = {name.upper(): name for name in ("mc1", "mc2", "mc3") if name in found["rows"][0]}
    heads = ["method", "chosen", "validation", "test", "against unsteered", *shares, "optimism", *mc]
    lines = [heads, ["---"] * len(heads)]
    for row in found["rows"]:
        nothing = row["method"] == "none"
        place = f"layer {row['layer']}" if row["layer"] >= 0 else f"K {row['k']}"
        cells = [
            "unsteered" if nothing else row["method"],
            "" if nothing else f"{place}, {row['strength']:g}" if row["strength"] else "not to steer",
            f"{row['validation']:.2f}",
            _interval(row, "accuracy"),
            "" if nothing else _interval(row, "difference", "+"),
            *(f"{row[name]:.2f}" for name in shares.values()),
            "" if nothing else _interval(row, "optimism"),
            *(_interval(row, name) for name in mc.values()),
        ]
        lines.append(cells)
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"**{task.title}**, {found['n']} test questions; {levels}\n\n{table}"


def _interval(row: dict[str, Any], name: str, sign: str = "") -> str:
    return f"{row[name]:{sign}.2f} [{row[f'{name}_low']:{sign}.2f}, {row[f'{name}_high']:{sign}.2f}]"


if __name__ == "__main__":
    sys.exit(main())
