"""A small task with two features, for tests of what focus instructions do: short enough for tiny models.

Labels are one byte each and the cue ends a line, so that a label is one token after the prompt.
"""

from __future__ import annotations

from typing import Any

from lensteer.data.focus import FocusExample, FocusTask

TASK = FocusTask(
    name="toy",
    instruction="Say a or b.",
    headings={"text": "Input:"},
    cue="Output:\n",
    labels=("a", "b"),
    core="mood",
    slots={"mood": "the mood", "fruit": "the fruit"},
    meanings={"fruit": {"fig": "a", "plum": "b"}},
)
MEANS = {"a": "fig", "b": "plum"}
# y, y_s and how many: every cell, none of them as large as another.
CELLS = (("a", "a", 1), ("a", "b", 3), ("b", "a", 2), ("b", "b", 4))


def example(number: int, y: str, y_s: str, split: str = "train", **more: Any) -> FocusExample:
    fruit = MEANS[y_s]
    mood = {"a": "sad", "b": "glad and merry"}[y]
    text = f"{mood} no. {number} of {split}, a {fruit}"
    return FocusExample(f"{split}-{number}", {"text": text}, y, "fruit", fruit, y_s, split=split, **more)


def examples(split: str = "train", cells: Any = CELLS) -> list[FocusExample]:
    """Examples of one split, no two of the same text."""
    wanted = [(y, y_s) for y, y_s, count in cells for _ in range(count)]
    return [example(i, *cell, split) for i, cell in enumerate(wanted)]
