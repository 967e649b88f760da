"""Key elements: fitting SADI at all three sites, and multiple choice with shared prompts.

*Fit*: 32 answer pairs, D of heads, neurons and hidden units at all layers: one pass for all three; a pass for each;
one text at a time with plain forward hooks, the procedure of the released code.

*Multiple choice*: questions of more than 100 tokens with four options of several tokens each. `score_options` reads a
prompt once for its options; the contender runs every prompt with every option on the plain model, in padded batches.
A grid of steerings on one reading of the prompts, against one call for each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from measure import Result, Settings, compare, interleaved, seconds
from torch import Tensor

from lensteer import STEPS, AnswerPair, data, load_model, plain_model, sadi
from lensteer.answers import answer_ids, answered_rows
from lensteer.prompts import Row, batches, tokenize
from lensteer.scoring import score_options

ELEMENTS: tuple[sadi.Element, ...] = ("head", "neuron", "hidden")
TOGETHER, APART, SINGLE = "sadi.fit_all, three sites", "three passes", "text by text, plain hooks"
SHARED, WHOLE = "score_options", "every option with its prompt"
_TOKENS = 8  # of every option
GRID, CALLS = "a grid of 6 in one call", "6 calls"


def run(settings: Settings) -> Iterator[Result]:
    """Time both; nothing counts before the differences and the scores are shown to be equal."""
    model = load_model()
    yield _fit(model, settings)
    prompts, options = _questions(model, 8 if settings.quick else 12)
    yield _choices(model, settings, prompts, options)
    yield _grid(model, settings, prompts, options)


def _fit(model: Any, settings: Settings) -> Result:
    queries = data.queries("fit", 12 if settings.quick else 32)
    pairs = [AnswerPair(f"{query}\nIs this a question? Answer:", "yes", "no") for query in queries]
    found: dict[str, dict[str, Tensor]] = {}

    def together() -> None:
        fitted = sadi.fit_all(model, pairs, ELEMENTS, progress=False)
        found[TOGETHER] = {element: fitted[element].difference for element in ELEMENTS}

    def apart() -> None:
        found[APART] = {e: sadi.fit(model, pairs, e, progress=False).difference for e in ELEMENTS}

    def single() -> None:
        found[SINGLE] = _text_by_text(model, pairs)

    contenders = {
        name: lambda function=function: seconds(function, settings.clock)
        for name, function in ((TOGETHER, together), (APART, apart), (SINGLE, single))
    }
    sadi.fit(model, pairs[:2], progress=False)
    times = interleaved(contenders, settings.repeats or 3)
    checks = []
    for name in (APART, SINGLE):
        worst = max(_relative(found[name][element], found[TOGETHER][element]) for element in ELEMENTS)
        assert worst < 1e-4, f"{name}: D differs by {worst:.1e}"
        checks.append(f"{name}: D is the same, to {worst:.0e} of its largest entry")
    return Result(
        f"SADI fit: {len(pairs)} pairs, heads, neurons and hidden units at {model.cfg.n_layers} layers",
        times,
        [compare(times, APART, TOGETHER, ">= 2.0"), compare(times, SINGLE, TOGETHER, ">= 1.0")],
        checks,
    )


def _text_by_text(model: Any, pairs: Sequence[AnswerPair]) -> dict[str, Tensor]:
    """D with a batch of one and torch hooks on the plain Llama model."""
    hf, total, side = plain_model(model), {}, 1
    layers = hf.model.layers

    def add(element: str, layer: int, x: Tensor) -> None:
        sign = 1 if side == 1 else -1
        total[element, layer] = total.get((element, layer), 0) + sign * x[0, -1].double() / len(pairs)

    handles = []
    for i, layer in enumerate(layers):
        handles += [
            layer.self_attn.o_proj.register_forward_pre_hook(lambda m, args, i=i: add("head", i, args[0])),
            layer.mlp.act_fn.register_forward_hook(lambda m, args, out, i=i: add("neuron", i, out)),
            layer.mlp.register_forward_hook(lambda m, args, out, i=i: add("hidden", i, out)),
        ]
    try:
        for side in (1, 2):
            for row in answered_rows(model, [p.prompt for p in pairs], [p[side] for p in pairs]):
                with torch.inference_mode():
                    hf.model(torch.tensor([row.ids]), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    stacked = {e: torch.stack([total[e, i] for i in range(len(layers))]) for e in ELEMENTS}
    return {**stacked, "head": stacked["head"].unflatten(-1, (model.cfg.n_heads, -1))}


def _relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def _questions(model: Any, n: int) -> tuple[list[Row], list[list[list[int]]]]:
    """Prompts of more than 100 tokens, and four options of several tokens for each."""
    queries = data.queries("fit")
    texts = [" ".join(queries[(3 * i + j) % len(queries)] for j in range(15)) for i in range(n)]
    rows = tokenize(model, [f"{text}\nQuestion: which comes next?\nAnswer:" for text in texts], prompt_format="plain")
    assert min(map(len, rows)) > 100, f"the shortest prompt has {min(map(len, rows))} tokens"
    answers = [[queries[(7 * i + j) % len(queries)] for j in range(4)] for i in range(n)]
    return rows, [
        [answer_ids(model, row, text)[:_TOKENS] for text in own] for row, own in zip(rows, answers, strict=True)
    ]


def _choices(model: Any, settings: Settings, prompts: list[Row], options: list[list[list[int]]]) -> Result:
    found: dict[str, Tensor] = {}

    def shared() -> None:
        scored = score_options(model, prompts, options, progress=False)[0]
        found[SHARED] = torch.tensor([[float(option.log_probs.sum()) for option in own] for own in scored])

    def whole() -> None:
        found[WHOLE] = _every_option_with_its_prompt(model, prompts, options)

    contenders = {
        name: lambda function=function: seconds(function, settings.clock)
        for name, function in ((SHARED, shared), (WHOLE, whole))
    }
    times = interleaved(contenders, settings.repeats or 4)
    worst = float((found[SHARED] - found[WHOLE]).abs().max())
    assert worst < 1e-3, f"log-likelihoods of {_TOKENS} tokens differ by {worst:.1e}"
    lengths = [len(row) for row in prompts]
    return Result(
        f"Multiple choice: {len(prompts)} questions of {min(lengths)} to {max(lengths)} tokens, 4 options",
        times,
        [compare(times, WHOLE, SHARED, ">= 2.0")],
        [f"log-likelihoods of {_TOKENS} tokens agree to {worst:.0e}"],
    )


def _every_option_with_its_prompt(model: Any, prompts: list[Row], options: list[list[list[int]]]) -> Tensor:
    """What one writes by hand: rows of prompt + option in order of length, one pass, the option's logits gathered."""
    hf = plain_model(model)
    answers = [option for own in options for option in own]
    owners = [row for row, own in zip(prompts, options, strict=True) for _ in own]
    rows = [Row(r.ids + a, [True] * (len(r) + len(a)), "") for r, a in zip(owners, answers, strict=True)]
    sums = torch.zeros(len(rows))
    for batch in batches(model, rows, "auto"):
        most = max(len(answers[i]) for i in batch.rows)
        with torch.inference_mode():
            logits = hf(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                position_ids=batch.position_ids,
                use_cache=False,
                logits_to_keep=most + 1,
            ).logits.log_softmax(-1)
        for line, i in zip(logits, batch.rows, strict=True):
            answer = torch.tensor(answers[i])
            sums[i] = line[-len(answer) - 1 : -1].gather(-1, answer.unsqueeze(-1)).sum()
    return sums.view(len(prompts), -1)


