"""Steerings that leave lensteer: as files that other programs read.

| function | gives | fits |
|---|---|---|
| `to_gguf`, `from_gguf` | llama.cpp's control vector, and its reading | `Add` between blocks |
| `to_lm_eval` | the ``.pt`` file of lm-eval's own steered model | `Add`, `SetProjection`; outputs of modules |
"""

from __future__ import annotations

from .control_vectors import from_gguf, to_gguf
from .lm_eval_file import to_lm_eval

__all__ = ["from_gguf", "to_gguf", "to_lm_eval"]
