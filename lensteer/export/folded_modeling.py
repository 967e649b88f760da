"""Causal language models with biases at modules whose own class has none; saved along with the weights that need it.

The configuration lists those modules in ``folded_biases``. Load such a folder with
``AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)``. This file needs torch and transformers only.

The model classes are named like their parents, so that programs that go by the name know the architecture. The model
types are new: transformers refuses to load such a folder without this file, instead of leaving the biases out.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn


class FoldedBiases:
    """Mixed in before a model class: adds the biases that the configuration lists, zero until they are loaded."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        for path in getattr(config, "folded_biases", ()):
            add_bias(self.get_submodule(path))  # type: ignore[attr-defined]


def add_bias(module: nn.Module) -> None:
    """A zero bias: a linear layer uses one by itself, to the output of anything else it is added."""
    weight: Any = module.weight
    linear = isinstance(module, nn.Linear)
    width = len(weight) if linear else weight.shape[-1]
    module.bias = nn.Parameter(torch.zeros(width, dtype=weight.dtype, device=weight.device))
    if not linear:
        module.register_forward_hook(_plus_bias)


def _plus_bias(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    bias: Any = module.bias
    return output + bias


class FoldedGemma2Config(transformers.Gemma2Config):
    model_type = "folded_gemma2"


class Gemma2ForCausalLM(FoldedBiases, transformers.Gemma2ForCausalLM):
    config_class = FoldedGemma2Config


class FoldedGPT2Config(transformers.GPT2Config):
    model_type = "folded_gpt2"


class GPT2LMHeadModel(FoldedBiases, transformers.GPT2LMHeadModel):
    config_class = FoldedGPT2Config


class FoldedGPTNeoXConfig(transformers.GPTNeoXConfig):
    model_type = "folded_gpt_neox"


class GPTNeoXForCausalLM(FoldedBiases, transformers.GPTNeoXForCausalLM):
    config_class = FoldedGPTNeoXConfig


class FoldedLlamaConfig(transformers.LlamaConfig):
    model_type = "folded_llama"


class LlamaForCausalLM(FoldedBiases, transformers.LlamaForCausalLM):
    config_class = FoldedLlamaConfig


class FoldedMistralConfig(transformers.MistralConfig):
    model_type = "folded_mistral"


class MistralForCausalLM(FoldedBiases, transformers.MistralForCausalLM):
    config_class = FoldedMistralConfig


class FoldedQwen2Config(transformers.Qwen2Config):
    model_type = "folded_qwen2"


class Qwen2ForCausalLM(FoldedBiases, transformers.Qwen2ForCausalLM):
    config_class = FoldedQwen2Config


MODELS: dict[str, Any] = {
    model.__name__: model
    for model in (
        *(Gemma2ForCausalLM, GPT2LMHeadModel, GPTNeoXForCausalLM),
        *(LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM),
    )
}
for _model in MODELS.values():  # save_pretrained copies this file then, and writes down where the classes are
    _model.register_for_auto_class("AutoModelForCausalLM")
    _model.config_class.register_for_auto_class("AutoConfig")
