"""The edits by their formulas, in every dtype and mode, and what they refuse."""

from __future__ import annotations

import ast
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
import torch

import lensteer.hooks
from lensteer.attach import HookName
from lensteer.hooks import Add, ScaleElements, SetElements, SetProjection

SHAPES = [(32,), (4, 8), (64,)]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def dot(x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    return (x.double() * u.double()).flatten(x.ndim - u.ndim).sum(-1)


@pytest.mark.parametrize("shape", SHAPES)
def test_add_adds_strength_times_the_vector_everywhere(shape: tuple[int, ...]) -> None:
    x, v = random(2, 5, *shape), random(*shape, seed=1)
    torch.testing.assert_close(Add(v, -1.5)(x), x - 1.5 * v)


@pytest.mark.parametrize("shape", SHAPES)
def test_set_projection_sets_it_at_every_position_and_leaves_the_rest_alone(shape: tuple[int, ...]) -> None:
    x, u = random(2, 5, *shape), random(*shape, seed=1)
    unit = u / u.norm()
    new = SetProjection(u, 7.0)(x)
    torch.testing.assert_close(dot(new, unit), torch.full((2, 5), 7.0).double())

    def rest(y: torch.Tensor) -> torch.Tensor:
        return y.double() - dot(y, unit).view(2, 5, *[1] * len(shape)) * unit

    torch.testing.assert_close(rest(new), rest(x), atol=1e-5, rtol=0)


def test_set_projection_does_nothing_the_second_time() -> None:
    x, edit = random(2, 3, 32), SetProjection(random(32, seed=1), 2.0)
    torch.testing.assert_close(edit(edit(x)), edit(x))


def test_set_projection_ablates_by_default_and_goes_part_of_the_way_at_partial_strength() -> None:
    x, u = random(2, 3, 32), random(32, seed=1)
    unit = u / u.norm()
    torch.testing.assert_close(dot(SetProjection(u)(x), unit), torch.zeros(2, 3).double(), atol=1e-5, rtol=0)
    halfway = (dot(x, unit) + 4) / 2
    torch.testing.assert_close(dot(SetProjection(u, 4.0, 0.5)(x), unit), halfway, atol=1e-5, rtol=0)


@pytest.mark.parametrize("value", [0, 3, np.float32(3), np.int64(3), torch.tensor(3.0)])
def test_set_projection_takes_any_kind_of_number_as_its_value(value: object) -> None:
    x, u = random(1, 2, 32), random(32, seed=1)
    torch.testing.assert_close(SetProjection(u, value)(x), SetProjection(u, float(value))(x))  # type: ignore[arg-type]


def test_adding_and_taking_away_is_the_identity_and_zero_strength_changes_no_bit() -> None:
    x, v = random(2, 3, 32), random(32, seed=1)
    torch.testing.assert_close(Add(v, -3.0)(Add(v, 3.0)(x)), x)
    assert torch.equal(Add(v, 0.0)(x), x)
    assert torch.equal(SetProjection(v, 5.0, 0.0)(x), x)


@pytest.mark.parametrize("edit", [Add(random(4, 8), 1.0), SetProjection(random(4, 8), 3.0)])
def test_a_strength_per_row_equals_every_row_alone(edit: lensteer.hooks.Edit) -> None:
    x, strengths = random(3, 5, 4, 8, seed=2), torch.tensor([0.0, -2.0, 0.7])
    together = edit.at_strength(strengths)(x)
    for i, strength in enumerate(strengths.tolist()):
        assert torch.equal(together[i : i + 1], edit.at_strength(strength)(x[i : i + 1]))


@pytest.mark.parametrize("edit", [Add(random(32), 2.0), SetProjection(random(32), 3.0, torch.tensor([1.0, 2.0]))])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_an_edit_keeps_the_dtype_of_the_activation_and_does_not_write_into_it(edit, dtype: torch.dtype) -> None:
    x = random(2, 3, 32, seed=2, dtype=dtype)
    before = x.clone()
    new = edit(x)
    assert new.dtype == dtype
    assert torch.equal(x, before)
    torch.testing.assert_close(new.float(), edit(x.float()), atol=0.1, rtol=0.01)
    assert not torch.equal(new, before)


def test_the_projection_is_computed_in_single_precision_where_half_would_be_off_by_units() -> None:
    x, u = random(1, 50, 512, seed=2, dtype=torch.bfloat16) * 100, random(512, seed=3)
    unit = (u / u.norm()).bfloat16()
    naive = x + (20.0 - (x * unit).sum(-1, keepdim=True)) * unit
    error = (dot(SetProjection(u, 20.0)(x), u / u.norm()) - 20).abs().mean()
    assert error < (dot(naive, u / u.norm()) - 20).abs().mean()


def test_gradients_through_an_edit_are_right() -> None:
    x, v = random(2, 3, 6).double().requires_grad_(), random(6, seed=1).double().requires_grad_()
    strength = torch.tensor([0.5, -2.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x, v: Add(v, strength)(x), (x, v))
    assert torch.autograd.gradcheck(lambda x, v: SetProjection(v, 1.5, 0.7)(x), (x, v))


def test_an_edit_works_in_inference_mode_on_tensors_made_there() -> None:
    with torch.inference_mode():
        x = random(1, 2, 32)
        assert Add(random(32, seed=1))(x).is_inference()
        assert SetProjection(random(32, seed=1), 1.0)(x).is_inference()


def test_an_edit_is_immutable_and_a_copy_at_another_strength_leaves_the_original() -> None:
    edit = Add(random(32), 1.0)
    with pytest.raises(FrozenInstanceError):
        edit.strength = 2.0  # type: ignore[misc]
    assert (edit.at_strength(2.0).strength, edit.strength) == (2.0, 1.0)
    assert edit.at_strength(2.0).vector is edit.vector


def test_any_hooked_model_runs_an_edit_as_it_is(llama) -> None:
    """Also a bridge that lensteer has not seen, through TransformerLens alone."""
    import copy

    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    hf = copy.deepcopy(llama.hf)
    hf.set_attn_implementation("eager")
    theirs = build_bridge_from_module(hf, type(hf).__name__, hf_config=hf.config)
    ids, edit = torch.tensor([[5, 9, 13]]), Add(random(32), 2.0)
    name = "blocks.1.hook_resid_post"
    with torch.no_grad():
        expected = llama.model.run_with_hooks(ids, fwd_hooks=[(name, lambda x, hook: x + 2.0 * random(32))])
        found = theirs.run_with_hooks(ids, fwd_hooks=[(name, edit)])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_the_module_of_edits_imports_nothing_else_of_the_package() -> None:
    files = list(Path(lensteer.hooks.__file__).parent.glob("*.py"))
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))]
    # level 1 is the package itself
    imported = [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0]
    imported += [name.name for node in nodes if isinstance(node, ast.Import) for name in node.names]
    assert "torch" in imported
    assert all(node.level < 2 for node in nodes if isinstance(node, ast.ImportFrom))
    assert not any(str(name).startswith("lensteer") for name in imported)


