"""How far two discrete features are from independent, from their counts n_ab, with n = sum of all.

    mutual information   I = sum_ab (n_ab / n) log2( n n_ab / (n_a n_b) )              bits; 0 where independent
    chi-square           X2 = sum_ab (n_ab - n_a n_b / n)^2 / (n_a n_b / n)            p = Q(df / 2, X2 / 2)
    Cramér's V           V = sqrt( X2 / (n (min(rows, columns) - 1)) )                  0 … 1, whatever the size

Q is the regularised upper incomplete gamma function and df = (rows - 1)(columns - 1). Focus instruction tuning needs
(Y, S) and (Y_S, C) independent, or one feature becomes a shortcut for the other (Lamb et al., ICML 2025, section 4).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NamedTuple


class Dependence(NamedTuple):
    """What counts of pairs say: mutual information in bits, Cramér's V, and the p-value of the chi-square test.

    Where a feature has one value only, it tells nothing: 0 bits, V = 0, p = 1.
    """

    bits: float
    cramers_v: float
    p: float


def dependence(left: Sequence[Hashable], right: Sequence[Hashable]) -> Dependence:
    """How much one feature tells of the other.

    Args:
        left, right: the values of the two features, example by example.

    Raises:
        ValueError: no examples, or unequally many values.
    """
    if not left or len(left) != len(right):
        raise ValueError(f"dependence needs equally many values of both features, got {len(left)} and {len(right)}")
    import torch

    n, rows, columns = len(left), Counter(left), Counter(right)
    pairs = Counter(zip(left, right, strict=True))
    bits = sum(count / n * math.log2(n * count / (rows[a] * columns[b])) for (a, b), count in pairs.items())
    square = sum(
        (pairs[a, b] - rows[a] * columns[b] / n) ** 2 / (rows[a] * columns[b] / n) for a in rows for b in columns
    )
    smaller, degrees = min(len(rows), len(columns)) - 1, (len(rows) - 1) * (len(columns) - 1)
    if not smaller:
        return Dependence(0.0, 0.0, 1.0)
    half = torch.tensor([degrees / 2, square / 2], dtype=torch.float64)
    p = float(torch.special.gammaincc(half[0], half[1]))
    return Dependence(max(bits, 0.0), math.sqrt(square / (n * smaller)), p)
