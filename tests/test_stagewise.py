"""One stagewise pass against a run from the input for every point, and what it leaves behind."""

from __future__ import annotations

import gc
import threading
import time
from typing import Any

import greenlet
import oracles
import pytest
import torch

import lensteer.stagewise as module
from lensteer import Add, Affine, Steering
from lensteer.models import twin_of
from lensteer.prompts import batches, tokenize
from lensteer.reading import positions_read
from lensteer.sites import ordered_points
from lensteer.stagewise import stagewise, waiting_bytes

TEXTS = ["Rain fell all night on the hills.", "A", "Why not?", "The sea is calm.", "Nobody saw it", "Ice is cold, no?"]


def run(case: Any, sites: Any, decide: Any, tokens: Any = "mean", layers: Any = None, **options: Any) -> None:
    points = ordered_points(case.model, sites, layers)
    rows = tokenize(case.model, TEXTS, prompt_format="plain")
    chosen = [positions_read(row, tokens, i) for i, row in enumerate(rows)]
    stagewise(case.model, points, rows, chosen, tokens, decide, progress=False, **options)


def halves(point: Any, values: torch.Tensor, owners: torch.Tensor) -> Affine:
    """An edit that depends on what was read, so that a mistake at one point is seen at all later ones."""
    return Affine(torch.full(point.shape, 0.5), values.mean(0) + 0.1)


def left_suspended() -> list[Any]:
    gc.collect()
    return [g for g in gc.get_objects() if issubclass(type(g), greenlet.greenlet) and g and g.parent is not None]


def alone(case: Any, points: list[tuple[str, int]], pool: Any) -> list[torch.Tensor]:
    """What is read at every point: each from the input again, one text at a time, by plain torch hooks."""
    found: list[torch.Tensor] = []
    shifts: list[torch.Tensor] = []
    for site, layer in points:
        read = []
        for text in TEXTS:
            ids = case.tokenizer(text)["input_ids"]
            handles = [
                oracles.hook(case.hf, *before, lambda x, shift=shift: 0.5 * x + shift.flatten())
                for before, shift in zip(points, shifts, strict=False)
            ]
            handles.append(oracles.hook(case.hf, site, layer, lambda x, read=read: read.append(pool(x.clone()))))
            with torch.no_grad():
                case.hf(torch.tensor([ids]), use_cache=False)
            for handle in handles:
                handle.remove()
        values = torch.cat([x if x.ndim == 2 else x[None] for x in read])
        found.append(values)
        shifts.append(values.mean(0) + 0.1)
    return found


POOLS: dict[Any, Any] = {
    "mean": lambda x: x.mean(0),
    "max": lambda x: x.amax(0),
    "min": lambda x: x.amin(0),
    "last": lambda x: x[-1],
    0: lambda x: x[0],
    "all": lambda x: x,
}


@pytest.mark.parametrize("tokens", list(POOLS))
def test_what_a_point_sees_has_passed_all_edits_before_it(tiny: Any, tokens: Any) -> None:
    seen: list[torch.Tensor] = []

    def decide(point: Any, values: torch.Tensor, owners: torch.Tensor) -> Affine:
        lengths = [len(tiny.tokenizer(text)["input_ids"]) if tokens == "all" else 1 for text in TEXTS]
        assert owners.tolist() == [i for i, length in enumerate(lengths) for _ in range(length)]
        seen.append(values)
        return halves(point, values, owners)

    run(tiny, ["z", "mlp_out", "resid_post"], decide, tokens, [0, 2], batch_size=4)
    points = [(site, layer) for layer in (0, 2) for site in ("z", "mlp_out", "resid_post")]
    expected = alone(tiny, points, POOLS[tokens])
    for mine, theirs in zip(seen, expected, strict=True):
        assert mine.dtype == torch.float32
        error = (mine.flatten(1) - theirs).norm() / theirs.norm()
        assert error < 1e-5


