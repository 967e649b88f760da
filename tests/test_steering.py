"""A Steering as a list, what it does while it is on, and that nothing of it stays behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import Context
from typing import Any

import oracles
import pytest
import torch

import lensteer
from lensteer import (
    STEPS,
    Add,
    Affine,
    ScaleElements,
    SetElements,
    SetProjection,
    Steering,
    at,
    capture,
    generate,
    log_probs,
    per_row,
    positions,
    stream,
)
from lensteer.hooks import Edit
from lensteer.models import twin_of
from lensteer.positions import At

POST = "blocks.{}.hook_resid_post"
IDS = torch.tensor([[5, 70, 33, 250, 9, 40]])


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def example() -> Steering:
    return Steering(
        [
            (POST.format(1), Add(random(32), 2.0)),
            ("blocks.2.attn.hook_z", at(SetProjection(random(4, 8), 5.0), "generated")),
        ],
        {"method": "test", "model": "tiny"},
    )


def logits(face: Any) -> torch.Tensor:
    with torch.no_grad():
        output = face(IDS)
    return output if isinstance(output, torch.Tensor) else output.logits


# ---- a list that adds up


def test_a_steering_is_an_immutable_sequence_of_pairs() -> None:
    steering = example()
    assert len(steering) == 2
    name, edit = steering[0]
    assert (name, edit.strength) == (POST.format(1), 2.0)
    assert [name for name, _ in steering] == [POST.format(1), "blocks.2.attn.hook_z"]
    assert isinstance(steering[1:], Steering)
    assert steering[1:].metadata == steering.metadata
    with pytest.raises(TypeError):
        steering[0] = steering[1]  # type: ignore[index]


def test_adding_keeps_order_and_joins_what_is_known_about_both() -> None:
    first, second = example(), Steering([(POST.format(3), Add(random(32)))], {"method": "other", "model": "tiny"})
    both = first + second
    assert list(both) == [*first, *second]
    assert both.metadata == {"method": "test + other", "model": "tiny"}
    assert list(first + list(second)) == list(both)
    assert list(first + Steering()) == list(first)


def test_strengths_are_set_or_scaled_for_every_edit_and_the_original_stays() -> None:
    steering = example()
    assert [edit.strength for _, edit in steering.at_strength(0.5)] == [0.5, 0.5]
    assert [edit.strength for _, edit in steering * 3] == [6.0, 3.0]
    assert [edit.strength for _, edit in -1.0 * steering] == [-2.0, -1.0]
    assert [edit.strength for _, edit in steering] == [2.0, 1.0]
    assert isinstance(steering.at_strength(0.5)[1][1], At)
    assert (steering * 3).metadata == steering.metadata


def test_strengths_per_row_know_their_number_and_can_be_picked() -> None:
    steering = example()
    assert steering.n_rows is None
    rows = steering.at_strength(torch.tensor([1.0, 2.0, 3.0]))
    assert rows.n_rows == 3
    assert rows.rows([2, 0])[1][1].strength.tolist() == [3.0, 1.0]
    assert steering.rows([2, 0])[0][1].strength == 2.0
    mixed = rows + Steering([(POST.format(1), Add(random(32), torch.ones(2)))])
    with pytest.raises(ValueError, match=r"different numbers of rows: \[2, 3\]"):
        _ = mixed.n_rows


def test_what_is_not_an_edit_is_refused_with_its_hook() -> None:
    with pytest.raises(TypeError, match=r"'blocks.1.hook_resid_post' is a function; a Steering holds edits"):
        Steering([(POST.format(1), lambda x, hook: x)])  # type: ignore[list-item]


def test_a_steering_shows_itself_in_a_terminal_and_a_notebook() -> None:
    text, page = repr(example()), example()._repr_html_()
    for part in ("2 edits", "test, tiny", POST.format(1), "Add[32]", "SetProjection[4, 8]", "generated"):
        assert part in text
    assert repr(Steering()) == "Steering: no edits"
    assert "3 rows, -1 to 2" in repr(example().at_strength(torch.tensor([-1.0, 0.0, 2.0])))
    assert page.startswith("<table>")
    assert page.count("<tr>") == 3
    bad = Steering([("<b>", Add(random(32)))], {"<i>": "<script>"})._repr_html_()
    assert not any(tag in bad for tag in ("<b>", "<i>", "<script>"))


def test_a_content_hash_changes_with_what_a_steering_does_and_with_nothing_else() -> None:
    name = POST.format(1)
    first = Steering([(name, Add(random(32), 2.0))]).content_hash()
    assert Steering([(name, Add(random(32).clone(), 2.0))], {"method": "x"}).content_hash() == first
    others = [
        Steering([(POST.format(2), Add(random(32), 2.0))]),
        Steering([(name, Add(random(32), 2.5))]),
        Steering([(name, Add(random(32, seed=1), 2.0))]),
        Steering([(name, Add(random(32), torch.tensor([2.0])))]),
        Steering([(name, at(Add(random(32), 2.0), "last"))]),
        Steering([(name, at(Add(random(32), 2.0), -2))]),
        Steering([(name, SetProjection(random(32), 2.0))]),
        Steering([(name, SetProjection(random(32), 3.0))]),
        Steering(),
    ]
    assert len({first, *(other.content_hash() for other in others)}) == 10


def test_edits_of_elements_are_told_apart_by_everything_that_they_do() -> None:
    name, mask, a = POST.format(1), random(32) > 0, random(2, 32, seed=1)
    edits: list[Edit] = [
        ScaleElements(mask, 2.0),
        ScaleElements(mask, 3.0),
        ScaleElements(~mask, 2.0),
        at(ScaleElements(mask, 2.0), STEPS),
        at(ScaleElements(mask, 2.0), "last"),
        SetElements(a[0]),
        SetElements(a[0], mask),
        SetElements(a[0], ~mask),
        SetElements(a[0], strength=0.5),
        SetElements(a[:1], per_row=True),
        SetElements(a, per_row=True),
        SetElements(a.flip(0), per_row=True),
        SetElements(a, mask, per_row=True),
    ]
    hashes = [Steering([(name, edit)]).content_hash() for edit in edits]
    assert len(set(hashes)) == len(edits)
    copies = [Steering([(name, edit.to("cpu"))]).content_hash() for edit in edits]
    assert copies == hashes


def test_edits_of_elements_show_how_many_there_are() -> None:
    mask = torch.zeros(4, 8, dtype=torch.bool)
    mask[1] = True
    steering = Steering(
        [
            ("blocks.2.attn.hook_z", at(ScaleElements(mask, 4.0), STEPS)),
            ("blocks.3.attn.hook_z", SetElements(random(3, 4, 8), mask, per_row=True)),
        ]
    )
    for text in (repr(steering), steering._repr_html_()):
        for part in ("ScaleElements[4, 8]", "8 of 32", "slice(-1, None, None)", "SetElements[4, 8]"):
            assert part in text
    assert steering.n_rows == 3
    assert steering.rows([1]).n_rows == 1
    assert [edit.strength for _, edit in steering * 2] == [8.0, 2.0]
    mixed = steering + Steering([("blocks.2.attn.hook_z", ScaleElements(mask, torch.ones(2)))])
    with pytest.raises(ValueError, match=r"different numbers of rows: \[2, 3\]"):
        _ = mixed.n_rows


# ---- many candidates in one batch


def test_edits_of_elements_merge_by_their_masks_and_equal_each_alone() -> None:
    first, second = ScaleElements(random(32) > 0, 2.0), ScaleElements(random(32, seed=1) > 0, 2.0)
    patch = SetElements(random(32, seed=2), random(32, seed=3) > 0)
    name = POST.format(1)
    candidates = [
        [(name, first)],
        [(name, first.at_strength(-1.0)), (name, patch)],
        [],
        [(name, second), (name, at(patch.at_strength(0.5), "last"))],
        [(name, patch), (name, first)],
    ]
    merged = per_row(candidates)
    assert len(merged) < sum(map(len, candidates))
    x = random(5, 1, 32, seed=9)
    clock = positions.Clock(torch.ones(5, dtype=torch.long))
    layout = clock._layout((torch.ones(5, 1, dtype=torch.long),), {})
    for i, candidate in enumerate(candidates):
        token = positions._PASS.set(positions._Pass(clock, layout, "", None))  # type: ignore[arg-type]
        found, alone = x, x[i : i + 1]
        for _, edit in merged:
            found = edit(found)
        positions._PASS.reset(token)
        for _, edit in candidate:
            alone = (edit.edit if isinstance(edit, At) else edit)(alone)
        torch.testing.assert_close(found[i : i + 1], alone, atol=1e-6, rtol=1e-6)


def test_values_per_row_cannot_be_nested_either() -> None:
    with pytest.raises(ValueError, match="steering 0 has per-row values at 'a'"):
        per_row([[("a", at(SetElements(random(2, 32), per_row=True), "last"))]])


@pytest.mark.parametrize("batch_size", [1, 2, "auto"])
def test_values_per_row_follow_their_prompts_through_batches_sorted_by_length(tiny, batch_size: Any) -> None:
    prompts = ["A long question about rivers", "Why", "A long question about rivers", "Is it so?"]
    values = random(4, 32, seed=5)
    steering = Steering([(POST.format(2), at(SetElements(values, per_row=True), "last"))])
    options: dict[str, Any] = {"prompt_format": "plain", "progress": False}
    table = generate(tiny.model, prompts, steering, max_new_tokens=4, batch_size=batch_size, **options)
    scores = log_probs(tiny.model, prompts, ["xy"] * 4, steering, batch_size=batch_size, **options)
    for i, text in enumerate(prompts):
        ids = tiny.tokenizer(text)["input_ids"]
        change = oracles.Change("resid_post", 2, lambda x, i=i: values[i].expand_as(x), "last")
        stop = [2, 4] if tiny.tokenizer.chat_template else [2]
        expected = oracles.greedy(tiny.hf, ids, 4, [change], stop)
        assert table["token_ids"][i][: len(expected.sure)] == expected.sure
        wanted = oracles.response_log_probs(
            tiny.hf, ids, tiny.tokenizer("xy", add_special_tokens=False)["input_ids"], [change]
        )
        torch.testing.assert_close(scores[i], wanted, atol=2e-4, rtol=2e-4)


def test_prompts_that_are_equal_share_layers_under_values_of_their_own(tiny, forwards) -> None:
    """The layers below the edit are computed once a prompt; what each row is set to is its own."""
    prompts, values = ["Why is it so?"] * 3 + ["Not"], random(4, 32, seed=5)
    steering = Steering([(POST.format(2), at(SetElements(values, per_row=True), "last"))])
    table = generate(tiny.model, prompts, steering, max_new_tokens=4, prompt_format="plain", progress=False)
    stop = [2, 4] if tiny.tokenizer.chat_template else [2]
    for i, text in enumerate(prompts):
        change = oracles.Change("resid_post", 2, lambda x, i=i: values[i].expand_as(x), "last")
        expected = oracles.greedy(tiny.hf, tiny.tokenizer(text)["input_ids"], 4, [change], stop)
        assert table["token_ids"][i][: len(expected.sure)] == expected.sure
    assert len({tuple(ids) for ids in table["token_ids"][:3]}) > 1


def test_edits_that_differ_in_strength_become_one_and_keep_the_rows_order() -> None:
    v, u = Add(random(32), 1.0), SetProjection(random(32), 5.0)
    name = POST.format(1)
    merged = per_row([[(name, v)], [(name, v.at_strength(-3.0))], [], [(POST.format(2), v)]])
    assert [(hook, edit.strength.tolist()) for hook, edit in merged] == [
        (POST.format(2), [0.0, 0.0, 0.0, 1.0]),
        (name, [1.0, -3.0, 0.0, 0.0]),
    ]
    swapped = per_row([[(name, v), (name, u)], [(name, u), (name, v)]])
    for row, order in enumerate([[Add, SetProjection], [SetProjection, Add]]):
        assert [type(edit) for _, edit in swapped if edit.strength[row] != 0] == order
    twice = per_row([[(name, v), (name, v)], [(name, v)]])
    assert [edit.strength.tolist() for _, edit in twice] in ([[1.0, 1.0], [1.0, 0.0]], [[1.0, 0.0], [1.0, 1.0]])


def test_edits_of_equal_numbers_in_other_places_of_memory_are_kept_apart_and_right() -> None:
    square = random(32, 32)
    name = "blocks.1.hook_resid_post"
    both = per_row([[(name, Add(square))], [(name, Add(square.T))]])
    assert len(both) == 2


def test_maps_that_differ_in_their_support_only_are_kept_apart() -> None:
    scale, shift = random(8), random(8, seed=1)
    low, high = torch.full((8,), -0.5), torch.full((8,), 0.5)
    alone = [Affine(scale, shift), Affine(scale, shift, low, high), Affine(scale, shift, 2 * low, 2 * high)]
    merged = per_row([[("a", alone[i % 3].at_strength(0.5 + i))] for i in range(5)])
    assert len(merged) == 3
    x = random(5, 4, 8, seed=2)
    found = x
    for _, edit in merged:
        found = edit(found)
    for i in range(5):
        torch.testing.assert_close(found[i : i + 1], alone[i % 3].at_strength(0.5 + i)(x[i : i + 1]))


@pytest.mark.parametrize("seed", range(5))
def test_any_mixture_of_steerings_in_one_batch_equals_each_alone(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def integer(high: int) -> int:
        return int(torch.randint(high, (1,), generator=generator))

    pool: list[Edit] = [Add(random(32, seed=1)), Add(random(32, seed=2)), SetProjection(random(32, seed=3), 4.0)]
    names = ["a", "b"]
    candidates = []
    for _ in range(6):
        chosen = [(names[integer(2)], pool[integer(3)].at_strength(float(1 + integer(4)))) for _ in range(integer(5))]
        candidates.append(Steering(chosen))
    x = {name: random(6, 4, 32, seed=10 + i) for i, name in enumerate(names)}

    def run(steering: Steering, name: str, value: torch.Tensor) -> torch.Tensor:
        for hook, edit in steering:
            value = edit(value) if hook == name else value
        return value

    together = per_row(candidates)
    for name in names:
        found = run(together, name, x[name])
        for i, candidate in enumerate(candidates):
            torch.testing.assert_close(found[i : i + 1], run(candidate, name, x[name][i : i + 1]), atol=1e-5, rtol=1e-5)


def test_strengths_per_row_cannot_be_nested() -> None:
    with pytest.raises(ValueError, match="steering 1 has per-row values at 'a'; per_row wants one for all rows"):
        per_row([[("a", Add(random(32)))], [("a", Add(random(32), torch.ones(2)))]])


# ---- on


@pytest.mark.parametrize("face", ["lens", "plain"])
def test_both_faces_are_steered_while_it_is_on(tiny, face: str) -> None:
    steering = Steering([(POST.format(1), Add(random(32), 2.0)), ("blocks.2.attn.hook_z", Add(random(4, 8)))])
    changes = [
        oracles.Change("resid_post", 1, oracles.add(random(32), 2.0)),
        oracles.Change("z", 2, oracles.add(random(4, 8), 1.0)),
    ]
    with steering.on(tiny.model) as model:
        assert model is tiny.model
        found = logits(tiny.hf if face == "plain" else model)
    wanted = oracles.next_log_probs(tiny.hf, IDS[0].tolist(), changes, 6)
    torch.testing.assert_close(found[0, -1].log_softmax(-1), wanted, atol=2e-4, rtol=1e-3)
    assert (found - logits(tiny.hf)).abs().max() > 0.1


class Fault(Exception):
    pass


def nothing(case: Any) -> None:
    logits(case.hf)
    logits(case.model)


def exception_inside(case: Any) -> None:
    logits(case.model)
    raise Fault


def interrupt_inside(case: Any) -> None:
    raise KeyboardInterrupt


@contextmanager
def failing(case: Any, error: type[BaseException], call: int) -> Iterator[None]:
    """The last block of both faces raises at the given call, as Ctrl-C would in the middle of a pass."""
    count = []

    def fail(module: Any, args: Any) -> None:
        count.append(1)
        if len(count) == call:
            raise error

    handles = [oracles.blocks(case.hf)[3].register_forward_pre_hook(fail)]
    handles.append(case.model.blocks[3].register_forward_pre_hook(fail))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def interrupt_in_a_lens_pass(case: Any) -> None:
    with failing(case, KeyboardInterrupt, 1):
        logits(case.model)


def interrupt_in_a_plain_pass(case: Any) -> None:
    with failing(case, KeyboardInterrupt, 1):
        logits(case.hf)


@pytest.mark.parametrize(
    "inside",
    [nothing, exception_inside, interrupt_inside, interrupt_in_a_lens_pass, interrupt_in_a_plain_pass],
    ids=lambda f: f.__name__,
)
def test_after_the_block_everything_is_bit_identical_and_no_hook_is_left(tiny, inside: Any) -> None:
    clean = logits(tiny.model), logits(tiny.hf)
    before = oracles.hooks_on(tiny.model), oracles.hooks_on(tiny.hf)
    steering = Steering(
        [
            (POST.format(1), at(Add(random(32), 2.0), "last")),
            ("blocks.2.attn.hook_z", SetProjection(random(4, 8), 5.0)),
            (POST.format(3), Add(random(32))),
        ]
    )
    try:
        with steering.on(tiny.model):
            with steering.on(tiny.model):  # nested
                assert oracles.hooks_on(tiny.hf) != before[1]
                inside(tiny)
            logits(tiny.model)
    except (Fault, KeyboardInterrupt):
        assert inside is not nothing
    assert (oracles.hooks_on(tiny.model), oracles.hooks_on(tiny.hf)) == before
    assert before[1] == {}
    assert twin_of(tiny.model).active == []
    assert torch.equal(logits(tiny.model), clean[0])
    assert torch.equal(logits(tiny.hf), clean[1])
    assert not twin_of(tiny.model).lock._is_owned()


def in_generate(case: Any, steering: Steering) -> None:
    generate(case.model, ["Why no", "Why no", "A"], steering, max_new_tokens=4, prompt_format="plain", progress=False)


def in_uncached_generate(case: Any, steering: Steering) -> None:
    generate(case.model, ["Why"], steering, max_new_tokens=4, use_cache=False, prompt_format="plain", progress=False)


def in_log_probs(case: Any, steering: Steering) -> None:
    log_probs(case.model, ["Why", "Why"], ["not", "so it is"], steering, prompt_format="plain", progress=False)


def in_capture(case: Any, steering: Steering) -> None:
    with steering.on(case.model):
        for _ in range(3):
            capture(case.model, ["Why"], ["resid_post", "q"], prompt_format="plain", progress=False)
            capture(case.model, ["Why"], ["resid_post"], prompt_format="plain", progress=False)


def in_stream(case: Any, steering: Steering) -> None:
    list(stream(case.model, "Why", steering, max_new_tokens=4, prompt_format="plain"))


@pytest.mark.parametrize(("error", "call"), [(Fault, 2), (KeyboardInterrupt, 1), (KeyboardInterrupt, 2)])
@pytest.mark.parametrize("work", [in_generate, in_uncached_generate, in_log_probs, in_capture, in_stream])
def test_work_that_is_interrupted_leaves_the_model_as_it_was(tiny, work: Any, error: Any, call: int) -> None:
    clean = logits(tiny.model), logits(tiny.hf)
    before = oracles.hooks_on(tiny.model), oracles.hooks_on(tiny.hf)
    generation = tiny.hf.generation_config
    steering = Steering([(POST.format(2), at(Add(random(32), 2.0), "last"))])
    with pytest.raises(error), failing(tiny, error, call):
        work(tiny, steering)
    assert (oracles.hooks_on(tiny.model), oracles.hooks_on(tiny.hf)) == before
    assert tiny.hf.generation_config is generation
    assert twin_of(tiny.model).active == []
    assert torch.equal(logits(tiny.model), clean[0])
    assert torch.equal(logits(tiny.hf), clean[1])


def test_the_real_model_is_as_it_was_after_steering_and_after_an_interrupt(smollm2) -> None:
    clean = logits(smollm2.model), logits(smollm2.hf)
    before = oracles.hooks_on(smollm2.model), oracles.hooks_on(smollm2.hf)
    steering = Steering([(POST.format(20), at(Add(random(576), 20.0), "last"))])
    with pytest.raises(KeyboardInterrupt), steering.on(smollm2.model):
        assert not torch.allclose(logits(smollm2.hf), clean[1], atol=0.1)
        assert not torch.allclose(logits(smollm2.model), clean[0], atol=0.1)
        raise KeyboardInterrupt
    assert (oracles.hooks_on(smollm2.model), oracles.hooks_on(smollm2.hf)) == before
    assert torch.equal(logits(smollm2.model), clean[0])
    assert torch.equal(logits(smollm2.hf), clean[1])


def test_positions_after_an_interrupted_pass_are_those_of_the_next_one(llama) -> None:
    steering = Steering([(POST.format(1), at(Add(random(32), 2.0), -2))])
    change = oracles.Change("resid_post", 1, oracles.add(random(32), 2.0), -2)
    wanted = oracles.next_log_probs(llama.hf, IDS[0].tolist(), [change], 6)

    def work() -> None:
        with torch.no_grad(), steering.on(llama.model):
            with failing(llama, KeyboardInterrupt, 1), pytest.raises(KeyboardInterrupt):
                llama.hf(torch.cat([IDS, IDS], 1))
            found = logits(llama.hf)
        torch.testing.assert_close(found[0, -1].log_softmax(-1), wanted, atol=1e-4, rtol=1e-3)
        with pytest.raises(RuntimeError, match=r"steering\.on"):
            at(Add(random(32)), -2)(random(1, 6, 32))

    Context().run(work)


def test_a_foreign_hook_that_was_there_before_is_still_there_after(llama) -> None:
    calls: list[str] = []
    handle = llama.hf.model.layers[1].register_forward_hook(lambda m, a, o: calls.append("plain"))
    llama.model.blocks[1].hook_out.add_hook(lambda x, hook: calls.append("lens"))
    with example().on(llama.model):
        pass
    logits(llama.hf), logits(llama.model)
    handle.remove()
    llama.model.reset_hooks()
    assert calls == ["plain", "lens"]


def test_nested_steerings_act_from_the_outside_in(tiny) -> None:
    outer = Steering([(POST.format(1), Add(random(32), 3.0))])
    inner = Steering([(POST.format(1), SetProjection(random(32, seed=1), 10.0))])
    with outer.on(tiny.model), inner.on(tiny.model):
        nested = logits(tiny.hf), logits(tiny.model)
    with (outer + inner).on(tiny.model):
        added = logits(tiny.hf), logits(tiny.model)
    assert torch.equal(nested[0], added[0])
    assert torch.equal(nested[1], added[1])


# ---- threads


def test_threads_take_turns_so_that_each_sees_its_own_steering(llama) -> None:
    """On both faces; without the lock most of these answers are mixtures."""
    steerings = [Steering([(POST.format(1), Add(random(32, seed=i), 4.0))]) for i in range(2)]
    wanted = []
    for steering in steerings:
        with steering.on(llama.model):
            wanted.append((logits(llama.hf), logits(llama.model)))
    start, wrong = threading.Barrier(2), []

    def work(i: int) -> None:
        start.wait(20)
        for _ in range(25):
            with steerings[i].on(llama.model):
                time.sleep(0)  # let the other thread in, if it can get in
                found = logits(llama.hf), logits(llama.model)
            if not (torch.equal(found[0], wanted[i][0]) and torch.equal(found[1], wanted[i][1])):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []


def test_generations_in_two_threads_do_not_mix(llama) -> None:
    def run(i: int) -> Any:
        steering = Steering([(POST.format(2), Add(random(32, seed=i), 4.0))])
        prompts = ["Why no", "Why no", "A"]  # duplicated, so that modules are patched meanwhile
        return generate(llama.model, prompts, steering, max_new_tokens=5, progress=False)["token_ids"].tolist()

    wanted = [run(0), run(1)]
    found: dict[int, list[Any]] = {0: [], 1: []}
    threads = [threading.Thread(target=lambda i=i: found[i].extend(run(i) for _ in range(4))) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {i: [wanted[i]] * 4 for i in range(2)}


# ---- models that it does not fit


def test_a_steering_for_another_architecture_is_refused_with_both_names(llama, gpt2) -> None:
    steering = Steering([(POST.format(1), Add(random(32)))]).made_on(gpt2.model)
    assert steering.metadata["architecture"] == "GPT2LMHeadModel"
    with pytest.raises(ValueError, match=r"\(GPT2LMHeadModel\) and does not fit LlamaForCausalLM \(LlamaForCausalLM\)"):
        steering.points(llama.model)
    steering.points(gpt2.model)


def test_a_steering_for_another_width_or_depth_is_refused(llama, forwards) -> None:
    llama_steering = Steering([(POST.format(1), Add(random(64)))])
    with pytest.raises(ValueError, match=r"shape \(64,\), but LlamaForCausalLM has \(32,\) there.*another width"):
        llama_steering.points(llama.model)
    with forwards(llama) as calls:
        with (
            pytest.raises(ValueError, match=r"no hook point 'blocks.12.hook_resid_post'.*layers 0 to 3"),
            Steering([(POST.format(12), Add(random(32)))]).on(llama.model),
        ):
            raise AssertionError("it was let in")
        assert calls == []


def test_made_on_records_the_model_and_whatever_else_is_given(llama) -> None:
    steering = example().made_on(llama.model, data_hash="abc", seed="3")
    assert steering.metadata["data_hash"] == "abc"
    assert steering.metadata["method"] == "test"
    assert steering.metadata["architecture"] == "LlamaForCausalLM"
    assert lensteer.models.fingerprint(llama.model).items() <= steering.metadata.items()
