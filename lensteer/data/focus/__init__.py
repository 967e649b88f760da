"""Inputs with two features, focus instructions that name one, and the prompts and answers that follow from them.

| module | what is there |
|---|---|
| `instructions` | the algebra: `EMPTY`, `focus_on`, `ignore`, ``&``; kinds of instructions; the answer each asks for |
| `wording` | templates that put an instruction into words, and a second set |
| `examples` | `FocusExample`, an input with both features; files of them |
| `task` | `FocusTask`: task instruction, feature names and labels; builds the prompts |
| `sampler` | `FocusSampler`: which instruction an example is given at a step |
| `splits`, `predictivity` | `FocusData`, its report; splits in which the spurious feature predicts the label with rho |
| `sentiment`, `rewriting`, `model_rewriting` | SS: sentiment against a keyword that is put into the sentence |
| `nli`, `hans` | SMNLI and SHANS: the relation of two sentences against their genre or how they share words |
| `bbq` | BBQ: what a context says against what a stereotype suggests |

Used by `lensteer.methods.focus` (training, vectors) and `lensteer.evaluate.focus` (focus accuracy).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lensteer.data.focus.bbq import bbq, bbq_task
from lensteer.data.focus.examples import FocusExample, check_examples, load_examples, save_examples
from lensteer.data.focus.hans import HANS, hans
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
from lensteer.data.focus.model_rewriting import ModelRewriter, rewrite_with_model
from lensteer.data.focus.nli import NLI, nli
from lensteer.data.focus.rewriting import insert_keyword
from lensteer.data.focus.sampler import FocusSampler
from lensteer.data.focus.sentiment import SENTIMENT, sentiment
from lensteer.data.focus.splits import FocusData
from lensteer.data.focus.task import Asked, FocusTask
from lensteer.data.focus.wording import TRAINING, UNSEEN, Wording

DATASETS: Mapping[str, Callable[..., FocusData]] = {"ss": sentiment, "smnli": nli, "bbq": bbq, "shans": hans}
"""The data sets by the names of their tasks: what makes each, given a source ("own" if none) and a seed."""

__all__ = [
    "Asked",
    "CORE_KINDS",
    "DATASETS",
    "EMPTY",
    "FocusData",
    "FocusExample",
    "FocusInstruction",
    "FocusSampler",
    "FocusTask",
    "HANS",
    "KINDS",
    "Kind",
    "ModelRewriter",
    "NLI",
    "SENTIMENT",
    "TRAINING",
    "UNSEEN",
    "Wording",
    "bbq",
    "bbq_task",
    "check_examples",
    "focus_label",
    "focus_on",
    "hans",
    "ignore",
    "insert_keyword",
    "instruction_of",
    "load_examples",
    "nli",
    "rewrite_with_model",
    "save_examples",
    "sentiment",
]
