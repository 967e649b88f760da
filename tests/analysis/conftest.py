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


@pytest.fixture(scope="session")
def vectors():
    """Instruction vectors of random activations, for models of 4 layers and width 32."""
    import torch

    from lensteer.methods.instruction import from_activations

    def make(name: str = "shout", seed: int = 0, layers: int = 4, width: int = 32):
        draw = torch.Generator().manual_seed(seed)
        shift = torch.randn(layers, 1, width, generator=draw)
        positive, negative = (torch.randn(layers, 6, width, generator=draw) for _ in range(2))
        return from_activations(3 * (positive + shift), 3 * negative, name=name)

    return make


@pytest.fixture(scope="session")
def model_folder(fresh, tmp_path_factory):
    """A tiny Llama with its tokenizer in a folder, as another process would load it."""
    case = fresh("llama", max_position_embeddings=512)
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    case.hf.save_pretrained(folder)
    case.tokenizer.save_pretrained(folder)
    return folder