def spoiled(value: float) -> torch.Tensor:
    vector = random(32)
    vector[3] = value
    return vector


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Add(spoiled(float("nan"))), ValueError, r"vector holds NaN or inf in 1 of 32"),
        (lambda: Add(spoiled(float("inf"))), ValueError, r"vector holds NaN or inf in 1 of 32"),
        (lambda: SetProjection(spoiled(float("nan"))), ValueError, r"direction holds NaN"),
        (lambda: SetProjection(random(32), float("nan")), ValueError, r"value"),
        (lambda: SetProjection(torch.zeros(32)), ValueError, r"direction is zero"),
        (lambda: Add(torch.arange(32)), TypeError, r"vector must be a floating-point tensor.*int64"),
        (lambda: Add([1.0, 2.0]), TypeError, r"vector must be a floating-point tensor.*list"),
        (lambda: Add(random(32), float("inf")), ValueError, r"strength must be finite, got inf"),
        (lambda: Add(random(32), torch.ones(2, 3)), ValueError, r"one value per batch row.*\(2, 3\)"),
        (lambda: Add(random(32), spoiled(float("nan"))), ValueError, r"strength holds NaN"),
        (lambda: Add(random(32)).at_strength(torch.ones(2, 3)), ValueError, r"one value per batch row"),
        (lambda: Add(random(32)).at_strength(float("nan")), ValueError, r"strength must be finite, got nan"),
    ],
)
def test_what_is_not_a_finite_number_is_refused_when_the_edit_is_made(make, error, words: str) -> None:
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize("edit", [Add(random(32)), SetProjection(random(32))])
def test_an_activation_of_another_width_is_refused_with_both_shapes_and_the_hook(edit) -> None:
    hook = HookName("blocks.3.hook_out")
    with pytest.raises(ValueError, match=r"shape \(32,\) does not fit .*'blocks.3.hook_out'.*\(2, 5, 16\)"):
        edit(random(2, 5, 16), hook)


