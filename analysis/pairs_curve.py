"""How many contrastive pairs does a method need? Accuracy after fitting on more and more of them.

All pairs are read once; every fit takes some of what was read:

    seen = contrast(model, pairs, "z")
    make = lambda part: sadi.from_contrast(part).steering(8, 4.0, mode="live")
    accuracy_by_pairs(pairs_curve(model, seen, make, questions, n_pairs=[10, 50, 200]))
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from analysis.choice_sweep import Setting, choice_sweep, unsteered
from analysis.confirmation import normalised_prompt
from analysis.statistics import bootstrap_mean
from lensteer.answers import AnswerPair, Question
from lensteer.capture import Activations
from lensteer.contrast import Contrast
from lensteer.data import data_hash
from lensteer.evaluate.multiple_choice import check_questions
from lensteer.steering import Steering

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

Make = Callable[[Contrast], Steering | Callable[[Sequence[Question]], Steering]]


def pairs_curve(
    model: TransformerBridge,
    seen: Contrast,
    make: Make,
    questions: Sequence[Question],
    *,
    n_pairs: Iterable[int],
    seeds: Iterable[int] = range(5),
    balance: Callable[[AnswerPair], Hashable] | None = None,
    by: str = "correct",
    level: float = 0.95,
    n_resamples: int = 2000,
    **options: Any,
) -> pd.DataFrame:
    """Accuracy on the questions after fitting on n pairs, for several n and several draws of them.

    A seed puts the pairs in an order, and its fits take the first n: they are nested. With all pairs every seed gives
    the same fit, which is run once.

    Args:
        seen: all pairs, read by `contrast` without ``reduce``.
        make: fits on some of the pairs and steers, at one fixed setting. Where the steering has values for every
            question (frozen SADI), it returns a function of the questions that makes the steering for these.
        questions: none of which the pairs were made of.
        n_pairs: numbers of pairs.
        balance: kind of a pair, such as ``lambda pair: pair.right``: every draw then holds the kinds in the shares that
            they have among all pairs. Where the answers are few labels, draws with more of one label than of another
            differ by what tells the labels apart, whichever is right.
        by: the score, such as "correct" or "exact".
        options: for `choice_sweep`: ``cache=``, ``prompt_format=``, ``batch_size=``, ``progress=``, …

    Returns:
        n_pairs, seed, accuracy, low, high (bootstrap over questions); the first row, n_pairs 0, is no steering.

    Raises:
        ValueError: a number of pairs below 1 or above those that there are; no numbers or no seeds; questions that
            the pairs were made of; moments only; or as `choice_sweep`.
    """
    import pandas as pd

    questions = check_questions(questions)
    sizes, draws = list(dict.fromkeys(n_pairs)), list(dict.fromkeys(seeds))
    total = len(seen.pairs)
    if not sizes or not draws:
        raise ValueError(f"a curve needs numbers of pairs and seeds, got n_pairs={sizes} and seeds={draws}")
    for size in sizes:
        if not 1 <= size <= total:
            raise ValueError(f"n_pairs={size}: there are {total} pairs, so it is a whole number from 1 to {total}")
    _require_other_questions(seen, questions)
    made = {}
    for seed in draws:
        order = np.random.default_rng(seed).permutation(total)
        if balance is not None:
            order = _spread(order, [balance(pair) for pair in seen.pairs])
        for size in sizes:
            # Sorted: the same pairs in another order would give another last digit, and run again.
            made[size, seed] = make(take_pairs(seen, sorted(order[:size].tolist())))

    def settings(asked: Sequence[Question]) -> list[Setting]:
        steered = [
            Setting(
                "steered", k=size, strength=1.0, seed=seed, steering=own if isinstance(own, Steering) else own(asked)
            )
            for (size, seed), own in made.items()
        ]
        return [unsteered(), *steered]

    results = choice_sweep(model, settings, questions, **options)
    if by not in results:
        raise ValueError(f"by={by!r}: the results have the columns {list(results)}")
    lines = []
    for (size, seed), rows in results.groupby(["k", "seed"], sort=True):
        accuracy, low, high = bootstrap_mean(rows[by].to_numpy(dtype=float), level=level, n_resamples=n_resamples)
        lines.append({"n_pairs": size, "seed": seed, "accuracy": accuracy, "low": low, "high": high})
    return pd.DataFrame(lines)


def take_pairs(seen: Contrast, index: Sequence[int]) -> Contrast:
    """Some of the pairs of a contrast, as if only these had been read.

    Raises:
        ValueError: moments only, which cannot be taken apart.
    """
    if not all(isinstance(value, Tensor) for value in seen.positive.values()):
        raise ValueError("only moments were kept, which are of all pairs; read them again with reduce=None")
    chosen = torch.as_tensor(list(index), dtype=torch.long)
    pairs = [seen.pairs[i] for i in index]
    positive, negative = (
        Activations({name: side[name][chosen] for name in side}) for side in (seen.positive, seen.negative)
    )
    facts = {"n_pairs": str(len(pairs)), "data_hash": data_hash(pairs)}
    return replace(seen, positive=positive, negative=negative, pairs=pairs, metadata={**seen.metadata, **facts})


def _spread(order: Int[np.ndarray, " pair"], kinds: Sequence[Hashable]) -> Int[np.ndarray, " pair"]:
    """The order with every kind spread evenly over it; within a kind as it was."""
    place = np.empty(len(order))
    for kind in dict.fromkeys(kinds):
        own = [i for i in order if kinds[i] == kind]
        place[own] = (np.arange(len(own)) + 0.5) / len(own)
    return order[np.argsort(place[order], kind="stable")]


def _require_other_questions(seen: Contrast, questions: Sequence[Question]) -> None:
    fitted_on = {normalised_prompt(pair.prompt) for pair in seen.pairs}
    again = [question.prompt for question in questions if normalised_prompt(question.prompt) in fitted_on]
    if again:
        raise ValueError(
            f"{len(again)} of the {len(questions)} questions are among those that the pairs were made of (first: "
            f"{again[0]!r}); accuracy is measured on other questions"
        )
