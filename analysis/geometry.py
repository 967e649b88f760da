"""Geometry of directions in the residual stream.

    cosine        ⟨u, v⟩ / (‖u‖ ‖v‖)                       between vectors, between layers
    projection    ⟨x, u⟩ / ‖u‖                             per token, in the units of the residual stream
    logit lens    ½ (N(û) − N(−û)) W_U                     tokens that u promotes and demotes; N = final norm

Everything but `token_projections` and `logit_lens` works on tensors alone. Whether a direction is real,
stable under another choice of pairs and better than a random one, is asked in ``analysis.stability``;
its functions are here by name as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from analysis.stability import compare_with_random, random_directions, split_half_stability
from lensteer.separation import auroc, require_finite

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

__all__ = [
    "auroc",
    "compare_with_random",
    "cosine_matrix",
    "logit_lens",
    "norm_profile",
    "projections",
    "random_directions",
    "split_half_stability",
    "token_projections",
]

# The last norm of the plain Hugging Face models: Llama's, GPT-2's, NeoX's and OPT's, Phi's names for it.
_FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm")


def cosine_matrix(
    vectors: Mapping[str, Float[Tensor, "d"]] | Float[Tensor, "vector d"],
    labels: Sequence[str | int] | None = None,
) -> pd.DataFrame:
    """Cosine between all pairs of named vectors, or of the rows of a tensor (one vector's layers, say).

    Returns:
        Square DataFrame with the names (or ``labels``, or 0, 1, …) on both axes; 1 on the diagonal.

    Raises:
        ValueError: vectors of different widths, a vector of norm 0 or with NaN, or labels of another number.
    """
    if isinstance(vectors, Mapping):
        widths = {name: tuple(vector.shape) for name, vector in vectors.items()}
        if not widths or len(set(widths.values())) > 1 or any(len(shape) != 1 for shape in widths.values()):
            raise ValueError(f"vectors must be flat and of one width, got {widths}")
        labels = list(vectors) if labels is None else labels
        rows = torch.stack([vector.detach().double().cpu() for vector in vectors.values()])
    else:
        rows = vectors.detach().double().cpu()
        if rows.ndim != 2:
            raise ValueError(f"vectors must be [vector, d], got shape {tuple(rows.shape)}")
    names = list(range(len(rows))) if labels is None else list(labels)
    if len(names) != len(rows):
        raise ValueError(f"{len(names)} labels for {len(rows)} vectors")
    unit = _unit(rows, names)
    return pd.DataFrame((unit @ unit.T).clamp(-1, 1).numpy(), index=names, columns=names)


def projections(activations: Float[Tensor, "... d"], direction: Float[Tensor, "d"]) -> Float[Tensor, "..."]:
    """Length of each activation along a direction, ⟨x, u⟩ / ‖u‖, in the units of the activations.

    Raises:
        ValueError: widths that differ, or a direction of norm 0 or with NaN.
    """
    if direction.ndim != 1 or activations.shape[-1:] != direction.shape:
        raise ValueError(
            f"activations end in {tuple(activations.shape[-1:])}, the direction is {tuple(direction.shape)}"
        )
    unit = _unit(direction.detach().double()[None], ["direction"])[0]
    return activations.detach().float() @ unit.to(activations.device, torch.float32)


def token_projections(
    model: TransformerBridge, prompt: Any, direction: Float[Tensor, "d_model"], *, layer: int
) -> pd.DataFrame:
    """The projection of every token's residual stream after block ``layer``, template tokens included.

    Returns:
        One row per token, in order: position, token (decoded), own (False for template tokens), projection.
        ``analysis.figures.projection_strip`` draws it.

    Raises:
        ValueError: a layer that the model lacks, or a direction of another width.
    """
    from lensteer.capture import capture
    from lensteer.models import tokenizer_of
    from lensteer.prompts import tokenize

    (row,) = tokenize(model, [prompt])
    activations = capture(model, [prompt], "resid_post", layers=layer, tokens="all", progress=False)
    values = projections(activations.stacked()[0, 0], direction)
    tokens = [tokenizer_of(model).decode([token]) for token in row.ids]
    return pd.DataFrame(
        {"position": range(len(tokens)), "token": tokens, "own": row.own, "projection": values.tolist()}
    )


def logit_lens(
    model: Any,
    direction: Float[Tensor, "d_model"],
    k: int = 10,
    *,
    fold_norm: bool = True,
    tokenizer: Any = None,
) -> pd.DataFrame:
    """The k tokens that a direction promotes most and the k that it demotes most, through the unembedding.

    With ``fold_norm`` the direction passes the model's own final norm, less that norm's constant part:
    ``½ (N(û) − N(−û)) W_U`` with û of root mean square 1. This is linear in the direction (gain and,
    for LayerNorm, centring; no biases), so demotion is the exact mirror of promotion. Without it, ``u
    W_U`` as in Stolfo et al. (2025). TransformerLens's ``logit_readout`` reads a *residual state*
    through norm, biases and soft-capping instead; the two agree where a model has neither.

    Args:
        model: a TransformerBridge or a plain Hugging Face causal language model.
        tokenizer: for a plain model; without one the tokens are shown by their ids.

    Returns:
        k rows: promoted, promoted_id, promoted_logit, demoted, demoted_id, demoted_logit; strongest first.

    Raises:
        ValueError: a direction of another width, of norm 0 or with NaN; k out of range; no final norm found.
    """
    plain, tokenizer = _plain_and_tokenizer(model, tokenizer)
    weight = plain.get_output_embeddings().weight
    if direction.shape != weight.shape[1:]:
        raise ValueError(f"the direction has shape {tuple(direction.shape)}; the model reads width {weight.shape[1]}")
    if not 1 <= k <= len(weight):
        raise ValueError(f"k must be between 1 and the vocabulary size {len(weight)}, got {k}")
    _unit(direction.detach().double()[None], ["direction"])
    with torch.no_grad():
        vector = direction.detach().to(weight.device, torch.float32)
        if fold_norm:
            norm = _final_norm(plain)
            scaled = (vector / vector.square().mean().sqrt()).to(weight.dtype)
            vector = (norm(scaled[None]) - norm(-scaled[None]))[0].float() / 2
        logits = (weight @ vector.to(weight.dtype)).float()
    up, down = logits.topk(k), (-logits).topk(k)
    return pd.DataFrame(
        {
            "promoted": _decoded(tokenizer, up.indices),
            "promoted_id": up.indices.tolist(),
            "promoted_logit": up.values.tolist(),
            "demoted": _decoded(tokenizer, down.indices),
            "demoted_id": down.indices.tolist(),
            "demoted_logit": (-down.values).tolist(),
        }
    )


def norm_profile(difference_norm: Float[Tensor, "layer"], residual_norm: Float[Tensor, "layer"]) -> pd.DataFrame:
    """Length of the mean difference beside the residual stream's: layer, norm, residual_norm, ratio.

    The ratio says what a strength means: adding the whole mean difference moves an activation by this part of
    its own length. It is comparable between layers and models, the norms are not.

    Raises:
        ValueError: shapes that differ, or a residual norm that is not positive.
    """
    if difference_norm.ndim != 1 or difference_norm.shape != residual_norm.shape:
        raise ValueError(f"norms must be [layer], got {tuple(difference_norm.shape)} and {tuple(residual_norm.shape)}")
    if not (residual_norm > 0).all():
        raise ValueError("residual norms must be positive")
    ratio = difference_norm / residual_norm
    columns = {"norm": difference_norm, "residual_norm": residual_norm, "ratio": ratio}
    return pd.DataFrame({"layer": range(len(ratio)), **{k: v.detach().double().tolist() for k, v in columns.items()}})


def _unit(rows: Float[Tensor, "vector d"], names: Sequence[str | int]) -> Float[Tensor, "vector d"]:
    require_finite(rows, "vectors")
    norms = rows.norm(dim=1, keepdim=True)
    if (norms == 0).any():
        raise ValueError(f"{names[int((norms == 0).int().argmax())]!r} has norm 0, so no direction")
    return rows / norms


def _plain_and_tokenizer(model: Any, tokenizer: Any) -> tuple[Any, Any]:
    """The plain face of a bridge with its tokenizer; a plain model as it is."""
    if not hasattr(model, "original_model"):
        return model, tokenizer
    from lensteer.models import plain_model, twin_of

    return plain_model(model), tokenizer or twin_of(model).tokenizer


def _final_norm(plain: Any) -> Any:
    base = plain.base_model
    for owner in (base, getattr(base, "decoder", None)):
        for name in _FINAL_NORMS:
            if isinstance(getattr(owner, name, None), torch.nn.Module):
                return getattr(owner, name)
    raise ValueError(f"no final norm found in {type(plain).__name__}; use fold_norm=False")


def _decoded(tokenizer: Any, ids: Tensor) -> list[str]:
    if tokenizer is None:
        return [f"<{token}>" for token in ids.tolist()]
    return [tokenizer.decode([token]) for token in ids.tolist()]
