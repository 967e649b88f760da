"""The estimators of activation transport against NumPy, scikit-learn and brute force, unit by unit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from lensteer import Activations
from lensteer.methods import transport
from lensteer.methods.transport_maps import ESTIMATORS, LEVELS, UnitMaps, fit_units

METHODS = list(ESTIMATORS)
COUNTS = [(40, 40), (12, 30), (7, 5), (9, 2), (2, 3)]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def samples(n: int = 40, m: int = 40, units: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """A skewed source and a target of another shape, place and width; unit 0 is as near to Gaussian as it gets."""
    source = random(n, units) * torch.linspace(0.2, 3, units) + torch.linspace(-2, 2, units)
    source[:, 1:] += 0.5 * source[:, 1:].square()
    target = random(m, units, seed=1).abs() * torch.linspace(2, 0.3, units) + 1
    return source, target


def paired(source: torch.Tensor, target: torch.Tensor) -> list[tuple[np.ndarray, np.ndarray]]:
    """Brute force: every source sample n_b times and every target sample n_a times, sorted, in float64."""
    a, b = source.flatten(1).double().numpy(), target.flatten(1).double().numpy()
    return [(np.sort(np.repeat(a[:, i], len(b))), np.sort(np.repeat(b[:, i], len(a)))) for i in range(a.shape[1])]


def close(found: torch.Tensor, expected: Any, rel: float = 2e-6) -> None:
    np.testing.assert_allclose(found.flatten().numpy(), np.asarray(expected), rtol=rel, atol=1e-6)


# --- linear --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "m"), COUNTS)
def test_the_linear_map_is_least_squares_on_the_optimally_coupled_samples(n: int, m: int) -> None:
    source, target = samples(n, m)
    maps = fit_units(source, target)
    for i, (x, y) in enumerate(paired(source, target)):
        slope, start = np.polyfit(x, y, 1)
        assert float(maps.scale[i]) == pytest.approx(slope, rel=1e-5, abs=1e-6)
        assert float(maps.shift[i]) == pytest.approx(start, rel=1e-5, abs=1e-6)
    assert bool(maps.fitted.all())


@pytest.mark.parametrize(("n", "m"), COUNTS)
def test_distance_and_residual_are_those_of_brute_force_and_no_line_leaves_less(n: int, m: int) -> None:
    source, target = samples(n, m)
    for method in METHODS:
        maps = fit_units(source, target, method)
        for i, (x, y) in enumerate(paired(source, target)):
            omega, beta = float(maps.scale[i]), float(maps.shift[i])
            assert float(maps.distance[i]) == pytest.approx(np.mean((x - y) ** 2), rel=1e-5)
            assert float(maps.residual[i]) == pytest.approx(np.mean((omega * x + beta - y) ** 2), rel=1e-4, abs=1e-6)
        assert bool((fit_units(source, target).residual <= maps.residual * (1 + 1e-5)).all())


def test_the_slope_is_r_times_the_ratio_of_deviations_never_negative_and_leaves_one_minus_r_squared() -> None:
    source, target = samples()
    target[:, 3] = -source[:, 3]  # falling together is rising when sorted
    maps = fit_units(source, target)
    assert bool((maps.scale >= 0).all())
    for i, (x, y) in enumerate(paired(source, target)):
        r = np.corrcoef(x, y)[0, 1]
        assert float(maps.scale[i]) == pytest.approx(r * y.std() / x.std(), rel=1e-5)
        assert float(maps.residual[i]) == pytest.approx(y.var() * (1 - r**2), rel=1e-4)


def test_the_slope_is_divided_by_the_variance_of_the_source() -> None:
    # The preprint's formula, divided by the target's, would give 2 here.
    maps = fit_units(torch.tensor([[0.0], [2.0], [4.0]]), torch.tensor([[1.0], [2.0], [3.0]]))
    assert (maps.scale.item(), maps.shift.item()) == (pytest.approx(0.5), pytest.approx(1.0))


def test_two_samples_a_side_are_carried_exactly() -> None:
    maps = fit_units(torch.tensor([[1.0], [-1.0]]), torch.tensor([[3.0], [4.0]]))
    assert (maps.scale.item(), maps.shift.item()) == (pytest.approx(0.5), pytest.approx(3.5))
    assert maps.residual.item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("method", ["linear", "gaussian"])
def test_a_gaussian_is_carried_to_another(method: str) -> None:
    source, target = 1 + random(1000, 3), 5 + 0.5 * random(1000, 3, seed=1)
    maps = fit_units(source, target, method)
    moved = maps.edit()(random(2000, 3, seed=2) + 1)
    for mean, std, omega, beta in zip(moved.mean(0), moved.std(0), maps.scale, maps.shift, strict=True):
        assert float(mean) == pytest.approx(5, abs=0.1)
        assert float(std) == pytest.approx(0.5, abs=0.1)
        assert (float(omega), float(beta)) == (pytest.approx(0.5, abs=0.1), pytest.approx(4.5, abs=0.1))


# --- the other estimators ------------------------------------------------------------------------------------------


def test_gaussian_and_mean_maps_are_made_of_unbiased_moments() -> None:
    source, target = samples(12, 30)
    a, b = source.double().numpy(), target.double().numpy()
    ratio = b.std(0, ddof=1) / a.std(0, ddof=1)
    gaussian, mean, iti = (fit_units(source, target, method) for method in ("gaussian", "mean", "iti_m"))
    close(gaussian.scale, ratio)
    close(gaussian.shift, b.mean(0) - ratio * a.mean(0), rel=1e-5)
    for shifted in (mean, iti):
        close(shifted.scale, np.ones(6))
        close(shifted.shift, b.mean(0) - a.mean(0), rel=1e-5)
    close(gaussian.source_std, a.std(0, ddof=1))
    close(gaussian.target_std, b.std(0, ddof=1))
    close(gaussian.source_mean, a.mean(0), rel=1e-5)
    close(gaussian.target_mean, b.mean(0))


@pytest.mark.parametrize("method", ["gaussian", "mean"])
@pytest.mark.parametrize("still", ["source", "target"])
def test_gaussian_and_mean_maps_leave_a_unit_alone_that_hardly_varies_on_either_side(method: str, still: str) -> None:
    sides = dict(zip(("source", "target"), samples(units=3), strict=True))
    sides[still][:, 1] = 4 + 5e-5 * sides[still][:, 1] / sides[still][:, 1].std()
    maps = fit_units(sides["source"], sides["target"], method)
    assert maps.fitted.tolist() == [True, False, True]
    assert (maps.scale[1].item(), maps.shift[1].item()) == (1.0, 0.0)
    x = random(4, 3, seed=2)
    assert torch.equal(maps.edit(3.0)(x)[:, 1], x[:, 1])
    assert fit_units(sides["source"], sides["target"], method, min_std=1e-5).fitted.all()
    assert not fit_units(sides["source"], sides["target"], method, min_std=100.0).fitted.any()


def test_auroc_and_average_precision_are_those_of_scikit_learn_also_where_values_tie() -> None:
    source = torch.randint(0, 5, (30, 8), generator=torch.Generator().manual_seed(0)).float()
    target = torch.randint(0, 5, (20, 8), generator=torch.Generator().manual_seed(1)).float() - 1
    source[:, 0], target[:, 0] = 1.0, 1.0  # nothing but ties
    source[:, 1], target[:, 1] = random(30), random(20, seed=1) + 1  # none, and detects the target
    labels = np.repeat([1, 0], [30, 20])
    aura, below = fit_units(source, target, "aura"), fit_units(source, target, "det_zero", above=-1.0)
    assert bool(below.fitted.all())
    for i in range(8):
        scores = torch.cat([source[:, i], target[:, i]]).numpy()
        area, precision = roc_auc_score(labels, scores), average_precision_score(labels, scores)
        assert float(aura.scale[i]) == pytest.approx(1 - 2 * (area - 0.5) if area > 0.5 else 1.0, abs=1e-6)
        assert bool(aura.fitted[i]) == (area > 0.5)
        for above in (precision - 1e-4, precision + 1e-4):
            zeroed = fit_units(source, target, "det_zero", above=above)
            assert bool(zeroed.fitted[i]) == (precision > above)
            assert (zeroed.scale[i].item(), zeroed.shift[i].item()) == (
                (0.0, pytest.approx(target[:, i].mean().item())) if precision > above else (1.0, 0.0)
            )
    assert not bool(aura.fitted[0]) and not bool(aura.fitted[1])
    assert not aura.shift.any()


def test_aura_silences_a_perfect_detector_and_det_zero_sets_it_to_the_targets_mean() -> None:
    source, target = torch.tensor([[3.0], [4.0]]), torch.tensor([[1.0], [2.0]])
    x = torch.tensor([[10.0]])
    assert fit_units(source, target, "aura").edit()(x).item() == 0.0
    assert fit_units(source, target, "aura").edit(0.5)(x).item() == 5.0
    assert fit_units(source, target, "det_zero").edit()(x).item() == 1.5


# --- units that do not vary ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [0.0, 3.1, -4e4, 1e-20])
def test_a_source_unit_that_does_not_vary_is_safe_with_and_without_a_support(method: str, value: float) -> None:
    source, target = samples(units=2)
    source[:, 1] = value
    maps = fit_units(source, target, method)
    assert all(bool(torch.isfinite(getattr(maps, name)).all()) for name in UnitMaps.__dataclass_fields__)
    x = torch.cat([random(50, 2, seed=2), torch.full((1, 2), value)])
    assert torch.equal(maps.edit(1.0, (0, 100))(x)[:, 1], x[:, 1])  # the support is one point
    moved = maps.edit(1.0, None)(x)[:, 1] - x[:, 1]
    assert bool((moved.abs() <= abs(value) + 10 + x[:, 1].abs()).all())  # no slope of millions


def test_the_rounding_of_a_large_constant_is_no_variance_and_a_small_true_one_is() -> None:
    source, target = samples(units=3)
    source[:, 1] = (
        1e4 + torch.rand(40, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 1e-3
    ).float()
    source[:, 2] = 1e-8 * source[:, 2]
    maps = fit_units(source, target)
    assert maps.fitted.tolist() == [True, False, True]
    assert maps.scale[1].item() == 1.0
    assert float(maps.shift[1]) == pytest.approx(float(target[:, 1].mean() - 1e4), rel=1e-4)
    assert float(maps.scale[2]) > 1e5  # in other units the same map


def test_a_target_that_does_not_vary_draws_everything_to_it() -> None:
    source, target = samples(units=2)
    target[:, 1] = 7.0
    maps = fit_units(source, target)
    assert (maps.scale[1].item(), maps.shift[1].item()) == (pytest.approx(0, abs=1e-6), pytest.approx(7, abs=1e-5))


# --- support -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 40, 301])
def test_every_quantile_of_the_source_is_numpys_and_supports_are_linear_between_them(n: int) -> None:
    source, target = samples(n, 5)
    maps = fit_units(source, target)
    assert LEVELS[:4] == (0, 0.5, 1, 2) and LEVELS[-3:] == (99, 99.5, 100) and len(LEVELS) == 103
    np.testing.assert_allclose(maps.quantiles, np.percentile(source.numpy(), LEVELS, axis=0), rtol=1e-5, atol=1e-6)
    assert torch.equal(maps.support(0, 100)[0], source.amin(0)) and torch.equal(maps.support(0, 100)[1], source.amax(0))
    for low, high in [(0.5, 99.5), (1, 99), (10, 90), (40, 60)]:
        found = maps.support(low, high)
        np.testing.assert_allclose(found[0], np.percentile(source.numpy(), low, axis=0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found[1], np.percentile(source.numpy(), high, axis=0), rtol=1e-5, atol=1e-6)
    low, high = maps.support(2.25, 97.9)
    levels = np.percentile(source.numpy(), [2, 3, 97, 98], axis=0)
    np.testing.assert_allclose(low, 0.75 * levels[0] + 0.25 * levels[1], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(high, 0.1 * levels[2] + 0.9 * levels[3], rtol=1e-5, atol=1e-5)


def test_the_sources_own_extremes_are_not_moved_and_what_lies_between_them_is() -> None:
    source, target = samples()
    maps = fit_units(source, target)
    moved = maps.edit(1.0, (0, 100))(source)
    extreme = (source == source.amin(0)) | (source == source.amax(0))
    assert int(extreme.sum()) == 12
    assert torch.equal(moved[extreme], source[extreme])
    torch.testing.assert_close(moved[~extreme], (maps.scale * source + maps.shift)[~extreme])


# --- equivariance --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["linear", "gaussian", "mean", "iti_m"])
@pytest.mark.parametrize("support", [None, (0, 100), (10, 90)])
@pytest.mark.parametrize(("n", "m"), [(40, 40), (12, 30)])
def test_fitting_before_or_after_a_norms_weights_gives_the_same_model(
    method: str, support: Any, n: int, m: int
) -> None:
    source, target = (side.double() for side in samples(n, m))
    weight = torch.tensor([2.0, -1.5, 0.3, -0.7, 1.0, -3.0], dtype=torch.float64)
    bias = random(6, seed=5).double()
    x = random(200, 6, seed=2).double() * 2
    before, after = fit_units(source, target, method), fit_units(weight * source + bias, weight * target + bias, method)
    moved = before.edit(0.7, support)(x)
    assert not torch.allclose(moved, x)
    torch.testing.assert_close(after.edit(0.7, support)(weight * x + bias), weight * moved + bias, atol=1e-4, rtol=1e-4)


# --- shapes, dtypes, determinism -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_heads_are_fitted_like_the_same_units_in_a_row_and_units_do_not_see_each_other(method: str) -> None:
    source, target = samples()
    flat, heads = fit_units(source, target, method), fit_units(source.view(40, 2, 3), target.view(40, 2, 3), method)
    alone = fit_units(source[:, 2:3], target[:, 2:3], method)
    shuffled = fit_units(source[torch.randperm(40)], target[torch.randperm(40)], method)
    for name in UnitMaps.__dataclass_fields__:
        value = getattr(heads, name)
        assert value.shape[-2:] == (2, 3)
        assert torch.equal(value.flatten(-2), getattr(flat, name))
        # The order of a sum may differ.
        torch.testing.assert_close(getattr(alone, name)[..., 0], getattr(flat, name)[..., 2])
        torch.testing.assert_close(getattr(shuffled, name), getattr(flat, name))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_samples_of_other_dtypes_are_taken_for_their_values_and_left_as_they_are(dtype: torch.dtype) -> None:
    source, target = (side.to(dtype) for side in samples())
    before = source.clone(), target.clone()
    maps = fit_units(source, target)
    assert torch.equal(source, before[0]) and torch.equal(target, before[1])
    assert maps.scale.dtype == maps.quantiles.dtype == torch.float32
    for i, (x, y) in enumerate(paired(source, target)):
        slope, start = np.polyfit(x, y, 1)
        assert (float(maps.scale[i]), float(maps.shift[i])) == (
            pytest.approx(slope, rel=1e-5),
            pytest.approx(start, rel=1e-5, abs=1e-6),
        )


def test_a_large_offset_does_not_spoil_the_fit() -> None:
    source, target = (side.double() for side in samples(100, 70))
    near, far = fit_units(source, target), fit_units(source + 1e4, target - 1e4)
    torch.testing.assert_close(far.scale, near.scale, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(far.residual, near.residual, rtol=1e-3, atol=1e-4)


def test_a_fit_has_no_randomness_and_takes_none() -> None:
    source, target = samples()
    state = torch.get_rng_state()
    one, other = fit_units(source, target), fit_units(source, target)
    assert torch.equal(one.scale, other.scale) and torch.equal(one.shift, other.shift)
    assert torch.equal(torch.get_rng_state(), state)


# --- bad input -----------------------------------------------------------------------------------------------------

FINE = torch.ones(3, 4)


@pytest.mark.parametrize(
    ("source", "target", "options", "kind", "words"),
    [
        (FINE[:1], FINE, {}, ValueError, "the source has 1 samples; a map needs at least two"),
        (FINE, FINE[:0], {}, ValueError, "the target has 0 samples"),
        (FINE * torch.tensor([[1], [torch.nan], [1]]), FINE, {}, ValueError, "1 of 3 samples of the source hold NaN"),
        (FINE, FINE * torch.tensor([[-torch.inf], [torch.inf], [1]]), {}, ValueError, "2 of 3 samples of the target"),
        (FINE, FINE[:, :3], {}, ValueError, r"units \(4,\) and \(3,\); they must agree"),
        (FINE, FINE, {"method": "otto"}, ValueError, "method must be one of .*'linear'.*got 'otto'"),
        (FINE, FINE, {"method": ["linear"]}, ValueError, r"got \['linear'\]"),
        (FINE, FINE, {"above": 1e-3}, TypeError, "method 'linear' has no option 'above'; it has min_std"),
        (FINE, FINE, {"method": "mean", "above": 1}, TypeError, "'mean' has no option 'above'; it has min_std"),
        (FINE, FINE, {"method": "det_zero", "above": math.nan}, ValueError, "above must be a finite number, got nan"),
        (FINE, FINE, {"method": "gaussian", "min_std": "1"}, ValueError, "min_std must be a finite number, got '1'"),
    ],
)
def test_samples_and_options_that_cannot_be_fitted_are_refused(
    source: Any, target: Any, options: Any, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        fit_units(source, target, **options)


@pytest.mark.parametrize("support", [(60, 40), (50, 50), (-1, 100), (0, 100.5), (0, math.nan), (0,), "q_all", 5])
def test_a_support_that_is_empty_or_no_pair_of_percentages_is_refused(support: Any) -> None:
    with pytest.raises(ValueError, match="two percentages of the source"):
        fit_units(*samples()).edit(1.0, support)


# --- from activations that were captured before --------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_maps_from_activations_are_those_of_every_site_with_the_methods_own_support(method: str) -> None:
    (source, target), names = samples(12, 30), ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    sides = [Activations(dict(zip(names, (side, 2 * side), strict=True))) for side in (source, target)]
    found = transport.from_activations(*sides, method, name="mine", metadata={"data_hash": "x"})
    assert list(found.maps) == names
    assert torch.equal(found.maps[names[1]].shift, fit_units(2 * source, 2 * target, method).shift)
    assert found.support == ((0, 100) if method == "linear" else None)
    assert found.metadata == {
        **{"method": method, "name": "mine", "order": "simultaneous", "data_hash": "x"},
        **{"n_source": "12", "n_target": "30"},
        "coupling": "12 and 30 samples: quantiles matched by the exact coupling",
    }
    assert found.samples[names[0]][0] is source


def test_activations_that_do_not_belong_together_are_refused() -> None:
    one, other = {"a": FINE, "b": FINE}, {"b": FINE, "a": FINE}
    with pytest.raises(ValueError, match="same hook names, in one order"):
        transport.from_activations(one, other)
    with pytest.raises(ValueError, match="same hook names"):
        transport.from_activations({}, {})
    with pytest.raises(ValueError, match="two percentages"):
        transport.from_activations(one, one, support=(9, 1))
    with pytest.raises(TypeError, match="no option 'above'"):
        transport.from_activations(one, one, above=1)
    every = Activations({"a": torch.ones(3, 5, 4)}, mask=torch.ones(3, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match="the source holds every token of padded prompts; pool them"):
        transport.from_activations(every, every)
