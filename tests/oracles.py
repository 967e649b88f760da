"""What lensteer must equal, written again from the definitions with nothing but PyTorch and Hugging Face.

One prompt at a time, no padding, no cache, torch forward hooks on the plain model's own modules, and positions counted
by hand. Nothing here imports lensteer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

SITES = ("resid_pre", "resid_post", "attn_out", "z", "mlp_out", "post")
# site: (path inside a block, "in" or "out"), by model type; "" is the block itself.
_LLAMA = {
    "resid_pre": ("", "in"),
    "resid_post": ("", "out"),
    "attn_out": ("self_attn", "out"),
    "z": ("self_attn.o_proj", "in"),
    "mlp_out": ("mlp", "out"),
    "post": ("mlp.down_proj", "in"),
}
_WHERE: dict[str, dict[str, tuple[str, str]]] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    # What Gemma-2 adds to the residual stream has passed another norm.
    "gemma2": {
        **_LLAMA,
        "attn_out": ("post_attention_layernorm", "out"),
        "mlp_out": ("post_feedforward_layernorm", "out"),
    },
    "gpt2": {
        **_LLAMA,
        "attn_out": ("attn", "out"),
        "z": ("attn.c_proj", "in"),
        "post": ("mlp.c_proj", "in"),
    },
    "gpt_neox": {
        **_LLAMA,
        "attn_out": ("attention", "out"),
        "z": ("attention.dense", "in"),
        "post": ("mlp.dense_4h_to_h", "in"),
    },
}


def blocks(hf: nn.Module) -> Sequence[nn.Module]:
    path = {"gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers"}.get(hf.config.model_type, "model.layers")
    return hf.get_submodule(path)


def hook(hf: nn.Module, site: str, layer: int, function: Callable[[Tensor], Tensor | None]) -> Any:
    """A torch hook at a site; ``function`` gets [pos, width] and returns what replaces it, or None to only read."""
    path, side = _WHERE[hf.config.model_type][site]
    block = blocks(hf)[layer]
    module = block.get_submodule(path) if path else block

    def change(value: Tensor) -> Tensor:
        new = function(value[0])
        return value if new is None else new.unsqueeze(0)

    if side == "in":
        return module.register_forward_pre_hook(lambda m, args: (change(args[0]), *args[1:]))

    def after(m: nn.Module, args: Any, output: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    return module.register_forward_hook(after)


def read(hf: nn.Module, ids: Sequence[int], site: str, layers: Sequence[int]) -> list[Tensor]:
    """Activations of one prompt, one [pos, width] tensor per layer."""
    found: list[Tensor] = []

    def keep(value: Tensor) -> None:
        found.append(value.clone())

    handles = [hook(hf, site, layer, keep) for layer in layers]
    with torch.no_grad():
        hf(torch.tensor([list(ids)]))
    for handle in handles:
        handle.remove()
    return found


@dataclass(frozen=True)
class Change:
    """An edit by its formula: ``formula(x)`` on [pos, width], at the positions that ``scope`` names."""

    site: str
    layer: int
    formula: Callable[[Tensor], Tensor]
    scope: Any = "all"


def add(vector: Tensor, strength: float) -> Callable[[Tensor], Tensor]:
    return lambda x: x + strength * vector.flatten()


def set_projection(direction: Tensor, value: float, strength: float) -> Callable[[Tensor], Tensor]:
    def formula(x: Tensor) -> Tensor:
        u = direction.flatten() / direction.norm()
        return x + strength * (value - x @ u)[:, None] * u

    return formula


def positions(scope: Any, prompt: int, total: int) -> set[int]:
    """Positions that a scope names in a sequence of ``total`` tokens, the first ``prompt`` of which are the prompt.

    Negative numbers count from the end of the prompt, so they name the same token however much was generated.
    """
    numbers = range(total)

    def absolute(number: int) -> int:
        return number + prompt if number < 0 else number

    if scope == "all":
        return set(numbers)
    if scope == "prompt":
        return {p for p in numbers if p < prompt}
    if scope == "generated":
        return {p for p in numbers if p >= prompt}
    if scope == "last":
        return {prompt - 1}
    if isinstance(scope, slice):
        start = 0 if scope.start is None else absolute(scope.start)
        stop = total if scope.stop is None else absolute(scope.stop)
        return {p for p in numbers if start <= p < stop}
    wanted = {absolute(number) for number in ([scope] if isinstance(scope, int) else scope)}
    return wanted & set(numbers)


@contextmanager
def changed(hf: nn.Module, changes: Sequence[Change], prompt: int) -> Iterator[None]:
    """The plain model with hooks that edit one unpadded, uncached sequence at a time."""

    def function(change: Change) -> Callable[[Tensor], Tensor]:
        def apply(x: Tensor) -> Tensor:
            chosen = sorted(positions(change.scope, prompt, len(x)))
            new = x.clone()
            new[chosen] = change.formula(x)[chosen]
            return new

        return apply

    handles = [hook(hf, change.site, change.layer, function(change)) for change in changes]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def next_log_probs(hf: nn.Module, ids: Sequence[int], changes: Sequence[Change], prompt: int) -> Tensor:
    """Log-probabilities of the token after ``ids``, from one pass over the whole sequence."""
    with torch.no_grad(), changed(hf, changes, prompt):
        return hf(torch.tensor([list(ids)]), use_cache=False).logits[0, -1].float().log_softmax(-1)


@dataclass(frozen=True)
class Greedy:
    """A greedy continuation, and by how much each of its tokens won over the second best."""

    ids: list[int]
    margins: list[float]

    @property
    def sure(self) -> list[int]:
        """The tokens before the first near-tie, where rounding may decide."""
        close = next((i for i, margin in enumerate(self.margins) if margin < 1e-4), len(self.ids))
        return self.ids[:close]


def greedy(
    hf: nn.Module,
    ids: Sequence[int],
    new: int,
    changes: Sequence[Change] = (),
    stop: Sequence[int] = (),
) -> Greedy:
    """Greedy decoding that runs the whole sequence again for every token."""
    sequence, margins = list(ids), []
    for _ in range(new):
        best = next_log_probs(hf, sequence, changes, len(ids)).topk(2)
        if int(best.indices[0]) in stop:
            break
        sequence.append(int(best.indices[0]))
        margins.append(float(best.values[0] - best.values[1]))
    return Greedy(sequence[len(ids) :], margins)


def response_log_probs(
    hf: nn.Module, ids: Sequence[int], response: Sequence[int], changes: Sequence[Change] = ()
) -> Tensor:
    """The log-probability of every response token, one pass for each."""
    found = [next_log_probs(hf, [*ids, *response[:i]], changes, len(ids))[token] for i, token in enumerate(response)]
    return torch.stack(found) if found else torch.zeros(0)


def hooks_on(module: nn.Module) -> dict[str, list[str]]:
    """Everything that is hooked onto a module tree or patched over it, by submodule."""
    found: dict[str, list[str]] = {}
    for name, part in module.named_modules():
        kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        here = [f"{kind} {key} {value!r}" for kind in kinds for key, value in getattr(part, kind).items()]
        here += [f"patched {key}" for key in ("forward", "__call__") if key in vars(part)]
        here += [f"{key} {len(vars(part)[key])}" for key in ("fwd_hooks", "bwd_hooks") if vars(part).get(key)]
        if here:
            found[name] = here
    return found
