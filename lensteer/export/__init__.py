"""Steerings that leave lensteer: as files that other programs read.

| function | gives | fits |
|---|---|---|
| `to_lm_eval` | the ``.pt`` file of lm-eval's own steered model | `Add`, `SetProjection`; outputs of modules |
"""

from __future__ import annotations

from .lm_eval_file import to_lm_eval

__all__ = ["to_lm_eval"]
