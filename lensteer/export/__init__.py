"""Steerings that leave lensteer: as files that other programs read, or inside a model's weights.

| function | gives | fits |
|---|---|---|
| `fold` | a plain Hugging Face model that steers itself | what is w·x + c for every unit, at all positions |
| `to_gguf`, `from_gguf` | llama.cpp's control vector, and its reading | `Add` between blocks |
| `to_hook_file` | a Python file with plain torch hooks | every edit, at all positions |
| `to_lm_eval` | the ``.pt`` file of lm-eval's own steered model | `Add`, `SetProjection`; outputs of modules |
"""

from __future__ import annotations

from .control_vectors import from_gguf, to_gguf
from .fold import fold
from .hook_file import to_hook_file
from .lm_eval_file import to_lm_eval

__all__ = ["fold", "from_gguf", "to_gguf", "to_hook_file", "to_lm_eval"]
