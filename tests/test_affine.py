"""The affine edit by its formula: strength, support, dtypes, modes, and what it refuses."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest
import torch

from lensteer.hooks import Affine

SHAPES = [(32,), (4, 8)]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def made(*shape: int, bounded: bool = True, strength: Any = 1.0) -> Affine:
    low, high = (random(*shape, seed=3) - 1, random(*shape, seed=3) + 0.5) if bounded else (None, None)
    return Affine(random(*shape, seed=1), random(*shape, seed=2), low, high, strength)


def by_hand(edit: Affine, x: torch.Tensor, strength: float) -> torch.Tensor:
    """The definition, element by element, in float64."""
    new = x.double().clone()
    flat = new.view(-1, edit.scale.numel())
    for i, (omega, beta) in enumerate(zip(edit.scale.flatten().tolist(), edit.shift.flatten().tolist(), strict=True)):
        low = -math.inf if edit.low is None else float(edit.low.flatten()[i])
        high = math.inf if edit.high is None else float(edit.high.flatten()[i])
        for row in range(len(flat)):
            a = float(flat[row, i])
            if low < a < high:
                flat[row, i] = (1 - strength) * a + strength * (omega * a + beta)
    return new


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bounded", [True, False])
@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0, 2.5, -1.0])
def test_every_element_is_carried_by_its_own_map_where_it_lies_inside_its_support(
    shape: tuple[int, ...], bounded: bool, strength: float
) -> None:
    x = random(2, 3, *shape, seed=4)
    edit = made(*shape, bounded=bounded, strength=strength)
    new = edit(x)
    torch.testing.assert_close(new.double(), by_hand(edit, x, strength), atol=1e-6, rtol=1e-6)
    if bounded:
        outside = (x <= edit.low) | (x >= edit.high)
        assert outside.any() and not outside.all()
        assert torch.equal(new[outside], x[outside])


@pytest.mark.parametrize("bounded", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_strength_zero_changes_no_bit_and_strength_one_is_the_whole_map(bounded: bool, dtype: torch.dtype) -> None:
    x, edit = random(2, 5, 32, seed=4, dtype=dtype), made(32, bounded=bounded)
    assert torch.equal(edit.at_strength(0.0)(x), x)
    assert torch.equal(edit.at_strength([0.0, 0.0])(x), x)
    whole = edit.scale * x.double() + edit.shift
    if edit.low is not None and edit.high is not None:
        whole = torch.where((x > edit.low) & (x < edit.high), whole, x.double())
    error = 1e-6 if dtype.itemsize > 2 else 0.02
    torch.testing.assert_close(edit(x).double(), whole, atol=error, rtol=error)


def test_what_is_moved_grows_linearly_with_the_strength_beyond_one_as_well() -> None:
    x, edit = random(2, 5, 32, seed=4, dtype=torch.float64), made(32)
    once = edit(x) - x
    assert once.abs().max() > 0.1
    for strength in (-2.0, 0.25, 0.5, 3.0):
        torch.testing.assert_close(edit.at_strength(strength)(x) - x, strength * once, atol=1e-12, rtol=1e-9)


def test_the_support_is_strict_and_tested_on_the_value_before_the_map() -> None:
    low, high = torch.tensor([0.0]), torch.tensor([1.0])
    inside = Affine(torch.tensor([1.0]), torch.tensor([5.0]), low, high)
    x = torch.tensor([[0.0], [1.0], [0.5], [-0.1], [1.1]])
    # 0.5 leaves the support on its way and is moved; the ends themselves are not.
    assert inside(x).flatten().tolist() == [0.0, 1.0, 5.5, pytest.approx(-0.1), pytest.approx(1.1)]
    into = Affine(torch.tensor([1.0]), torch.tensor([-4.5]), low, high)
    assert into(torch.tensor([[5.0]])).item() == 5.0  # would land inside, but starts outside


def test_a_support_of_one_point_moves_nothing_and_infinite_ends_are_no_ends() -> None:
    x = random(2, 3, 4, seed=4)
    point = Affine(torch.full((4,), 2.5e6), torch.full((4,), 1e6), x[0, 0], x[0, 0])
    assert torch.equal(point(x), x)
    scale, shift = random(4, seed=1), random(4, seed=2)
    nowhere = torch.full((4,), torch.inf)
    torch.testing.assert_close(Affine(scale, shift, -nowhere, nowhere)(x), Affine(scale, shift)(x))


@pytest.mark.parametrize("bounded", [True, False])
def test_a_strength_per_row_equals_every_row_alone(bounded: bool) -> None:
    x, strengths = random(4, 5, 4, 8, seed=4), torch.tensor([0.0, -2.0, 0.7, 1.0])
    edit = made(4, 8, bounded=bounded)
    together = edit.at_strength(strengths)(x)
    for i, strength in enumerate(strengths.tolist()):
        assert torch.equal(together[i : i + 1], edit.at_strength(strength)(x[i : i + 1]))


def test_a_row_of_strength_zero_keeps_values_that_its_map_would_overflow() -> None:
    x = torch.full((2, 1, 1), 1e38)
    x[1] = torch.inf
    assert torch.equal(Affine(torch.tensor([100.0]), torch.tensor([0.0]), strength=torch.zeros(2))(x), x)


@pytest.mark.parametrize("bounded", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_dtype_is_kept_and_the_activation_not_written_into(bounded: bool, dtype: torch.dtype) -> None:
    x, edit = random(2, 3, 32, seed=4, dtype=dtype), made(32, bounded=bounded)
    before = x.clone()
    new = edit(x)
    assert new.dtype == dtype
    assert torch.equal(x, before)
    # Computed in single precision at least, and rounded once.
    assert torch.equal(new, edit(x.float()).to(dtype)) or dtype == torch.float64
    torch.testing.assert_close(new.double(), edit(x.double()), atol=0.02, rtol=0.01)


def test_gradients_are_right_inside_and_one_outside_the_support() -> None:
    x = random(2, 3, 6, seed=4, dtype=torch.float64).requires_grad_()
    scale, shift = (random(6, seed=seed, dtype=torch.float64).requires_grad_() for seed in (1, 2))
    strength = torch.tensor([0.5, -2.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x, w, b: Affine(w, b, strength=strength)(x), (x, scale, shift))
    low = torch.full((6,), -0.2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x, w, b: Affine(w, b, low, low + 1, 0.7)(x), (x, scale, shift))
    Affine(torch.full((6,), 3.0), torch.zeros(6), low, low + 1)(x).sum().backward()
    inside = (x > low) & (x < low + 1)
    assert torch.equal(x.grad, torch.where(inside, 3.0, 1.0).double())


def test_it_works_in_inference_mode_and_on_what_was_made_there() -> None:
    with torch.inference_mode():
        x = random(2, 3, 32, seed=4)
        new = made(32)(x)
        assert new.is_inference()
    assert torch.equal(made(32)(x), new)


def test_it_is_immutable_and_a_copy_at_another_strength_shares_its_tensors() -> None:
    edit = made(32)
    with pytest.raises(FrozenInstanceError):
        edit.strength = 2.0  # type: ignore[misc]
    other = edit.at_strength(2)
    assert (other.strength, edit.strength) == (2, 1.0)
    assert other.scale is edit.scale and other.low is edit.low


@pytest.mark.parametrize("strength", [1, np.float32(1), np.float64(1), True])
def test_any_kind_of_number_is_a_strength(strength: Any) -> None:
    x = random(1, 2, 32, seed=4)
    torch.testing.assert_close(made(32, strength=strength)(x), made(32)(x))


ONES = torch.ones(4)


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ((ONES * torch.nan, ONES), ValueError, "scale holds NaN or inf in 4 of 4"),
        ((ONES, ONES * torch.inf), ValueError, "shift holds NaN or inf in 4 of 4"),
        ((ONES.long(), ONES), TypeError, "scale must be a floating-point tensor"),
        ((ONES, torch.ones(5)), ValueError, r"shift has shape \(5,\), the scale \(4,\)"),
        ((ONES, ONES, torch.ones(3), ONES), ValueError, r"low has shape \(3,\)"),
        ((ONES, ONES, 0.0, 1.0), TypeError, "low must be a tensor like the scale, or None, got 0.0"),
        ((ONES, ONES, ONES), ValueError, "needs both ends"),
        ((ONES, ONES, ONES, 0 * ONES), ValueError, "the support of 4 of 4 units is empty"),
        ((ONES, ONES, ONES * torch.nan, ONES), ValueError, "support holds NaN"),
        ((ONES, ONES, None, None, math.nan), ValueError, "strength must be finite, got nan"),
        ((ONES, ONES, None, None, "1"), TypeError, "strength must be a number"),
        ((ONES, ONES, None, None, torch.ones(2, 2)), ValueError, r"1-D\), got shape \(2, 2\)"),
        ((ONES, ONES, None, None, torch.tensor([1.0, torch.inf])), ValueError, "strength holds NaN or inf in 1 of 2"),
    ],
)
def test_bad_numbers_are_refused_when_it_is_made(arguments: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        Affine(*arguments)


def test_activations_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Affine of shape \(4,\) does not fit.*\(2, 3, 5\)"):
        Affine(ONES, ONES)(torch.ones(2, 3, 5))
    with pytest.raises(ValueError, match="strength has 3 values but the batch at this hook point has 2 rows"):
        Affine(ONES, ONES, strength=torch.ones(3))(torch.ones(2, 3, 4))
