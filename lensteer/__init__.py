"""lensteer: steering language models with TransformerLens hook functions.

import lensteer as ls
model = ls.load_model()
vectors = ls.instruction.fit(model, ls.data.instruction_pairs(ls.data.FORMATS["capitals"]))
ls.generate(model, ["How do plants grow?"], vectors.set_projection(layer=24))
"""

from __future__ import annotations

import lensteer.methods.contrastive as contrastive
import lensteer.methods.focus as focus
import lensteer.methods.instruction as instruction
import lensteer.methods.iti as iti
import lensteer.methods.sadi as sadi
import lensteer.methods.transport as transport
from lensteer import data, evaluate
from lensteer.answers import AnswerPair, Question, answer_pairs
from lensteer.capture import Activations, capture
from lensteer.checkpoints import ModelUnavailable
from lensteer.contrast import Contrast, contrast
from lensteer.generate import generate, stream
from lensteer.hooks import Add, Affine, Edit, ScaleElements, SetElements, SetProjection
from lensteer.models import load_model, plain_model
from lensteer.points import hook_names
from lensteer.positions import STEPS, at
from lensteer.prompts import Pair
from lensteer.scoring import log_probs
from lensteer.steering import Steering, per_row

__version__ = "0.1.0"
__all__ = [
    "Activations",
    "Add",
    "Affine",
    "AnswerPair",
    "Contrast",
    "Edit",
    "ModelUnavailable",
    "Pair",
    "Question",
    "STEPS",
    "ScaleElements",
    "SetElements",
    "SetProjection",
    "Steering",
    "answer_pairs",
    "at",
    "capture",
    "contrast",
    "contrastive",
    "data",
    "evaluate",
    "focus",
    "generate",
    "hook_names",
    "instruction",
    "iti",
    "load_model",
    "log_probs",
    "per_row",
    "plain_model",
    "sadi",
    "stream",
    "transport",
]
