"""Key elements: which heads, neurons and hidden units tell right answers from wrong ones, by several criteria.

All criteria look at the same activations, read once by `lensteer.contrast` at the last token of a right (+) and of a
wrong (−) answer. Each gives a score to every element of every layer; the largest come first, over all layers together.

| criterion | score of an element x | largest |
|---|---|---|
| `signed` | mean x⁺ − mean x⁻, what SADI ranks by | most above for right answers |
| `abs` | its absolute value | most apart |
| `effect_size` | Cohen's d: signed, over the pooled standard deviation of the two classes | most above |
| `abs_effect_size` | its absolute value | most apart |
| `auroc` | P(x⁺ > x⁻) + ½ P(x⁺ = x⁻), 0.5 is chance | most above |
| `abs_auroc` | its distance from 0.5 | most apart |
| `probe` | held-out accuracy of a classifier, 0.5 is chance | best told apart |

The x of a head is the mean over its d_head coordinates, as in SADI. Only `probe` reads the whole head: a logistic
regression on its vector (scikit-learn, L2, features standardised on the training folds), as ITI does. A single unit's
probe is the nearest class mean: a threshold halfway between the two. Both are cross-validated over questions, so that
no question is on both sides.

Scores from elsewhere, of `analysis.patching` for one, join by `Criteria.with_scores`; any of them ranks a steering:
``fitted.ranked_by(found.scores["auroc"], "auroc").steering(k, strength)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from numbers import Integral

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from analysis.element_scores import CRITERIA, Sample, checked_names, sample_of, score_all
from analysis.statistics import spearman
from lensteer.contrast import Contrast
from lensteer.methods.sadi import Element

__all__ = ["CRITERIA", "DEFAULT", "Criteria", "criteria", "overlap", "rank_correlation", "stability"]

DEFAULT = ("signed", "abs", "effect_size", "auroc", "probe")
"""The criteria that are computed where none are named."""


@dataclass(frozen=True, eq=False)
class Criteria:
    """The scores of all elements of one kind, by several criteria.

    Attributes:
        element: "head", "neuron" or "hidden".
        scores: criterion -> ``[layer, element]``; larger comes first.

    Raises:
        ValueError: no criteria, scores of different shapes, or NaN.
    """

    element: Element
    scores: Mapping[str, Float[Tensor, "layer element"]]

    def __post_init__(self) -> None:
        if not self.scores:
            raise ValueError(f"no criteria were given; name some of {CRITERIA}")
        shapes = {name: tuple(scores.shape) for name, scores in self.scores.items()}
        if len(set(shapes.values())) > 1 or len(next(iter(shapes.values()))) != 2:
            raise ValueError(f"scores must all be [layer, {self.element}] of one shape, got {shapes}")
        bad = [name for name, scores in self.scores.items() if not torch.isfinite(scores).all()]
        if bad:
            raise ValueError(f"the scores of {bad} hold NaN or infinite values")

    def with_scores(self, name: str, scores: Float[Tensor, "layer element"]) -> Criteria:
        """The same with one more criterion, such as "attribution" from `analysis.patching`.

        Raises:
            ValueError: a name that is taken, another shape, or NaN.
        """
        if name in self.scores:
            raise ValueError(f"there is a criterion {name!r} already; give the new scores another name")
        return replace(self, scores={**self.scores, name: scores.detach().double().cpu()})

    def top(self, criterion: str, k: int) -> Int[Tensor, "k 2"]:
        """(layer, element) of the K that come first, best first; ties go to the lower layer, then the lower element.

        Raises:
            ValueError: an unknown criterion, or K below 1 or above the number of elements.
        """
        if criterion not in self.scores:
            raise ValueError(f"criterion must be one of {tuple(self.scores)}, got {criterion!r}")
        layers, width = next(iter(self.scores.values())).shape
        if not isinstance(k, Integral) or isinstance(k, bool) or not 1 <= k <= layers * width:
            raise ValueError(
                f"K={k!r}: there are {layers} layers of {width} {self.element} elements, so K is a whole number from "
                f"1 to {layers * width}"
            )
        order = _order(self.scores[criterion])[: int(k)]
        return torch.stack([order // width, order % width], 1)

    def table(self, k: int | None = None) -> pd.DataFrame:
        """Criterion, layer, element, score, rank (1 is first), best first; all elements, or the first K of each."""
        parts = []
        for name, scores in self.scores.items():
            top = self.top(name, scores.numel() if k is None else k)
            values = {"layer": top[:, 0], "element": top[:, 1], "score": scores[top[:, 0], top[:, 1]]}
            part = pd.DataFrame({column: value.numpy() for column, value in values.items()})
            part.insert(0, "criterion", name)
            parts.append(part.assign(rank=range(1, len(top) + 1)))
        return pd.concat(parts, ignore_index=True)

    def agreement(self, k: int) -> pd.DataFrame:
        """How far every two criteria name the same elements.

        Returns:
            first, second, overlap (share of the first K that both name), chance (what two random choices share, K
            over the number of elements), rank_correlation (Spearman's, over all elements), k.

        Raises:
            ValueError: K below 1 or above the number of elements.
        """
        for name in self.scores:
            self.top(name, k)
        rows = []
        for first, second in combinations(self.scores, 2):
            a, b = self.scores[first], self.scores[second]
            row = {"first": first, "second": second, "overlap": overlap(a, b, k), "chance": k / a.numel()}
            rows.append({**row, "rank_correlation": rank_correlation(a, b), "k": k})
        columns = ["first", "second", "overlap", "chance", "rank_correlation", "k"]
        return pd.DataFrame(rows, columns=columns)

    def layer_distribution(self, k: int) -> pd.DataFrame:
        """In which layers the first K lie: criterion, layer, count; layers without any are listed with 0.

        With few pairs "auroc" and "probe" have few values, many elements tie at the top, and ties go to lower layers.

        Raises:
            ValueError: K below 1 or above the number of elements.
        """
        parts = []
        for name, scores in self.scores.items():
            count = torch.bincount(self.top(name, k)[:, 0], minlength=len(scores))
            parts.append(pd.DataFrame({"criterion": name, "layer": range(len(scores)), "count": count.numpy()}))
        return pd.concat(parts, ignore_index=True)

    def __repr__(self) -> str:
        layers, width = next(iter(self.scores.values())).shape
        k = min(3, layers * width)
        best = (f"{name} {', '.join(f'{i}.{j}' for i, j in self.top(name, k).tolist())}" for name in self.scores)
        return (
            f"Criteria of {self.element} elements: {layers} layers x {width}; first (layer.element): {'; '.join(best)}"
        )


def criteria(
    seen: Contrast,
    element: Element = "head",
    names: str | Sequence[str] = DEFAULT,
    *,
    site: str | None = None,
    folds: int = 5,
    seed: int = 0,
    progress: bool = True,
) -> Criteria:
    """Scores of every element by several criteria, from activations that were read once.

    Args:
        seen: ``contrast(model, pairs, sites)`` with the element's site ("z", "neuron", "mlp_out" or "resid_post").
        names: one or several of `CRITERIA`; the table at the top of this module defines them.
        site: where the elements are; None is "z", "neuron" or "mlp_out".
        folds: of the probe's cross-validation over questions.
        seed: of the assignment of questions to folds.

    Raises:
        ValueError: an unknown element or criterion, a site that was not read, some layers only or in another order,
            moments only, NaN or inf, or fewer questions than folds.
        ImportError: probes of heads without scikit-learn.
    """
    names, sample = checked_names(names), sample_of(seen, element, site)
    return Criteria(element, score_all(sample, names, folds=folds, seed=seed, progress=progress))


def stability(
    seen: Contrast,
    element: Element = "head",
    *,
    k: int,
    names: str | Sequence[str] = DEFAULT,
    site: str | None = None,
    n_splits: int = 10,
    folds: int = 5,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Does each criterion name the same elements on other questions? Two random halves of the questions, many times.

    A half has half the data, so this is a lower bound for the whole set. Chance for the overlap is K over the number of
    elements. Probes of heads take the time: they are fitted 2 · n_splits · folds times for each head.

    Returns:
        criterion, split, overlap (share of the first K that both halves name), rank_correlation (Spearman's), k.

    Raises:
        ValueError: as `criteria`; K out of range, fewer than one split, or too few questions for halves.
    """
    names, sample = checked_names(names), sample_of(seen, element, site)
    n = sample.n_questions
    least = 2 * folds if "probe" in names else 2
    if n_splits < 1 or n < least:
        raise ValueError(f"{n} questions and n_splits={n_splits}: halves need {least} questions and one split or more")
    Criteria(element, {"": torch.zeros(sample.shape)}).top("", k)
    rows = []
    for split in range(n_splits):
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed + split))
        halves = [_half(sample, own) for own in (order[: n // 2], order[n // 2 :])]
        about = f"split {split + 1} of {n_splits}"
        first, second = (score_all(h, names, folds=folds, seed=seed, progress=progress, about=about) for h in halves)
        for name in names:
            a, b = first[name], second[name]
            row = {"criterion": name, "split": split, "overlap": overlap(a, b, k)}
            rows.append({**row, "rank_correlation": rank_correlation(a, b), "k": k})
    return pd.DataFrame(rows)


def overlap(first: Float[Tensor, "..."], second: Float[Tensor, "..."], k: int) -> float:
    """Share of the K largest of one that are among the K largest of the other; ties as in `Criteria.top`."""
    a, b = (set(_order(scores)[:k].tolist()) for scores in (first, second))
    return len(a & b) / k


def rank_correlation(first: Float[Tensor, "..."], second: Float[Tensor, "..."]) -> float:
    """Spearman's ρ of two sets of scores; NaN where one side is constant.

    Raises:
        ValueError: shapes that differ.
    """
    if first.shape != second.shape:
        raise ValueError(f"ranks of {tuple(first.shape)} and {tuple(second.shape)} values cannot be compared")
    return spearman(*(scores.detach().flatten().double().cpu().numpy() for scores in (first, second)))


def _order(scores: Float[Tensor, "..."]) -> Int[Tensor, " n"]:
    return scores.flatten().argsort(descending=True, stable=True)


def _half(sample: Sample, questions: Int[Tensor, " question"]) -> Sample:
    return sample.take(torch.isin(sample.questions, questions))
