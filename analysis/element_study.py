"""`element_study`: key elements of one multiple-choice task, from finding them to steering with them, in one call.

read both answers of the fitting pairs -> rank heads by several criteria -> check attribution by patching -> sweep K and
strength on validation questions -> choose -> report on test questions, with SADI beside ITI, CAA, random heads and
steering that does not adapt.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from analysis import figures
from analysis.choice_selection import choose_setting, confirm_choice, optimism
from analysis.choice_settings import Setting, grid, unsteered
from analysis.choice_sweep import choice_sweep
from analysis.confirmation import require_disjoint_prompts
from analysis.element_size import ElementSize
from analysis.key_elements import Criteria, criteria
from analysis.patching import Comparison, activation_patching, attribution_patching, compare
from analysis.report import Report
from lensteer.answers import AnswerPair, Question, answer_pairs
from lensteer.contrast import Contrast, contrast
from lensteer.data import data_hash
from lensteer.evaluate.multiple_choice import check_questions, option_ids
from lensteer.methods import contrastive, iti, sadi
from lensteer.methods.iti import ITI
from lensteer.models import fingerprint, twin_of
from lensteer.storage import load_tensors, save_tensors

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

SPLITS = ("fit", "validation", "test")
SCORES = ("exact", "correct", "correct_normalised")
_FORMAT = "lensteer.patching.v1"
_CRITERIA = ("signed", "abs", "effect_size", "abs_auroc")  # and the probes of ITI, which are fitted anyway


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
        ValueError: a split that is missing, prompts that two splits share, an unknown score, a size that the model
            lacks the heads or layers for, a question that is too long, or a model that is being steered. All of these
            before any work.
        ImportError: without scikit-learn.
    """
    size, cache = size or ElementSize(), Path(folder) / "cache"
    _require_possible(model, questions, by, size)
    pairs = answer_pairs(questions["fit"], seed=seed)
    say(f"{name}: reading {len(pairs)} right and wrong answers, and ranking heads")
    sites = [sadi.SITES[element][0] for element in size.elements]
    seen = contrast(model, pairs, ["z", "resid_post", *sites], resume=cache / "answers", progress=progress)
    probes = iti.from_contrast(seen, seed=seed, progress=progress)
    found = criteria(seen, "head", _CRITERIA, seed=seed, progress=progress)
    attribution, patching = _patching(model, pairs, size, cache, seed, progress)
    make = _settings(model, seen, probes, size, seed, cache / "prompts")
    n_validation, n_test = len(questions["validation"]), len(questions["test"])
    say(f"{name}: sweeping K and strength on {n_validation} validation and {n_test} test questions")
    options: dict[str, Any] = {"cache": cache, "progress": progress}
    validation, test = (choice_sweep(model, make, questions[split], **options) for split in ("validation", "test"))
    return ElementStudy(
        name,
        by,
        found.with_scores("probe", probes.accuracy).with_scores("attribution", attribution.abs()),
        patching,
        validation.assign(split="validation"),
        test.assign(split="test"),
        choose_setting(validation, by=by, seed=seed),
        confirm_choice(validation, test, by=by, seed=seed),
        optimism(validation, test, by=by, seed=seed),
    )


def _require_possible(
    model: TransformerBridge, questions: Mapping[str, Sequence[Question]], by: str, size: ElementSize
) -> None:
    if missing := [split for split in SPLITS if split not in questions]:
        raise ValueError(f"questions need the splits {', '.join(SPLITS)}; {', '.join(missing)} is missing")
    if by not in SCORES:
        raise ValueError(f"by must be one of {SCORES}, got {by!r}")
    if twin_of(model).active:
        raise ValueError("the model is being steered; study it outside of the block that steers it")
    prompts = {
        split: pd.DataFrame({"prompt": [question.prompt for question in check_questions(questions[split])]})
        for split in SPLITS
    }
    for pair in combinations(SPLITS, 2):
        require_disjoint_prompts(prompts[pair[0]], prompts[pair[1]], (f"{pair[0]} questions", f"{pair[1]} questions"))
    size.require_possible(model)
    for split in SPLITS:
        option_ids(model, questions[split])  # a question that is too long is found now


