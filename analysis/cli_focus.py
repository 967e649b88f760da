"""The commands ``lensteer focus train | evaluate | compare``: focus instruction tuning, and steering against it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from analysis.terminal import DEFAULT, Device, Model, layers_in, load, say, show

focus = typer.Typer(
    no_args_is_help=True, help="Train a model to follow focus instructions, score it, compare it with steering."
)

Data = Annotated[str, typer.Option(help="ss (sentiment), smnli, bbq or shans.")]
Asked = Annotated[
    str | None, typer.Option("--data", help="ss, smnli, bbq or shans. Default: what the adapter was trained on.")
]
DATA_FILE = "data.json"  # in an adapter's folder: --data, --source and --unseen of its training
Source = Annotated[
    list[str] | None,
    typer.Option(help="own (default), hub, a file, or parts as train=FILE test=FILE, one option each."),
]
Unseen = Annotated[
    str | None, typer.Option(help="For bbq: categories kept for the test, as Age,Religion. Default: the data set's.")
]
Adapter = Annotated[
    Path, typer.Argument(help="Folder that `lensteer focus train` wrote; `example` for the packaged one.")
]
Base = Annotated[str | None, typer.Option(help="Default: the one that the adapter was trained on.")]
Divided = Annotated[
    int | None, typer.Option(help="Also divides data without parts. Default: the adapter's, whose test is unseen.")
]


@focus.command()
def train(
    out: Annotated[Path, typer.Option(help="Folder for the adapter; an interrupted run goes on here.")],
    data: Data = "ss",
    source: Source = None,
    unseen: Unseen = None,
    n_train: Annotated[int | None, typer.Option(help="Training examples. Default: all.", min=2)] = None,
    n_validation: Annotated[int | None, typer.Option(help="Validation examples. Default: all.", min=2)] = None,
    objective: Annotated[str, typer.Option(help="fit, sft_y, sft_focus, sft_spurious or poe.")] = "fit",
    bias: Annotated[Path | None, typer.Option(help="For poe: folder of an adapter trained with sft_spurious.")] = None,
    steps: Annotated[int | None, typer.Option(help="Default: ten passes over the examples.")] = None,
    batch_size: int = 16,
    learning_rate: float = 1e-4,
    evaluate_every: int = 100,
    patience: Annotated[int, typer.Option(help="Evaluations without a lower loss before it stops.")] = 4,
    precision: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    half: Annotated[bool, typer.Option("--half", help="Write the adapter in float16.")] = False,
    model: Model = DEFAULT,
    device: Device = None,
    seed: int = 0,
) -> None:
    """Train a LoRA adapter on focus instructions, or one of the baselines, and save it with its model card."""
    from lensteer.methods.focus import FocusSettings, read_adapter
    from lensteer.methods.focus import train as train_adapter
    from lensteer.storage import write_atomically

    how: dict[str, Any] = {"objective": objective, "steps": steps, "batch_size": batch_size, "precision": precision}
    how |= {"learning_rate": learning_rate, "evaluate_every": evaluate_every, "patience": patience, "half": half}
    settings = FocusSettings(**how, seed=seed)
    if (bias is not None) != (objective == "poe"):
        raise typer.BadParameter("--bias FOLDER belongs to --objective poe, and poe needs it")
    if bias is not None and (made := read_adapter(_folder(bias)).settings.objective) != "sft_spurious":
        raise typer.BadParameter(f"--bias {bias} was trained with --objective {made}; it must be sft_spurious")
    if out.exists() and not out.is_dir():
        raise typer.BadParameter(f"--out {out} is a file; name a folder")
    examples = _data(data, source, seed, unseen, n_train=n_train, n_validation=n_validation)
    show(examples.report().round(3), repr(examples))
    lens = load(model, device)
    biased = None if bias is None else _lens(_folder(bias), lens)
    parts = (examples.task, examples.train, examples.validation)
    adapter = train_adapter(lens, *parts, out, settings, bias=biased)
    given = {"data": data, "source": source, "unseen": unseen}
    write_atomically(out / DATA_FILE, json.dumps(given, indent=1).encode())
    show(adapter.history.round(4).fillna(""), repr(adapter))
    say(f"wrote {adapter.folder}")


@focus.command()
def evaluate(
    adapter: Annotated[
        Path | None, typer.Argument(help="Folder of an adapter, or `example`. Default: the model as it is.")
    ] = None,
    data: Asked = None,
    source: Source = None,
    unseen: Unseen = None,
    n: Annotated[int | None, typer.Option(help="Examples of each split. Default: all.", min=1)] = None,
    shots: Annotated[int, typer.Option(help="Demonstrations before each query.", min=0)] = 0,
    scoring: Annotated[str, typer.Option(help="exact, or beam (constrained beam search).")] = "exact",
    unseen_wording: Annotated[bool, typer.Option("--unseen-wording", help="Templates not trained on.")] = False,
    out: Annotated[Path | None, typer.Option(help="Also write every answer, .csv or .parquet.")] = None,
    model: Base = None,
    device: Device = None,
    seed: Divided = None,
) -> None:
    """Focus accuracy on every test split, for every kind of instruction."""
    from analysis.focus_tables import focus_by_split
    from analysis.tables import table_ending, write_table
    from lensteer.data.focus import TRAINING, UNSEEN
    from lensteer.evaluate import focus_accuracy

    if out is not None:
        table_ending(out)
    if scoring not in ("exact", "beam"):
        raise typer.BadParameter(f"--scoring must be exact or beam, got {scoring!r}")
    adapter = _folder(adapter)
    seed, examples = _held_out(adapter, data, source, seed, unseen)
    asked = [example for split in examples.tests.values() for example in split[:n]]
    base = load(_base(adapter, model), device)
    lens = base if adapter is None else _lens(adapter, base)
    how: dict[str, Any] = {"scoring": scoring, "shots": shots, "seed": seed}
    how["wording"] = UNSEEN if unseen_wording else TRAINING
    found = focus_accuracy(lens, examples.task, asked, demonstrations=examples.train if shots else (), **how)
    table = focus_by_split(found.assign(model=_base(None, model) if adapter is None else _name(adapter)))
    show(table.round(3), "Focus accuracy (95 % intervals over sources)")
    if out is not None:
        say(f"wrote {write_table(found.drop(columns='log_likelihoods'), out)}")


@focus.command()
def compare(
    adapter: Adapter,
    out: Annotated[Path, typer.Option(help="Folder for tables, vectors and steerings; a second run goes on.")],
    data: Asked = None,
    source: Source = None,
    unseen: Unseen = None,
    layers: Annotated[str, typer.Option(help="Of the vectors, as 10:30:2 or 8,12,16. Default: all.")] = "",
    n_train: Annotated[int, typer.Option(help="Examples to fit on.", min=4)] = 96,
    n_validation: Annotated[int, typer.Option(help="Examples to choose on.", min=4)] = 40,
    n_test: Annotated[int, typer.Option(help="Examples of each test split.", min=2)] = 40,
    text_ratio: Annotated[float, typer.Option(help="Budget: how much perplexity of neutral texts may grow.")] = 1.5,
    rivals: Annotated[bool, typer.Option(help="Also SADI's heads and activation transport.")] = True,
    model: Base = None,
    device: Device = None,
    seed: Divided = None,
) -> None:
    """Compare the trained model and its base, told by prompt, by a focus vector, by both or not at all."""
    from dataclasses import replace

    from analysis.focus_choice import FocusBudget
    from analysis.focus_report import comparison_report, short_comparison
    from analysis.focus_size import FocusSize
    from analysis.focus_study import focus_study

    budget = FocusBudget(text_ratio=text_ratio)
    adapter = _folder(adapter)
    seed, examples = _held_out(adapter, data, source, seed, unseen)
    base = load(_base(adapter, model), device)
    models = {"base": base, "FIT": _lens(adapter, base)}
    size = FocusSize(layers=tuple(layers_in(layers, int(base.cfg.n_layers))) if layers else None)
    if not rivals:
        size = replace(size, heads=(), transports=())
    tests = {split: own[:n_test] for split, own in examples.tests.items()}
    parts = (examples.train[:n_train], examples.validation[:n_validation], tests)
    how: dict[str, Any] = {"size": size, "budget": budget, "seed": seed, "say": say}
    found = focus_study(models, examples.task, *parts, out, **how)
    show(short_comparison(found.table), repr(found))
    page = comparison_report(found).save(out / "report.html")
    for path in [page, *found.save(out), *found.files]:
        say(f"wrote {path}")


def _lens(adapter: Path, base: Any) -> Any:
    """The base with an adapter in its weights."""
    from lensteer.methods.focus import load as load_adapter

    return load_adapter(adapter, base)


def _folder(adapter: Any) -> Any:
    """The adapter's folder, where ``example`` stands for the packaged one and is no folder here."""
    from lensteer.methods.focus import EXAMPLE

    return EXAMPLE if adapter == Path("example") and not adapter.exists() else adapter


