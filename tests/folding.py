"""What folded models must equal: torch hooks on a plain Hugging Face model that compute w·x + c."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

import lensteer as ls
from lensteer import Add, Affine, ScaleElements
from lensteer.export import fold

NAMES = ("gpt2", "llama", "gemma2", "mistral", "qwen2", "neox")
IDS = torch.tensor([[1, 9, 40, 100, 7, 33, 33, 81, 12, 250, 4, 19, 60, 61]])
LLAMA = {
    "ln1.hook_out": ("input_layernorm", "out"),
    "ln2.hook_out": ("post_attention_layernorm", "out"),
    "attn.q.hook_out": ("self_attn.q_proj", "out"),
    "attn.k.hook_out": ("self_attn.k_proj", "out"),
    "attn.v.hook_out": ("self_attn.v_proj", "out"),
    "attn.hook_z": ("self_attn.o_proj", "in"),
    "attn.hook_out": ("self_attn.o_proj", "out"),
    "mlp.hook_in": ("mlp", "in"),
    "mlp.gate.hook_out": ("mlp.gate_proj", "out"),
    "mlp.in.hook_out": ("mlp.up_proj", "out"),
    "mlp.hook_post": ("mlp.down_proj", "in"),
    "mlp.hook_out": ("mlp.down_proj", "out"),
    "hook_resid_pre": ("", "in"),
    "hook_resid_post": ("", "out"),
}
GEMMA = {
    **LLAMA,
    "ln1_post.hook_out": ("post_attention_layernorm", "out"),
    "ln2.hook_out": ("pre_feedforward_layernorm", "out"),
    "ln2_post.hook_out": ("post_feedforward_layernorm", "out"),
}
GPT2 = {
    "ln1.hook_out": ("ln_1", "out"),
    "ln2.hook_out": ("ln_2", "out"),
    "attn.hook_z": ("attn.c_proj", "in"),
    "attn.hook_out": ("attn.c_proj", "out"),
    "mlp.hook_in": ("mlp", "in"),
    "mlp.in.hook_out": ("mlp.c_fc", "out"),
    "mlp.hook_post": ("mlp.c_proj", "in"),
    "mlp.hook_out": ("mlp.c_proj", "out"),
    "hook_resid_pre": ("", "in"),
    "hook_resid_post": ("", "out"),
}
NEOX = {
    **GPT2,
    "ln1.hook_out": ("input_layernorm", "out"),
    "ln2.hook_out": ("post_attention_layernorm", "out"),
    "attn.hook_z": ("attention.dense", "in"),
    "attn.hook_out": ("attention.dense", "out"),
    "mlp.in.hook_out": ("mlp.dense_h_to_4h", "out"),
    "mlp.hook_post": ("mlp.dense_4h_to_h", "in"),
    "mlp.hook_out": ("mlp.dense_4h_to_h", "out"),
}
# By model type: where the blocks are, the final norm, and the module of each point of a block.
MODULES: dict[str, tuple[str, str, dict[str, tuple[str, str]]]] = {
    "llama": ("model.layers", "model.norm", LLAMA),
    "mistral": ("model.layers", "model.norm", LLAMA),
    "qwen2": ("model.layers", "model.norm", LLAMA),
    "gemma2": ("model.layers", "model.norm", GEMMA),
    "gpt2": ("transformer.h", "transformer.ln_f", GPT2),
    "gpt_neox": ("gpt_neox.layers", "gpt_neox.final_layer_norm", NEOX),
}


def random(shape: Sequence[int], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def points(model: Any, hf: Any, sites: Sequence[str]) -> list[str]:
    known = MODULES[hf.config.model_type][2]
    return [f"blocks.{layer}.{site}" for layer in range(4) for site in sites if site in known]


def affine(model: Any, name: str, seed: int, scale: float = 0.3) -> Affine:
    shape = ls.points.resolve(model, name)[0].shape
    return Affine(1 + scale * random(shape, seed), 0.3 * random(shape, seed + 1), strength=0.7)


Formula = Callable[[Tensor], Tensor]


def formula(edit: Any) -> Formula:
    """What an edit does to the last axis, from its definition."""
    s = float(edit.strength)
    if isinstance(edit, Add):
        return lambda x: x + s * edit.vector.flatten().double()
    if isinstance(edit, Affine):
        return lambda x: (1 - s) * x + s * (edit.scale.flatten().double() * x + edit.shift.flatten().double())
    if isinstance(edit, ScaleElements):
        return lambda x: x * (1 + s * edit.mask.flatten().double())
    mask = torch.ones(edit.shape).bool() if edit.mask is None else edit.mask
    return lambda x: torch.where(mask.flatten(), x + s * (edit.values.flatten().double() - x), x)


@contextmanager
def hooked(hf: Any, steering: Sequence[tuple[str, Any]]) -> Iterator[None]:
    blocks, final, known = MODULES[hf.config.model_type]
    handles = []
    for name, edit in steering:
        path, side = (final, "out")
        if name != "ln_final.hook_out":
            _, layer, site = name.split(".", 2)
            inner, side = known[site]
            path = f"{blocks}.{layer}.{inner}".rstrip(".")
        handles.append(_hook(hf.get_submodule(path), side, formula(edit)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(module: Any, side: str, change: Formula) -> Any:
    if side == "in":
        return module.register_forward_pre_hook(lambda m, args: (change(args[0]), *args[1:]))
    return module.register_forward_hook(
        lambda m, a, out: (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)
    )


def logits(hf: Any) -> Tensor:
    with torch.no_grad():
        return hf(IDS).logits


def quiet_fold(steering: Any, model: Any) -> tuple[Any, bool]:
    """The folded model, and whether it needs its own code."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        folded = fold(steering, model)
    return folded, any("trust_remote_code=True" in str(w.message) for w in caught)


def reload(folded: Any, folder: Path, own_code: bool, dtype: torch.dtype = torch.float64) -> Any:
    folded.save_pretrained(folder)
    options = {"trust_remote_code": True} if own_code else {}
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options)


def require_equal(model: Any, hf: Any, steering: Sequence[tuple[str, Any]], tmp_path: Path) -> Any:
    """Folded, in memory and from disk, gives the logits of the hooked model; returns the folded model."""
    plain = logits(hf)
    with hooked(hf, steering):
        wanted = logits(hf)
    assert (wanted - plain).abs().max() > 0.01
    folded, own_code = quiet_fold(steering, model)
    assert (logits(folded) - wanted).abs().max() < 1e-10
    assert (logits(reload(folded, tmp_path, own_code)) - wanted).abs().max() < 1e-10
    return folded
