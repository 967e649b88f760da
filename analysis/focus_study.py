"""`focus_study`: focus instruction tuning against activation steering, the whole honest procedure in one call.

    {base, FIT-merged} × {empty, prompt, vector, prompt + vector}, beside random vectors, SADI's heads and AcT

For every model: fit focus vectors, heads and maps on training examples -> sweep them on the empty prompts of validation
examples -> choose under a budget of side costs -> run the choices on every test split. No model sees another's vectors.
A FIT model is any bridge, such as `lensteer.focus.load` gives; it answers whether tuning makes one direction of focus
(its vector works on its empty prompt where the base model's does not) and what steering can do without tuning.

Everything lands in one folder; run again on it, it goes on where it stopped. Lamb et al. (ICML 2025, arXiv 2410.22944)
make no such comparison: it is lensteer's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import pandas as pd

from analysis.choice_settings import Setting, unsteered
from analysis.focus_choice import FocusBudget, choose, chosen_row, require_disjoint_sources
from analysis.focus_conditions import EMPTY, VECTOR, as_splits, comparison_table, conditions, distinct, run_conditions
from analysis.focus_rivals import act_settings, sadi_settings
from analysis.focus_runs import FocusRun
from analysis.focus_size import FocusSize
from analysis.focus_sweep import Toward, require_informative, sweep_settings, vector_settings
from analysis.study import file_name
from analysis.tables import write_table
from lensteer import data
from lensteer.data.focus import TRAINING, FocusExample, FocusTask, Wording
from lensteer.methods.directions import Directions
from lensteer.methods.focus_pairs import cell_weights
from lensteer.methods.focus_vectors import after_instruction, label_leakage, vectors
from lensteer.models import twin_of
from lensteer.points import hook_names
from lensteer.positions import STEPS, Tokens

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_Settings = dict[Toward, list[Setting]]


@dataclass(frozen=True, repr=False)
class FocusComparison:
    """What a study found.

    Attributes:
        task: its name.
        table: one row per model, split, toward and condition, with intervals; see `comparison_table`.
        results: one row per condition and test example.
        candidates: every setting on the validation examples, the chosen ones marked, with a column ``model``.
        validation: what these were chosen on.
        leakage: how much of each model's vectors points from label to label.
        vectors: by model.
        chosen: (model, toward, method) -> the chosen setting; `unsteered` where none was.
        files: vectors and chosen steerings.
    """

    task: str
    table: pd.DataFrame
    results: pd.DataFrame
    candidates: pd.DataFrame
    validation: pd.DataFrame
    leakage: pd.DataFrame
    vectors: dict[str, Directions]
    chosen: dict[tuple[str, Toward, str], Setting]
    size: FocusSize
    budget: FocusBudget
    files: tuple[Path, ...]

    def save(self, folder: str | Path, *, ending: Literal[".parquet", ".csv"] = ".csv") -> list[Path]:
        """Write the five tables, ``focus-table`` and so on.

        Raises:
            ValueError, ImportError, OSError: as `write_table`.
        """
        names = ("table", "results", "candidates", "validation", "leakage")
        return [write_table(getattr(self, name), Path(folder) / f"focus-{name}{ending}") for name in names]

    def __repr__(self) -> str:
        settings = {(model, toward): own for (model, toward, method), own in self.chosen.items() if method == VECTOR}
        shown = [
            f"{model} toward {toward}: " + (f"layer {own.layer}, {own.strength:+g}" if own.strength else "no vector")
            for (model, toward), own in settings.items()
        ]
        examples = self.results["example_id"].nunique()
        return f"FocusComparison({self.task!r}, {'; '.join(shown)}; {examples} test examples)"


def focus_study(
    models: Mapping[str, TransformerBridge],
    task: FocusTask,
    training: Sequence[FocusExample],
    validation: Sequence[FocusExample],
    test: Mapping[str, Sequence[FocusExample]] | Sequence[FocusExample],
    folder: str | Path,
    *,
    size: FocusSize | None = None,
    budget: FocusBudget | None = None,
    texts: Sequence[str] | None = None,
    wording: Wording = TRAINING,
    chunk_size: int = 32,
    batch_size: int | Literal["auto"] = "auto",
    seed: int = 0,
    progress: bool = True,
    say: Callable[[str], Any] = lambda message: None,
) -> FocusComparison:
    """Fit, sweep, choose and compare.

    Args:
        models: name -> model, such as {"base": …, "FIT": …}; side costs on texts are relative to the first, unsteered.
        training, validation, test: examples to fit on, to choose on and to report on, such as the ``train``,
            ``validation`` and ``tests`` of `lensteer.data.focus.FocusData`; no two of them share a source. Test
            examples are a mapping of splits, which may share examples, or a list that is divided by their ``split``.
        folder: vectors, steerings and finished parts are kept here.
        texts: neutral texts, the first for the choice and the next for the report. Default: `data.neutral_sentences`.
        say: is told what starts, for a terminal.

    Raises:
        TypeError: models that are no mapping of bridges.
        ValueError: examples of one source in two sets, no informative example to choose or report on, a cell (y, y_s)
            without training examples, too few texts, more heads than there are, an unknown site or layer, or a model
            that is being steered. All of these before any work.

    Where no steering is chosen, a warning says so, and its conditions are run without.
    """
    size, budget, folder = size or FocusSize(), budget or FocusBudget(), Path(folder)
    texts = list(data.neutral_sentences() if texts is None else texts)
    splits = as_splits(task, test)
    _require_possible(models, task, (training, validation, distinct(splits)), size, budget, texts)
    run = FocusRun(folder / "cache", wording, seed, chunk_size, batch_size, progress=progress)
    where = {
        name: STEPS if size.tokens == "steps" else after_instruction(model, task) for name, model in models.items()
    }
    split_texts = texts[: size.texts], texts[size.texts : 2 * size.texts]
    found: dict[str, _Found] = {}
    for name, model in models.items():
        told = partial(_told, say, name)
        found[name] = _one_model(
            name, model, task, training, validation, splits, split_texts, where[name], size, budget, run, told
        )
    files = [path for name, own in found.items() for path in _saved(folder, name, own.vectors, own.chosen)]
    results = _joined(found, "results")
    first = results[(results["model"] == next(iter(models))) & (results["condition"] == EMPTY)]
    results = results.assign(text_ratio=results["text_perplexity"] / first["text_perplexity"].iloc[0])
    return FocusComparison(
        task.name,
        comparison_table(results, seed=seed),
        results,
        candidates=_joined(found, "candidates"),
        validation=_joined(found, "validation"),
        leakage=_joined(found, "leakage"),
        vectors={name: own.vectors for name, own in found.items()},
        chosen={(name, *which): setting for name, own in found.items() for which, setting in own.chosen.items()},
        size=size,
        budget=budget,
        files=tuple(files),
    )


class _Found(NamedTuple):
    """What was found on one model."""

    results: pd.DataFrame
    candidates: pd.DataFrame
    validation: pd.DataFrame
    leakage: pd.DataFrame
    vectors: Directions
    chosen: dict[tuple[Toward, str], Setting]


def _one_model(
    name: str,
    model: TransformerBridge,
    task: FocusTask,
    training: Sequence[FocusExample],
    validation: Sequence[FocusExample],
    splits: Mapping[str, Sequence[FocusExample]],
    texts: tuple[Sequence[str], Sequence[str]],
    tokens: Tokens,
    size: FocusSize,
    budget: FocusBudget,
    run: FocusRun,
    say: Callable[[str], Any],
) -> _Found:
    say(f"fitting on {len(training)} examples")
    fitted = _vectors(model, task, training, size, run)
    settings = _settings(model, task, training, fitted, tokens, size, run)
    say(f"sweeping {sum(map(len, settings.values()))} settings on {len(validation)} validation examples")
    swept = sweep_settings(model, task, validation, settings, run, texts=texts[0])
    candidates = choose(swept, budget=budget, test=splits, name=name, seed=run.seed)
    chosen = _chosen(candidates, settings)
    tried = conditions(chosen, fitted, controls=size.controls, unit=size.unit, tokens=tokens, seed=run.seed)
    say(f"{len(tried)} conditions on {len(distinct(splits))} test examples")
    results = run_conditions(model, task, splits, tried, texts[1], run)
    residual = tuple(fitted.direction.shape[1:]) == (int(model.cfg.d_model),)
    leakage = label_leakage(model, fitted, task) if residual else pd.DataFrame()
    return _Found(results, candidates, swept, leakage, fitted, chosen)


def _told(say: Callable[[str], Any], name: str, message: str) -> None:
    say(f"{name}: {message}")


def _joined(found: Mapping[str, _Found], part: str) -> pd.DataFrame:
    return pd.concat([getattr(own, part).assign(model=name) for name, own in found.items()], ignore_index=True)


def _require_possible(
    models: Mapping[str, TransformerBridge],
    task: FocusTask,
    examples: Sequence[Sequence[FocusExample]],
    size: FocusSize,
    budget: FocusBudget,
    texts: Sequence[str],
) -> None:
    if not isinstance(models, Mapping) or not models:
        raise TypeError(f'models must be a mapping such as {{"base": model, "FIT": other}}, got {models!r}')
    if len({file_name(str(name)) for name in models}) < len(models):
        raise ValueError(f"the names of the models must differ as names of files, got {list(models)}")
    sets = dict(zip(("training", "validation", "test"), (task.require(own) for own in examples), strict=True))
    for one, other in combinations(sets, 2):
        require_disjoint_sources(sets[one], sets[other], (f"{one} examples", f"{other} examples"))
    cell_weights(task, sets["training"])
    for name, own in sets.items():
        require_informative(own, f"the {name} examples")
    if budget.agreeing_drop is not None and all(example.informative for example in sets["validation"]):
        raise ValueError(
            "in all validation examples y and y_s differ, so agreeing_drop bounds nothing; add some whose features "
            "agree, or use FocusBudget(agreeing_drop=None)"
        )
    if len(set(texts)) < len(texts) or len(texts) < 2 * size.texts:
        raise ValueError(f"{2 * size.texts} different texts are needed, half for the choice; got {len(set(texts))}")
    for name, model in models.items():
        if twin_of(model).active:
            raise ValueError(f"the model {name!r} is being steered; study it outside of the block that steers it")
        hook_names(model, size.site, size.layers)
        heads = int(model.cfg.n_layers) * int(model.cfg.n_heads)
        if not all(1 <= k <= heads for k in size.heads):
            raise ValueError(f"heads={size.heads}: {name!r} has {heads} heads to choose from")


def _vectors(
    model: TransformerBridge, task: FocusTask, training: Sequence[FocusExample], size: FocusSize, run: FocusRun
) -> Directions:
    where: dict[str, Any] = {"site": size.site, "layers": size.layers, "templates": size.templates}
    how: dict[str, Any] = {"wording": run.wording, "seed": run.seed, "progress": run.progress}
    how |= {"batch_size": run.batch_size, "resume": run.cache}
    return vectors(model, task, training, method=size.method, **where, **how)


def _settings(
    model: TransformerBridge,
    task: FocusTask,
    training: Sequence[FocusExample],
    directions: Directions,
    tokens: Tokens,
    size: FocusSize,
    run: FocusRun,
) -> _Settings:
    """Everything that is tried of one model, for each of the two ways."""
    how: dict[str, Any] = {"batch_size": run.batch_size, "progress": run.progress}
    found = [vector_settings(directions, strengths=size.strengths, unit=size.unit, tokens=tokens)]
    if size.heads:
        what: dict[str, Any] = {"ks": size.heads, "strengths": size.head_strengths, "resume": run.cache}
        found.append(sadi_settings(model, task, training, **what, **how))
    for method in size.transports:
        where: dict[str, Any] = {"sites": size.transport_sites, "tokens": size.transport_tokens, "cache": run.cache}
        where |= {"strengths": size.transport_strengths, "wording": run.wording, "seed": run.seed}
        found.append(act_settings(model, task, training, method, **where, **how))
    return {toward: [one for own in found for one in own[toward]] for toward in ("S", "C")}


def _chosen(candidates: pd.DataFrame, settings: _Settings) -> dict[tuple[Toward, str], Setting]:
    """(toward, method) -> the setting that the candidates mark."""
    found: dict[tuple[Toward, str], Setting] = {}
    for toward, own in settings.items():
        for method in dict.fromkeys(one.method for one in own):
            row = chosen_row(candidates, toward, method)
            wanted = (method, row.k, row.layer, row.strength)
            found[toward, method] = next((one for one in own if one.label[:4] == wanted), unsteered())
    return found


def _saved(folder: Path, name: str, directions: Directions, chosen: Mapping[tuple[Toward, str], Setting]) -> list[Path]:
    """The vectors and the chosen steerings of one model, in files."""
    files = [directions.save(folder / "vectors" / f"{file_name(name)}.safetensors")]
    for (toward, method), own in chosen.items():
        path = folder / "steering" / f"{file_name(f'{name}-{toward}-{method}')}.safetensors"
        path.unlink(missing_ok=True)  # an earlier run in this folder may have chosen otherwise
        files += [own.steering.save(path)] if own.strength else []
    return files