@pytest.mark.parametrize("tokens", ["mean", "all"])
def test_the_size_of_the_batches_and_their_padding_do_not_matter(gpt2: Any, tokens: Any) -> None:
    found: dict[Any, list[torch.Tensor]] = {1: [], 4: [], "auto": []}
    for size, seen in found.items():

        def decide(point: Any, values: torch.Tensor, owners: torch.Tensor, seen: list[torch.Tensor] = seen) -> Affine:
            seen.append(values)
            return halves(point, values, owners)

        run(gpt2, "norms", decide, tokens, batch_size=size)
    for single, four, auto in zip(*found.values(), strict=True):
        torch.testing.assert_close(four, single, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(auto, single, atol=1e-5, rtol=1e-5)


def test_every_batch_passes_the_model_once_and_stops_at_the_last_point(llama: Any, forwards: Any) -> None:
    ordered_points(llama.model, "norms")  # surveyed before, so that only the data is counted
    ended: list[int] = []
    handle = oracles.blocks(llama.hf)[3].register_forward_hook(lambda *args: ended.append(1))
    with forwards(llama) as calls:
        run(llama, "norms", halves, batch_size=2)
    handle.remove()
    assert len(calls) == 3 and sum(shape[0] for shape in calls) == len(TEXTS)
    assert ended == []


def test_an_edit_of_none_changes_nothing(llama: Any) -> None:
    values: dict[str, list[torch.Tensor]] = {"none": [], "zero": []}

    def none(point: Any, read: torch.Tensor, owners: torch.Tensor) -> None:
        values["none"].append(read)

    def zero(point: Any, read: torch.Tensor, owners: torch.Tensor) -> Add:
        values["zero"].append(read)
        return Add(torch.ones(point.shape), 0.0)

    run(llama, "residual", none)
    run(llama, "residual", zero)
    assert all(torch.equal(one, other) for one, other in zip(*values.values(), strict=True))


def test_points_of_the_lens_alone_run_on_the_lens(llama: Any) -> None:
    assert all(point.module is None for point in ordered_points(llama.model, "q"))
    seen: list[torch.Tensor] = []

    def decide(point: Any, values: torch.Tensor, owners: torch.Tensor) -> Affine:
        seen.append(values)
        return halves(point, values, owners)

    run(llama, "q", decide, "last", [0, 1], batch_size=2)
    for i, text in enumerate(TEXTS):
        found: list[torch.Tensor] = []

        def first(m: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
            return 0.5 * output + (seen[0].mean(0) + 0.1).flatten()

        parts = [oracles.blocks(llama.hf)[layer].self_attn.q_proj for layer in (0, 1)]
        handles = [
            parts[0].register_forward_hook(first),
            parts[1].register_forward_hook(lambda m, args, output, found=found: found.append(output[0, -1])),
        ]
        with torch.no_grad():
            llama.hf(torch.tensor([llama.tokenizer(text)["input_ids"]]))
        for handle in handles:
            handle.remove()
        torch.testing.assert_close(seen[1][i].flatten(), found[0], atol=1e-4, rtol=1e-4)


def test_what_is_read_may_enter_autograd(llama: Any) -> None:
    def decide(point: Any, values: torch.Tensor, owners: torch.Tensor) -> None:
        assert not values.is_inference() and not torch.is_inference_mode_enabled()
        weight = torch.ones(point.shape, requires_grad=True)
        (values * weight).square().sum().backward()
        assert weight.grad is not None

    run(llama, "residual", decide)
    assert not torch.is_inference_mode_enabled()


# --- interrupted ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("site", ["residual", "q"])
def test_an_error_in_a_decision_leaves_no_hook_and_no_suspended_pass(
    llama: Any, error: type[BaseException], site: str
) -> None:
    before = oracles.hooks_on(llama.hf), oracles.hooks_on(llama.model)
    decided: list[str] = []

    def decide(point: Any, values: torch.Tensor, owners: torch.Tensor) -> Affine:
        decided.append(point.name)
        if len(decided) == 3:
            raise error("stop")
        return halves(point, values, owners)

    with pytest.raises(error, match="stop"):
        run(llama, site, decide, batch_size=1)
    assert len(decided) == 3
    assert left_suspended() == []
    assert (oracles.hooks_on(llama.hf), oracles.hooks_on(llama.model)) == before
    assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()
    run(llama, site, halves)  # and the model is as it was


@pytest.mark.parametrize("call", [1, 3])
def test_ctrl_c_inside_a_forward_pass_takes_down_the_passes_that_wait(llama: Any, call: int) -> None:
    before = oracles.hooks_on(llama.hf)
    calls: list[int] = []

    def interrupt(*args: Any) -> None:
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt

    handle = oracles.blocks(llama.hf)[1].mlp.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(llama, "residual", halves, batch_size=2)
    handle.remove()
    assert left_suspended() == []
    assert oracles.hooks_on(llama.hf) == before


def test_nothing_is_suspended_after_a_pass_that_ends_well(llama: Any) -> None:
    run(llama, "attention", halves, layers=[0], batch_size=1)
    assert left_suspended() == []


def test_an_error_of_the_first_batch_does_not_start_the_others(llama: Any, forwards: Any) -> None:
    ordered_points(llama.model, "residual")

    def fail(*args: Any) -> None:
        raise RuntimeError("broken")

    handle = oracles.blocks(llama.hf)[0].mlp.register_forward_hook(fail)
    with forwards(llama) as calls, pytest.raises(RuntimeError, match="broken"):
        run(llama, "residual", halves, batch_size=1)
    handle.remove()
    assert len(calls) == 1


# --- refused -------------------------------------------------------------------------------------------------------


def test_a_model_that_is_being_steered_is_refused_before_any_pass(llama: Any, forwards: Any) -> None:
    ordered_points(llama.model, "residual")
    steering = Steering([("blocks.0.hook_resid_post", Add(torch.ones(32), 1.0))])
    with steering.on(llama.model), forwards(llama) as calls, pytest.raises(ValueError, match="is being steered"):
        run(llama, "residual", halves)
    assert calls == []


def test_points_out_of_order_are_refused_before_any_pass(llama: Any, forwards: Any) -> None:
    points = ordered_points(llama.model, "residual")
    rows = tokenize(llama.model, TEXTS, prompt_format="plain")
    chosen = [[0]] * len(rows)
    for wrong in (points[::-1], [points[0], points[0]]):
        with forwards(llama) as calls, pytest.raises(ValueError, match="give each point once, in order"):
            stagewise(llama.model, wrong, rows, chosen, "last", halves)
        assert calls == []


def test_more_memory_than_allowed_is_refused_before_any_pass(llama: Any, forwards: Any, monkeypatch: Any) -> None:
    ordered_points(llama.model, "residual")
    words = "wait at each site take about .* GiB, more than the 1e-05 GiB allowed; give fewer or shorter"
    with forwards(llama) as calls, pytest.raises(ValueError, match=words):
        run(llama, "residual", halves, memory_gb=1e-5)
    for wrong in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="memory_gb must be a positive number"):
            run(llama, "residual", halves, memory_gb=wrong)
    monkeypatch.setattr(module, "_free_bytes", lambda device: 1000.0)
    with forwards(llama) as more, pytest.raises(ValueError, match="GiB allowed"):
        run(llama, "residual", halves)
    assert calls == more == []


def test_a_module_that_runs_twice_in_a_pass_is_refused(fresh: Any) -> None:
    case = fresh("llama")
    ordered_points(case.model, "residual")
    layers = oracles.blocks(case.hf)

    def again(m: Any, args: Any, kwargs: Any) -> None:
        layers[0](*args, **kwargs)

    handle = layers[1].register_forward_pre_hook(again, with_kwargs=True)
    with pytest.raises(ValueError, match=r"'blocks.1.hook_resid_post' was expected next, but the model reached 'bl.*0"):
        run(case, "residual", halves)
    handle.remove()
    assert left_suspended() == []


# --- memory --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", ["norms", "mlp_linears", "residual", "heads"])
def test_the_memory_estimate_is_within_a_factor_of_two_of_what_the_waiting_passes_hold(
    smollm_like: Any, group: str
) -> None:
    case = smollm_like
    texts = ["the sea is calm and rain fell all night " * n for n in (1, 2, 2, 1, 2, 2)]
    points, rows = ordered_points(case.model, group, 1), tokenize(case.model, texts, prompt_format="plain")
    chosen = [positions_read(row, "mean", i) for i, row in enumerate(rows)]
    jobs = list(batches(case.model, rows, 2))

    def storages() -> dict[int, int]:
        tensors = [o for o in gc.get_objects() if issubclass(type(o), torch.Tensor)]
        return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}

    gc.collect()
    before, held = storages(), []

    def decide(point: Any, values: torch.Tensor, owners: torch.Tensor) -> Affine:
        held.append(sum(size for place, size in storages().items() if place not in before))
        return Affine(torch.ones(point.shape), torch.zeros(point.shape))

    stagewise(case.model, points, rows, chosen, "mean", decide, batch_size=2, progress=False)
    assert 0.5 < waiting_bytes(case.model, points, jobs) / max(held) < 2


