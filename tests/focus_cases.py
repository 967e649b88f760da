"""A task small enough for tiny models with one token per byte, and examples of it."""

from __future__ import annotations

from typing import Any

from lensteer.data.focus import FocusExample, FocusTask

TASK = FocusTask(
    name="tiny",
    instruction="Label.",
    headings={"text": "In:"},
    cue="Out:",
    labels=("no", "yes"),
    core="tone",
    slots={"tone": "tone", "word": "the word"},
    meanings={"word": {"red": "no", "blue": "yes"}},
)


def examples(n: int, start: int = 0) -> list[FocusExample]:
    """Examples whose tone and word agree half of the time."""
    made = []
    for i in range(start, start + n):
        word = "red" if i // 2 % 2 else "blue"
        y = "yes" if i % 2 else "no"
        text = f"{'good' if y == 'yes' else 'bad'} {word} {'x' * (i % 5)}{i}"
        made.append(FocusExample(str(i), {"text": text}, y, "word", word, TASK.meanings["word"][word]))
    return made


def roomy(name: str, **changes: Any) -> dict[str, Any]:
    """Changes that give a tiny architecture a context long enough for these prompts."""
    return {**({"n_positions": 512} if name == "gpt2" else {"max_position_embeddings": 512}), **changes}
