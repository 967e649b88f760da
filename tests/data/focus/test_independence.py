"""What counts of two features say of each other, against closed forms and scipy."""

from __future__ import annotations

import math
import random

import pytest

from lensteer.data.focus.independence import dependence


def test_independent_features_tell_nothing() -> None:
    found = dependence(["a", "a", "b", "b"] * 3, ["x", "y"] * 6)
    assert found == pytest.approx((0, 0, 1))


def test_one_feature_that_fixes_the_other_tells_everything() -> None:
    bits, v, p = dependence(list("aabbcc") * 5, [1, 1, 2, 2, 3, 3] * 5)
    assert (bits, v) == pytest.approx((math.log2(3), 1)) and p < 1e-9


@pytest.mark.parametrize("rho", [0.9, 0.75, 0.25])
def test_two_balanced_features_with_predictivity_rho_share_one_bit_less_their_entropy(rho: float) -> None:
    n = 200
    y = ["+"] * n + ["-"] * n
    s = ["p"] * round(rho * n) + ["b"] * round((1 - rho) * n) + ["b"] * round(rho * n) + ["p"] * round((1 - rho) * n)
    entropy = -rho * math.log2(rho) - (1 - rho) * math.log2(1 - rho)
    assert dependence(y, s)[:2] == pytest.approx((1 - entropy, abs(2 * rho - 1)))


def test_the_p_value_is_that_of_the_chi_square_test() -> None:
    stats = pytest.importorskip("scipy.stats")
    chance = random.Random("chi-square")
    left = [chance.choice("abc") for _ in range(300)]
    right = [chance.choice("wxyz") if chance.random() < 0.8 else value for value in left]
    table = [[sum(pair == (a, b) for pair in zip(left, right, strict=True)) for b in sorted(set(right))] for a in "abc"]
    expected = stats.chi2_contingency(table, correction=False)
    assert dependence(left, right).p == pytest.approx(expected.pvalue)


def test_a_feature_with_one_value_tells_nothing_and_unequal_lists_are_refused() -> None:
    assert dependence(["a", "a"], ["x", "y"]) == (0, 0, 1)
    for left, right in (([], []), (["a"], ["x", "y"])):
        with pytest.raises(ValueError, match=r"equally many values"):
            dependence(left, right)
