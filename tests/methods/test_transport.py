"""Fits of activation transport against a restart from the input for every site, in NumPy and plain torch hooks."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from groups import MODULES, hooked

import lensteer as ls
from lensteer import Add, Steering, transport
from lensteer.methods.transport import DEFAULTS
from lensteer.methods.transport_fitted import Transport
from lensteer.methods.transport_maps import UnitMaps

SOURCE = ["You are a fool.", "Shut up!", "What an ugly, stupid hat that is", "Go away", "I hate it here, all of it"]
TARGET = ["How kind of you.", "A fine day", "Please sit down by the window", "Thanks!", "Well done", "We like it here"]
POOLS: dict[Any, Any] = {
    "mean": lambda x: x.mean(0, keepdims=True),
    "max": lambda x: x.max(0, keepdims=True),
    "min": lambda x: x.min(0, keepdims=True),
    "last": lambda x: x[-1:],
    "all": lambda x: x,
}
Places = list[tuple[str, int]]


def fit(case: Any, *args: Any, sites: Any = "norms", **options: Any) -> Transport:
    source, target = args or (SOURCE, TARGET)
    return transport.fit(case.model, source, target, sites=sites, **{"progress": False, **options})


def linear(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least squares on the optimal coupling, by brute force."""
    n, m = len(a), len(b)
    a, b = np.sort(np.repeat(a, m, 0), 0), np.sort(np.repeat(b, n, 0), 0)
    x, y = a - a.mean(0), b - b.mean(0)
    still = x.std(0) < 1e-6 * np.abs(a).max(0)  # a unit whose extreme is at the BOS of every text
    slope = np.where(still, 1.0, (x * y).sum(0) / np.where(still, 1.0, (x * x).sum(0)))
    return slope, b.mean(0) - slope * a.mean(0)