def test_a_strength_for_another_number_of_rows_is_refused_with_both_numbers_and_the_hook() -> None:
    with pytest.raises(ValueError, match=r"3 values but the batch at 'blocks.3.hook_out' has 2 rows"):
        Add(random(32), torch.ones(3))(random(2, 5, 32), HookName("blocks.3.hook_out"))


# ---- some elements only

MASKS = [(32,), (4, 8), (64,)]


def some(*shape: int, seed: int = 7) -> torch.Tensor:
    return random(*shape, seed=seed) > 0.3


@pytest.mark.parametrize("shape", MASKS)
@pytest.mark.parametrize("strength", [-1.0, 0.5, 4.0, 79.0])
def test_scaling_multiplies_the_elements_of_the_mask_and_no_other(shape: tuple[int, ...], strength: float) -> None:
    x, mask = random(2, 5, *shape), some(*shape)
    new = ScaleElements(mask, strength)(x)
    torch.testing.assert_close(new[..., mask], x[..., mask] * (1 + strength))
    assert torch.equal(new[..., ~mask], x[..., ~mask])


def test_scaling_twice_the_activation_changes_it_twice_as_much_and_zero_stays_zero() -> None:
    x, edit = random(2, 3, 32), ScaleElements(some(32), 3.0)
    torch.testing.assert_close(edit(2 * x) - 2 * x, 2 * (edit(x) - x))
    assert torch.equal(edit(-x), -edit(x))
    assert not edit(torch.zeros(1, 2, 32)).any()
    assert not ScaleElements(torch.ones(32, dtype=torch.bool), -1.0)(x).any()


