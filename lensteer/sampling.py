"""Sampling that does not depend on the batch: each prompt draws from a stream of random numbers of its own.

A token is drawn as ``argmax_i (logit_i + g_i)`` with Gumbel noise g (the Gumbel-max trick), where the noise of prompt i
comes from a generator seeded with (seed, i). So greedy decoding of the noisy logits is an exact sample, and the same
prompt draws the same tokens in any batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from lensteer.generate import Decoding


class GumbelNoise:
    """A logits processor that adds each row's own Gumbel noise."""

    def __init__(self, seed: int, rows: Sequence[int]) -> None:
        # On the CPU: its streams are the same on every machine, whatever the accelerator.
        self._generators = [torch.Generator().manual_seed((seed * 1_000_003 + row) % 2**63) for row in rows]

    def __call__(self, input_ids: Int[Tensor, "batch pos"], scores: Float[Tensor, "batch vocab"]) -> Tensor:
        size = scores.shape[1]
        noise = torch.stack([torch.empty(size).exponential_(generator=g) for g in self._generators])
        return scores.float() - noise.log().to(scores.device)


class RepetitionPenalty:
    """transformers' repetition penalty (CTRL, Keskar et al. 2019), to which padding is no token that was seen."""

    def __init__(self, penalty: float, mask: Int[Tensor, "batch pos"]) -> None:
        from transformers import RepetitionPenaltyLogitsProcessor

        self._penalise, self._padding = RepetitionPenaltyLogitsProcessor(penalty), mask == 0

    def __call__(self, input_ids: Int[Tensor, "batch pos"], scores: Float[Tensor, "batch vocab"]) -> Tensor:
        ids = input_ids.clone()
        width = self._padding.shape[1]
        ids[:, :width] = torch.where(self._padding.to(ids.device), ids[:, -1:], ids[:, :width])
        return self._penalise(ids, scores)


def sampler(decoding: Decoding, rows: Sequence[int], mask: Int[Tensor, "batch pos"]) -> list[Any]:
    """The logits processors for a batch whose rows are these prompts; none for plain greedy decoding.

    Args:
        mask: 0 where the prompts are padded.
    """
    penalty = decoding.repetition_penalty
    chain: list[Any] = [] if penalty == 1 else [RepetitionPenalty(penalty, mask)]
    if decoding.temperature == 0:
        return chain
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    chain.append(TemperatureLogitsWarper(float(decoding.temperature)))
    if decoding.top_k is not None:
        chain.append(TopKLogitsWarper(decoding.top_k))
    if decoding.top_p is not None:
        chain.append(TopPLogitsWarper(decoding.top_p))
    return [*chain, GumbelNoise(decoding.seed, rows)]
