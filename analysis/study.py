"""`study`: the whole honest procedure in one call, for several instructions.

fit on one set of queries -> sweep layers and strengths on validation queries -> choose under a fluency budget ->
confirm on test queries, against no steering, a random direction of the same norm, and the instruction in text.

Everything lands in one folder: vectors, the chosen steerings, every response, and a report. Run again on the same
folder, it continues where it stopped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis.choices import Selection
from analysis.layer_selection import Budget, choose, confirm
from analysis.sweep import Candidate, baseline, grid, in_text, sweep
from analysis.tasks import Task
from lensteer import data
from lensteer.methods import instruction
from lensteer.methods.instruction import InstructionVectors
from lensteer.models import twin_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class Size:
    """How much a study does."""

    pairs: int = 32
    validation: int = 6
    test: int = 12
    layers: tuple[int, ...] = (18, 21, 24, 26)
    max_new_tokens: int = 24
    random_seeds: int = 1


@dataclass(frozen=True)
class Study:
    """What a study found.

    Attributes:
        vectors: by instruction.
        validation, test: every response with its scores.
        selection: what was chosen on the validation queries.
        confirmed: the table of `confirm` on the test queries.
        size, budget: how much was done, and what steering was allowed to cost.
    """

    tasks: tuple[Task, ...]
    vectors: dict[str, InstructionVectors]
    validation: pd.DataFrame
    test: pd.DataFrame
    selection: Selection
    confirmed: pd.DataFrame
    size: Size
    budget: Budget

    @property
    def results(self) -> pd.DataFrame:
        """Every response of both splits in one table."""
        return pd.concat([self.validation, self.test], ignore_index=True)


def study(
    model: TransformerBridge,
    tasks: Sequence[Task],
    folder: str | Path,
    *,
    size: Size | None = None,
    budget: Budget | None = None,
    seed: int = 0,
    progress: bool = True,
    say: Callable[[str], Any] = lambda message: None,
) -> Study:
    """Fit, sweep, choose and confirm.

    Args:
        folder: vectors, steerings and finished batches are kept here.
        say: is told what starts, for a terminal.

    Raises:
        ValueError: no tasks, two of one name, layers that the model lacks, or more queries than there are.
        ImportError: a task's check needs an extra that is not installed. All of these before any work.
    """
    size, budget, folder = size or Size(), budget or Budget(), Path(folder)
    _require_possible(model, tasks, size)
    queries = {split: data.queries(split, getattr(size, split)) for split in ("validation", "test")}
    say(f"fitting {len(tasks)} instructions on {size.pairs} pairs each")
    vectors = _fit(model, tasks, size, folder, seed, progress)
    options: dict[str, Any] = {
        "checks": {task.name: task.check for task in tasks},
        "max_new_tokens": size.max_new_tokens,
        "cache": folder / "cache",
        "progress": progress,
    }
    candidates = [candidate for task in tasks for candidate in _candidates(task, vectors[task.name], size)]
    say(f"sweeping {len(candidates)} candidates on {size.validation} validation queries")
    validation = sweep(model, candidates, queries["validation"], **options).assign(split="validation")
    selection = choose(validation, budget=budget, seed=seed)
    say(f"confirming the choices on {size.test} test queries")
    controls = [c for task in tasks for c in _controls(task, vectors[task.name], selection, size, folder, seed)]
    test = sweep(model, controls, queries["test"], **options).assign(split="test")
    confirmed = confirm(selection, validation, test, seed=seed)
    return Study(tuple(tasks), vectors, validation, test, selection, confirmed, size, budget)


def _require_possible(model: TransformerBridge, tasks: Sequence[Task], size: Size) -> None:
    names = [task.name for task in tasks]
    if not tasks or len(set(names)) < len(names):
        raise ValueError(f"a study needs tasks, each of another name; got {names}")
    n_layers = int(model.cfg.n_layers)
    if not size.layers or not all(0 <= layer < n_layers for layer in size.layers):
        raise ValueError(f"layers {size.layers}: {twin_of(model).name} has layers 0 to {n_layers - 1}")
    for task in tasks:
        task.check(["A response."])  # what the check needs to have installed is found missing now


def _fit(
    model: TransformerBridge, tasks: Sequence[Task], size: Size, folder: Path, seed: int, progress: bool
) -> dict[str, InstructionVectors]:
    pairs = {
        task.name: data.instruction_pairs(task.fit_on or task.instruction, size.pairs, seed=seed) for task in tasks
    }
    resume = folder / "cache" / "activations"
    fitted = instruction.fit_all(model, pairs, seed=seed, resume=resume, progress=progress)
    for name, vectors in fitted.items():
        vectors.save(folder / "vectors" / f"{file_name(name)}.safetensors")
    return fitted


def _candidates(task: Task, vectors: InstructionVectors, size: Size) -> list[Candidate]:
    steered = grid(vectors, layers=size.layers, strengths=task.strengths, operator=task.operator, **task.options)
    return [baseline(task.name), *steered]


def _controls(
    task: Task, vectors: InstructionVectors, selection: Selection, size: Size, folder: Path, seed: int
) -> list[Candidate]:
    """The test conditions of one task: none, steered as chosen, random directions of the same norm, text, both."""
    rewrite = partial(data.with_text, instruction=task.instruction, seed=seed)
    none = baseline(task.name)
    choice, path = selection[task.name], folder / "steering" / f"{file_name(task.name)}.safetensors"
    if not choice.steered:
        path.unlink(missing_ok=True)  # an earlier run in this folder may have chosen otherwise
        return [none, in_text(none, rewrite)]
    steering = task.steering(vectors, choice.layer, choice.strength)
    steering.save(path)
    steered = Candidate(task.name, "steered", choice.layer, choice.strength, steering)
    chance = [
        replace(
            steered, condition="random", steering=task.steering(vectors.random(seed + i), choice.layer, choice.strength)
        )
        for i in range(size.random_seeds)
    ]
    return [none, steered, *chance, in_text(none, rewrite), in_text(steered, rewrite)]


def saved_files(done: Study, folder: Path) -> list[Path]:
    """The steerings and vectors that a study wrote."""
    paths = [folder / kind / f"{file_name(t.name)}.safetensors" for kind in ("steering", "vectors") for t in done.tasks]
    return [path for path in paths if path.is_file()]


def file_name(name: str) -> str:
    """A name with everything replaced that a file name should not have."""
    return re.sub(r"[^\w.-]", "-", name)
