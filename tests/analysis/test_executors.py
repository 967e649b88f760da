"""Sweeps on other people's executors: Dask and submitit as they are, and futures that behave like theirs."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from typing import Any

import pandas as pd
import pytest

import lensteer as ls
from analysis import jobs
from analysis.jobs import Job, Settings, run_jobs
from analysis.sweep import Candidate, baseline, grid, sweep
from lensteer.prompts import Row
from lensteer.steering import Steering

PROMPTS = ["Name a river.", "Why?", "What do bees eat in the spring?", "How far is it?"]
SIZE: dict[str, Any] = {"max_new_tokens": 5, "batch_size": 10, "progress": False}


@pytest.fixture(scope="module")
def model(model_folder: Any) -> Any:
    return ls.load_model(model_folder)


@pytest.fixture(scope="module")
def candidates(vectors: Any) -> list[Candidate]:
    return [baseline("shout"), *grid(vectors(), layers=[1, 3], strengths=[1.0, 2.0], tokens="generated")]


@pytest.fixture(scope="module")
def alone(model: Any, candidates: list[Candidate]) -> pd.DataFrame:
    return sweep(model, candidates, PROMPTS, **SIZE)


@pytest.fixture
def dask() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed", reason='Dask is not installed (the extra "dev")')
    options = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        yield client


@pytest.mark.slow
def test_dask_gives_the_same_table(
    dask: Any, model: Any, candidates: list[Candidate], alone: pd.DataFrame, tmp_path: Any
) -> None:
    found = sweep(model, candidates, PROMPTS, executor=dask.get_executor(), cache=tmp_path, **SIZE)
    pd.testing.assert_frame_equal(found, alone, rtol=1e-4)
    assert len(list(tmp_path.glob("*.jsonl"))) == 2


@pytest.mark.slow
def test_submitit_gives_the_same_table(
    model: Any, candidates: list[Candidate], alone: pd.DataFrame, tmp_path: Any
) -> None:
    submitit = pytest.importorskip("submitit", reason='submitit is not installed (the extra "dev")')
    executor = submitit.AutoExecutor(tmp_path / "logs", cluster="local")
    executor.update_parameters(timeout_min=5)
    found = sweep(model, candidates, PROMPTS, executor=executor, **SIZE)
    pd.testing.assert_frame_equal(found, alone, rtol=1e-4)
    assert len(list((tmp_path / "logs").glob("*_result.pkl"))) == 2


@pytest.mark.slow
def test_a_batch_that_fails_under_submitit_raises_with_its_trace(
    model: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitit = pytest.importorskip("submitit", reason='submitit is not installed (the extra "dev")')
    executor = submitit.AutoExecutor(tmp_path / "logs", cluster="local")
    executor.update_parameters(timeout_min=5)
    monkeypatch.setattr(jobs, "run_chunk", importlib.metadata.version)  # runs elsewhere, and takes one argument
    with pytest.raises(submitit.core.utils.FailedJobError, match="takes 1 positional argument but 3 were given"):
        sweep(model, [baseline("shout")], PROMPTS, executor=executor, **SIZE)


# --- futures that are not those of the standard library ------------------------------------------------------------


class Later:
    """A job as submitit's: not a Future, done after some looks, and cancelled by a command that may be refused."""

    def __init__(self, looks: int, work: Callable[[], Any]) -> None:
        self.looks, self.work, self.cancelled = looks, work, False

    def done(self) -> bool:
        self.looks -= 1
        return self.looks < 0

    def exception(self) -> Exception | None:
        try:
            self.work()
        except (RuntimeError, KeyError) as error:
            return error
        return None

    def result(self) -> Any:
        return self.work()

    def cancel(self) -> None:
        if self.looks < 0:
            raise RuntimeError("no such job any more")
        self.cancelled = True


def row_jobs(count: int) -> list[Job]:
    return [Job(str(i), Row([5, 6], [True, True], ""), Steering(), i) for i in range(count)]


def outcome(job: Job) -> dict[str, Any]:
    return {job.key: {"response": job.key, "n_tokens": 1, "finish_reason": "stop"}}


def run(executor: Any, count: int, cache: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(jobs, "source_of", lambda model: ("name", None, None, None))
    settings = Settings(max_new_tokens=4, prompt_format="auto", perplexity=False)
    return run_jobs(None, row_jobs(count), settings, 1, cache, executor, False)  # type: ignore[arg-type]


def test_what_has_finished_is_kept_and_only_what_has_not_is_cancelled(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die() -> Any:
        raise RuntimeError("out of memory")

    sent: list[Later] = []

    class Scheduler:
        """The second job of four dies as the first and third finish; the last would take for ever."""

        def submit(self, function: Any, source: Any, chunk: list[Job], settings: Settings) -> Later:
            number = len(sent)
            sent.append(Later([1, 1, 1, 10**9][number], die if number == 1 else lambda: outcome(chunk[0])))
            return sent[-1]

    with pytest.raises(RuntimeError, match="out of memory"):
        run(Scheduler(), 4, tmp_path, monkeypatch)
    assert [job.cancelled for job in sent] == [False, False, False, True]
    assert {key for key, _ in jobs._kept(tmp_path)} == {"0", "2"}


def test_a_future_that_somebody_cancelled_raises_after_the_others_are_kept(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Closing:
        def submit(self, function: Any, source: Any, chunk: list[Job], settings: Settings) -> Future[Any]:
            future: Future[Any] = Future()
            if chunk[0].key == "0":
                future.cancel()
            else:
                future.set_result(outcome(chunk[0]))
            return future

    with pytest.raises(CancelledError):
        run(Closing(), 3, tmp_path, monkeypatch)
    assert {key for key, _ in jobs._kept(tmp_path)} == {"1", "2"}


def test_waiting_grows_longer_while_nothing_finishes_and_short_again_after(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(jobs.time, "sleep", pauses.append)

    class Slow:
        def submit(self, function: Any, source: Any, chunk: list[Job], settings: Settings) -> Later:
            return Later(20 if chunk[0].key == "0" else 22, lambda: outcome(chunk[0]))

    assert set(run(Slow(), 2, None, monkeypatch)) == {"0", "1"}
    assert pauses[:20] == sorted(pauses[:20])
    assert max(pauses) == jobs._LONGEST_PAUSE
    assert pauses[20] < 0.1
