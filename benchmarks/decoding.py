"""Decoding: one steered point, all positions, against the bare model's ``generate``.

The edit has strength 0: it does all its work, and the tokens must be those of the bare model, so that both decode the
same number of steps. Three contenders: the bare model (tokenizer, ``generate``, ``batch_decode``); the same inside
``steering.on(model)``, which is the edit alone; and `lensteer.generate`, which is all that a user waits for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from measure import Comparison, Result, Settings, compare, interleaved, seconds

from lensteer import Steering, generate, load_model
from lensteer.data import queries
from lensteer.hooks import Add
from lensteer.models import plain_model, tokenizer_of

BARE, HOOKED, OURS = "bare generate", "bare generate, steering.on", "lensteer.generate, steered"


def run(settings: Settings) -> Iterator[Result]:
    """One result per batch size."""
    model = load_model()
    for size in (1, 8) if settings.quick else (1, 8, 32):
        yield _run(model, size, settings)


def prompts(count: int) -> list[str]:
    """Different prompts whose answers are long, so that no row ends before the token budget does."""
    return [
        f"Write a long and detailed story. It begins with this question: {query}" for query in queries("fit", count)
    ]


def _run(model: Any, size: int, settings: Settings) -> Result:
    new = 12 if settings.quick else 32
    hf, tokenizer, texts = plain_model(model), tokenizer_of(model), prompts(size)
    vector = torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(0))
    steering = Steering([(f"blocks.{model.cfg.n_layers // 2}.hook_resid_post", Add(vector, 0.0))])

    def bare() -> list[list[int]]:
        rendered = [
            tokenizer.apply_chat_template([{"role": "user", "content": t}], tokenize=False, add_generation_prompt=True)
            for t in texts
        ]
        batch = tokenizer(rendered, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
        with torch.inference_mode():
            output = hf.generate(**batch, max_new_tokens=new, do_sample=False)[:, batch.input_ids.shape[1] :]
        tokenizer.batch_decode(output, skip_special_tokens=True)
        return output.tolist()

    def hooked() -> list[list[int]]:
        with steering.on(model):
            return bare()

    def ours() -> list[list[int]]:
        table = generate(model, texts, steering, max_new_tokens=new, batch_size=size, progress=False)
        return table["token_ids"].tolist()

    functions: dict[str, Callable[[], Any]] = {BARE: bare, HOOKED: hooked, OURS: ours}
    tokens = {name: function() for name, function in functions.items()}
    if any(len(row) != new for row in tokens[OURS]) or any(found != tokens[BARE] for found in tokens.values()):
        raise AssertionError(f"batch {size}: steering at strength 0 does not give the bare model's tokens")
    repeats = settings.repeats or (3 if settings.quick else {1: 15, 8: 9, 32: 7}[size])
    contenders = {
        name: lambda function=function: seconds(function, settings.clock)  # type: ignore[misc]
        for name, function in functions.items()
    }
    times = interleaved(contenders, repeats)
    comparisons: list[Comparison] = [compare(times, OURS, BARE, "<= 1.05"), compare(times, HOOKED, BARE, "<= 1.05")]
    title = f"Steered decoding, batch {size}: one point, all positions, {new} new tokens"
    return Result(title, times, comparisons, [f"all {size * new} tokens of all three are the same"])
