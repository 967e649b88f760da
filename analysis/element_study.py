"""`element_study`: key elements of one multiple-choice task, from finding them to steering with them, in one call.

read both answers of the fitting pairs -> rank heads by several criteria -> check attribution by patching -> sweep K and
strength on validation questions -> choose -> report on test questions, with SADI beside ITI, CAA, random heads and
steering that does not adapt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis import figures
from analysis.choice_selection import choose_setting, confirm_choice, optimism
from analysis.choice_settings import Setting, grid, unsteered
from analysis.choice_sweep import choice_sweep
from analysis.key_elements import Criteria, criteria
from analysis.patching import Comparison, activation_patching, attribution_patching, compare
from analysis.report import Report
from lensteer.answers import Question, answer_pairs
from lensteer.contrast import Contrast, contrast
from lensteer.methods import contrastive, iti, sadi
from lensteer.methods.iti import ITI
from lensteer.methods.sadi import SADI, Element

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_CRITERIA = ("signed", "abs", "effect_size", "abs_auroc")  # and the probes of ITI, which are fitted anyway


@dataclass(frozen=True)
class ElementSize:
    """How much a study of elements does, once it has its questions."""

    elements: tuple[Element, ...] = ("head",)
    ks: tuple[int, ...] = (1, 4, 16)
    strengths: tuple[float, ...] = (1.0, 4.0)
    layers: tuple[int, ...] = (10, 16, 22)
    patched_heads: int = 16
    patched_pairs: int = 16
    random_seeds: int = 1


@dataclass(frozen=True)
class ElementStudy:
    """What a study of elements found.

    Attributes:
        name: of the task.
        by: the score that was chosen by and is reported.
        found: scores of every head by every criterion, attribution and the probes of ITI among them.
        patching: attribution against brute force on a sample of heads.
        validation, test: one row per setting and question.
        candidates: every setting of the grids on the validation questions, the chosen ones marked.
        confirmed: the chosen settings on the test questions.
        optimism: what choosing on the test questions instead would have claimed.
    """

    name: str
    by: str
    found: Criteria
    patching: Comparison
    validation: pd.DataFrame
    test: pd.DataFrame
    candidates: pd.DataFrame
    confirmed: pd.DataFrame
    optimism: pd.DataFrame

    @property
    def results(self) -> pd.DataFrame:
        """Every setting on every question of both splits."""
        return pd.concat([self.validation, self.test], ignore_index=True)


def element_study(
    model: TransformerBridge,
    questions: Mapping[str, Sequence[Question]],
    folder: str | Path,
    *,
    name: str = "questions",
    by: str = "exact",
    size: ElementSize | None = None,
    seed: int = 0,
    progress: bool = True,
    say: Callable[[str], Any] = lambda message: None,
) -> ElementStudy:
    """Find the key heads of a task, choose K and strength for each method, and confirm.

    Args:
        questions: "fit", "validation" and "test".
        folder: finished batches and chunks are kept here.
        by: the score to choose by and to report: "exact", the published one (the answer is what the model finds most
            likely of everything it could say), or "correct" (most likely of the options).
        say: is told what starts, for a terminal.

    Raises:
        ValueError: a split that is missing, prompts that two splits share, or a model that is being steered.
    """
    size, cache = size or ElementSize(), Path(folder) / "cache"
    if missing := {"fit", "validation", "test"} - set(questions):
        raise ValueError(f"questions need the splits fit, validation and test; {', '.join(sorted(missing))} is missing")
    pairs = answer_pairs(questions["fit"], seed=seed)
    say(f"{name}: reading {len(pairs)} right and wrong answers, and ranking heads")
    sites = [sadi.SITES[element][0] for element in size.elements]
    seen = contrast(model, pairs, ["z", "resid_post", *sites], resume=cache / "answers", progress=progress)
    found = criteria(seen, "head", _CRITERIA, seed=seed, progress=progress)
    attribution = attribution_patching(model, pairs, "head", progress=progress)
    few = pairs[: size.patched_pairs]
    patched = activation_patching(model, few, "head", sample=size.patched_heads, seed=seed, progress=progress)
    probes = iti.from_contrast(seen, seed=seed, progress=progress)
    make = _settings(model, seen, probes, size, seed)
    n_validation, n_test = len(questions["validation"]), len(questions["test"])
    say(f"{name}: sweeping K and strength on {n_validation} validation and {n_test} test questions")
    options: dict[str, Any] = {"cache": cache, "progress": progress}
    validation, test = (choice_sweep(model, make, questions[split], **options) for split in ("validation", "test"))
    return ElementStudy(
        name,
        by,
        found.with_scores("probe", probes.accuracy).with_scores("attribution", attribution.abs()),
        compare(attribution_patching(model, few, "head", progress=progress), patched),
        validation.assign(split="validation"),
        test.assign(split="test"),
        choose_setting(validation, by=by, seed=seed),
        confirm_choice(validation, test, by=by, seed=seed),
        optimism(validation, test, by=by, seed=seed),
    )


def _settings(
    model: TransformerBridge, seen: Contrast, probes: ITI, size: ElementSize, seed: int
) -> Callable[[Sequence[Question]], list[Setting]]:
    """The grids of all methods for some questions; frozen steerings read their prompts first."""
    fitted = {element: sadi.from_contrast(seen, element) for element in size.elements}
    first = size.elements[0]
    difference = contrastive.caa(seen)
    options: dict[str, Any] = {"ks": size.ks, "strengths": size.strengths}

    def frozen(name: str, elements: SADI, questions: Sequence[Question], **more: Any) -> list[Setting]:
        clean = elements.read(model, [question.prompt for question in questions], prompt_format="plain")
        return grid(name, lambda k, s: elements.steering(k, s, clean=clean), **options, **more)

    def make(questions: Sequence[Question]) -> list[Setting]:
        settings = [unsteered()]
        for element, own in fitted.items():
            settings += frozen(f"SADI {element}", own, questions)
        for own_seed in range(seed, seed + size.random_seeds):
            settings += frozen(f"random {first}", fitted[first].random(own_seed), questions, seed=own_seed)
        if first != "neuron":  # nothing can be added to a gated neuron
            settings += grid(f"fixed {first}", fitted[first].fixed, **options)
        settings += grid("ITI", probes.steering, ks=size.ks, strengths=[5 * s for s in size.strengths])
        return settings + grid("CAA", difference.add, layers=size.layers, strengths=size.strengths)

    return make


def short_table(study: ElementStudy) -> pd.DataFrame:
    """What was chosen and what it gives on the test questions, for a terminal."""
    lines = []
    for row in study.confirmed.itertuples():
        place = f"K = {row.k}" if row.k else f"layer {row.layer}" if row.layer >= 0 else ""
        lines.append(
            {
                "method": row.method,
                "at": f"{place}, {row.strength:g}" if place else "",
                study.by: f"{row.accuracy:.2f} [{row.accuracy_low:.2f}, {row.accuracy_high:.2f}]",
                "against none": f"{row.difference:+.2f} [{row.difference_low:+.2f}, {row.difference_high:+.2f}]",
                "inside the options": f"{row.said_inside:.2f}",
            }
        )
    return pd.DataFrame(lines)


def add_to_report(report: Report, study: ElementStudy) -> Report:
    """The sections of a study of elements."""
    k = 8
    report.section(f"Key elements: heads for {study.name}")
    report.text(
        f"The score is **{study.by}**: whether the right answer is what the model finds most likely, "
        + ("of all it could say. " if study.by == "exact" else "of the options. ")
        + "Heads are ranked by how their activations at the last answer token differ between right and wrong answers. "
        "K and strength are chosen on validation questions and reported on test questions, beside random heads, the "
        "same push for every input (**fixed**), ITI and CAA. **said_inside** is the share of questions for which the "
        "most likely token begins one of the options at all."
    )
    report.table(study.confirmed, caption="On test questions; intervals are 95 % bootstrap intervals over questions.")
    report.table(
        study.optimism,
        caption="What choosing on the test questions themselves, as published tables do, would have added.",
    )
    report.figure(figures.choice_map(study.candidates, method="SADI head"))
    report.figure(figures.element_map(study.found.table(), criterion="signed", k=k))
    report.figure(figures.layer_distribution(study.found.layer_distribution(2 * k)))
    report.figure(figures.criterion_agreement(study.found.agreement(2 * k)))
    report.figure(figures.patching_comparison(study.patching.table))
    return report
