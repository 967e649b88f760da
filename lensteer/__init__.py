"""lensteer: steering language models with TransformerLens hook functions.

import lensteer as ls
model = ls.load_model()
vectors = ls.instruction.fit(model, ls.data.instruction_pairs(ls.data.FORMATS["capitals"]))
ls.generate(model, ["How do plants grow?"], vectors.set_projection(layer=24))
"""

from __future__ import annotations

import lensteer.methods.instruction as instruction
from lensteer import data, evaluate
from lensteer.capture import Activations, capture
from lensteer.checkpoints import ModelUnavailable
from lensteer.generate import generate, stream
from lensteer.hooks import Add, Edit, SetProjection
from lensteer.models import load_model, plain_model
from lensteer.points import hook_names
from lensteer.positions import at
from lensteer.prompts import Pair
from lensteer.scoring import log_probs
from lensteer.steering import Steering, per_row

__version__ = "0.1.0"
__all__ = [
    "Activations",
    "Add",
    "Edit",
    "ModelUnavailable",
    "Pair",
    "SetProjection",
    "Steering",
    "at",
    "capture",
    "data",
    "evaluate",
    "generate",
    "hook_names",
    "instruction",
    "load_model",
    "log_probs",
    "per_row",
    "plain_model",
    "stream",
]
