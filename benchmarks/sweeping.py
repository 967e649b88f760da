"""Sweep: 15 layers × 4 strengths × 8 prompts × 24 tokens, against running the candidates one after another.

Three contenders, on the same plain model and with the same stop tokens: `analysis.sweep` (all of it, in every round);
one candidate after another, its 8 prompts in one batch with a KV cache; and one prompt at a time without a cache, the
procedure of the papers' code. The last two are sampled: a round runs its share of the candidates and a few (candidate,
prompt) pairs, drawn by a fixed seed, and their times are scaled to the whole grid. Over all rounds every candidate is
run once. Every response of every sample is compared with the sweep's.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

from measure import Result, Settings, compare, interleaved, seconds

from analysis.sweep import Candidate, grid, sweep
from lensteer import generate, load_model
from lensteer.data import FORMATS, instruction_pairs, queries
from lensteer.methods import instruction

SWEEP, CANDIDATES, PAPERS = "analysis.sweep", "candidate by candidate, batch 8", "prompt by prompt, no cache"
Outcome = tuple[str, int]


def run(settings: Settings) -> Iterator[Result]:
    """Time the sweep and samples of the other two, and compare every response of the samples with the sweep's."""
    model = load_model()
    new, n_prompts, repeats = (12, 4, 2) if settings.quick else (24, 8, 3)
    repeats = settings.repeats or repeats
    prompts = queries("validation", n_prompts)
    candidates = _candidates(model, settings.quick)
    options: dict[str, Any] = {"max_new_tokens": new, "progress": False}
    found: dict[str, dict[tuple[int, int], Outcome]] = {SWEEP: {}, CANDIDATES: {}, PAPERS: {}}

    def whole() -> None:
        table = sweep(model, candidates, prompts, perplexity=False, **options)
        for number, outcome in enumerate(zip(table["response"], table["n_tokens"], strict=True)):
            found[SWEEP][divmod(number, n_prompts)] = outcome

    def candidate(number: int) -> None:
        table = generate(model, prompts, candidates[number].steering, batch_size=n_prompts, **options)
        for prompt, outcome in enumerate(zip(table["response"], table["n_tokens"], strict=True)):
            found[CANDIDATES][number, prompt] = outcome

    def one(number: int, prompt: int) -> None:
        steering = candidates[number].steering
        table = generate(model, [prompts[prompt]], steering, batch_size=1, use_cache=False, **options)
        found[PAPERS][number, prompt] = (table["response"][0], table["n_tokens"][0])

    order = random.Random(0).sample(range(len(candidates)), len(candidates))
    shares = cycle([order[i::repeats] for i in range(repeats)])
    others = cycle(order)

    def all_candidates() -> float:
        share = next(shares)
        return _scaled(lambda: [candidate(i) for i in share], len(candidates) / len(share), settings)

    def all_singles() -> float:
        pairs = [(next(others), prompt) for prompt in range(n_prompts)]  # every prompt once: they differ in length
        return _scaled(lambda: [one(*pair) for pair in pairs], len(candidates), settings)

    generate(model, prompts[:1], candidates[0].steering, max_new_tokens=2, progress=False)
    contenders = {SWEEP: lambda: seconds(whole, settings.clock), CANDIDATES: all_candidates, PAPERS: all_singles}
    times = interleaved(contenders, repeats)
    layers, strengths = len({c.layer for c in candidates}), len({c.strength for c in candidates})
    mean = sum(n for _, n in found[SWEEP].values()) / len(found[SWEEP])
    yield Result(
        f"Sweep: {layers} layers x {strengths} strengths x {n_prompts} prompts x {new} tokens",
        times,
        [compare(times, CANDIDATES, SWEEP, ">= 2.0"), compare(times, PAPERS, SWEEP, ">= 15.0")],
        [_equal(name, found[name], found[SWEEP]) for name in (CANDIDATES, PAPERS)],
        [
            f"scaled from samples: {CANDIDATES}, {len(candidates) // repeats} of {len(candidates)} candidates a round; "
            f"{PAPERS}, {n_prompts} of {len(found[SWEEP])} (candidate, prompt) a round",
            f"{mean:.1f} tokens a response on average; no perplexity is scored",
        ],
    )


def _candidates(model: Any, quick: bool) -> list[Candidate]:
    """A grid for capital letters, from a fit on a few pairs (not timed)."""
    pairs = instruction_pairs(FORMATS["capitals"], 8)
    vectors = instruction.fit(model, pairs, name="capitals", progress=False)
    layers = range(1, 30, 6) if quick else range(1, 30, 2)
    return grid(vectors, layers=layers, strengths=(0.5, 1.0) if quick else (0.25, 0.5, 0.75, 1.0))


def _scaled(function: Callable[[], Any], factor: float, settings: Settings) -> float:
    return factor * seconds(function, settings.clock)


def _equal(name: str, sample: dict[tuple[int, int], Outcome], whole: dict[tuple[int, int], Outcome]) -> str:
    """How many responses of a sample are the sweep's.

    Raises:
        AssertionError: more than one in a hundred differs, which rounding does not explain.
    """
    same = sum(whole[key] == outcome for key, outcome in sample.items())
    text = f"{name}: {same} of {len(sample)} responses sampled are the sweep's, to the token"
    if same < 0.99 * len(sample):
        raise AssertionError(text)
    return text
