"""Activation transport: fitting the maps of a site, fitting all sites causally, decoding with all of them, folded maps.

*Units*: the maps of 576 units against a loop over the units, each sorted and solved by itself, as one first writes it.

*Causal fit*: 30 layers × 2 norms. The contender is the procedure of the released code: for every site a run from the
input, with the maps before it in force, that stops at the site. Beside them the simultaneous fit, and a bare forward
pass over the same batches.

*Decoding*: edits at all 60 norms at strength 1, everywhere and inside the support, against the bare model's
``generate``, and against the same maps folded into the weights. All write exactly the same number of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from decoding import prompts
from measure import Comparison, Result, Settings, compare, interleaved, seconds
from torch import Tensor

from lensteer import Steering, data, load_model, transport
from lensteer.capture import run as forward
from lensteer.export import fold
from lensteer.methods.transport_maps import UnitMaps, fit_units
from lensteer.models import plain_model, tokenizer_of
from lensteer.prompts import Row, batches, tokenize

LOOP, UNITS = "loop over units", "fit_units"
ONE_PASS, RESTART, TOGETHER, PASS = (
    "one-pass causal fit",
    "a run for each site",
    "simultaneous fit",
    "bare forward pass",
)
BARE, EVERYWHERE, INSIDE, FOLDED = "bare generate", "steered everywhere", "steered inside (0, 100)", "folded"
Sides = tuple[list[str], list[str]]


def run(settings: Settings) -> Iterator[Result]:
    """Time all three; nothing counts before the maps, and the logits of the folded model, are shown to agree."""
    model = load_model()
    both = sentences(8 if settings.quick else 32)
    rows = tokenize(model, [*both[0], *both[1]], prompt_format="plain")
    _bare_pass(
        model, rows
    )()  # memory that a model's pass has freed is not paged in anew, as it never is after a capture
    for n in (64,) if settings.quick else (64, 512):
        yield _units(n, int(model.cfg.d_model), settings)
    yield _causal(model, both, rows, settings)
    yield _decoding(model, both, settings)


def sentences(n: int) -> Sides:
    """Two kinds of sentences of about the same length."""
    sides = data.concept("ocean", n)
    return list(sides.source), list(sides.target)


def _units(n: int, units: int, settings: Settings) -> Result:
    generator = torch.Generator().manual_seed(n)
    source = torch.randn(n, units, generator=generator)
    target = 0.3 + 1.5 * torch.randn(n, units, generator=generator)
    calls = 10 if n < 100 else 4
    scale, shift = _unit_by_unit(source, target)
    found = fit_units(source, target)
    worst = max(float((found.scale - scale).abs().max()), float((found.shift - shift).abs().max()))
    assert worst < 1e-6, f"the maps differ by {worst:.1e}"
    contenders = {
        LOOP: lambda: seconds(lambda: _unit_by_unit(source, target), settings.clock),
        UNITS: lambda: seconds(lambda: [fit_units(source, target) for _ in range(calls)], settings.clock) / calls,
    }
    times = interleaved(contenders, settings.repeats or 15)
    return Result(
        f"Maps of one site: {units} units, {n} + {n} samples",
        times,
        [compare(times, LOOP, UNITS, ">= 10.0")],
        [f"ω and β are the same, to {worst:.0e}"],
        ["fit_units gives the source's quantiles, both sides' moments and the distances as well"],
    )


def _unit_by_unit(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    scale, shift = torch.empty(source.shape[1]), torch.empty(source.shape[1])
    for unit in range(source.shape[1]):
        a, b = source[:, unit].sort().values.double(), target[:, unit].sort().values.double()
        x, y = a - a.mean(), b - b.mean()
        slope = (x * y).sum() / (x * x).sum()
        scale[unit], shift[unit] = slope, b.mean() - slope * a.mean()
    return scale, shift


def _causal(model: Any, both: Sides, rows: Sequence[Row], settings: Settings) -> Result:
    layers = range(4) if settings.quick else None
    found: dict[str, dict[str, UnitMaps]] = {}

    def fit(order: Any) -> None:
        fitted = transport.fit(model, *both, sites="norms", layers=layers, order=order, progress=False)
        found[order] = dict(fitted.maps)

    def restart() -> None:
        found[RESTART] = _site_by_site(model, rows, len(both[0]), found["causal"])

    functions: dict[str, Callable[[], Any]] = {
        ONE_PASS: lambda: fit("causal"),
        RESTART: restart,
        TOGETHER: lambda: fit("simultaneous"),
        PASS: _bare_pass(model, rows),
    }
    fit("causal")
    contenders = {
        name: lambda function=function: seconds(function, settings.clock) for name, function in functions.items()
    }
    times = interleaved(contenders, settings.repeats or (1 if settings.quick else 3))
    names = list(found["causal"])
    worst = max(_apart(found[RESTART][name], found["causal"][name]) for name in names)
    # The same arithmetic on both sides: a value on the edge of a support moves or stays by its last bit, and what
    # comes after it differs then by as much as maps move values.
    assert worst < 1e-5, f"the maps of the two ways differ by {worst:.1e} of their largest entry"
    comparisons: list[Comparison] = [
        compare(times, RESTART, ONE_PASS, ">= 10.0"),
        compare(times, ONE_PASS, TOGETHER),
        compare(times, ONE_PASS, PASS),
    ]
    lengths = [len(row) for row in rows]
    return Result(
        f"Causal fit: {len(names)} norms, {len(both[0])} + {len(both[1])} sentences of {min(lengths)} to "
        f"{max(lengths)} tokens",
        times,
        comparisons,
        [f"a run for each site gives the same maps, to {worst:.0e} of the largest entry of each"],
    )


def _apart(one: UnitMaps, other: UnitMaps) -> float:
    pairs = ((one.scale, other.scale), (one.shift, other.shift))
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def _bare_pass(model: Any, rows: Sequence[Row]) -> Callable[[], None]:
    def through() -> None:
        with torch.inference_mode():
            for batch in batches(model, rows, "auto"):
                forward(plain_model(model).base_model, batch)

    return through


class _Reached(Exception):
    """The site has been read: the rest of the pass is not needed."""


def _site_by_site(model: Any, rows: Sequence[Row], n_source: int, names: Sequence[str]) -> dict[str, UnitMaps]:
    """What one writes by hand: torch hooks on the plain model, a mean over tokens, an exception that ends the pass."""
    hf, maps, handles = plain_model(model), {}, []
    try:
        for name in names:
            layer, norm = name.split(".")[1:3]
            block = hf.model.layers[int(layer)]
            module = block.input_layernorm if norm == "ln1" else block.post_attention_layernorm
            pooled = torch.empty(len(rows), hf.config.hidden_size)
            for batch in batches(model, rows, "auto"):
                pooled[list(batch.rows)] = _read(hf, module, batch)
            found = maps[name] = fit_units(pooled[:n_source], pooled[n_source:])
            edit = found.edit(1.0, (0, 100))
            handles.append(module.register_forward_hook(lambda _, args, output, edit=edit: edit(output)))
    finally:
        for handle in handles:
            handle.remove()
    return maps


def _read(hf: Any, module: torch.nn.Module, batch: Any) -> Tensor:
    kept: list[Tensor] = []

    def keep(_: Any, args: Any, output: Tensor) -> None:
        mask = batch.attention_mask.float()
        kept.append(torch.einsum("bp,bpd->bd", mask / mask.sum(1, keepdim=True), output))
        raise _Reached

    handle = module.register_forward_hook(keep)
    try:
        with torch.inference_mode():
            forward(hf.model, batch)
    except _Reached:
        return kept[0]
    finally:
        handle.remove()
    raise AssertionError("the pass did not reach the module")


def _decoding(model: Any, both: Sides, settings: Settings) -> Result:
    new, size = (12, 4) if settings.quick else (32, 8)
    hf, tokenizer, texts = plain_model(model), tokenizer_of(model), prompts(size)
    fitted = transport.fit(model, *both, sites="norms", order="simultaneous", progress=False)
    everywhere, inside = fitted.steering(support=None), fitted.steering(support=(0, 100))
    folded = fold(everywhere, model)
    rendered = [
        tokenizer.apply_chat_template([{"role": "user", "content": t}], tokenize=False, add_generation_prompt=True)
        for t in texts
    ]

    def generate(decoder: Any) -> list[list[int]]:
        batch = tokenizer(rendered, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
        with torch.inference_mode():
            output = decoder.generate(**batch, min_new_tokens=new, max_new_tokens=new, do_sample=False)
        return output[:, batch.input_ids.shape[1] :].tolist()

    def steered(steering: Steering) -> list[list[int]]:
        with steering.on(model):
            return generate(hf)

    functions: dict[str, Callable[[], Any]] = {
        BARE: lambda: generate(hf),
        EVERYWHERE: lambda: steered(everywhere),
        INSIDE: lambda: steered(inside),
        FOLDED: lambda: generate(folded),
    }
    tokens = {name: function() for name, function in functions.items()}
    for still in (everywhere.at_strength(0.0), inside.at_strength(0.0)):
        assert steered(still) == tokens[BARE], "steering at strength 0 does not give the bare model's tokens"
    apart = _logits_apart(model, everywhere, folded, texts)
    assert apart < 1e-3, f"the logits of the folded model differ from the steered one's by {apart:.1e}"
    same = sum(a == b for a, b in zip(tokens[FOLDED], tokens[EVERYWHERE], strict=True))
    contenders = {
        name: lambda function=function: seconds(function, settings.clock) for name, function in functions.items()
    }
    times = interleaved(contenders, settings.repeats or (3 if settings.quick else 9))
    bars = {EVERYWHERE: "<= 1.15", INSIDE: "<= 1.15", FOLDED: "<= 1.05"}
    return Result(
        f"Transport at {len(everywhere)} norms, batch {size}, {new} new tokens",
        times,
        [compare(times, name, BARE, bar) for name, bar in bars.items()],
        [
            "at strength 0 the tokens are the bare model's",
            f"folded and steered: logits of the prompts agree to {apart:.0e}, {same} of {size} responses to the token",
        ],
    )


def _logits_apart(model: Any, steering: Steering, folded: Any, texts: Sequence[str]) -> float:
    """Largest difference of the logits, beside the largest logit."""
    worst, largest = 0.0, 0.0
    for batch in batches(model, tokenize(model, texts, prompt_format="plain"), "auto"):
        real = batch.attention_mask.bool()
        with torch.inference_mode():
            with steering.on(model):
                one = forward(plain_model(model), batch).logits[real]
            other = forward(folded, batch).logits[real]
        worst, largest = max(worst, float((one - other).abs().max())), max(largest, float(one.abs().max()))
    return worst / largest
