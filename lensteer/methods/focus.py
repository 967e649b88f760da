"""Focus instruction tuning (FIT): train a model to answer by the feature that an instruction names.

    "Attend to {feature} and to nothing else."   ->  the answer by that feature, whatever the others say

    train(model, task, examples, validation, folder)   LoRA on drawn focus instructions; baselines by one setting
    load(folder)                                       the adapter, merged, as a TransformerBridge
    merge, save_merged                                 the merged plain model, and a folder of it
    vectors, label_leakage, after_instruction          focus vectors: the same without training, and where to add them

Tasks, examples, instructions and their wording are in `lensteer.data.focus`; focus accuracy is in
`lensteer.evaluate.focus`.

Source: Lamb et al., "Focus On This, Not That! Steering LLMs with Adaptive Feature Specification", ICML 2025
(arXiv 2410.22944). No code of the authors is public; what the paper leaves open is a default here, said in
`FocusSettings` and in docs/focus.md.
"""

from __future__ import annotations

from pathlib import Path

import lensteer.data
from lensteer.methods.focus_merging import check_merged, load, merge, save_merged
from lensteer.methods.focus_runs import FocusAdapter, read_adapter
from lensteer.methods.focus_settings import OBJECTIVES, FocusSettings, Objective
from lensteer.methods.focus_training import train
from lensteer.methods.focus_vectors import after_instruction, label_leakage, vectors

EXAMPLE = Path(lensteer.data.__file__).parent / "focus_adapter"
"""An adapter that comes with lensteer: FIT of the default model on `lensteer.data.focus.sentiment()`, for `load`."""

__all__ = [
    "EXAMPLE",
    "FocusAdapter",
    "FocusSettings",
    "OBJECTIVES",
    "Objective",
    "after_instruction",
    "check_merged",
    "label_leakage",
    "load",
    "merge",
    "read_adapter",
    "save_merged",
    "train",
    "vectors",
]
