from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import lensteer as ls


@pytest.fixture(scope="module")
def exact_gemma_norms() -> Iterator[None]:
    """Gemma's norms in the model's own type; they round to float32 in any, and then 1e-10 could not be asked for."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * (1 + self.weight)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers.models.gemma2.modeling_gemma2.Gemma2RMSNorm, "forward", forward)
        yield


@pytest.fixture(scope="module")
def remote_code(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The copies that transformers makes of a checkpoint's own code go to a temporary folder."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (transformers.dynamic_module_utils, transformers.utils.hub):
            patch.setattr(module, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        yield


@pytest.fixture(scope="module")
def double(fresh_hf: Any, new_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """``double("llama")``: a tiny model in float64, loaded from disk as a user's is, and its bridge."""
    made: dict[str, tuple[Any, Any]] = {}

    def make(name: str, **changes: Any) -> tuple[Any, Any]:
        key = f"{name} {changes}"
        if key not in made:
            folder = tmp_path_factory.mktemp("double")
            fresh_hf(name, **changes).save_pretrained(folder)
            hf = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
            made[key] = (ls.load_model(hf, tokenizer=new_tokenizer()), hf)
        return made[key]

    return make
