"""Discovery: attribution patching over all heads, against activation patching of each.

The brute force is a sample of heads, evenly drawn, in every round, and its time is scaled to all of them. It runs the
whole prompt for every head, batched over the questions, as one writes it; *shared* runs the last token on one reading
of what lies before it. The rank correlation of attribution and effect is over all heads that were patched.
"""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
from measure import Result, Settings, compare, interleaved, seconds

from analysis import patching
from lensteer import answer_pairs, data, load_model

ATTRIBUTION, BRUTE, SHARED = "attribution, all heads", "brute force, all heads", "brute force, shared prompts"


def run(settings: Settings) -> Iterator[Result]:
    """Time them on sentiment questions, and say how far the attribution ranks heads as the true effect does."""
    model = load_model()
    pairs = answer_pairs(data.questions("sentiment", "fit", 8 if settings.quick else 24))
    heads = [(layer, head) for layer in range(int(model.cfg.n_layers)) for head in range(int(model.cfg.n_heads))]
    repeats = settings.repeats or 3
    shares = [heads[i :: 5 * repeats] for i in range(repeats)]
    found: dict[str, list[pd.DataFrame]] = {BRUTE: [], SHARED: []}
    scores = patching.attribution_patching(model, pairs, progress=False)  # warms up as well

    def brute(name: str) -> float:
        share = shares[len(found[name])]

        def patch() -> None:
            table = patching.activation_patching(
                model, pairs, elements=share, share_prompt=name == SHARED, progress=False
            )
            found[name].append(table)

        return seconds(patch, settings.clock) * len(heads) / len(share)

    times = interleaved(
        {
            ATTRIBUTION: lambda: seconds(
                lambda: patching.attribution_patching(model, pairs, progress=False), settings.clock
            ),
            BRUTE: lambda: brute(BRUTE),
            SHARED: lambda: brute(SHARED),
        },
        repeats,
    )
    tables = {name: pd.concat(parts) for name, parts in found.items()}
    worst = float((tables[BRUTE]["effect"] - tables[SHARED]["effect"]).abs().max())
    assert worst < 1e-3, f"effects differ by {worst:.1e}"
    agreement = patching.compare(scores, tables[BRUTE])
    yield Result(
        f"Discovery: {len(heads)} heads, {len(pairs)} questions",
        times,
        [compare(times, BRUTE, ATTRIBUTION, ">= 50.0"), compare(times, SHARED, ATTRIBUTION)],
        [
            f"attribution and effect over {len(agreement.table)} heads: rank correlation "
            f"{agreement.rank_correlation:.2f}, correlation {agreement.correlation:.2f}",
            f"both brute forces have the same effects, to {worst:.0e} nats",
        ],
        [f"brute force: scaled from {len(shares[0])} heads a round"],
    )