def _grid(model: Any, settings: Settings, prompts: list[Row], options: list[list[list[int]]]) -> Result:
    pairs = [AnswerPair(f"{query}\nIs this a question? Answer:", "yes", "no") for query in data.queries("fit", 8)]
    fitted = sadi.fit(model, pairs, progress=False)
    steerings = [fitted.steering(k, d, mode="live", tokens=STEPS) for k in (1, 4, 16) for d in (1.0, 4.0)]
    found: dict[str, Tensor] = {}

    def sums(scored: Any) -> Tensor:
        return torch.tensor([[[float(o.log_probs.sum()) for o in own] for own in under] for under in scored])

    def grid() -> None:
        found[GRID] = sums(score_options(model, prompts, options, steerings, progress=False))

    def calls() -> None:
        found[CALLS] = sums([score_options(model, prompts, options, [s], progress=False)[0] for s in steerings])

    contenders = {
        name: lambda function=function: seconds(function, settings.clock)
        for name, function in ((GRID, grid), (CALLS, calls))
    }
    times = interleaved(contenders, settings.repeats or 3)
    worst = float((found[GRID] - found[CALLS]).abs().max())
    assert worst < 1e-3, f"log-likelihoods of {_TOKENS} tokens differ by {worst:.1e}"
    return Result(
        "Multiple choice: 6 steerings that act from the last prompt token on",
        times,
        [compare(times, CALLS, GRID, ">= 1.0")],
        [f"log-likelihoods of {_TOKENS} tokens agree to {worst:.0e}"],
    )
