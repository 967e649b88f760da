"""Sweeps: every row is what `generate` gives for that candidate alone, however it was batched, cached or sent away."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import pandas as pd
import pytest
import torch

import lensteer as ls
from analysis import jobs
from analysis.sweep import Candidate, _table, baseline, grid, in_text, sweep
from lensteer.methods.instruction import InstructionVectors
from lensteer.steering import Steering

PROMPTS = ["Name a river.", "Why?", "What do bees eat in the spring?", "How far is it?"]
SIZE: dict[str, Any] = {"max_new_tokens": 5, "progress": False}
Make = Callable[..., InstructionVectors]


def shouted(prompt: str) -> str:
    return f"{prompt} Shout!"


@pytest.fixture(scope="module")
def candidates(vectors: Make) -> list[Candidate]:
    fitted = vectors()
    steered = grid(fitted, layers=[1, 3], strengths=[0.5, 2.0])
    chance = grid(fitted.random(1), layers=[1], strengths=[2.0], condition="random")
    added = grid(vectors("brief", 7), layers=[2], strengths=[-3.0, 3.0], operator="add", unit="difference")
    text = [in_text(baseline("shout"), shouted), in_text(steered[-1], shouted)]
    return [baseline("shout"), *steered, *chance, *text, baseline("brief"), *added]


@pytest.fixture(scope="module")
def expected(llama: Any, candidates: list[Candidate]) -> pd.DataFrame:
    """The table, made one candidate at a time without `sweep`."""
    return by_hand(llama.model, candidates)


def by_hand(model: Any, candidates: list[Candidate]) -> pd.DataFrame:
    tables = []
    for c in candidates:
        run = [c.rewrite(p) for p in PROMPTS] if c.rewrite else PROMPTS
        made = ls.generate(model, run, c.steering, max_new_tokens=5, batch_size=1, progress=False)
        scores = ls.log_probs(model, run, made["token_ids"].tolist(), batch_size=1, progress=False)
        tables.append(
            pd.DataFrame(
                {
                    "instruction": c.instruction,
                    "condition": c.condition,
                    "layer": c.layer,
                    "strength": c.strength,
                    "prompt_id": range(len(PROMPTS)),
                    "prompt": PROMPTS,
                    "response": made["response"],
                    "n_tokens": made["n_tokens"],
                    "finish_reason": made["finish_reason"],
                    "perplexity": [float(torch.exp(-s.mean())) for s in scores],
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


def require_equal(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(found[list(expected)], expected, rtol=1e-3, check_dtype=False)


# --- the table -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_rows_equal_generating_candidate_by_candidate(
    llama: Any, candidates: list[Candidate], expected: pd.DataFrame, batch_size: int
) -> None:
    require_equal(sweep(llama.model, candidates, PROMPTS, batch_size=batch_size, **SIZE), expected)
    assert expected["response"].nunique() > len(PROMPTS) * 3  # the candidates do differ


def test_rows_equal_generating_candidate_by_candidate_on_every_architecture(tiny: Any, vectors: Make) -> None:
    candidates = [baseline("shout"), *grid(vectors(), layers=[0, 2], strengths=[1.0, 3.0])]
    require_equal(sweep(tiny.model, candidates, PROMPTS, **SIZE), by_hand(tiny.model, candidates))


def test_rows_come_by_candidate_then_prompt_and_prompt_ids_count_the_prompts(llama: Any, vectors: Make) -> None:
    candidates = [*grid(vectors(), layers=[3, 1], strengths=[2.0, 1.0]), baseline("shout")]
    found = sweep(llama.model, candidates, PROMPTS[::-1], **SIZE)
    assert found["prompt_id"].tolist() == [0, 1, 2, 3] * 5
    assert found["prompt"].tolist() == PROMPTS[::-1] * 5
    assert found["layer"].tolist() == [3] * 8 + [1] * 8 + [-1] * 4
    assert found["strength"].tolist() == [2.0] * 4 + [1.0] * 4 + [2.0] * 4 + [1.0] * 4 + [0.0] * 4
    assert found["condition"].tolist() == ["steered"] * 16 + ["none"] * 4
    assert found.index.tolist() == list(range(20))


def test_instructions_in_text_are_run_with_the_text_and_reported_under_the_bare_prompt(
    llama: Any, vectors: Make
) -> None:
    steered = grid(vectors(), layers=[2], strengths=[2.0])[0]
    found = sweep(llama.model, [in_text(baseline("shout"), shouted), in_text(steered, shouted)], PROMPTS, **SIZE)
    assert found["condition"].unique().tolist() == ["text", "text+steered"]
    assert found["prompt"].tolist() == PROMPTS * 2
    texts = [shouted(p) for p in PROMPTS]
    bare = ls.generate(llama.model, texts, max_new_tokens=5, progress=False)["response"]
    both = ls.generate(llama.model, texts, steered.steering, max_new_tokens=5, progress=False)["response"]
    assert found["response"].tolist() == [*bare, *both]


def test_a_grid_is_every_layer_with_every_strength(vectors: Make) -> None:
    fitted = vectors()
    cells = grid(fitted, layers=iter([1, 2]), strengths=iter([1, -2]), operator="add", unit="residual", tokens="last")
    assert [(c.layer, c.strength) for c in cells] == [(1, 1.0), (1, -2.0), (2, 1.0), (2, -2.0)]
    for cell in cells:
        alone = fitted.add(cell.layer, cell.strength, unit="residual", tokens="last")
        assert cell.steering.content_hash() == alone.content_hash()
        assert (cell.instruction, cell.condition) == ("shout", "steered")
    formats = grid(fitted, layers=[0], strengths=[1.0], value=0.0)
    assert formats[0].steering.content_hash() == fitted.set_projection(0, value=0.0).content_hash()


def test_a_baseline_is_the_unsteered_model() -> None:
    none = baseline("shout")
    assert (none.condition, none.layer, none.strength, len(none.steering)) == ("none", -1, 0.0, 0)


def test_prompts_may_be_chat_messages_or_a_series(llama: Any, vectors: Make) -> None:
    candidates = [baseline("shout"), *grid(vectors(), layers=[2], strengths=[1.0])]
    texts = sweep(llama.model, candidates, pd.Series(PROMPTS), **SIZE)
    messages = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    chats = sweep(llama.model, candidates, messages, **SIZE)
    assert chats["prompt"].tolist() == messages * 2
    assert chats["response"].tolist() == texts["response"].tolist()


def test_a_candidate_may_carry_a_plain_list_of_hooks(llama: Any, vectors: Make) -> None:
    steering = vectors().set_projection(2)
    one = sweep(llama.model, [Candidate("shout", layer=2, strength=1.0, steering=list(steering))], PROMPTS, **SIZE)  # type: ignore[arg-type]
    other = sweep(llama.model, [Candidate("shout", layer=2, strength=1.0, steering=steering)], PROMPTS, **SIZE)
    pd.testing.assert_frame_equal(one, other)


def test_repetition_is_flagged_and_perplexity_can_be_left_out(llama: Any) -> None:
    found = sweep(llama.model, [baseline("shout")], PROMPTS, perplexity=False, **SIZE)
    assert "perplexity" not in found
    assert found["degenerate"].dtype == bool
    expected = ls.evaluate.repetitions(found["response"])
    assert found["degenerate"].tolist() == expected["loop"].tolist()
    pd.testing.assert_series_equal(found["repeated"], expected["repeated"])


def test_a_blank_response_is_degenerate_as_an_empty_one_is() -> None:
    responses = ["", "\n\n \n", "A river."]
    own = [jobs.Job(str(i), None, Steering(), -1) for i in range(3)]  # type: ignore[arg-type]
    outcomes = {str(i): {"response": text, "n_tokens": 3 * bool(text)} for i, text in enumerate(responses)}
    table = _table([baseline("shout")], ["a", "b", "c"], own, outcomes, {})
    assert table["degenerate"].tolist() == [True, True, False]


def test_candidates_that_are_the_same_are_run_once_and_reported_each(llama: Any, vectors: Make, tmp_path: Any) -> None:
    one = grid(vectors(), layers=[2], strengths=[1.0])[0]
    copy = Candidate("other", "steered", 2, 1.0, vectors().set_projection(2))
    found = sweep(llama.model, [one, one, copy, baseline("shout"), baseline("other")], PROMPTS, cache=tmp_path, **SIZE)
    assert len(found) == 20
    assert len(read_cache(tmp_path)) == 8
    parts = [found[i : i + 4].drop(columns="instruction").reset_index(drop=True) for i in (0, 4, 8)]
    pd.testing.assert_frame_equal(parts[0], parts[1])
    pd.testing.assert_frame_equal(parts[0], parts[2])


# --- checks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [list, tuple, pd.Series, "frame", "generator", "tensor"])
def test_checks_return_a_sequence_or_a_table(llama: Any, vectors: Make, kind: Any) -> None:
    def check(responses: Any) -> Any:
        lengths = [len(r) / 10 for r in responses]
        if kind == "frame":
            return pd.DataFrame({"success": lengths, "words": 0}, index=range(100, 100 + len(lengths)))
        if kind == "generator":
            return (x for x in lengths)
        return torch.tensor(lengths, dtype=torch.float64) if kind == "tensor" else kind(lengths)

    candidates = [baseline("shout"), *grid(vectors(), layers=[2], strengths=[1.0]), baseline("brief")]
    found = sweep(llama.model, candidates, PROMPTS, checks={"shout": check}, **SIZE)
    own = found[found["instruction"] == "shout"]
    assert own["success"].tolist() == [len(r) / 10 for r in own["response"]]
    assert found.loc[found["instruction"] == "brief", "success"].isna().all()


def test_each_check_sees_the_responses_of_its_own_instruction_once(llama: Any, vectors: Make) -> None:
    seen: dict[str, list[list[str]]] = {"shout": [], "brief": []}
    checks = {name: lambda r, name=name: seen[name].append(list(r)) or [True] * len(r) for name in seen}
    candidates = [baseline("shout"), baseline("brief"), *grid(vectors("brief", 7), layers=[2], strengths=[1.0])]
    found = sweep(llama.model, candidates, PROMPTS, checks=checks, **SIZE)
    for name, calls in seen.items():
        assert calls == [found.loc[found["instruction"] == name, "response"].tolist()]
    assert found["success"].tolist() == [1.0] * 12


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda r: [1.0], "the check of 'shout' returned 1 results for 4 responses"),
        (lambda r: pd.DataFrame({"passed": [1.0] * len(r)}), r"'shout' returned columns \['passed'\], none of them"),
    ],
)
def test_a_check_that_does_not_fit_is_named(llama: Any, check: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sweep(llama.model, [baseline("shout")], PROMPTS, checks={"shout": check}, **SIZE)


# --- bad input -----------------------------------------------------------------------------------------------------


def test_bad_input_is_refused_before_any_forward_pass(llama: Any, vectors: Make, forwards: Any, tmp_path: Any) -> None:
    none, fitted = baseline("shout"), vectors()
    rows = Candidate("shout", layer=1, strength=1.0, steering=fitted.add(1, torch.tensor([1.0, 2.0])))
    narrow = grid(vectors(width=16), layers=[1], strengths=[1.0])
    blocked = tmp_path / "a file"
    blocked.write_text("")
    sweep(llama.model, [none, *grid(fitted, layers=[1], strengths=[1.0])], PROMPTS, **SIZE)  # points are known now
    bad: list[tuple[type[Exception], str, tuple[Any, Any], dict[str, Any]]] = [
        (ValueError, "got 0 and 4", ([], PROMPTS), {}),
        (ValueError, "got 1 and 0", ([none], []), {}),
        (TypeError, r"prompts must be a list; .*\[prompt\]", ([none], "Why?"), {}),
        (ValueError, r"checks for \['quiet'\].*\['shout'\]", ([none], PROMPTS), {"checks": {"quiet": len}}),
        (ValueError, "batch_size=0", ([none], PROMPTS), {"batch_size": 0}),
        (ValueError, "max_new_tokens=0", ([none], PROMPTS), {"max_new_tokens": 0}),
        (ValueError, "strengths for 2 rows", ([none, rows], PROMPTS), {}),
        (ValueError, "another width", ([none, *narrow], PROMPTS), {}),
        (ValueError, "prompt_format='chap' is unknown", ([none], PROMPTS), {"prompt_format": "chap"}),
        (ValueError, "prompt 0 has .* tokens", ([none], ["long " * 60]), {}),
        (TypeError, "a prompt is a string or a list", ([none], [["Why?"]]), {}),
        (OSError, "cannot write", ([none], PROMPTS), {"cache": blocked / "cache"}),
        (OSError, "cannot write", ([none], PROMPTS), {"cache": blocked}),
    ]
    with forwards(llama) as calls:
        for error, message, arguments, options in bad:
            with pytest.raises(error, match=message):
                sweep(llama.model, *arguments, **{**SIZE, **options})
    assert calls == []


def test_an_unknown_operator_is_refused(vectors: Make) -> None:
    with pytest.raises(ValueError, match="operator must be 'set_projection' or 'add', got 'plus'"):
        grid(vectors(), layers=[1], strengths=[1.0], operator="plus")  # type: ignore[arg-type]


@pytest.mark.parametrize("layer", [-1, 4])
def test_a_grid_refuses_layers_that_the_vectors_lack(vectors: Make, layer: int) -> None:
    with pytest.raises(ValueError, match=f"layer {layer} is out of range"):
        grid(vectors(), layers=[1, layer], strengths=[1.0])


def test_under_another_steering_a_sweep_runs_but_neither_caches_nor_sends_away(
    llama: Any, vectors: Make, tmp_path: Any
) -> None:
    outer = vectors("brief", 7).set_projection(3, 2.0)
    candidates = [baseline("shout"), *grid(vectors(), layers=[1], strengths=[1.0])]
    with outer.on(llama.model):
        found = sweep(llama.model, candidates, PROMPTS, perplexity=False, **SIZE)
        with pytest.raises(ValueError, match="the model is being steered"):
            sweep(llama.model, candidates, PROMPTS, cache=tmp_path, **SIZE)
        with ThreadPoolExecutor(1) as pool, pytest.raises(ValueError, match="the model is being steered"):
            sweep(llama.model, candidates, PROMPTS, executor=pool, **SIZE)
    plain = [Candidate("shout", steering=outer), Candidate("shout", steering=outer + candidates[1].steering)]
    together = sweep(llama.model, plain, PROMPTS, perplexity=False, **SIZE)
    assert found["response"].tolist() == together["response"].tolist()


# --- cache ---------------------------------------------------------------------------------------------------------


def read_cache(folder: Any) -> list[str]:
    return [line for path in folder.glob("*.jsonl") for line in path.read_text().splitlines()]


def test_a_second_run_makes_no_forward_pass_and_gives_the_same_table(
    llama: Any, candidates: list[Candidate], tmp_path: Any, forwards: Any
) -> None:
    first = sweep(llama.model, candidates, PROMPTS, cache=tmp_path, batch_size=7, **SIZE)
    with forwards(llama) as calls:
        second = sweep(llama.model, candidates, PROMPTS, cache=tmp_path, batch_size=64, **SIZE)
        part = sweep(llama.model, candidates[1:3], PROMPTS[1:3], cache=tmp_path, **SIZE)
    assert calls == []
    pd.testing.assert_frame_equal(second, first)
    assert part["response"].tolist() == [*first["response"][5:7], *first["response"][9:11]]


CHANGES: dict[str, Callable[[Make], tuple[list[Candidate], dict[str, Any]]]] = {
    "strength": lambda v: (grid(v(), layers=[1], strengths=[1.5]), {}),
    "layer": lambda v: (grid(v(), layers=[2], strengths=[1.0]), {}),
    "tensor": lambda v: (grid(v(seed=1), layers=[1], strengths=[1.0]), {}),
    "target": lambda v: (grid(v(), layers=[1], strengths=[1.0], value=2.0), {}),
    "operator": lambda v: (grid(v(), layers=[1], strengths=[1.0], operator="add"), {}),
    "tokens": lambda v: (grid(v(), layers=[1], strengths=[1.0], tokens="generated"), {}),
    "other tokens": lambda v: (grid(v(), layers=[1], strengths=[1.0], tokens=slice(-2, None)), {}),
    "max_new_tokens": lambda v: (grid(v(), layers=[1], strengths=[1.0]), {"max_new_tokens": 6}),
    "prompt_format": lambda v: (grid(v(), layers=[1], strengths=[1.0]), {"prompt_format": "plain"}),
    "text": lambda v: ([in_text(c, shouted) for c in grid(v(), layers=[1], strengths=[1.0])], {}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_the_outcome_misses_the_cache(
    llama: Any, vectors: Make, tmp_path: Any, forwards: Any, change: str
) -> None:
    sweep(llama.model, grid(vectors(), layers=[1], strengths=[1.0]), PROMPTS, cache=tmp_path, **SIZE)
    candidates, options = CHANGES[change](vectors)
    options = {**SIZE, **options}
    fresh = sweep(llama.model, candidates, PROMPTS, **options)
    with forwards(llama) as calls:
        found = sweep(llama.model, candidates, PROMPTS, cache=tmp_path, **options)
    assert calls
    assert len(read_cache(tmp_path)) == 8
    pd.testing.assert_frame_equal(found, fresh)


def test_another_model_of_the_same_name_misses_the_cache(llama: Any, fresh: Any, vectors: Make, tmp_path: Any) -> None:
    candidates = grid(vectors(), layers=[1], strengths=[1.0])
    other = fresh("llama", seed=1)
    mine = sweep(llama.model, candidates, PROMPTS, cache=tmp_path, **SIZE)
    theirs = sweep(other.model, candidates, PROMPTS, cache=tmp_path, **SIZE)
    assert mine["response"].tolist() != theirs["response"].tolist()
    assert theirs["response"].tolist() == sweep(other.model, candidates, PROMPTS, **SIZE)["response"].tolist()


def test_a_run_without_perplexity_does_not_stand_in_for_one_with_it(llama: Any, tmp_path: Any) -> None:
    sweep(llama.model, [baseline("shout")], PROMPTS, cache=tmp_path, perplexity=False, **SIZE)
    assert sweep(llama.model, [baseline("shout")], PROMPTS, cache=tmp_path, **SIZE)["perplexity"].notna().all()


def stop_after(monkeypatch: pytest.MonkeyPatch, batches: int) -> list[int]:
    """Make the sweep die by Ctrl-C after some batches; returns the sizes of the batches that ran."""
    sizes: list[int] = []
    run = jobs.run_chunk

    def counting(model: Any, chunk: Any, settings: Any) -> Any:
        if len(sizes) == batches:
            raise KeyboardInterrupt
        sizes.append(len(chunk))
        return run(model, chunk, settings)

    monkeypatch.setattr(jobs, "run_chunk", counting)
    return sizes


@pytest.mark.parametrize("killed_after", [0, 1, 3])
def test_a_killed_sweep_runs_only_the_rest_and_gives_the_same_table(
    llama: Any, candidates: list[Candidate], tmp_path: Any, monkeypatch: pytest.MonkeyPatch, killed_after: int
) -> None:
    whole = sweep(llama.model, candidates, PROMPTS, batch_size=6, **SIZE)
    with monkeypatch.context() as patch:
        stop_after(patch, killed_after)
        with pytest.raises(KeyboardInterrupt):
            sweep(llama.model, candidates, PROMPTS, batch_size=6, cache=tmp_path, **SIZE)
    assert len(read_cache(tmp_path)) == 6 * killed_after
    sizes = stop_after(monkeypatch, 99)
    resumed = sweep(llama.model, candidates, PROMPTS, batch_size=6, cache=tmp_path, **SIZE)
    distinct = 4 * (len(candidates) - 1)  # both instructions have the same baseline
    assert sum(sizes) == distinct - 6 * killed_after
    pd.testing.assert_frame_equal(resumed, whole, rtol=1e-3)


BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "cut off": lambda data: data[: len(data) // 2],
    "cut at a line": lambda data: data[: data.index(b"\n") + 1],
    "not text": lambda data: b"\xff\xfe\x00" + data,
    "empty": lambda data: b"",
    "another shape": lambda data: b'[1, 2]\n"text"\nnull\n{"key": "abc"}\n\n' + data[:-30],
    "binary in the middle": lambda data: data[:50] + b"\x00\xff\n" + data[50:],
}


@pytest.mark.parametrize("kind", BROKEN)
def test_lines_of_the_cache_that_cannot_be_read_are_run_again(
    llama: Any, vectors: Make, tmp_path: Any, kind: str, forwards: Any
) -> None:
    candidates = [baseline("shout"), *grid(vectors(), layers=[1, 2], strengths=[1.0])]
    whole = sweep(llama.model, candidates, PROMPTS, batch_size=4, cache=tmp_path, **SIZE)
    files = sorted(tmp_path.glob("*.jsonl"))
    assert len(files) == 3
    files[1].write_bytes(BROKEN[kind](files[1].read_bytes()))
    with forwards(llama) as calls:
        again = sweep(llama.model, candidates, PROMPTS, batch_size=4, cache=tmp_path, **SIZE)
    assert calls and all(shape[0] <= 4 for shape in calls)
    pd.testing.assert_frame_equal(again, whole, rtol=1e-3)
    with forwards(llama) as calls:
        sweep(llama.model, candidates, PROMPTS, batch_size=4, cache=tmp_path, **SIZE)
    assert calls == []


# --- executors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 3])
def test_threads_give_the_same_table(llama: Any, candidates: list[Candidate], workers: int) -> None:
    alone = sweep(llama.model, candidates, PROMPTS, batch_size=3, **SIZE)
    with ThreadPoolExecutor(workers) as pool:
        found = sweep(llama.model, candidates, PROMPTS, batch_size=3, executor=pool, **SIZE)
    pd.testing.assert_frame_equal(found, alone)


def test_threads_fill_the_cache(llama: Any, candidates: list[Candidate], tmp_path: Any, forwards: Any) -> None:
    with ThreadPoolExecutor(2) as pool:
        first = sweep(llama.model, candidates, PROMPTS, batch_size=5, executor=pool, cache=tmp_path, **SIZE)
    with forwards(llama) as calls:
        second = sweep(llama.model, candidates, PROMPTS, cache=tmp_path, **SIZE)
    assert calls == []
    pd.testing.assert_frame_equal(second, first)


def test_processes_load_the_model_by_name_and_give_the_same_table(
    model_folder: Any, vectors: Make, tmp_path: Any
) -> None:
    model = ls.load_model(model_folder)
    fitted = vectors()
    candidates = [baseline("shout"), *grid(fitted, layers=[1, 3], strengths=[1.0, 2.0], tokens="generated")]
    alone = sweep(model, candidates, PROMPTS, batch_size=8, **SIZE)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        found = sweep(model, candidates, PROMPTS, batch_size=8, executor=pool, cache=tmp_path, **SIZE)
    pd.testing.assert_frame_equal(found, alone, rtol=1e-4)
    assert len(read_cache(tmp_path)) == 20


def test_a_model_in_memory_is_refused_for_other_processes(llama: Any, forwards: Any) -> None:
    class Elsewhere:
        def submit(self, *arguments: Any) -> Future[Any]:
            raise AssertionError("nothing may be sent")

    with forwards(llama) as calls, pytest.raises(ValueError, match=r"loaded in memory.*ThreadPoolExecutor"):
        sweep(llama.model, [baseline("shout")], PROMPTS, executor=Elsewhere(), **SIZE)
    assert calls == []


def test_any_object_with_submit_will_do_and_gets_plain_arguments(model_folder: Any, vectors: Make) -> None:
    import pickle

    model = ls.load_model(model_folder)
    sent: list[bytes] = []

    class Elsewhere:
        """Runs what it is sent from its pickle, as another machine would."""

        def submit(self, function: Any, *arguments: Any) -> Future[Any]:
            sent.append(pickle.dumps((function, arguments)))
            run, copies = pickle.loads(sent[-1])
            future: Future[Any] = Future()
            future.set_result(run(*copies))
            return future

    candidates = [baseline("shout"), *grid(vectors(), layers=[1, 2], strengths=[1.0, 2.0])]
    found = sweep(model, candidates, PROMPTS, batch_size=8, executor=Elsewhere(), **SIZE)
    pd.testing.assert_frame_equal(found, sweep(model, candidates, PROMPTS, batch_size=8, **SIZE), rtol=1e-4)
    assert len(sent) == 3
    assert max(map(len, sent)) < 100_000  # the model itself does not travel


def test_a_batch_that_fails_elsewhere_raises_here_and_keeps_what_was_finished(
    llama: Any, vectors: Make, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, count = jobs.run_chunk, iter(range(99))

    def failing(*arguments: Any) -> Any:
        if next(count) == 2:
            raise RuntimeError("worker died")
        return run(*arguments)

    monkeypatch.setattr(jobs, "run_chunk", failing)
    candidates = grid(vectors(), layers=[1, 2, 3], strengths=[1.0, 2.0])
    with ThreadPoolExecutor(1) as pool, pytest.raises(RuntimeError, match="worker died"):
        sweep(llama.model, candidates, PROMPTS, batch_size=4, executor=pool, cache=tmp_path, **SIZE)
    assert len(read_cache(tmp_path)) == 8


@pytest.mark.slow
def test_on_the_real_model_rows_equal_generating_candidate_by_candidate(smollm2: Any, tmp_path: Any) -> None:
    fitted = ls.instruction.fit(
        smollm2.model, ls.data.instruction_pairs(ls.data.FORMATS["capitals"], 6), name="shout", progress=False
    )
    candidates = [baseline("shout"), *grid(fitted, layers=[14, 24], strengths=[1.0, 2.0])]
    require_equal(sweep(smollm2.model, candidates, PROMPTS, **SIZE), by_hand(smollm2.model, candidates))
