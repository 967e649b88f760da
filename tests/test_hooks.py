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
from lensteer.hooks import Add, SetProjection

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
    tree = ast.parse(Path(lensteer.hooks.__file__).read_text(encoding="utf-8"))
    imported = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    imported += [name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names]
    assert "torch" in imported
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
