"""Focus instruction tuning for real: FIT against SFT(y) and SFT(y_focus), over seeds, on splits of other predictivity.

    .venv/bin/python benchmarks/focus.py                               # lensteer's own sentences, SST-5 and BBQ
    .venv/bin/python benchmarks/focus.py --sets own --seeds 0 --quick

The adapters are small and so are the sets: this runs on two cores. A run that was stopped goes on where it was, from
the adapters and scores in ``--out``. SST-5 and BBQ are read from ``--data`` and left out where they are not there.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

if TYPE_CHECKING:
    import pandas as pd

    from lensteer.data.focus import FocusExample
    from lensteer.data.focus.splits import FocusData
    from lensteer.methods.focus import FocusSettings

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
OBJECTIVES = ("fit", "sft_y", "sft_focus")
NAMES = {"fit": "FIT", "sft_y": "SFT(y)", "sft_focus": "SFT(y_focus)", "base": "zero-shot", "few": "few-shot"}


@dataclass(frozen=True)
class Sizes:
    """How much of everything: two cores pay for every token.

    ``words`` is the longest sentence of SST-5 that is taken. The baselines have one answer for every prompt to learn,
    and need fewer steps. BBQ is only run from end to end: its prompts are long.
    """

    steps: int
    baseline_steps: int
    evaluate_every: int
    validation: int
    test: int
    words: int = 16


SIZES = {
    "own": Sizes(150, 60, 25, 60, 40),
    "sst": Sizes(400, 100, 50, 64, 40),
    "bbq": Sizes(60, 30, 20, 24, 24),
}
QUICK = Sizes(4, 4, 2, 8, 8)


def main(arguments: list[str] | None = None) -> int:
    """Train, score, and print and write the tables."""
    options = _options(arguments)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    import torch

    from lensteer import load_model
    from lensteer.methods.focus import FocusSettings

    torch.set_num_threads(options.threads)
    model, out = load_model(), Path(options.out)
    for name in options.sets:
        size = QUICK if options.quick else SIZES[name]
        data = _data(name, size, Path(options.data))
        if data is None:
            print(f"{name}: no files in {options.data}; left out", file=sys.stderr)
            continue
        settings = FocusSettings(
            steps=size.steps,
            evaluate_every=size.evaluate_every,
            learning_rate=options.learning_rate,
            half=True,
            precision=options.precision,
        )
        folder = out / (f"{name}-quick" if options.quick else name)
        page = _study(model, name, data, size, settings, options, folder)
        folder.with_suffix(".md").write_text(page)
        print(page, flush=True)
    return 0


def _data(name: str, size: Sizes, folder: Path) -> FocusData | None:
    from lensteer.data.focus import bbq, sentiment

    if name == "own":
        return sentiment("own", n_test=min(size.test, 80))
    if name == "sst":
        paths = {split: folder / f"sst5_{split}.jsonl" for split in ("train", "test")}
        if not all(path.is_file() for path in paths.values()):
            return None
        rows = {
            split: [row for row in _rows(path) if len(row["text"].split()) <= size.words]
            for split, path in paths.items()
        }
        return sentiment(rows, n_validation=size.validation, n_test=size.test)
    files = sorted(folder.glob("bbq_*.jsonl"))
    return bbq(files, unseen=("Nationality",), n_validation=size.validation, n_test=size.test) if files else None


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    return map(json.loads, path.read_text(encoding="utf-8").splitlines())


def _study(
    model: Any,
    name: str,
    data: FocusData,
    size: Sizes,
    settings: FocusSettings,
    options: argparse.Namespace,
    out: Path,
) -> str:
    """All methods on one set, as a page of Markdown."""
    import pandas as pd

    from lensteer.methods.focus import load, train

    tests = [example for split in data.tests.values() for example in split]
    results, runs = [_scores(model, data, tests, "base", 0, out)], []
    if options.few_shot:
        few = {"shots": 4, "demonstrations": data.train}
        results.append(_scores(model, data, _some(data, options.few_shot), "few", 0, out, **few))
    for seed in options.seeds:
        for objective in options.objectives:
            steps = size.steps if objective == "fit" else size.baseline_steps
            own: Any = replace(settings, objective=objective, seed=seed, steps=steps)
            folder = out / f"{objective}-{seed}"
            adapter = train(model, data.task, data.train, data.validation[: size.validation], folder, own)
            results.append(_scores(load(adapter, model), data, tests, objective, seed, out))
            losses = adapter.history["validation_loss"].dropna()
            seconds = {"seconds": adapter.seconds, "best step": adapter.best_step, "validation loss": losses.min()}
            runs.append({"method": NAMES[objective], "seed": seed, **seconds})
    title = (
        f"**{name}**: {data!r}. At most {size.steps} steps of {settings.batch_size} (baselines {size.baseline_steps}), "
        f"learning rate {settings.learning_rate:g}."
    )
    return _page(title, data, pd.concat(results, ignore_index=True), pd.DataFrame(runs))


def _some(data: FocusData, count: int) -> list[FocusExample]:
    """The first examples of every split: a prompt with demonstrations is five times as long."""
    return [example for split in data.tests.values() for example in split[:count]]


def _scores(
    model: Any, data: FocusData, examples: Sequence[FocusExample], method: str, seed: int, folder: Path, **shots: Any
) -> pd.DataFrame:
    """Focus accuracy of a model, from the folder where these weights and examples were scored before."""
    import pandas as pd

    from lensteer.data import data_hash
    from lensteer.evaluate.focus import focus_accuracy
    from lensteer.models import fingerprint

    key = data_hash([fingerprint(model)["weights"], *examples, *shots.get("demonstrations", ())])[:12]
    path = folder / f"{method}-{seed}-{key}.csv"
    if not path.is_file():
        started = time.monotonic()
        found = focus_accuracy(model, data.task, examples, **shots).drop(columns="log_likelihoods")
        folder.mkdir(parents=True, exist_ok=True)
        found.assign(method=NAMES[method], repeat=seed, seconds=time.monotonic() - started).to_csv(path, index=False)
    return pd.read_csv(path, dtype={"y": str, "y_s": str, "target": str, "predicted": str})


def _page(title: str, data: FocusData, results: pd.DataFrame, runs: pd.DataFrame) -> str:
    """Accuracy over splits in the form of the paper's tables, and on the splits that tell most."""
    from analysis.focus_tables import focus_over_repeats, focus_table, wide

    lines, kinds = [title, ""], list(dict.fromkeys(results["kind"]))
    if "flipped" in data.tests:
        table = wide(focus_table(results, by=["method"]), decimals=2)[kinds]
        lines += ["mean over the four splits ± spread across them (not run noise):", ""]
        lines += ["| method | " + " | ".join(kinds) + " |", "| --- " * (len(kinds) + 1) + "|"]
        lines += [f"| {method} | " + " | ".join(cells) + " |" for method, *cells in table.itertuples(name=None)]
        lines.append("")
    rates = focus_over_repeats(results, by=["method"])
    for split in [one for one in ("flipped", "seen", "unseen") if one in data.tests]:
        rows = rates[rates["split"] == split]
        oracle = rows.loc[rows["kind"] == "focus(S)", "always_y"].iloc[0]
        lines += [f"*{split}*; always answering y scores {oracle:.2f} on focus(S):", ""]
        ends = ["runs x examples", "largest std over runs"]
        lines += ["| method | " + " | ".join([*kinds, *ends]) + " |", "| --- " * (len(kinds) + 3) + "|"]
        for method, own in rows.groupby("method", sort=False):
            cells = [f"{row.accuracy:.2f} [{row.low:.2f}, {row.high:.2f}]" for row in own.itertuples()]
            repeats, n, noise = own["repeats"].iloc[0], own["n"].iloc[0], own["std"].max()
            cells += [f"{repeats} x {n}", f"{noise:.3f}" if repeats > 1 else "–"]
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
        lines.append("")
    lines += ["| method | seed | seconds | best step | validation loss |", "| --- | --- | --- | --- | --- |"]
    lines += [f"| {r[0]} | {r[1]} | {r[2]:.0f} | {r[3]} | {r[4]:.3f} |" for r in runs.itertuples(index=False)]
    return "\n".join([*lines, ""])


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=["own", "sst", "bbq"], choices=["own", "sst", "bbq"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--few-shot", type=int, default=0, help="examples of a split to ask with 4 demonstrations")
    parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES), choices=OBJECTIVES)
    parser.add_argument("--data", default=str(DATA), help="folder with sst5_*.jsonl and bbq_*.jsonl")
    parser.add_argument("--out", default="focus-runs", help="adapters, scores and tables; a second run goes on")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--precision", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--quick", action="store_true", help="a few steps: shows that it runs, nothing else")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