def _patching(
    model: TransformerBridge,
    pairs: Sequence[AnswerPair],
    size: ElementSize,
    folder: Path,
    seed: int,
    progress: bool,
) -> tuple[Float[Tensor, "layer head"], Comparison]:
    """Attribution on all pairs, and beside brute force on some; a folder that holds the numbers gives them."""
    facts = [sorted(fingerprint(model).items()), data_hash(pairs), size.patched_heads, size.patched_pairs, seed]
    path = folder / f"patching-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]}.safetensors"
    if path.is_file():
        kept, _ = load_tensors(path, _FORMAT)
    else:
        few = pairs[: size.patched_pairs]
        patched = activation_patching(model, few, "head", sample=size.patched_heads, seed=seed, progress=progress)
        kept = {
            "all": attribution_patching(model, pairs, "head", progress=progress),
            "few": attribution_patching(model, few, "head", progress=progress),
            "heads": torch.tensor(patched[["layer", "element"]].to_numpy()),
            "effect": torch.tensor(patched["effect"].to_numpy()),
        }
        save_tensors(path, kept, {}, _FORMAT)
    patched = pd.DataFrame(kept["heads"].numpy(), columns=["layer", "element"]).assign(effect=kept["effect"].numpy())
    return kept["all"], compare(kept["few"], patched)


def _settings(
    model: TransformerBridge, seen: Contrast, probes: ITI, size: ElementSize, seed: int, folder: Path
) -> Callable[[Sequence[Question]], list[Setting]]:
    """The grids of all methods for some questions; frozen steerings read their prompts first."""
    fitted = {element: sadi.from_contrast(seen, element) for element in size.elements}
    first = size.elements[0]
    difference = contrastive.caa(seen)
    is_gated_neuron = first == "neuron" and seen.metadata["gated_mlp"] == "True"
    over: dict[str, Any] = {"strengths": size.strengths}
    at: dict[str, Any] = {"tokens": size.tokens}

    def make(questions: Sequence[Question]) -> list[Setting]:
        prompts = [question.prompt for question in questions]
        clean = {element: own.read(model, prompts, resume=folder) for element, own in fitted.items()}
        settings = [unsteered()]
        for element, own in fitted.items():
            steering = partial(own.steering, clean=clean[element], **at)
            settings += grid(f"SADI {element}", steering, ks=size.ks_of(element), **over)
        for own_seed in range(seed, seed + size.random_seeds):
            control = partial(fitted[first].random(own_seed).steering, clean=clean[first], **at)
            settings += grid(f"random {first}", control, ks=size.ks_of(first), seed=own_seed, **over)
        if not is_gated_neuron:  # to which nothing can be added
            settings += grid(f"fixed {first}", partial(fitted[first].fixed, **at), ks=size.ks_of(first), **over)
        alphas = [5 * strength for strength in size.strengths]
        settings += grid("ITI", partial(probes.steering, **at), ks=size.ks_of("head"), strengths=alphas)
        return settings + grid("CAA", partial(difference.add, **at), layers=size.layers, **over)

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
    k = min(8, study.found.scores["signed"].numel() // 2)
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
    for method in dict.fromkeys(study.candidates["method"]):
        if method.startswith("SADI "):
            report.figure(figures.choice_map(study.candidates, method=method))
    report.figure(figures.element_map(study.found.table(), criterion="signed", k=k))
    report.figure(figures.layer_distribution(study.found.layer_distribution(2 * k)))
    report.figure(figures.criterion_agreement(study.found.agreement(2 * k)))
    report.figure(figures.patching_comparison(study.patching.table))
    return report
