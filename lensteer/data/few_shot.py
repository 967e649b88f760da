"""Worked examples in front of questions, and questions divided into disjoint parts.

    prompt = example_1 + " " + answer_1 + blank line + ... + blank line + question

Examples never come from among the questions themselves, and what is divided is divided by prompt, so that no prompt is
in two parts.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from lensteer.data.task_table import Task

Q = TypeVar("Q")
_PARTS: Mapping[str, float] = {"fit": 0.5, "validation": 0.2, "test": 0.3}


def with_shots(
    questions: Sequence[Q], examples: Sequence[Any], shots: int, *, seed: int = 0, same_group: bool = False
) -> list[Q]:
    """The questions with the same worked examples in front of each.

    Args:
        questions, examples: `Question` or `OpenQuestion`, with prompts that are text.
        shots: how many examples; 0 changes nothing.
        seed: of the draw. Where all examples have the same options, every option is right equally often in the draw,
            up to a remainder; the order is drawn as well.
        same_group: each question gets examples of its own group (MMLU: of its subject).

    Raises:
        ValueError: more shots than examples, or an example that is one of the questions.
        TypeError: a prompt that is a chat.
    """
    asked, shown = cast("Sequence[Any]", questions), list(examples)
    for entry in (*asked, *shown):
        if not isinstance(entry.prompt, str):
            raise TypeError(f"examples go in front of prompts that are text, not {type(entry.prompt).__name__}")
    known = {question.prompt for question in asked}
    twice = next((example for example in shown if example.prompt in known), None)
    if twice is not None and shots:
        raise ValueError(
            f"the example {twice.prompt[-60:]!r} is one of the questions; take examples from another split"
        )
    fronts = {}
    for group in dict.fromkeys(question.group if same_group else "" for question in asked):
        own = [example for example in shown if not same_group or example.group == group]
        if not 0 <= shots <= len(own):
            kind = f" of the group {group!r}" if same_group else ""
            raise ValueError(
                f"shots={shots}, but there are {len(own)} examples{kind}; it must be from 0 to that number"
            )
        fronts[group] = _front([_worked(e.prompt, e.gold) for e in _drawn(own, shots, seed)])
    return [replace(q, prompt=fronts[q.group if same_group else ""] + q.prompt) for q in asked]


def split_questions(
    questions: Sequence[Q], sizes: Mapping[str, int | float] = _PARTS, *, seed: int = 0
) -> dict[str, list[Q]]:
    """Disjoint parts of questions (or of anything else that has a ``prompt``), for data with one split only.

    Where a prompt goes depends on nothing but the seed and the set of prompts, not on their order. Questions with equal
    prompts go to the same part, and every part keeps the order of the questions.

    Args:
        sizes: name of each part and its size: all fractions (of 1 or less together), or all numbers of prompts.
        seed: another seed divides otherwise.

    Raises:
        ValueError: no parts, a size that is not positive, fractions above 1 or numbers above what there is,
            fractions beside numbers, or so few questions that a part would be empty.
    """
    asked = cast("Sequence[Any]", questions)
    # By hash, so that the order in which the questions come has no part in it.
    order = sorted(
        {repr(question.prompt) for question in asked},
        key=lambda prompt: hashlib.sha256(f"{seed}\n{prompt}".encode()).digest(),
    )
    part_of: dict[str, str] = {}
    start = 0
    for name, count in _counts(sizes, len(order)).items():
        part_of |= dict.fromkeys(order[start : start + count], name)
        start += count
    parts: dict[str, list[Any]] = {name: [] for name in sizes}
    for question in asked:
        if repr(question.prompt) in part_of:  # fractions below 1 in total leave some out
            parts[part_of[repr(question.prompt)]].append(question)
    return parts


def _counts(sizes: Mapping[str, int | float], total: int) -> dict[str, int]:
    """Numbers of prompts of each part; fractions are cut where they end, so that together they lose none."""
    values = list(sizes.values())
    if not values or not all(value > 0 for value in values):
        raise ValueError(f"sizes={dict(sizes)!r}: there must be a part, and every size must be above 0")
    whole = [isinstance(value, Integral) for value in values]
    if all(whole):
        if sum(values) > total:
            raise ValueError(f"sizes={dict(sizes)!r} ask for {sum(values)} prompts, but there are {total}")
        return {name: int(value) for name, value in sizes.items()}
    if any(whole):
        raise ValueError(f"sizes={dict(sizes)!r}: give fractions or numbers, not both")
    if sum(values) > 1 + 1e-9:
        raise ValueError(f"sizes={dict(sizes)!r} are fractions of {sum(values):g} together; 1 is all there is")
    counts, before, share = {}, 0, 0.0
    for name, value in sizes.items():
        share += value
        counts[name] = round(share * total) - before
        before += counts[name]
    if min(counts.values()) < 1:
        raise ValueError(f"sizes={dict(sizes)!r} of {total} prompts leave a part empty; there are too few")
    return counts


def primed(task: Task, layout: str, questions: Sequence[Q], shots: int) -> list[Q]:
    """The questions after the first examples that a task's description brings along.

    Raises:
        ValueError: more shots than those.
    """
    if shots > len(task.primer):
        raise ValueError(
            f"shots={shots}, but {task.name!r} comes with {len(task.primer)} examples and no split for more"
        )
    shown = [_worked(task.layouts[layout].format_map(row), row["answer"]) for row in task.primer[:shots]]
    return [replace(q, prompt=_front(shown) + q.prompt) for q in cast("Sequence[Any]", questions)]


def _drawn(examples: Sequence[Any], shots: int, seed: int) -> list[Any]:
    draw = random.Random(f"{seed}\n{shots}")
    if len({getattr(example, "options", example) for example in examples}) != 1 or not hasattr(examples[0], "options"):
        return draw.sample(list(examples), shots)
    shelves = [[e for e in examples if e.right[0] == i] for i in range(len(examples[0].options))]
    for shelf in shelves:
        draw.shuffle(shelf)
    draw.shuffle(shelves)  # which options are right once more than the others
    chosen: list[Any] = []
    while len(chosen) < shots:
        chosen += [shelf.pop() for shelf in shelves if shelf][: shots - len(chosen)]
    draw.shuffle(chosen)
    return chosen


def _worked(prompt: str, answer: str) -> str:
    # As answers are joined to prompts elsewhere: after a blank, or directly after white space.
    return prompt + ("" if prompt[-1:].isspace() else " ") + answer.strip()


def _front(shown: Sequence[str]) -> str:
    return "".join(example + "\n\n" for example in shown)
