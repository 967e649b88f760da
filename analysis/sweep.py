"""`sweep`: many candidates (instruction × layer × strength × control) on many prompts -> one tidy DataFrame.

A batch carries different candidates in different rows: each row's edit has strength zero on all others. Prompts are
tokenised once, and what lies below the first edited layer of a batch is computed once per prompt. Every finished batch
is kept on disk under a hash of everything that determines it, so a sweep that was killed goes on where it stopped.

    candidates = [baseline("capitals"), *grid(vectors, layers=range(10, 30, 2), strengths=[0.5, 1.0])]
    results = sweep(model, candidates, prompts, checks={"capitals": letter_case}, cache="sweeps")
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from analysis.jobs import Job, Settings, run_jobs
from lensteer.generate import as_steering
from lensteer.models import fingerprint, twin_of
from lensteer.prompts import Prompt, Row, tokenize
from lensteer.steering import Steering

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

    from lensteer.methods.instruction import InstructionVectors

Check = Callable[[Sequence[str]], Any]


@dataclass(frozen=True)
class Candidate:
    """One thing to try.

    Attributes:
        instruction: what it is meant to make the model do.
        condition: "none", "steered", "random" (direction), "text" (instruction in the prompt) or "text+steered".
        layer: the edited layer; -1 for no steering.
        strength: 0 for no steering.
        steering: what to run.
        rewrite: turns a prompt into the one to run (adds the instruction's text); None runs it as it is.
    """

    instruction: str
    condition: str = "steered"
    layer: int = -1
    strength: float = 0.0
    steering: Steering = field(default_factory=Steering)
    rewrite: Callable[[Any], Prompt] | None = None


def baseline(instruction: str) -> Candidate:
    """The unsteered model."""
    return Candidate(instruction, "none")


def in_text(candidate: Candidate, rewrite: Callable[[Any], Prompt]) -> Candidate:
    """The same candidate with the instruction in the prompt's text as well."""
    return replace(candidate, condition="text" if candidate.layer < 0 else "text+steered", rewrite=rewrite)


def grid(
    vectors: InstructionVectors,
    *,
    layers: Iterable[int],
    strengths: Iterable[float],
    operator: Literal["set_projection", "add"] = "set_projection",
    condition: str = "steered",
    **options: Any,
) -> list[Candidate]:
    """Every layer with every strength for one instruction.

    Args:
        operator: "set_projection" for formats, "add" for length and words.
        options: for the operator: ``unit=``, ``tokens=``, ``value=``.

    Raises:
        ValueError: an unknown operator, or layers that the vectors lack.
    """
    if operator not in ("set_projection", "add"):
        raise ValueError(f"operator must be 'set_projection' or 'add', got {operator!r}")
    make: Callable[..., Steering] = getattr(vectors, operator)
    values = [float(strength) for strength in strengths]
    cells = [(layer, strength) for layer in layers for strength in values]
    units = [(layer, make(layer, 1.0, **options)) for layer in dict.fromkeys(layer for layer, _ in cells)]
    unit = dict(units)  # one tensor a layer, so that rows of one batch share it
    return [Candidate(vectors.name, condition, i, s, unit[i].at_strength(s)) for i, s in cells]


def sweep(
    model: TransformerBridge,
    candidates: Sequence[Candidate],
    prompts: Sequence[Prompt],
    *,
    checks: Mapping[str, Check] | None = None,
    max_new_tokens: int = 32,
    perplexity: bool = True,
    prompt_format: str = "auto",
    stop: Sequence[str] = (),
    batch_size: int = 64,
    cache: str | Path | None = None,
    executor: Any = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Run every candidate on every prompt, greedily, and score the responses.

    Args:
        checks: instruction -> function of the responses that returns success for each (0/1 or graded), as a sequence
            or as a DataFrame with a column ``success``. Instructions without a check get no success.
        perplexity: add the perplexity of each response given its prompt (as run) under the unsteered model.
        stop: strings that end a response, as in `generate`; for base models in the "qa" format, a new "Q:".
        cache: a folder; finished batches are kept there and never run again.
        executor: any ``concurrent.futures.Executor`` (threads, Dask's ``client.get_executor()``, ``MPIPoolExecutor``,
            …) or an object with its ``submit`` (submitit's). Workers of other processes load the model by name, once
            each; on submitit every batch is a job of its own.

    Returns:
        One row per candidate and prompt: instruction, condition, layer, strength, prompt_id, prompt, response,
        n_tokens, finish_reason, perplexity, degenerate (repetitive or empty), repeated, success.

    Raises:
        ValueError: no candidates or prompts, a check for an instruction that no candidate has, a model that is being
            steered (with a cache or executor), or anything that `generate` would refuse; all before the first batch.
            A check that does not return one result per response.
        OSError: a cache folder that cannot be written; before the first batch as well.
    """
    if isinstance(prompts, str):
        raise TypeError("prompts must be a list; for one prompt write [prompt]")
    candidates = [replace(c, steering=as_steering(c.steering)) for c in candidates]
    prompts = list(prompts)
    if not candidates or not prompts:
        raise ValueError(f"a sweep needs candidates and prompts; got {len(candidates)} and {len(prompts)}")
    names = {candidate.instruction for candidate in candidates}
    if checks and (unknown := set(checks) - names):
        raise ValueError(f"checks for {sorted(unknown)}, but the candidates' instructions are {sorted(names)}")
    if batch_size < 1 or max_new_tokens < 1:
        raise ValueError(f"batch_size={batch_size} and max_new_tokens={max_new_tokens}: both must be at least 1")
    if twin_of(model).active and (cache is not None or executor is not None):
        raise ValueError(
            "the model is being steered, which no cache key or worker knows of; sweep without cache= and "
            "executor=, or add that steering to the candidates"
        )
    for steering in {id(c.steering): c.steering for c in candidates}.values():
        steering.points(model)
        if steering.n_rows is not None:
            raise ValueError(f"a candidate has strengths for {steering.n_rows} rows; give each one number")
    settings = Settings(max_new_tokens, prompt_format, perplexity, (stop,) if isinstance(stop, str) else tuple(stop))
    jobs = _jobs(model, candidates, prompts, settings)
    outcomes = run_jobs(model, jobs, settings, batch_size, cache, executor, progress)
    return _table(candidates, prompts, jobs, outcomes, checks or {})


def _jobs(
    model: TransformerBridge, candidates: Sequence[Candidate], prompts: Sequence[Prompt], settings: Settings
) -> list[Job]:
    """One job per candidate and prompt, keyed by everything that determines its outcome."""
    rows: dict[str, Row] = {}
    hashes: dict[int, str] = {}
    where = json.dumps([sorted(fingerprint(model).items()), settings.key])
    jobs = []
    for candidate in candidates:
        own = [candidate.rewrite(prompt) if candidate.rewrite else prompt for prompt in prompts]
        texts = {repr(prompt): prompt for prompt in own}  # chat messages cannot be keys
        new = {key: prompt for key, prompt in texts.items() if key not in rows}
        if new:
            room = settings.max_new_tokens
            tokenized = tokenize(model, list(new.values()), prompt_format=settings.prompt_format, room=room)
            rows.update(zip(new, tokenized, strict=True))
        if id(candidate.steering) not in hashes:
            hashes[id(candidate.steering)] = candidate.steering.content_hash()
        content = hashes[id(candidate.steering)]
        for row in (rows[repr(prompt)] for prompt in own):
            key = hashlib.sha256(f"{where}{content}{row.ids}".encode()).hexdigest()[:32]
            jobs.append(Job(key, row, candidate.steering, candidate.layer))
    return jobs


def _table(
    candidates: Sequence[Candidate],
    prompts: Sequence[Prompt],
    jobs: Sequence[Job],
    outcomes: Mapping[str, Mapping[str, Any]],
    checks: Mapping[str, Check],
) -> pd.DataFrame:
    import pandas as pd

    from lensteer.evaluate import repetitions

    lines = []
    for number, job in enumerate(jobs):
        candidate, prompt_id = candidates[number // len(prompts)], number % len(prompts)
        about = {key: getattr(candidate, key) for key in ("instruction", "condition", "layer", "strength")}
        lines.append({**about, "prompt_id": prompt_id, "prompt": prompts[prompt_id], **outcomes[job.key]})
    table = pd.DataFrame(lines)
    repeated = repetitions(table["response"])
    # A blank response is as broken as a repetitive one (and an empty one has no perplexity).
    table["degenerate"] = repeated["loop"] | (table["response"].str.strip() == "")
    table["repeated"] = repeated["repeated"]
    for instruction, check in checks.items():
        own = table["instruction"] == instruction
        scores = _verdict(instruction, check, table.loc[own, "response"].tolist())
        table.loc[own, "success"] = pd.Series(scores, index=table.index[own])
    return table


def _verdict(instruction: str, check: Check, responses: list[str]) -> list[float]:
    """What a check says of every response."""
    import pandas as pd

    verdict = check(responses)
    if isinstance(verdict, pd.DataFrame):
        if "success" not in verdict:
            raise ValueError(f"the check of {instruction!r} returned columns {list(verdict)}, none of them 'success'")
        verdict = verdict["success"]
    scores = [float(score) for score in verdict]
    if len(scores) != len(responses):
        raise ValueError(f"the check of {instruction!r} returned {len(scores)} results for {len(responses)} responses")
    return scores
