"""Inputs with two features, focus instructions that name one, and the prompts and answers that follow from them.

| module | what is there |
|---|---|
| `instructions` | the algebra: `EMPTY`, `focus_on`, `ignore`, ``&``; kinds of instructions; the answer each asks for |
| `wording` | templates that put an instruction into words, and a second set |
| `examples` | `FocusExample`, an input with both features; files of them |
| `task` | `FocusTask`: task instruction, feature names and labels; builds the prompts |
| `sampler` | `FocusSampler`: which instruction an example is given at a step |

Used by `lensteer.methods.focus` (training, vectors) and `lensteer.evaluate.focus` (focus accuracy).
"""

from __future__ import annotations

from lensteer.data.focus.examples import FocusExample, check_examples, load_examples, save_examples
from lensteer.data.focus.instructions import (
    CORE_KINDS,
    EMPTY,
    KINDS,
    FocusInstruction,
    Kind,
    focus_label,
    focus_on,
    ignore,
    instruction_of,
)
from lensteer.data.focus.sampler import FocusSampler
from lensteer.data.focus.task import Asked, FocusTask
from lensteer.data.focus.wording import TRAINING, UNSEEN, Wording

__all__ = [
    "Asked",
    "CORE_KINDS",
    "EMPTY",
    "FocusExample",
    "FocusInstruction",
    "FocusSampler",
    "FocusTask",
    "KINDS",
    "Kind",
    "TRAINING",
    "UNSEEN",
    "Wording",
    "check_examples",
    "focus_label",
    "focus_on",
    "ignore",
    "instruction_of",
    "load_examples",
    "save_examples",
]
