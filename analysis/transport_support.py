"""`untouched`: how much of real text a bounded support leaves alone.

    share = |{(token, unit): a ≤ low or a ≥ high}| / |{(token, unit)}|        at each site, with the steering in force

A support is made of samples that are averages over tokens, and is tested on single tokens, which spread wider. So even
text like the source's is left alone in part, and how much is worth knowing before a strength is read as a dose. Values
are counted as they arrive at each site, behind all edits before it; padding never counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lensteer.attach import face_for
from lensteer.capture import run
from lensteer.generate import as_steering
from lensteer.hooks import Affine, Edit
from lensteer.models import tokenizer_of
from lensteer.points import layer_of
from lensteer.progress import progress_bar
from lensteer.prompts import Prompt, batches, tokenize
from lensteer.reading import positions_read, reading_of
from lensteer.steering import Steering

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge


@dataclass
class _Tally:
    """How many values arrived at a site, and how many of them below and above its support."""

    counts: list[int] = field(default_factory=lambda: [0, 0, 0])
    counted: Bool[Tensor, "batch pos"] | None = None


@dataclass(frozen=True, eq=False)
class _Counting(Affine):
    """The same edit, counting what it is given at the tokens that count."""

    tally: _Tally = field(default_factory=_Tally)

    def __call__(self, activation: Float[Tensor, "batch ..."], hook: Any = None) -> Float[Tensor, "batch ..."]:
        counted, counts = self.tally.counted, self.tally.counts
        assert counted is not None
        values = activation[counted.to(activation.device)].to(torch.promote_types(activation.dtype, torch.float32))
        counts[0] += values.numel()
        if self.low is not None and self.high is not None:
            counts[1] += int((values <= self.low.to(values)).sum())
            counts[2] += int((values >= self.high.to(values)).sum())
        return super().__call__(activation, hook)


def untouched(
    model: TransformerBridge,
    steering: Iterable[tuple[str, Edit]],
    prompts: Sequence[Prompt],
    *,
    template: bool = True,
    bos: bool = True,
    prompt_format: str = "plain",
    truncate: bool = False,
    batch_size: int | Literal["auto"] = "auto",
    progress: bool = True,
) -> pd.DataFrame:
    """The share of (token, unit) values that lie outside the support when they arrive, for every site of a transport.

    Args:
        steering: of `Affine` edits at all tokens, as `Transport.steering` makes it.
        prompts: text to read.
        template, bos: whether the chat template's tokens and the BOS count.

    Returns:
        hook, layer (−1 outside of the layers), values (tokens × units that were counted), untouched (a share), and of
        it below and above, shares as well. A value that equals an end of the support is not moved, and counts.

    Raises:
        ValueError: no edits, edits of another kind or at some tokens only, edits with a strength per row, or prompts
            that `tokenize` refuses.
    """
    import pandas as pd

    steering = as_steering(steering)
    tallies = [_Tally() for _ in steering]
    counting = _counting(steering, tallies)
    rows = tokenize(model, prompts, prompt_format=prompt_format, truncate=truncate)
    bos_id = None if bos else tokenizer_of(model).bos_token_id
    chosen = [positions_read(row, "all", i, template=template, without=bos_id) for i, row in enumerate(rows)]
    face = face_for(model, counting.points(model))
    with counting.on(model), progress_bar(len(rows), "untouched", shown=progress) as bar:
        for batch in batches(model, rows, batch_size, purpose="read"):
            for tally in tallies:
                tally.counted = reading_of(batch, chosen, "all").mask.bool()
            with torch.inference_mode():
                run(face.base_model, batch)
            bar.update(len(batch.rows))
    lines = []
    for (hook, _), tally in zip(steering, tallies, strict=True):
        values, below, above = tally.counts
        layer = layer_of(hook)
        lines.append(
            {
                "hook": hook,
                "layer": -1 if layer is None else layer,
                "values": values,
                "untouched": (below + above) / values,
                "below": below / values,
                "above": above / values,
            }
        )
    return pd.DataFrame(lines)


def _counting(steering: Steering, tallies: Sequence[_Tally]) -> Steering:
    """The steering with every edit counting into its own tally."""
    if not len(steering):
        raise ValueError("the steering has no edits, so nothing has a support; give one of Transport.steering")
    pairs = []
    for (hook, edit), tally in zip(steering, tallies, strict=True):
        if not isinstance(edit, Affine) or edit.n_rows is not None:
            raise ValueError(
                f"the edit at {hook!r} is {type(edit).__name__}{' with a strength per row' * (edit.n_rows is not None)}"
                "; a support is counted for transports that act on all tokens: Transport.steering(strength, support=…)"
            )
        pairs.append((hook, _Counting(edit.scale, edit.shift, edit.low, edit.high, edit.strength, tally)))
    return Steering(pairs, steering.metadata)
