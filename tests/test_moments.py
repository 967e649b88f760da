"""Running moments against NumPy over all samples at once."""

from __future__ import annotations

from functools import reduce
from operator import add

import numpy as np
import pytest
import torch

from lensteer.moments import Moments


def samples(n: int, *shape: int, seed: int = 0, offset: float = 0.0) -> torch.Tensor:
    return torch.randn((n, *shape), generator=torch.Generator().manual_seed(seed)) + offset


def assert_equal_to_numpy(found: Moments, x: torch.Tensor) -> None:
    y = x.double().numpy()
    assert found.count == len(y)
    np.testing.assert_allclose(found.mean, y.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.variance, y.var(0), rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(found.low, y.min(0))
    np.testing.assert_array_equal(found.high, y.max(0))
    assert found.shape == y.shape[1:]


@pytest.mark.parametrize("shape", [(), (7,), (4, 8)])
def test_moments_of_one_batch_equal_numpy(shape: tuple[int, ...]) -> None:
    x = samples(20, *shape)
    assert_equal_to_numpy(Moments.of(x), x)


@pytest.mark.parametrize("cuts", [[1, 2, 3], [10], [1] * 19, [19, 1]])
def test_moments_merged_in_any_parts_equal_those_of_all_samples(cuts: list[int]) -> None:
    x = samples(20, 7)
    bounds = np.cumsum([0, *cuts])
    parts = [x[a:b] for a, b in zip(bounds, [*bounds[1:], 20], strict=True) if b > a]
    assert_equal_to_numpy(reduce(add, [Moments.of(part) for part in parts]), x)


def test_a_large_mean_does_not_drown_the_variance() -> None:
    """The residual stream has units whose mean is thousands of times their spread."""
    x = samples(1000, 3, offset=1e6).double()
    assert_equal_to_numpy(reduce(add, [Moments.of(part) for part in x.split(7)]), x)


def test_half_precision_samples_are_summed_in_double() -> None:
    x = samples(5000, 2, offset=100.0).bfloat16()
    found = Moments.of(x)
    assert found.mean.dtype == torch.float64
    assert_equal_to_numpy(found, x)


def test_packing_and_unpacking_changes_nothing() -> None:
    first = Moments.of(samples(5, 4, 8))
    again = Moments.unpack(first.pack())
    assert again.count == 5
    assert torch.equal(again.pack(), first.pack())


def test_moments_of_no_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="no samples"):
        Moments.of(torch.zeros(0, 3))
