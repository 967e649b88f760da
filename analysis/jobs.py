"""Running the rows of a sweep: batched by layer, kept on disk as they finish, on this machine or on others.

A `Job` is one prompt under one steering; its key is a hash of all that determines the outcome. A batch is a list of
jobs; it runs in this process, or wherever an executor sends it, and comes back as plain records.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lensteer.generate import generate
from lensteer.models import load_model, source_of, twin_of
from lensteer.progress import progress_bar
from lensteer.prompts import Row
from lensteer.scoring import log_probs
from lensteer.steering import Steering, per_row
from lensteer.storage import write_atomically

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Outcome = dict[str, Any]
_REQUIRED = ("response", "n_tokens", "finish_reason")
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.02, 1.0  # seconds between two looks at what has finished


@dataclass(frozen=True)
class Settings:
    """What all jobs of a sweep share."""

    max_new_tokens: int
    prompt_format: str
    perplexity: bool
    stop: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return f"{self.max_new_tokens} {self.perplexity} {self.stop} v1"


@dataclass(frozen=True)
class Job:
    """One prompt under one steering."""

    key: str
    row: Row
    steering: Steering
    layer: int


def run_jobs(
    model: TransformerBridge,
    jobs: Sequence[Job],
    settings: Settings,
    batch_size: int,
    cache: str | Path | None,
    executor: Any,
    progress: bool,
) -> dict[str, Outcome]:
    """The outcome of every job, by key; those that a cache folder holds are not run again."""
    distinct = {job.key: job for job in jobs}
    folder = None if cache is None else Path(cache)
    outcomes = {key: value for key, value in _kept(folder) if key in distinct}
    missing = [job for key, job in distinct.items() if key not in outcomes]
    # By layer, so that a batch starts late in the model; then by length, so that little is padding.
    missing.sort(key=lambda job: (job.layer if job.layer >= 0 else 1 << 30, len(job.row)))
    if folder is not None and missing:
        # A folder that cannot be written is found now, not after the first batch.
        write_atomically(folder / ".writable", b"").unlink(missing_ok=True)
    chunks = [missing[i : i + batch_size] for i in range(0, len(missing), batch_size)]
    with progress_bar(len(distinct), "sweep", shown=progress, unit="response") as bar:
        bar.update(len(outcomes))
        for finished in _run_chunks(model, chunks, settings, executor):
            if folder is not None:
                _keep(folder, finished)
            outcomes.update(finished)
            bar.update(len(finished))
    return outcomes


def _run_chunks(
    model: TransformerBridge, chunks: Sequence[list[Job]], settings: Settings, executor: Any
) -> Iterator[dict[str, Outcome]]:
    if executor is None:
        for chunk in chunks:
            yield run_chunk(model, chunk, settings)
        return
    # Threads share the model (and take turns on it); other processes and machines load their own.
    worker_model: Any = model if isinstance(executor, ThreadPoolExecutor) else source_of(model)
    futures = [executor.submit(run_chunk, worker_model, chunk, settings) for chunk in chunks]
    pending = list(futures)
    pause = _SHORTEST_PAUSE
    try:
        while pending:
            # As they finish, failures last: what other workers have done is kept before an error is raised.
            finished = sorted((f for f in pending if f.done()), key=_failed)
            for future in finished:
                pending.remove(future)
                yield future.result()
            # Asking may cost: submitit looks into a shared folder for every job.
            pause = _SHORTEST_PAUSE if finished else min(1.5 * pause, _LONGEST_PAUSE)
            if not finished:
                time.sleep(pause)
    finally:
        for future in pending:  # the finished ones are left alone: for submitit, cancelling is a scheduler's command
            future.cancel()


def _failed(future: Any) -> bool:
    try:
        return future.exception() is not None
    except CancelledError:  # by somebody else, or because its cluster was closed
        return True


def run_chunk(model: Any, jobs: Sequence[Job], settings: Settings) -> dict[str, Outcome]:
    """One batch: row i is prompt i under steering i. ``model`` is a bridge, or how to load one (see `source_of`)."""
    if isinstance(model, tuple):
        model = _loaded(model)
    rows: list[Any] = [job.row for job in jobs]
    # Threads take turns on a model, a batch at a time: what one changes on it must not reach another.
    with twin_of(model).lock:
        table = generate(
            model,
            rows,
            per_row([job.steering for job in jobs]),
            max_new_tokens=settings.max_new_tokens,
            stop=settings.stop,
            batch_size=len(jobs),
            progress=False,
        )
        scores = log_probs(model, rows, table["token_ids"].tolist(), progress=False) if settings.perplexity else []
    outcomes: list[Outcome] = table[list(_REQUIRED)].to_dict("records")
    for outcome, score in zip(outcomes, scores, strict=settings.perplexity):
        outcome["perplexity"] = float((-score.double().mean()).exp()) if len(score) else float("nan")
    return {job.key: outcome for job, outcome in zip(jobs, outcomes, strict=True)}


@lru_cache(maxsize=1)
def _loaded(source: tuple[Any, ...]) -> TransformerBridge:
    name, device, dtype, revision = source
    return load_model(name, device=device, dtype=dtype, revision=revision)


def _kept(folder: Path | None) -> Iterator[tuple[str, Outcome]]:
    """What earlier runs finished. A line that cannot be read (cut off, damaged) is passed over, and so runs again."""
    for path in sorted(folder.glob("*.jsonl")) if folder is not None and folder.is_dir() else ():
        for line in path.read_bytes().splitlines():
            record: Any = None
            with suppress(ValueError):  # not UTF-8, or not JSON
                record = json.loads(line)
            if isinstance(record, dict) and {"key", *_REQUIRED} <= record.keys():
                yield record.pop("key"), record


def _keep(folder: Path, outcomes: Mapping[str, Outcome]) -> None:
    lines = "".join(json.dumps({"key": key, **outcome}) + "\n" for key, outcome in outcomes.items())
    name = hashlib.sha256(lines.encode()).hexdigest()[:24]
    write_atomically(folder / f"{name}.jsonl", lines.encode())
