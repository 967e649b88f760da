"""Extraction: mean differences of contrastive pairs, all layers, last token, from strings to a [layer, d_model] tensor.

The lean floor is the least that anybody can write by hand: the plain base model, one forward hook per layer, batches of
16 in order of length, stopped after the last layer; once more with batches of 8, which suit a CPU better. The peers run
in an environment of their own, in one process that is kept between rounds (see peers.py).
"""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lean import mean_difference
from measure import Result, Settings, compare, interleaved, seconds
from torch import Tensor

from lensteer import capture, load_model
from lensteer.checkpoints import EMBEDDED, folder_for
from lensteer.models import plain_model, tokenizer_of

FLOOR, FINER, OURS = "lean floor, batch 16", "lean floor, batch 8", "lensteer.capture"
_WORDS = (
    "the harbour lay quiet under a pale sky while two boats drifted home and the gulls argued about fish on the old "
    "stone pier where children counted waves and a dog slept beside the nets until the lamp was lit again"
).split()


def run(settings: Settings) -> Iterator[Result]:
    """Time lensteer, the floor and the peers on the same texts; vectors are compared before anything is timed."""
    model = load_model()
    tokenizer, hf = tokenizer_of(model), plain_model(model)
    pairs = make_pairs(8 if settings.quick else 16)
    positive, negative = [p for p, _ in pairs], [n for _, n in pairs]

    def ours() -> Tensor:
        found = capture(model, positive + negative, "resid_post", prompt_format="plain", progress=False).stacked()
        return found[:, : len(pairs)].mean(1) - found[:, len(pairs) :].mean(1)

    local: dict[str, Callable[[], Tensor]] = {
        FLOOR: lambda: mean_difference(hf, tokenizer, positive, negative),
        FINER: lambda: mean_difference(hf, tokenizer, positive, negative, 8),
        OURS: ours,
    }
    reference = local[FLOOR]()
    checks = [_agreement(OURS, ours(), reference)]
    contenders = {
        name: lambda function=function: seconds(function, settings.clock)  # type: ignore[misc]
        for name, function in local.items()
    }
    notes = []
    peers = None if settings.peers is None else Peers(settings.peers, settings, pairs)
    try:
        for name in peers.names if peers else ():
            vector = torch.tensor(peers.run(name, vector=True)["vector"])
            skip_last = name.startswith("repeng")
            checks.append(_agreement(name, vector, reference, skip_last=skip_last))
            contenders[name] = lambda name=name: peers.run(name)["seconds"]  # type: ignore[misc]
        times = interleaved(contenders, settings.repeats or (3 if settings.quick else 7))
    finally:
        if peers:
            peers.close()
    comparisons = [compare(times, OURS, FLOOR, "<= 1.15"), compare(times, OURS, FINER)]
    if peers:
        comparisons += [compare(times, name, OURS, ">= 1.0") for name in peers.names if "floor" not in name]
        comparisons += [compare(times, name, FLOOR) for name in peers.names if "floor" in name]
        notes.append("peers: " + ", ".join(f"{name} {version}" for name, version in peers.versions.items()))
    else:
        notes.append("peers were left out: their environment is not there (make .venv-peers/.installed)")
    lengths = [len(tokenizer(text).input_ids) for text in positive + negative]
    title = (
        f"Extraction: {len(pairs)} pairs ({len(lengths)} texts of {min(lengths)} to {max(lengths)} tokens), "
        f"{len(reference)} layers, last token"
    )
    yield Result(title, times, comparisons, checks, notes)


def make_pairs(count: int) -> list[tuple[str, str]]:
    """Pairs of texts of mixed length (15 to 85 tokens), in an order that is not sorted."""
    pairs = []
    for i in range(count):
        body = " ".join(_WORDS[(7 * i + j) % len(_WORDS)] for j in range(10 + 67 * i // (count - 1)))
        pairs.append((f"Say it with joy: {body}", f"Say it with regret: {body}"))
    random.Random(0).shuffle(pairs)
    return pairs


def _agreement(name: str, vector: Tensor, reference: Tensor, *, skip_last: bool = False) -> str:
    """The least cosine over layers with the floor's vectors, in words.

    Raises:
        AssertionError: they are not the same vectors, so that times say nothing.
    """
    cosine = torch.nn.functional.cosine_similarity(vector.double(), reference.double())
    least = float((cosine[:-1] if skip_last else cosine).min())
    if least < 0.9999:
        raise AssertionError(f"{name}: its vectors are not those of the floor (cosine {least:.6f}); nothing to compare")
    text = f"{name}: cosine with the floor's vectors at least {least:.7f}"
    if skip_last:
        text += f" below the last layer, {float(cosine[-1]):.3f} there (it reads that one after the final norm)"
    return text


class Peers:
    """The process in the peers' environment: one JSON line in, one JSON line out."""

    def __init__(self, python: Path, settings: Settings, pairs: Sequence[tuple[str, str]]) -> None:
        self._process = subprocess.Popen(
            [python, Path(__file__).with_name("peers.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env={**os.environ, "TQDM_DISABLE": "1"},
        )
        hello = self._ask(
            folder=str(folder_for(EMBEDDED)), threads=settings.threads, clock=settings.clock, pairs=list(pairs)
        )
        self.names: list[str] = hello["names"]
        self.versions: dict[str, str] = hello["versions"]

    def run(self, name: str, *, vector: bool = False) -> dict[str, Any]:
        """Run one peer once: ``seconds``, and its ``vector`` where it is asked for."""
        return self._ask(run=name, vector=vector)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the peers' process ended (code {self._process.wait()}); its own message is above")
        return json.loads(answer)
