"""Jobs: how they are ordered into batches, what is kept on disk, and batches that run from a model's name alone."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Sequence
from typing import Any

import pytest

import lensteer as ls
from analysis import jobs
from analysis.jobs import Job, Settings, run_chunk, run_jobs
from lensteer.models import source_of
from lensteer.prompts import Row, tokenize
from lensteer.steering import Steering

SETTINGS = Settings(max_new_tokens=4, prompt_format="auto", perplexity=True)


def row(length: int) -> Row:
    return Row([5] * length, [True] * length, "")


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[list[Job]]:
    """Batches are noted instead of run; every outcome is the job's key."""
    seen: list[list[Job]] = []

    def note(model: Any, chunk: Sequence[Job], settings: Settings) -> dict[str, Any]:
        seen.append(list(chunk))
        return {job.key: {"response": job.key, "n_tokens": 1, "finish_reason": "stop"} for job in chunk}

    monkeypatch.setattr(jobs, "run_chunk", note)
    return seen


def run(work: Sequence[Job], batch_size: int = 64, cache: Any = None) -> dict[str, Any]:
    return run_jobs(None, work, SETTINGS, batch_size, cache, None, False)  # type: ignore[arg-type]


def test_batches_go_by_layer_with_the_unsteered_last_then_by_length(ran: list[list[Job]]) -> None:
    work = [Job(f"{layer} {length}", row(length), Steering(), layer) for layer in (-1, 3, 0, 1) for length in (9, 2, 5)]
    outcomes = run(work, batch_size=4)
    assert [len(batch) for batch in ran] == [4, 4, 4]
    order = [(job.layer, len(job.row)) for batch in ran for job in batch]
    assert order == [(layer, length) for layer in (0, 1, 3, -1) for length in (2, 5, 9)]
    assert outcomes.keys() == {job.key for job in work}


def test_jobs_of_one_key_run_once(ran: list[list[Job]]) -> None:
    outcomes = run([Job("same", row(3), Steering(), 1)] * 5 + [Job("other", row(3), Steering(), 1)])
    assert [job.key for batch in ran for job in batch] == ["same", "other"]
    assert set(outcomes) == {"same", "other"}


def test_the_cache_holds_one_file_a_batch_and_gives_only_what_is_asked_for(ran: list[list[Job]], tmp_path: Any) -> None:
    work = [Job(str(i), row(3), Steering(), 1) for i in range(5)]
    run(work, batch_size=2, cache=tmp_path / "made" / "here")
    assert len(list((tmp_path / "made" / "here").iterdir())) == 3
    ran.clear()
    outcomes = run([*work[:2], Job("new", row(3), Steering(), 1)], cache=tmp_path / "made" / "here")
    assert [[job.key for job in batch] for batch in ran] == [["new"]]
    assert set(outcomes) == {"0", "1", "new"}
    assert outcomes["1"] == {"response": "1", "n_tokens": 1, "finish_reason": "stop"}


def test_files_that_are_not_of_the_cache_are_left_alone(ran: list[list[Job]], tmp_path: Any) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "other.jsonl").write_text('{"prompt": "not an outcome"}\n')
    (tmp_path / "folder").mkdir()
    run([Job("a", row(3), Steering(), 1)], cache=tmp_path)
    assert [job.key for batch in ran for job in batch] == ["a"]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_whole_cache_is_read_even_where_nothing_can_be_written(
    ran: list[list[Job]], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = [Job("a", row(3), Steering(), 1)]
    run(work, cache=tmp_path)

    def refuse(*arguments: Any) -> Any:
        raise OSError("read-only")

    monkeypatch.setattr(jobs, "write_atomically", refuse)
    assert set(run(work, cache=tmp_path)) == {"a"}
    ran.clear()
    with pytest.raises(OSError, match="read-only"):
        run([Job("b", row(3), Steering(), 1)], cache=tmp_path)
    assert ran == []


def test_responses_with_any_characters_and_no_perplexity_survive_the_cache(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = 'a "quote"\n\r\x85\u2028\x00\x1c é 日本 🌍 \\n {"key": 1}'
    outcome = {"response": text, "n_tokens": 0, "finish_reason": "stop", "perplexity": float("nan")}
    monkeypatch.setattr(jobs, "run_chunk", lambda *a: {"a": dict(outcome)})
    work = [Job("a", row(3), Steering(), 1)]
    run(work, cache=tmp_path)
    monkeypatch.setattr(jobs, "run_chunk", lambda *a: pytest.fail("it was in the cache"))
    again = run(work, cache=tmp_path)["a"]
    assert again["response"] == text
    assert math.isnan(again["perplexity"])


def test_a_batch_is_the_same_from_the_model_and_from_where_it_was_loaded(model_folder: Any, vectors: Any) -> None:
    model = ls.load_model(model_folder)
    steering = vectors().set_projection(2)
    rows = tokenize(model, ["Name a river.", "Why?"])
    work = [
        Job(str(i), r, s, 2) for i, (r, s) in enumerate(zip(rows * 2, [steering] * 2 + [Steering()] * 2, strict=True))
    ]
    here = run_chunk(model, work, SETTINGS)
    there = run_chunk(source_of(model), work, SETTINGS)
    assert here == there
    assert list(here) == ["0", "1", "2", "3"]
    assert here["0"]["response"] != here["2"]["response"]
    for keys, edits in ((("0", "1"), steering), (("2", "3"), None)):
        alone = ls.generate(model, ["Name a river.", "Why?"], edits, max_new_tokens=4, progress=False)
        assert [here[key]["response"] for key in keys] == alone["response"].tolist()
    assert jobs._loaded(source_of(model)) is jobs._loaded(source_of(model))  # a worker loads it once
    assert json.loads(json.dumps(here)) == here


def test_an_empty_response_has_no_perplexity(fresh: Any) -> None:
    case = fresh("llama")
    first = int(ls.generate(case.model, ["Why?"], max_new_tokens=1, progress=False)["token_ids"][0][0])
    case.hf.generation_config.eos_token_id = [2, first]
    (outcome,) = run_chunk(case.model, [Job("a", tokenize(case.model, ["Why?"])[0], Steering(), -1)], SETTINGS).values()
    assert (outcome["response"], outcome["n_tokens"], outcome["finish_reason"]) == ("", 0, "stop")
    assert math.isnan(outcome["perplexity"])


def test_a_batch_has_the_model_to_itself(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from lensteer.models import twin_of

    free: list[bool] = []

    def other_thread() -> None:
        taken = twin_of(llama.model).lock.acquire(blocking=False)
        free.append(taken)
        if taken:
            twin_of(llama.model).lock.release()

    def looking(real: Any) -> Any:
        def function(*arguments: Any, **options: Any) -> Any:
            thread = threading.Thread(target=other_thread)
            thread.start()
            thread.join()
            return real(*arguments, **options)

        return function

    for name in ("generate", "log_probs"):
        monkeypatch.setattr(jobs, name, looking(getattr(jobs, name)))
    run_chunk(llama.model, [Job("a", tokenize(llama.model, ["Why?"])[0], Steering(), -1)], SETTINGS)
    assert free == [False, False]
    other_thread()
    assert free == [False, False, True]