@pytest.fixture(scope="module")
def smollm_like(fresh: Any) -> Any:
    """Wide enough that hidden states outweigh what is small but the same for every width."""
    return fresh("llama", hidden_size=192, intermediate_size=512, num_attention_heads=3, num_key_value_heads=1)


# --- threads -------------------------------------------------------------------------------------------------------


def test_a_worker_thread_reads_what_the_main_thread_reads(llama: Any) -> None:
    found: dict[str, list[torch.Tensor]] = {"main": [], "worker": []}

    def into(where: str) -> Any:
        def decide(point: Any, values: torch.Tensor, owners: torch.Tensor) -> Affine:
            found[where].append(values)
            return halves(point, values, owners)

        return decide

    run(llama, "norms", into("main"))
    worker = threading.Thread(target=lambda: run(llama, "norms", into("worker")))
    worker.start()
    worker.join(60)
    assert len(found["worker"]) == 8
    assert all(torch.equal(one, other) for one, other in zip(*found.values(), strict=True))
    assert left_suspended() == []


def test_two_threads_take_turns_and_a_steering_in_another_thread_is_waited_for(llama: Any) -> None:
    ordered_points(llama.model, "residual")
    clean: list[torch.Tensor] = []
    run(llama, "residual", lambda point, values, owners: clean.append(values))
    found: dict[int, list[torch.Tensor]] = {0: [], 1: []}
    entered = threading.Event()

    def steer() -> None:
        with Steering([("blocks.0.hook_resid_post", Add(torch.ones(32), 5.0))]).on(llama.model):
            entered.set()
            time.sleep(0.3)

    def read(number: int) -> None:
        run(llama, "residual", lambda point, values, owners: found[number].append(values), batch_size=1 + number)

    threads = [threading.Thread(target=steer), *(threading.Thread(target=read, args=(i,)) for i in found)]
    threads[0].start()
    assert entered.wait(10)
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert twin_of(llama.model).active == []
    for values in found.values():
        for one, other in zip(values, clean, strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
