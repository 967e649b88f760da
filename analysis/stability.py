"""Is a direction real? Stable under another choice of pairs, and better than a random one?

    stability     cos(mean difference of one half of the pairs, mean difference of the other half)
    separation    AUROC of ⟨x, u⟩ between two classes, beside that of random directions

The reasons to ask: with few pairs a mean difference is mostly noise, and in a wide residual stream even
a random direction separates two classes somewhat.
"""

from __future__ import annotations

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lensteer.separation import auroc, split_half_cosines


def split_half_stability(
    differences: Float[Tensor, "pair layer d"], *, n_splits: int = 200, level: float = 0.95, seed: int = 0
) -> pd.DataFrame:
    """Cosine between the mean differences of two random halves of the pairs, per layer.

    Near 1 the direction does not depend on which pairs were taken; near 0 there are too few pairs, or
    there is no common direction. Halves have half the pairs, so this is a lower bound for the whole
    set.

    Returns:
        layer, cosine (mean over splits), low, high (quantiles over splits, not an interval of the mean).

    Raises:
        ValueError: fewer than two pairs, NaN, or another shape.
    """
    cosines = split_half_cosines(differences, n_splits=n_splits, seed=seed)
    low, high = torch.quantile(cosines, torch.tensor([(1 - level) / 2, (1 + level) / 2]).double(), dim=1)
    table = {"cosine": cosines.mean(1), "low": low, "high": high}
    return pd.DataFrame({"layer": range(len(cosines)), **{name: values.numpy() for name, values in table.items()}})


def random_directions(
    direction: Float[Tensor, "*shape d"], n: int = 1, *, seed: int = 0
) -> Float[Tensor, "n *shape d"]:
    """n directions drawn evenly from the sphere, each with the norm of ``direction`` (row by row).

    Raises:
        ValueError: n below 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    drawn = torch.randn(n, *direction.shape, generator=torch.Generator().manual_seed(seed))
    unit = (drawn / drawn.norm(dim=-1, keepdim=True)).to(direction.device, direction.dtype)
    return unit * direction.detach().norm(dim=-1, keepdim=True)


def compare_with_random(
    positive: Float[Tensor, "n layer d"],
    negative: Float[Tensor, "m layer d"],
    direction: Float[Tensor, "layer d"],
    *,
    n_random: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """How well a direction separates two classes of activations, beside random directions.

    In a wide residual stream many directions separate two classes, so an AUROC alone says little. A random
    direction is given its better sign, max(a, 1 − a). Use activations that the direction was not fitted on.

    Returns:
        layer, auroc, random (mean), random_high (the ``level`` quantile), p_value
        ((1 + number of random directions that do as well) / (1 + n_random)).

    Raises:
        ValueError: shapes that do not fit, an empty class, or NaN.
    """
    if positive.ndim != 3 or direction.shape != positive.shape[1:] or direction.shape != negative.shape[1:]:
        raise ValueError(
            f"classes must be [n, layer, d] and the direction [layer, d], got {tuple(positive.shape)}, "
            f"{tuple(negative.shape)} and {tuple(direction.shape)}"
        )
    rows = []
    for layer, own in enumerate(direction):
        drawn = torch.cat([own[None], random_directions(own, n_random, seed=seed + layer)]).float()
        values = auroc(positive[:, layer].float() @ drawn.T, negative[:, layer].float() @ drawn.T)
        real, random = values[0], torch.maximum(values[1:], 1 - values[1:])
        rows.append(
            {
                "layer": layer,
                "auroc": real.item(),
                "random": random.mean().item(),
                "random_high": random.quantile(level).item(),
                "p_value": (1 + int((random >= real).sum())) / (1 + n_random),
            }
        )
    return pd.DataFrame(rows)
