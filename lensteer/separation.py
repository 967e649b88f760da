"""How well two classes of activations part, and how stable a mean difference is: the statistics of a fit.

auroc         P(positive > negative) + ½ P(equal)
effect size   difference of the means over the pooled standard deviation (Cohen's d)
split-half    cos(mean difference of one half of the pairs, mean difference of the other half)
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def auroc(positive: Float[Tensor, "n ..."], negative: Float[Tensor, "m ..."]) -> Float[Tensor, "..."]:
    """P(positive > negative) + ½ P(equal), over the first axis, for every trailing index; 0.5 is chance.

    Raises:
        ValueError: an empty class, NaN, or trailing shapes that differ.
    """
    if not len(positive) or not len(negative) or positive.shape[1:] != negative.shape[1:]:
        raise ValueError(
            f"classes must be [n, ...] and [m, ...], got {tuple(positive.shape)} and {tuple(negative.shape)}"
        )
    require_finite(positive, "positive")
    require_finite(negative, "negative")
    values = positive.detach().double().movedim(0, -1).contiguous()
    ordered = negative.detach().double().movedim(0, -1).sort(dim=-1).values.contiguous()
    below = torch.searchsorted(ordered, values)
    not_above = torch.searchsorted(ordered, values, right=True)
    return (below + not_above).double().mean(dim=-1) / (2 * len(negative))


def effect_size(positive: Float[Tensor, "n ..."], negative: Float[Tensor, "m ..."]) -> Float[Tensor, "..."]:
    """Cohen's d over the first axis, with the population variance of both classes pooled evenly."""
    pooled = ((positive.var(0, correction=0) + negative.var(0, correction=0)) / 2).sqrt()
    return (positive.mean(0) - negative.mean(0)) / pooled.clamp(min=1e-12)


def split_half_cosines(
    differences: Float[Tensor, "pair layer d"], *, n_splits: int = 200, seed: int = 0
) -> Float[Tensor, "layer split"]:
    """Cosine between the mean differences of two random halves of the pairs, for every layer and split.

    Near 1 the direction does not depend on which pairs were taken; near 0 there are too few pairs, or no common
    direction. Halves have half the pairs, so this is a lower bound for the whole set.

    Raises:
        ValueError: fewer than two pairs, NaN, or another shape.
    """
    if differences.ndim != 3 or len(differences) < 2:
        raise ValueError(f"differences must be [pair, layer, d] with two pairs or more, got {tuple(differences.shape)}")
    require_finite(differences, "differences")
    n, generator = len(differences), torch.Generator().manual_seed(seed)
    rank = torch.rand(n_splits, n, generator=generator).argsort(dim=1)
    first = (rank < n // 2).double()  # [split, pair]: 1 for the pairs of the first half
    cosines = []
    for layer in range(differences.shape[1]):  # one layer at a time: splits x d in memory, not times layers
        values = differences[:, layer].detach().double().cpu()
        sums = first @ values
        cosines.append(torch.cosine_similarity(sums, values.sum(0) - sums, dim=1))
    return torch.stack(cosines)


def require_finite(values: Tensor, name: str) -> None:
    """Refuse NaN and infinite values.

    Raises:
        ValueError: says how many there are.
    """
    if not torch.isfinite(values).all():
        raise ValueError(f"{name} hold {int((~torch.isfinite(values)).sum())} NaN or infinite values")
