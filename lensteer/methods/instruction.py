"""Instruction steering: format, length and word instructions as residual-stream vectors.

For pairs of a request with and without an instruction, read at the last prompt token after block l:

    m_l = mean(x⁺ − x)      u_l = m_l / ‖m_l‖      z̄_l = mean ⟨x⁺, u_l⟩

    format         `SetProjection`:  x + (z̄ − ⟨x, u⟩) u   at every position of every pass (z̄: with-instruction mean)
    length, words  `Add`:            x + c·u              excluding a word is its inclusion vector with negative c

Source: Stolfo, Balachandran, Yousefi, Horvitz, Nushi, "Improving Instruction-Following in Language Models through
Activation Steering", ICLR 2025 (arXiv 2410.12877), Eqs. 1 and 2.

The paper gives c in absolute residual units, which carry over to no other layer or model. ``unit="residual"`` counts
in mean norms of the residual stream at that layer, ``unit="difference"`` in ‖m‖, how far the text itself moves it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lensteer.capture import capture
from lensteer.data import data_hash
from lensteer.methods.instruction_vectors import InstructionVectors, Unit
from lensteer.models import fingerprint, tokenizer_of
from lensteer.points import hook_names
from lensteer.prompts import Pair, Prompt, resolve_format
from lensteer.separation import auroc, effect_size, split_half_cosines

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

__all__ = ["InstructionVectors", "Unit", "check_pairs", "fit", "fit_all", "from_activations"]


def fit(
    model: TransformerBridge,
    pairs: Sequence[Pair],
    *,
    name: str = "instruction",
    batch_size: int | Literal["auto"] = "auto",
    prompt_format: str = "auto",
    tokens: Any = "last",
    seed: int = 0,
    resume: str | Path | None = None,
    progress: bool = True,
) -> InstructionVectors:
    """Fit one instruction at all layers in one pass over the pairs.

    Args:
        pairs: requests with (positive) and without (negative) the instruction.
        tokens: where to read, as in `capture`; the paper reads the last token of the rendered prompt.
        seed: of the random halves in ``split_half_cosine``.
        resume: a folder in which an interrupted fit keeps its finished batches.

    Raises:
        ValueError: no pairs, or pairs whose mean difference is zero or not finite.
        TypeError: pairs that are not pairs.
    """
    options: dict[str, Any] = {"batch_size": batch_size, "prompt_format": prompt_format, "tokens": tokens}
    return fit_all(model, {name: pairs}, seed=seed, resume=resume, progress=progress, **options)[name]


def fit_all(
    model: TransformerBridge,
    pairs: Mapping[str, Sequence[Pair]],
    *,
    batch_size: int | Literal["auto"] = "auto",
    prompt_format: str = "auto",
    tokens: Any = "last",
    seed: int = 0,
    resume: str | Path | None = None,
    progress: bool = True,
) -> dict[str, InstructionVectors]:
    """Fit several instructions in one pass; a request that many pairs share is read once.

    The last-token vectors of all prompts are kept until the end (layers x prompts x width, float32), because the
    spread along a direction is known only once the direction is.

    Args:
        pairs: name -> pairs, as in `fit`.

    Raises:
        ValueError, TypeError: as in `fit`; also for no instructions.
    """
    if not pairs:
        raise ValueError("no instructions were given; name at least one: {name: pairs}")
    if tokens == "all":
        raise ValueError("a fit reads one value per prompt; tokens must be 'last', 'mean', an index or a function")
    checked = {name: check_pairs(own) for name, own in pairs.items()}
    where: dict[str, int] = {}
    prompts: list[Prompt] = []
    for side in (side for own in checked.values() for pair in own for side in pair):
        if where.setdefault(_key(side), len(prompts)) == len(prompts):
            prompts.append(side)
    options: dict[str, Any] = {"batch_size": batch_size, "prompt_format": prompt_format, "tokens": tokens}
    names = hook_names(model, "resid_post")
    x = capture(model, prompts, names, resume=resume, progress=progress, **options).stacked()
    used = prompt_format
    if prompt_format == "auto":  # what it stands for here: another tokenizer may have no template
        used = "chat" if resolve_format(tokenizer_of(model), "auto") == "chat" else "plain"
    about = {**fingerprint(model), "prompt_format": used, "seed": str(seed)}
    fitted = {}
    for name, own in checked.items():
        index = torch.tensor([[where[_key(side)] for side in pair] for pair in own])
        facts = {"n_pairs": str(len(own)), "data_hash": data_hash(own)}
        metadata = {**about, **facts}
        fitted[name] = from_activations(x[:, index[:, 0]], x[:, index[:, 1]], name=name, seed=seed, metadata=metadata)
    return fitted


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def from_activations(
    positive: Float[Tensor, "layer pair d_model"],
    negative: Float[Tensor, "layer pair d_model"],
    *,
    name: str = "instruction",
    seed: int = 0,
    metadata: Mapping[str, str] | None = None,
) -> InstructionVectors:
    """Fit from activations that were captured before; row i of both is pair i.

    Raises:
        ValueError: shapes that differ, NaN or inf, or a mean difference of zero.
    """
    if positive.shape != negative.shape or positive.ndim != 3 or positive.shape[1] == 0:
        raise ValueError(
            "activations must be [layer, pair, d_model], equal in shape; got "
            f"{tuple(positive.shape)} and {tuple(negative.shape)}"
        )
    x_with, x_without = positive.double(), negative.double()
    difference = (x_with - x_without).mean(1)
    norm = difference.norm(dim=1)
    if not torch.isfinite(norm).all():
        raise ValueError(
            f"{name!r}: the activations hold NaN or inf at layers {(~torch.isfinite(norm)).nonzero()[:, 0].tolist()}"
        )
    if (norm == 0).any():
        raise ValueError(f"{name!r}: both sides of the pairs are the same, so their mean difference is zero")
    direction = difference / norm.unsqueeze(1)
    along_with = torch.einsum("lpd,ld->lp", x_with, direction)
    along_without = torch.einsum("lpd,ld->lp", x_without, direction)
    unknown = norm.new_full(norm.shape, float("nan"))  # one pair has no spread and no halves
    several = positive.shape[1] > 1
    pairwise = (x_with - x_without).movedim(1, 0)
    halves = split_half_cosines(pairwise, n_splits=32, seed=seed) if several else unknown
    fields = {
        "direction": direction,
        "projection": along_with.mean(1),
        "projection_without": along_without.mean(1),
        "difference_norm": norm,
        "residual_norm": x_without.norm(dim=2).mean(1),
        "auroc": auroc(along_with.T, along_without.T),
        "effect_size": effect_size(along_with.T, along_without.T) if several else unknown,
        "split_half_cosine": halves.mean(1) if several else unknown,
    }
    return InstructionVectors(
        name=name, metadata=metadata or {}, **{key: value.float() for key, value in fields.items()}
    )


def check_pairs(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs, checked before any work.

    Raises:
        ValueError: none, a pair with an empty side, or no pair whose sides differ.
        TypeError: an entry that is not a pair.
    """
    if len(pairs) == 0:
        raise ValueError("no pairs were given; a fit needs at least one (16 or more to be of use)")
    for i, pair in enumerate(pairs):
        if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise TypeError(f"pair {i} is {pair!r}; each pair is (with the instruction, without it)")
        if not pair[0] or not pair[1]:
            raise ValueError(f"pair {i} has an empty side: {pair!r}")
    # Rounding would leave a difference that is not quite zero, and a direction made of nothing else.
    if all(pair[0] == pair[1] for pair in pairs):
        raise ValueError("the two sides of every pair are equal; one of them must have the instruction")
    return [Pair(*pair) for pair in pairs]
