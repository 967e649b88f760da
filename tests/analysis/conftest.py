"""Small results tables whose right answer is known by hand."""

from __future__ import annotations

import pandas as pd
import pytest


def _rows(
    layer: int,
    success: list[float],
    *,
    strength: float = 1.0,
    instruction: str = "bullets",
    condition: str | None = None,
    degenerate: list[bool] | None = None,
    perplexity: list[float] | float = 10.0,
    prompts: list[str] | None = None,
) -> list[dict]:
    """One candidate's rows: a success per prompt; layer -1 is no steering."""
    n = len(success)
    degenerate = degenerate or [False] * n
    perplexities = [perplexity] * n if isinstance(perplexity, float) else perplexity
    texts = prompts or [f"question {i}" for i in range(n)]
    return [
        {
            "instruction": instruction,
            "condition": condition or ("none" if layer == -1 else "steered"),
            "layer": layer,
            "strength": 0.0 if layer == -1 else strength,
            "prompt_id": i,
            "prompt": texts[i],
            "response": f"answer {i}",
            "n_tokens": 20 + i,
            "finish_reason": "length",
            "success": success[i],
            "perplexity": perplexities[i],
            "degenerate": degenerate[i],
        }
        for i in range(n)
    ]


def _table(*candidates: list[dict]) -> pd.DataFrame:
    return pd.DataFrame([row for candidate in candidates for row in candidate])


@pytest.fixture
def rows():
    return _rows


@pytest.fixture
def table():
    return _table
