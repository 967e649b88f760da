"""Pairs of prompts that differ in their focus instruction alone, and weights that make every cell (y, y_s) count alike.

Both are lensteer's own. P⁺ and P⁻ ask the same example under two kinds of instructions, in templates of the same number
(`lensteer.data.focus`); `lensteer.methods.focus_vectors` reads what the model makes of the difference.

    prompt   In: … Out:        labels   ␣ 1,  ␣ 2,  ␣ 3        `until_labels_part`:  In: … Out: ␣   and   1,  2,  3

It is read where the label is predicted. Many tokenizers give a digit and the blank before it a token each; then the
prompt's last token predicts the blank, which all labels have, and the blank is the token that predicts the label.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from itertools import product
from operator import index
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from lensteer.data.focus import TRAINING, Asked, FocusExample, FocusTask, Kind, Wording
from lensteer.data.focus.instructions import check_kinds, instruction_of
from lensteer.models import tokenizer_of
from lensteer.prompts import Row

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def focus_pairs(
    task: FocusTask,
    examples: Sequence[FocusExample],
    *,
    positive: Kind = "focus(S)",
    negative: Kind = "focus(C)",
    templates: int | Sequence[int] = 3,
    wording: Wording = TRAINING,
    seed: int = 0,
) -> list[tuple[Asked, Asked]]:
    """P⁺ and P⁻ of every example and template: the same example, templates of the same number.

    Args:
        templates: numbers of templates for all examples, or how many each draws for itself, by ``seed`` and its id.

    Raises:
        ValueError: equal or unknown kinds, families of templates of different sizes, templates that there are not,
            or examples that the task refuses, as it does one with an unknown feature.
        TypeError: templates that are no whole numbers.
    """
    count = _family_size(positive, negative, wording)
    chosen = _templates(templates, count, wording)
    pairs = []
    for example in task.require(examples):
        own = chosen or random.Random(f"{seed}\n{example.id}").sample(range(count), index(templates))  # type: ignore[arg-type]
        for number in own:
            up, down = (task.ask(example, kind, wording=wording, template=number) for kind in (positive, negative))
            pairs.append((up, down))
    return pairs


def cell_weights(task: FocusTask, examples: Sequence[FocusExample]) -> Float[Tensor, " example"]:
    """1 / (number of cells · examples in the example's own cell): every cell (y, y_s) weighs the same; the sum is 1.

    The cells are every label as y with every label that a value of the examples' features stands for as y_s.

    Raises:
        ValueError: a task of free text, or a cell without examples; names it.
    """
    if not task.labels:
        raise ValueError(f"{task.name!r} has free text for answers, so its examples have no cells (y, y_s) to weigh")
    meant: set[str] = set()
    for feature in {example.spurious for example in examples}:
        meant |= set(task.meanings[feature].values()) if feature in task.meanings else set(task.labels)
    cells = list(product(task.labels, [label for label in task.labels if label in meant]))
    counts = Counter((example.y, example.y_s) for example in examples)
    if empty := [cell for cell in cells if not counts[cell]]:
        shown = ", ".join(f"(y={y!r}, y_s={y_s!r})" for y, y_s in empty)
        raise ValueError(
            f"no examples of {task.name!r} have {shown}; every cell weighs the same in a focus vector, so each needs "
            f"one at least (there are {len(cells)} cells)"
        )
    return torch.tensor([1 / (len(cells) * counts[example.y, example.y_s]) for example in examples])


def until_labels_part(
    model: TransformerBridge, rows: Sequence[Row], ids: Sequence[Sequence[Sequence[int]]]
) -> tuple[list[Row], list[list[list[int]]]]:
    """Prompts that end with the first tokens that all labels have in common, and the labels without them.

    Args:
        rows: prompts; ids: the tokens of every label after each of them, ``[prompt][label][token]``, of which none
            begins another, as `lensteer.evaluate.label_scores.label_ids` gives them.

    Returns:
        both unchanged where the labels differ in their first token.
    """
    read, left = [], []
    for row, labels in zip(rows, ids, strict=True):
        count = next(i for i, tokens in enumerate(zip(*labels, strict=False)) if len(set(tokens)) > 1)
        common = list(labels[0][:count])
        text = row.text + str(tokenizer_of(model).decode(common)) if common else row.text
        read.append(Row(row.ids + common, row.own + [True] * count, text))
        left.append([list(label[count:]) for label in labels])
    return read, left


def _family_size(positive: Kind, negative: Kind, wording: Wording) -> int:
    """How many templates the two kinds have, the same number each."""
    if positive == negative:
        raise ValueError(f"positive and negative are both {positive!r}; a focus vector is between two kinds")
    kinds = check_kinds([positive, negative])
    sizes = {kind: len(wording.templates(instruction_of(kind, "core", "spurious"))) for kind in kinds}
    counts = [size for kind, size in sizes.items() if kind != "empty"]
    if len(set(counts)) > 1:
        raise ValueError(
            f"{positive!r} and {negative!r} have {sizes[positive]} and {sizes[negative]} templates in the wording "
            f"{wording.name!r}; pairs have the same number on both sides, so the families must be of one size"
        )
    return counts[0]


def _templates(templates: Any, count: int, wording: Wording) -> list[int] | None:
    """The numbers that all examples share; None where each draws its own."""
    about = f"the wording {wording.name!r} has {count} of each kind"
    if isinstance(templates, int):
        if not 1 <= templates <= count:
            raise ValueError(f"templates={templates} of them cannot be drawn; {about}")
        return None
    try:
        chosen = [index(number) for number in templates]
    except TypeError:
        raise TypeError(f"templates must be their numbers, or how many to draw, got {templates!r}") from None
    if not chosen or len(set(chosen)) < len(chosen) or not all(0 <= number < count for number in chosen):
        raise ValueError(f"templates={templates!r}: give numbers from 0 to {count - 1}, each once; {about}")
    return chosen