def shift_only(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.ones(a.shape[1]), b.mean(0) - a.mean(0)


def restarted(
    case: Any,
    groups: list[str],
    layers: list[int],
    pool: Any,
    support: tuple[float, float] | None,
    strength: float = 1.0,
    estimator: Any = linear,
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Slope, start, source samples, target samples of every site: each fitted on runs from the input.

    One text at a time, unpadded; the sites are found in the order in which the model calls its modules.
    """
    done: list[tuple[Any, ...]] = []
    while True:
        reached: list[int] = []
        sides: list[list[np.ndarray]] = [[], []]
        for side, texts in enumerate((SOURCE, TARGET)):
            for text in texts:
                calls: list[str] = []

                def change(place: str, x: torch.Tensor, calls: Any = calls, read: Any = sides[side]) -> torch.Tensor:
                    number = len(calls)
                    calls.append(place)
                    if number == len(done):
                        read.append(pool(x[0].numpy()))
                    if number >= len(done):
                        return x
                    slope, start, low, high = done[number][:4]
                    a = x.numpy()
                    moved = (1 - strength) * a + strength * (slope * a + start)
                    return torch.from_numpy(np.where((a > low) & (a < high), moved, a).astype(np.float32))

                handles = [h for group in groups for h in hooked(case.hf, group, layers, change, case.name)]
                with torch.no_grad():
                    case.hf(torch.tensor([case.tokenizer(text)["input_ids"]]), use_cache=False)
                for handle in handles:
                    handle.remove()
                reached.append(len(calls))
        if reached[0] == len(done):
            return [(slope, start, a, b) for slope, start, _, _, a, b in done]
        a, b = (np.concatenate(side).astype(np.float64) for side in sides)
        low, high = (-np.inf, np.inf) if support is None else np.percentile(a, support, axis=0)
        done.append((*estimator(a, b), np.float32(low), np.float32(high), a, b))


def agree(found: Transport, expected: Any) -> None:
    # A bound is a step: a token within rounding of it is moved in one computation and left alone in the other.
    rel = 2e-5 if found.support is None else 1e-3
    assert len(found.maps) == len(expected) > 0
    for (name, own), (slope, start, a, b) in zip(found.maps.items(), expected, strict=True):
        for mine, theirs in zip(found.samples[name], (a, b), strict=True):
            difference = np.linalg.norm(mine.flatten(1).numpy() - theirs) / np.linalg.norm(theirs)
            assert difference < rel, f"samples at {name}"
        for mine, theirs in ((own.scale, slope), (own.shift, start)):
            assert np.linalg.norm(mine.flatten().numpy() - theirs) / np.linalg.norm(theirs) < 10 * rel, name


# --- causal order --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("support", [None, (0, 100), (5, 95)])
@pytest.mark.parametrize("groups", [["norms", "attention", "mlp"], ["heads", "mlp_linears", "residual"]])
def test_one_pass_gives_the_maps_of_a_restart_for_every_site(tiny: Any, groups: list[str], support: Any) -> None:
    found = fit(tiny, sites=groups, support=support, layers=[0, 3], batch_size=4)
    agree(found, restarted(tiny, groups, [0, 3], POOLS["mean"], support))


@pytest.mark.parametrize("tokens", list(POOLS))
@pytest.mark.parametrize("support", [None, (0, 100)])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_every_pooling_is_that_of_the_texts_tokens(request: Any, architecture: str, tokens: Any, support: Any) -> None:
    case = request.getfixturevalue(architecture)
    found = fit(case, tokens=tokens, support=support, layers=[0, 1], batch_size=3)
    agree(found, restarted(case, ["norms"], [0, 1], POOLS[tokens], support))


def test_post_norms_of_gemma_are_fitted_through_its_sliding_window(fresh: Any) -> None:
    case = fresh("gemma2")
    assert max(len(text) for text in SOURCE) > case.hf.config.sliding_window
    agree(
        fit(case, sites="post_norms", batch_size=4),
        restarted(case, ["post_norms"], [0, 1, 2, 3], POOLS["mean"], (0, 100)),
    )


def test_maps_before_a_site_act_with_the_strength_of_the_fit_and_by_their_own_estimator(llama: Any) -> None:
    found = fit(llama, strength=0.4, support=None)
    agree(found, restarted(llama, ["norms"], [0, 1, 2, 3], POOLS["mean"], None, strength=0.4))
    shifted = fit(llama, method="mean")
    agree(shifted, restarted(llama, ["norms"], [0, 1, 2, 3], POOLS["mean"], None, estimator=shift_only))
    assert shifted.support is None and found.metadata["fit_strength"] == "0.4"


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_causal_maps_bring_the_mean_to_the_targets_at_every_site_and_simultaneous_ones_only_at_the_first(
    cases: Any, fresh: Any, architecture: str
) -> None:
    case = fresh(architecture)

    def gaps(order: Any) -> list[float]:
        """How far the source's mean is from the target's after each site's own map, the maps before it in force."""
        found = fit(case, order=order, support=None)
        steering, gaps = list(found.steering()), []
        for number, (name, edit) in enumerate(steering):
            with Steering(steering[:number]).on(case.model):
                read = {"tokens": "mean", "prompt_format": "plain", "progress": False}
                source, target = (ls.capture(case.model, texts, name, **read)[name] for texts in (SOURCE, TARGET))
            moved = edit(source).mean(0)  # the mean of tokens commutes with an affine map
            gaps.append(float((moved - target.mean(0)).norm() / (source.mean(0) - target.mean(0)).norm()))
        return gaps

    assert max(gaps("causal")) < 1e-4
    first, *later = gaps("simultaneous")
    assert first < 1e-4
    assert min(later) > 1e-2


def test_the_first_site_is_the_same_in_both_orders_and_later_ones_are_not(tiny: Any) -> None:
    causal, simultaneous = (fit(tiny, order=order) for order in ("causal", "simultaneous"))
    assert list(causal.maps) == list(simultaneous.maps)
    first, *others = causal.maps
    for name in UnitMaps.__dataclass_fields__:
        one, other = (getattr(found.maps[first], name) for found in (causal, simultaneous))
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    # In parallel blocks (GPT-NeoX) the second norm does not see the first one's map.
    for name in others if tiny.name != "neox" else others[1:]:
        assert not torch.allclose(causal.maps[name].scale, simultaneous.maps[name].scale, rtol=1e-2)


def test_simultaneous_maps_are_those_of_plain_hooks_on_the_unsteered_model(tiny: Any) -> None:
    found = fit(tiny, sites="mlp", order="simultaneous", batch_size=4)
    for layer, name in enumerate(found.maps):
        sides = []
        for texts in (SOURCE, TARGET):
            read: list[np.ndarray] = []

            def keep(place: str, x: torch.Tensor, read: list[np.ndarray] = read) -> torch.Tensor:
                read.append(x[0].mean(0).double().numpy())
                return x

            handles = hooked(tiny.hf, "mlp", [layer], keep, tiny.name)
            for text in texts:
                with torch.no_grad():
                    tiny.hf(torch.tensor([tiny.tokenizer(text)["input_ids"]]))
            for handle in handles:
                handle.remove()
            sides.append(np.stack(read))
        slope, start = linear(*sides)
        np.testing.assert_allclose(found.maps[name].scale, slope, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(found.maps[name].shift, start, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("order", ["causal", "simultaneous"])
def test_the_data_pass_the_model_exactly_once(llama: Any, forwards: Any, order: Any) -> None:
    ls.transport.fit(llama.model, SOURCE, TARGET, progress=False)  # points are checked once in a model's life
    with forwards(llama) as calls:
        fit(llama, order=order, batch_size=4)
    assert len(calls) == 3 and sum(rows for rows, _ in calls) == 11


@pytest.mark.parametrize("order", ["causal", "simultaneous"])
def test_padding_and_the_size_of_batches_do_not_matter(tiny: Any, order: Any) -> None:
    one, other = (fit(tiny, order=order, batch_size=size, layers=[0, 1]) for size in (1, 11))
    for name in one.maps:
        torch.testing.assert_close(one.maps[name].scale, other.maps[name].scale, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(one.samples[name], other.samples[name], atol=1e-5, rtol=1e-4)


def test_bos_and_template_tokens_can_be_left_out(llama: Any) -> None:
    name = "blocks.0.ln1.hook_out"
    for options, start in (({"bos": False}, 1), ({"template": False}, 1), ({}, 0)):
        found = fit(llama, order="causal", layers=0, **options)
        for texts, samples in zip((SOURCE, TARGET), found.samples[name], strict=True):
            for text, sample in zip(texts, samples, strict=True):
                read: list[torch.Tensor] = []
                module = oracles.blocks(llama.hf)[0].input_layernorm
                handle = module.register_forward_hook(lambda m, args, out, read=read: read.append(out[0]))
                with torch.no_grad():
                    llama.hf(torch.tensor([llama.tokenizer(text)["input_ids"]]))
                handle.remove()
                torch.testing.assert_close(sample, read[0][start:].mean(0), atol=1e-5, rtol=1e-4)


def test_the_defaults_are_those_of_the_released_code(llama: Any) -> None:
    for method, usual in DEFAULTS.items():
        found = fit(llama, method=method, layers=[0])
        assert (found.metadata["tokens"], found.metadata["order"]) == (usual.tokens, usual.order)
        assert found.support == usual.support == ((0, 100) if method == "linear" else None)
    assert [DEFAULTS[m].order for m in ("linear", "mean", "aura")] == ["causal", "causal", "simultaneous"]


# --- models --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_models_of_other_dtypes_are_fitted_in_single_precision_at_least(
    fresh_hf: Any, new_tokenizer: Any, dtype: Any
) -> None:
    whole = ls.load_model(fresh_hf("llama"), tokenizer=new_tokenizer(bos=True))
    other = ls.load_model(fresh_hf("llama").to(dtype), tokenizer=new_tokenizer(bos=True))
    one, two = (transport.fit(model, SOURCE, TARGET, layers=[0, 1], progress=False) for model in (whole, other))
    for name in one.maps:
        a, b = one.samples[name][0], two.samples[name][0]
        assert b.dtype == two.maps[name].scale.dtype == torch.float32
        assert (a - b).norm() / a.norm() < (0.05 if dtype.itemsize == 2 else 1e-4)
    assert two.steering(0.5).points(other)
    tokens = torch.tensor([[1, 9, 30]])
    with two.steering(0.0).on(other), torch.no_grad():
        steered = ls.plain_model(other)(tokens).logits
    assert torch.equal(steered, ls.plain_model(other)(tokens).logits)


def test_a_fit_in_a_worker_thread_is_that_of_the_main_thread(llama: Any) -> None:
    found: list[Transport] = []
    worker = threading.Thread(target=lambda: found.append(fit(llama)))
    worker.start()
    worker.join(60)
    same(found[0], fit(llama))


def same(one: Transport, other: Transport) -> None:
    assert list(one.maps) == list(other.maps)
    for hook in one.maps:
        for name in UnitMaps.__dataclass_fields__:
            assert torch.equal(getattr(one.maps[hook], name), getattr(other.maps[hook], name)), (hook, name)


SCRIPT = """
import hashlib, sys, torch
sys.path.insert(0, sys.argv[1])
import conftest, test_transport
torch.manual_seed(int(sys.argv[2]))
found = test_transport.fit(conftest.make_case("llama"), method="linear")
data = b"".join(own.scale.numpy().tobytes() + own.shift.numpy().tobytes() for own in found.maps.values())
print(hashlib.sha256(data).hexdigest(), found.metadata["data_hash"])
"""


@pytest.mark.slow
def test_a_fit_is_the_same_whatever_the_seed_and_the_order_of_hashes() -> None:
    tests = Path(__file__).parents[1]
    outputs = {
        subprocess.run(
            [
                sys.executable,
                "-c",
                f"import sys; sys.path.append({str(tests / 'methods')!r})" + SCRIPT,
                str(tests),
                seed,
            ],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1 and len(outputs.pop().split()) == 2


def test_what_is_kept_of_a_fit_may_enter_autograd(llama: Any) -> None:
    for order in ("causal", "simultaneous"):
        found = fit(llama, order=order, layers=[0])
        for name, own in found.maps.items():
            assert not any(getattr(own, key).is_inference() for key in UnitMaps.__dataclass_fields__)
            assert not any(side.is_inference() for side in found.samples[name])


# --- steering ------------------------------------------------------------------------------------------------------


def logits(case: Any, steering: Any, text: str = "The sea is calm.") -> torch.Tensor:
    with torch.no_grad(), steering.on(case.model):
        return case.hf(torch.tensor([case.tokenizer(text)["input_ids"]]), use_cache=False).logits[0]


def test_a_steering_carries_every_token_inside_the_support_as_plain_hooks_do(tiny: Any) -> None:
    found = fit(tiny, sites="mlp", order="simultaneous")
    for support, strength in (((0, 100), 1.0), (None, 0.5), ((10, 90), 2.0)):
        waiting = iter(found.maps.values())

        def change(place: str, x: torch.Tensor, waiting: Any = waiting, s: Any = support, c: float = strength) -> Any:
            own = next(waiting)
            moved = (1 - c) * x + c * (own.scale * x + own.shift)
            low, high = (-math.inf, math.inf) if s is None else own.support(*s)
            return torch.where((x > low) & (x < high), moved, x)

        handles = hooked(tiny.hf, "mlp", range(4), change, tiny.name)
        with torch.no_grad():
            expected = tiny.hf(torch.tensor([tiny.tokenizer("The sea is calm.")["input_ids"]]), use_cache=False).logits[
                0
            ]
        for handle in handles:
            handle.remove()
        torch.testing.assert_close(
            logits(tiny, found.steering(strength, support=support)), expected, atol=1e-4, rtol=1e-4
        )


def test_strength_layers_tokens_and_rows_of_a_steering(llama: Any) -> None:
    found = fit(llama)
    clean = logits(llama, Steering())
    assert torch.equal(logits(llama, found.steering(0.0)), clean)
    assert not torch.allclose(logits(llama, found.steering()), clean, atol=1e-2)
    assert [name for name, _ in found.steering(layers=[3, 1])] == [n for n in found.maps if ".1." in n or ".3." in n]
    assert [name for name, _ in found.steering(layers=2)] == ["blocks.2.ln1.hook_out", "blocks.2.ln2.hook_out"]
    assert found.steering([0.0, 1.0, 2.0]).n_rows == 3
    assert found.steering(tokens="generated")[0][1].tokens == "generated"  # type: ignore[attr-defined]
    steering = found.steering(0.5, support=(1, 99))
    assert steering.metadata["support"] == "1 to 99 %" and steering.metadata["order"] == "causal"
    assert found.steering(support=None)[0][1].low is None  # type: ignore[attr-defined]
    assert found.steering()[0][1].low is not None  # type: ignore[attr-defined]
    texts = ls.generate(llama.model, ["Hello"], found.steering(), max_new_tokens=3)
    assert len(texts) == 1


def test_heads_are_those_that_tell_the_sides_apart_best(llama: Any) -> None:
    found = fit(llama, sites="heads", method="iti_m")
    scores = []
    for name in found.maps:
        a, b = (side.double().numpy() for side in found.samples[name])
        spread = np.sqrt(((a.var(0, ddof=1) + b.var(0, ddof=1)) / 2).mean(-1))
        scores.append(np.linalg.norm(b.mean(0) - a.mean(0), axis=-1) / spread)
    ranks = np.argsort(-np.stack(scores).ravel())
    for count in (1, 3, 16):
        chosen = set(ranks[:count].tolist())
        steering = dict(found.steering(heads=count))
        for layer, (name, own) in enumerate(found.maps.items()):
            here = [head for head in range(4) if 4 * layer + head in chosen]
            assert (name in steering) == bool(here)
            for head in range(4) if here else ():
                kept = torch.zeros(8) if head not in here else own.shift[head]
                assert torch.equal(steering[name].shift[head], kept)  # type: ignore[attr-defined]
                assert torch.equal(steering[name].scale[head], torch.ones(8))  # type: ignore[attr-defined]
    assert len(found.steering(heads=2, layers=[1])) == 1
    for wrong in (0, 17, -1):
        with pytest.raises(ValueError, match="there are 16 heads"):
            found.steering(heads=wrong)
    with pytest.raises(ValueError, match="fit at sites='heads'"):
        fit(llama, layers=[0]).steering(heads=1)


@pytest.mark.parametrize("method", ["linear", "mean", "aura"])
def test_the_random_control_moves_the_mean_as_far_in_another_direction(llama: Any, method: str) -> None:
    found = fit(llama, method=method)
    one, again, other = found.random(), found.random(0), found.random(1)
    for name, own in found.maps.items():
        mean = own.source_mean
        moved, control = own.scale * mean + own.shift - mean, one.maps[name].edit()(mean[None])[0] - mean
        assert float(control.norm()) == pytest.approx(float(moved.norm()), rel=1e-4)
        assert abs(float(torch.cosine_similarity(control, moved, 0))) < 0.9
        assert torch.equal(one.maps[name].shift, again.maps[name].shift)
        assert not torch.equal(one.maps[name].shift, other.maps[name].shift)
        # What the control leaves is measured on the samples.
        a, b = (side.double().numpy() for side in found.samples[name])
        x, y = np.sort(np.repeat(a, len(b), 0), 0), np.sort(np.repeat(b, len(a), 0), 0)
        left = ((x + one.maps[name].shift.double().numpy() - y) ** 2).mean(0)
        np.testing.assert_allclose(one.maps[name].residual, left, rtol=1e-3, atol=1e-5)
    assert one.method == f"random ({method})" and one.support == found.support
    assert list(one.table().explained < found.table().explained) == [True] * 8 or method == "aura"


def test_the_table_says_what_the_maps_do(llama: Any) -> None:
    found = fit(llama, sites=["norms", "heads"])
    table = found.table()
    assert list(table.hook) == list(found.maps) and list(table.layer) == sorted([0, 1, 2, 3] * 3)
    for row, (name, own) in zip(table.itertuples(), found.maps.items(), strict=True):
        a, b = (side.flatten(1).double().numpy() for side in found.samples[name])
        x, y = np.sort(np.repeat(a, len(b), 0), 0), np.sort(np.repeat(b, len(a), 0), 0)
        slope, start = linear(a, b)
        before, after = ((x - y) ** 2).mean(0).sum(), ((slope * x + start - y) ** 2).mean(0).sum()
        assert (row.units, row.fitted) == (32, 32)
        assert row.distance == pytest.approx(before, rel=1e-4)
        assert row.explained == pytest.approx(1 - after / before, rel=1e-3)
        assert row.shift == pytest.approx(np.linalg.norm(b.mean(0) - a.mean(0)), rel=1e-4)
        assert row.source_std == pytest.approx(a.std(0, ddof=1).mean(), rel=1e-4)
        assert row.target_std == pytest.approx(b.std(0, ddof=1).mean(), rel=1e-4)
        assert row.scale == pytest.approx(float(own.scale.flatten().median()))
    where = "Transport 'transport' (linear): 12 sites in 4 layers on LlamaForCausalLM"
    assert repr(found) == f"{where}, source n=5, target n=6 (5 and 6 samples: quantiles matched by the exact coupling)"
    assert "<table" in found._repr_html_() and "ln1" in found._repr_html_()


# --- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "sites"), [("linear", "norms"), ("iti_m", "heads"), ("det_zero", "mlp")])
def test_a_saved_transport_comes_back_whole(llama: Any, tmp_path: Path, method: str, sites: str) -> None:
    found = fit(llama, method=method, sites=sites)
    loaded = Transport.load(found.save(tmp_path / "maps.safetensors"), llama.model)
    same(found, loaded)
    assert (loaded.name, loaded.method, loaded.support) == (found.name, found.method, found.support)
    assert dict(loaded.metadata) == dict(found.metadata) and loaded.samples == {}
    assert torch.equal(logits(llama, loaded.steering(0.7)), logits(llama, found.steering(0.7)))
    steering = Steering.load(found.steering(0.7).save(tmp_path / "steering.safetensors"), llama.model)
    assert torch.equal(logits(llama, steering), logits(llama, found.steering(0.7)))


def test_maps_for_another_model_and_other_files_are_refused(llama: Any, gpt2: Any, fresh: Any, tmp_path: Path) -> None:
    found = fit(llama)
    path = found.save(tmp_path / "maps.safetensors")
    with pytest.raises(ValueError, match=r"made on LlamaForCausalLM .* does not fit GPT2LMHeadModel"):
        Transport.load(path, gpt2.model)
    shallow = fresh("llama", num_hidden_layers=2)
    with pytest.raises(ValueError, match=r"4 layers of width 32\) and does not fit LlamaForCausalLM \(2 of 32\)"):
        Transport.load(path, shallow.model)
    with pytest.raises(ValueError, match="does not fit"), found.steering().on(shallow.model):
        pass
    with pytest.raises(ValueError, match=r"is not a lensteer\.transport\.v1 file"):
        Transport.load(found.steering().save(tmp_path / "steering.safetensors"))
    with pytest.raises(FileNotFoundError):
        Transport.load(tmp_path / "none")
    (tmp_path / "cut").write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="damaged, truncated"):
        Transport.load(tmp_path / "cut")


def test_a_simultaneous_fit_goes_on_where_it_stopped(llama: Any, forwards: Any, tmp_path: Path) -> None:
    first = fit(llama, order="simultaneous", resume=tmp_path, batch_size=4)
    with forwards(llama) as calls:
        again = fit(llama, order="simultaneous", resume=tmp_path, batch_size=4)
    assert calls == []
    same(first, again)


# --- refused before any pass ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["causal", "simultaneous"])
@pytest.mark.parametrize(
    ("sides", "options", "kind", "words"),
    [
        ((SOURCE[:1], TARGET), {}, ValueError, "the source has 1 texts; a map needs at least two"),
        ((SOURCE, []), {}, ValueError, "the target has 0 texts"),
        (("abc", TARGET), {}, TypeError, "the source must be a list of texts, got 'abc'"),
        ((iter(SOURCE), TARGET), {}, TypeError, "the source must be a list of texts"),
        ((SOURCE, [1, 2]), {}, TypeError, "a prompt is a string or a list of"),
        ((SOURCE, ["x" * 200, "y"]), {}, ValueError, "of the target, prompt 0 has 201 tokens"),
        ((SOURCE, TARGET), {"method": "linea"}, ValueError, "method must be one of .*'linear'.*got 'linea'"),
        ((SOURCE, TARGET), {"order": "first"}, ValueError, "order must be one of .*got 'first'"),
        ((SOURCE, TARGET), {"sites": "post_norms"}, ValueError, "has no 'post_norms'.*groups that it has: attention"),
        ((SOURCE, TARGET), {"sites": "nowhere"}, ValueError, "has no hook point 'blocks.0.hook_nowhere'"),
        ((SOURCE, TARGET), {"sites": ["norms", "blocks.1.ln1.hook_out"]}, ValueError, "ln1.hook_out' is given twice"),
        ((SOURCE, TARGET), {"sites": ["attention", "attn_out"]}, ValueError, r"given twice \(as"),
        ((SOURCE, TARGET), {"layers": [4]}, ValueError, "layer 4 is out of range"),
        ((SOURCE, TARGET), {"tokens": "median"}, ValueError, "tokens must be 'last', 'mean', .*got 'median'"),
        ((SOURCE, TARGET), {"tokens": 50}, ValueError, "tokens=50 cannot be read"),
        ((SOURCE, TARGET), {"support": (70, 30)}, ValueError, r"support=\(70, 30\) is no range: it is two percentages"),
        ((SOURCE, TARGET), {"support": "q_all"}, ValueError, "two percentages of the source"),
        ((SOURCE, TARGET), {"strength": math.inf}, ValueError, "strength must be finite, got inf"),
        ((SOURCE, TARGET), {"strength": [1.0, 0.5]}, ValueError, "maps are fitted at one strength"),
        ((SOURCE, TARGET), {"above": 1e-3}, TypeError, "method 'linear' has no option 'above'; it has min_std"),
        ((SOURCE, TARGET), {"batch_size": 0}, ValueError, "batch_size must be 'auto' or a positive integer"),
        ((SOURCE, TARGET), {"prompt_format": "poem"}, ValueError, "prompt_format='poem' is unknown"),
    ],
)
def test_bad_requests_are_refused_before_any_pass(
    llama: Any, forwards: Any, sides: Any, options: Any, kind: type[Exception], words: str, order: Any
) -> None:
    for group in ("norms", "attention"):
        fit(llama, sites=group, layers=[0])  # points are checked once in a model's life
    with forwards(llama) as calls, pytest.raises(kind, match=words):
        fit(llama, *sides, **{"order": order, **options})
    assert calls == []


def test_causal_fits_refuse_a_folder_a_steered_model_and_more_memory_than_allowed(llama: Any, forwards: Any) -> None:
    fit(llama, layers=[0])
    with forwards(llama) as calls:
        with pytest.raises(
            ValueError, match="resume= keeps the batches of a simultaneous fit; a causal fit is a single"
        ):
            fit(llama, resume="folder")
        with pytest.raises(ValueError, match="GiB allowed; give fewer or shorter prompts, a larger memory_gb="):
            fit(llama, memory_gb=1e-6)
        steering = Steering([("blocks.0.hook_resid_post", Add(torch.ones(32), 1.0))])
        with steering.on(llama.model), pytest.raises(ValueError, match="the model is being steered"):
            fit(llama)
    assert len([shape for shape in calls if shape != (1, 13)]) == 0  # but for the probe of the steering's own point


@pytest.mark.parametrize("order", ["causal", "simultaneous"])
@pytest.mark.parametrize("tokens", ["mean", "all", "max"])
@pytest.mark.parametrize(("side", "number"), [("source", 3), ("target", 1)])
def test_activations_that_are_not_finite_are_told_by_text_and_site(
    fresh: Any, order: Any, tokens: Any, side: str, number: int
) -> None:
    case = fresh("llama")
    (bad,) = case.tokenizer("#", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        case.hf.get_input_embeddings().weight[bad] = torch.nan
    sides = {"source": list(SOURCE), "target": list(TARGET)}
    sides[side][number] += "#"
    before = oracles.hooks_on(case.hf)
    words = rf"the activations of {side} text {number} hold NaN or inf at 'blocks.0.ln1.hook_out'"
    with pytest.raises(ValueError, match=words):
        fit(case, sides["source"], sides["target"], order=order, tokens=tokens, batch_size=3)
    assert oracles.hooks_on(case.hf) == before


def test_steerings_that_cannot_be_made_are_refused(llama: Any) -> None:
    found = fit(llama, layers=[0, 2])
    for options, words in (
        ({"support": (50, 50)}, "two percentages of the source"),
        ({"strength": math.nan}, "strength must be finite, got nan"),
        ({"layers": [1]}, r"no maps in layers \[1\]; there are some in \[0, 2\]"),
        ({"layers": []}, "no maps in layers"),
        ({"tokens": "first"}, "tokens"),
    ):
        with pytest.raises(ValueError, match=words):
            found.steering(**options)


def test_samples_are_kept_only_where_they_are_wanted(llama: Any) -> None:
    assert fit(llama, layers=[0], keep_samples=False).samples == {}
    kept = fit(llama, layers=[0]).samples
    assert [tuple(side.shape) for side in kept["blocks.0.ln1.hook_out"]] == [(5, 32), (6, 32)]


@pytest.mark.slow
def test_the_real_model_is_fitted_as_by_restarts(smollm2: Any) -> None:
    MODULES["smollm2"] = MODULES["llama"]
    found = fit(smollm2, layers=[0, 15], batch_size=4)
    agree(found, restarted(smollm2, ["norms"], [0, 15], POOLS["mean"], (0, 100)))


def test_only_the_beginning_of_a_text_is_read_where_that_is_asked_for(llama: Any) -> None:
    fit = partial(transport.fit, llama.model, progress=False)
    long = [text + " and much more of it" for text in SOURCE], [text + " and so on" for text in TARGET]
    shortest = min(len(llama.tokenizer(text)["input_ids"]) for text in (*SOURCE, *TARGET))
    found, short = (fit(*sides, max_tokens=shortest) for sides in (long, (SOURCE, TARGET)))
    for name in found.maps:
        assert torch.equal(found.maps[name].shift, short.maps[name].shift)
    with pytest.raises(ValueError, match="max_tokens must be at least 1"):
        fit(SOURCE, TARGET, max_tokens=0)


def test_a_misspelt_group_is_named_and_identical_sides_are_noticed(llama: Any) -> None:
    with pytest.raises(ValueError, match="did you mean 'norms'"):
        transport.fit(llama.model, SOURCE, TARGET, sites="nroms")
    with pytest.warns(UserWarning, match="do source and target differ"):
        transport.fit(llama.model, ["a", "a"], ["a", "a"], "mean", progress=False)


def test_maps_are_no_steering_and_loading_them_onto_other_weights_warns(llama: Any, fresh: Any, tmp_path: Any) -> None:
    found = transport.fit(llama.model, SOURCE, TARGET, progress=False)
    with pytest.raises(TypeError, match="no steering yet"):
        list(found)
    path = found.save(tmp_path / "maps.safetensors")
    with pytest.warns(UserWarning, match="fitted on other weights"):
        transport.Transport.load(path, fresh("llama", seed=7).model)