def _name(adapter: Path) -> str:
    from lensteer.methods.focus import EXAMPLE

    return "example" if adapter == EXAMPLE else adapter.name


def _base(adapter: Path | None, model: str | None) -> str:
    """The name of the model to load: what was asked for, else what the adapter was trained on, else the default."""
    if model is not None or adapter is None:
        return model or DEFAULT
    from lensteer.methods.focus import read_adapter

    return read_adapter(adapter).base["model"]


def _held_out(
    adapter: Path | None, name: str | None, source: list[str] | None, seed: int | None, unseen: str | None
) -> tuple[int, Any]:
    """The seed and the data set to test on: the adapter's where nothing else is asked for, and none of its inputs."""
    if adapter is None:
        return seed or 0, _data(name or "ss", source, seed or 0, unseen)
    from lensteer.data.focus import DATASETS
    from lensteer.methods.focus import read_adapter

    trained = read_adapter(adapter)
    path = adapter / DATA_FILE
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if known and name in (None, known["data"]):
        name, source, unseen = known["data"], source or known["source"], unseen or known["unseen"]
    if name is None and trained.task.name not in DATASETS:
        raise typer.BadParameter(f"{adapter} was trained on a task of your own, {trained.task.name!r}; give --data")
    seed = trained.settings.seed if seed is None else seed
    examples = _data(name or trained.task.name, source, seed, unseen)
    tests = [example for split in examples.tests.values() for example in split]
    say(f"data: {name or trained.task.name} from {', '.join(source or ['own'])}")
    seen = trained.trained_on(tests)
    if seen:
        raise typer.BadParameter(
            f"{len(seen)} of {len(tests)} test examples were trained on by {adapter} (first: {seen[0].id!r}); give "
            "the --source, --seed and --unseen of its training, so that data are divided in the same way"
        )
    return seed, examples


def _data(name: str, source: list[str] | None, seed: int, unseen: str | None, **sizes: int | None) -> Any:
    """The data set of ``--data``, ``--source`` and ``--unseen``, with these sizes where they are given."""
    from lensteer.data.focus import DATASETS

    if name not in DATASETS:
        raise typer.BadParameter(f"--data must be one of {', '.join(DATASETS)}, got {name!r}")
    given = source or ["own"]
    parts = dict(part.split("=", 1) for part in given if "=" in part)
    if parts and len(parts) < len(given):
        raise typer.BadParameter(f"--source names parts (train=FILE) and others: {' '.join(given)}; give one kind")
    more: dict[str, Any] = {size: n for size, n in sizes.items() if n is not None}
    if unseen is not None:
        if name != "bbq":
            raise typer.BadParameter(f"--unseen is for --data bbq, got --data {name}")
        more["unseen"] = [category.strip() for category in unseen.split(",")]
    return DATASETS[name](parts or (given[0] if len(given) == 1 else given), seed=seed, **more)