@pytest.mark.parametrize("shape", MASKS)
def test_setting_elements_goes_a_share_of_the_way_on_the_mask_alone(shape: tuple[int, ...]) -> None:
    x, a, mask = random(2, 5, *shape), random(*shape, seed=1), some(*shape)
    new = SetElements(a, mask, 0.25)(x)
    torch.testing.assert_close(new[..., mask], 0.75 * x[..., mask] + 0.25 * a[mask])
    assert torch.equal(new[..., ~mask], x[..., ~mask])
    torch.testing.assert_close(SetElements(a, strength=0.25)(x), 0.75 * x + 0.25 * a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_at_strength_one_elements_are_exactly_the_values_and_at_zero_exactly_as_they_were(dtype: torch.dtype) -> None:
    x, a = 1e4 * random(3, 5, 32, dtype=dtype), random(32, seed=1)  # a + b − a would not be b
    mask = some(32)
    for edit in (SetElements(a), SetElements(a.expand(3, 32).clone(), per_row=True), SetElements(a, mask)):
        wide = torch.ones(32, dtype=torch.bool) if edit.mask is None else mask
        for one, zero in ((1.0, 0.0), (torch.ones(3), torch.zeros(3))):
            new = edit.at_strength(one)(x)
            assert torch.equal(new[..., wide], a.to(dtype).expand_as(x)[..., wide])
            assert torch.equal(new[..., ~wide], x[..., ~wide])
            assert torch.equal(edit.at_strength(zero)(x), x)
    assert torch.equal(ScaleElements(mask, 0.0)(x), x)
    assert torch.equal(ScaleElements(mask, torch.zeros(3))(x), x)


def test_strength_zero_changes_nothing_where_the_way_to_the_values_would_overflow() -> None:
    x, a = torch.full((2, 1, 4), -6e4, dtype=torch.float16), torch.full((4,), 6e4)
    for strength in (0.0, torch.zeros(2)):
        assert torch.equal(SetElements(a, strength=strength)(x), x)
    inf = torch.full((2, 1, 4), float("inf"))
    assert torch.equal(SetElements(a, strength=torch.tensor([0.0, 1.0]))(inf)[0], inf[0])


@pytest.mark.parametrize("mask", [None, some(4, 8)])
@pytest.mark.parametrize("strength", [1.0, 0.5, torch.tensor([0.0, 1.0, -2.0])])
def test_values_per_row_equal_every_row_alone(mask: torch.Tensor | None, strength: lensteer.hooks.Strength) -> None:
    x, a = random(3, 5, 4, 8), random(3, 4, 8, seed=1)
    edit = SetElements(a, mask, strength, per_row=True)
    assert (edit.shape, edit.n_rows) == ((4, 8), 3)
    together = edit(x)
    for i in range(3):
        own = float(strength[i]) if isinstance(strength, torch.Tensor) else strength
        alone = SetElements(a[i], mask, own)(x[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-6, rtol=1e-6)
    picked = edit.rows([2, 0, 2])
    torch.testing.assert_close(picked(x[[2, 0, 2]]), together[[2, 0, 2]])
    assert picked.n_rows == 3
    flat = x[:, 0]  # an activation without an axis of tokens
    torch.testing.assert_close(edit(flat), together[:, 0])


def test_scaling_with_a_strength_per_row_equals_every_row_alone() -> None:
    x, strengths = random(3, 5, 4, 8), torch.tensor([0.0, -1.0, 4.0])
    edit = ScaleElements(some(4, 8), strengths)
    assert edit.n_rows == 3
    assert edit.rows([1]).strength.tolist() == [-1.0]  # type: ignore[union-attr]
    for i, strength in enumerate(strengths.tolist()):
        assert torch.equal(edit(x)[i : i + 1], edit.at_strength(strength)(x[i : i + 1]))
    assert SetElements(random(32)).n_rows is None
    assert SetElements(random(32), strength=torch.ones(2)).n_rows == 2


ELEMENT_EDITS = [
    ScaleElements(some(32), 2.0),
    ScaleElements(some(32), torch.tensor([1.0, 2.0])),
    SetElements(random(32, seed=1), some(32), 0.5),
    SetElements(random(32, seed=1)),
    SetElements(random(2, 32, seed=1), some(32), torch.tensor([1.0, 0.3]), per_row=True),
]


@pytest.mark.parametrize("edit", ELEMENT_EDITS, ids=lambda edit: type(edit).__name__)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_an_edit_of_elements_keeps_the_dtype_and_does_not_write_into_its_input(edit, dtype: torch.dtype) -> None:
    x = random(2, 3, 32, seed=2, dtype=dtype)
    before = x.clone()
    new = edit(x)
    assert (new.dtype, new.shape) == (dtype, x.shape)
    torch.testing.assert_close(new.float(), edit(x.float()), atol=0.05, rtol=0.02)
    new.zero_()  # nor does it give away its own values
    assert torch.equal(x, before)
    torch.testing.assert_close(edit(x).float(), edit(x.float()), atol=0.05, rtol=0.02)


@pytest.mark.parametrize("edit", ELEMENT_EDITS, ids=lambda edit: type(edit).__name__)
def test_an_edit_of_elements_works_in_inference_mode_and_stays_where_the_activation_is(edit) -> None:
    with torch.inference_mode():
        assert edit(random(2, 3, 32)).is_inference()
    assert edit(random(2, 3, 32)).device == edit.to("cpu")(random(2, 3, 32)).device
    meta = edit(torch.empty(2, 3, 32, device="meta"))
    assert (meta.device.type, meta.shape) == ("meta", (2, 3, 32))
    assert edit.to("meta").mask is None or edit.to("meta").mask.device.type == "meta"


def test_gradients_through_edits_of_elements_are_right() -> None:
    x, a = random(2, 3, 6).double().requires_grad_(), random(2, 6, seed=1).double().requires_grad_()
    strength, mask = torch.tensor([0.5, -2.0], dtype=torch.float64), some(6)
    assert torch.autograd.gradcheck(lambda x: ScaleElements(mask, strength)(x), (x,))
    assert torch.autograd.gradcheck(lambda x, a: SetElements(a, mask, strength, per_row=True)(x), (x, a))
    assert torch.autograd.gradcheck(lambda x, a: SetElements(a[0])(x), (x, a))


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: ScaleElements(torch.ones(32)), TypeError, r"mask must be a tensor of booleans, got torch.float32"),
        (lambda: ScaleElements([True, False]), TypeError, r"mask must be a tensor of booleans, got <class 'list'>"),
        (lambda: ScaleElements(some(32), float("nan")), ValueError, r"strength must be finite, got nan"),
        (lambda: ScaleElements(some(32), torch.ones(2, 2)), ValueError, r"one value per batch row"),
        (lambda: SetElements(spoiled(float("nan"))), ValueError, r"values holds NaN or inf in 1 of 32"),
        (lambda: SetElements(spoiled(float("inf")), per_row=True), ValueError, r"values holds NaN or inf"),
        (lambda: SetElements(torch.arange(3)), TypeError, r"values must be a floating-point tensor.*int64"),
        (lambda: SetElements(random(32), torch.ones(32)), TypeError, r"mask must be a tensor of booleans"),
        (lambda: SetElements(random(32), some(16)), ValueError, r"mask has shape \(16,\), the values of a row \(32,\)"),
        (lambda: SetElements(random(2, 32), some(2, 32), per_row=True), ValueError, r"mask.*\(2, 32\).*\(32,\)"),
        (
            lambda: SetElements(random(2, 32), strength=torch.ones(3), per_row=True),
            ValueError,
            r"strength has 3 rows, values has 2 rows; they must agree",
        ),
        (
            lambda: SetElements(random(2, 32), per_row=True).at_strength(torch.ones(3)),
            ValueError,
            r"strength has 3 rows, values has 2 rows; they must agree",
        ),
    ],
)
def test_masks_and_values_that_do_not_fit_each_other_are_refused_when_the_edit_is_made(make, error, words) -> None:
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize("edit", ELEMENT_EDITS, ids=lambda edit: type(edit).__name__)
def test_an_edit_of_elements_of_another_width_is_refused_with_both_shapes(edit) -> None:
    with pytest.raises(ValueError, match=r"shape \(32,\) does not fit .*'blocks.3.hook_out'.*\(2, 5, 16\)"):
        edit(random(2, 5, 16), HookName("blocks.3.hook_out"))


def test_values_for_another_number_of_rows_are_refused_with_both_numbers_and_the_hook() -> None:
    for edit in (SetElements(random(3, 32), per_row=True), ScaleElements(some(32), torch.ones(3))):
        with pytest.raises(ValueError, match=r"3 values but the batch at 'blocks.3.hook_out' has 2 rows"):
            edit(random(2, 5, 32), HookName("blocks.3.hook_out"))
