"""Groups of sites by Hugging Face's module names, and plain torch hooks on them. Nothing here imports lensteer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import oracles
from torch import Tensor, nn

Change = Callable[[str, Tensor], Tensor]
_NORMS = ["input_layernorm", "post_attention_layernorm"]
_GATED = {
    "attention": ["self_attn.o_proj"],
    "mlp": ["mlp.down_proj"],
    "norms": _NORMS,
    "mlp_linears": ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"],
    "residual": [""],
    "heads": ["self_attn.o_proj"],
}
# What a forward pass reaches in a layer, in order, by the modules of Hugging Face (of "heads" the input counts).
MODULES: dict[str, dict[str, list[str]]] = {
    "llama": _GATED,
    "mistral": _GATED,
    "qwen2": _GATED,
    "gemma2": {
        **_GATED,
        "post_norms": ["post_attention_layernorm", "post_feedforward_layernorm"],
        "norms": [*_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm"],
    },
    "gpt2": {
        "attention": ["attn.c_proj"],
        "mlp": ["mlp.c_proj"],
        "norms": ["ln_1", "ln_2"],
        "mlp_linears": ["mlp.c_fc", "mlp.c_proj"],
        "residual": [""],
        "heads": ["attn.c_proj"],
    },
    "neox": {
        "attention": ["attention.dense"],
        "mlp": ["mlp.dense_4h_to_h"],
        "norms": _NORMS,
        "mlp_linears": ["mlp.dense_h_to_4h", "mlp.dense_4h_to_h"],
        "residual": [""],
        "heads": ["attention.dense"],
    },
}
PLACES = [(name, group) for name, groups in MODULES.items() for group in groups]


def hooked(hf: nn.Module, group: str, layers: Iterable[int], function: Change, name: str) -> list[Any]:
    """Torch hooks on the modules of a group in some layers; ``function(place, tensor)`` gives what goes on."""

    def at_input(place: str) -> Any:
        return lambda module, args: (function(place, args[0]), *args[1:])

    def at_output(place: str) -> Any:
        def after(module: Any, args: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (function(place, output[0]), *output[1:])
            return function(place, output)

        return after

    handles = []
    for layer in layers:
        for path in MODULES[name][group]:
            module = oracles.blocks(hf)[layer].get_submodule(path)
            if group == "heads":
                handles.append(module.register_forward_pre_hook(at_input(f"{layer} {path}")))
            else:
                handles.append(module.register_forward_hook(at_output(f"{layer} {path}")))
    return handles
