"""Fluency: how probable is the response under a model that was not steered?

    perplexity(y | x)        = exp( -(1/T) sum_t log p(y_t | x, y_<t) )          response given its prompt
    response perplexity(y)   = exp( -(1/(T-1)) sum_{t>=2} log p(y_t | y_<t) )    response alone (the paper's)

A steered text that the unsteered model finds very improbable (high perplexity) is broken or far off. A text
that a model finds *too* probable (very low perplexity) repeats itself: the paper's filter is a lower bound.
The two measures are not interchangeable, and a threshold for one means nothing for the other.

Source: Stolfo et al. 2025 (arXiv 2410.12877), degeneration filter with GPT-2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from lensteer.evaluate._inputs import items_and_index, table, texts_and_index

if TYPE_CHECKING:
    import pandas as pd

_TOKENS_PER_BATCH = 2048  # bounds the logits: 400 MB in float32 for GPT-2's vocabulary


def perplexity(
    model: Any,
    prompts: Sequence[Any] | pd.Series,
    responses: Sequence[str] | Sequence[Sequence[int]] | pd.Series,
    *,
    batch_size: int | Literal["auto"] = "auto",
    progress: bool = True,
    prompt_format: str = "auto",
) -> pd.DataFrame:
    """Perplexity of each response given its prompt, under `model` without steering.

    Only the response's tokens are scored. Activation transport's "PPL" of generations also counts the prompt's: for
    that, `text_perplexity` of prompt and response joined, with ``max_tokens=128``; there, too, its figure is the mean
    of the perplexities, not the exponential of the mean `nll`.

    Args:
        model: what `lensteer.load_model` returns: the model that was steered, or any other as a judge.
        prompts: one per response, as for `lensteer.generate`.
        responses: texts, or lists of token ids of this model's tokenizer (exact for generated tokens).
        batch_size, progress, prompt_format: as in `lensteer.scoring.log_probs`.

    Returns:
        `perplexity`, `nll` (mean negative log-probability per token, in nats), `n_tokens`. An empty response
        has no tokens and gets NaN, NaN, 0.

    Raises:
        ValueError: if there is not one prompt per response.
        TypeError: if prompts or responses are not sequences.
    """
    import torch

    from lensteer.scoring import log_probs

    items, index = items_and_index(responses)
    contexts, _ = items_and_index(prompts, "prompts")
    if len(contexts) != len(items):
        raise ValueError(f"{len(contexts)} prompts for {len(items)} responses; give one prompt per response")
    filled = [position for position, item in enumerate(items) if len(item)]
    scored: list[torch.Tensor] = []
    if filled:
        scored = log_probs(
            model,
            [contexts[position] for position in filled],
            [items[position] for position in filled],
            batch_size=batch_size,
            progress=progress,
            prompt_format=prompt_format,
        )
    rows = [{"perplexity": float("nan"), "nll": float("nan"), "n_tokens": 0} for _ in items]
    for position, values in zip(filled, scored, strict=True):
        nll = -values.double().mean()
        rows[position] = {"perplexity": nll.exp().item(), "nll": nll.item(), "n_tokens": len(values)}
    return table(rows, {"perplexity": float, "nll": float, "n_tokens": int}, index)


def response_perplexity(
    model: Any, responses: Sequence[str] | pd.Series, *, tokenizer: Any = None, max_tokens: int = 1024
) -> pd.DataFrame:
    """The paper's perplexity: of the response alone.

    No prompt, and no beginning-of-sequence token. The first token has no context and is not counted. Of a
    longer response the *last* `max_tokens` tokens are kept. Two conventions to know: a response of one token
    gets NaN, and an empty one gets 1.0, so that `degenerate` flags it.

    Args:
        model: a plain Hugging Face causal language model (the paper: `openai-community/gpt2`), or a bridge.
        responses: texts, one per row of the result.
        tokenizer: the tokenizer of a plain `model`; a bridge from `load_model` has its own.
        max_tokens: window in tokens; never longer than the model's own.

    Returns:
        `perplexity`, `n_tokens` (in the judge's tokens, before the cut).

    Raises:
        TypeError: if a response is not a string.
        ValueError: if `max_tokens` is below 2.
    """
    texts, index = texts_and_index(responses)
    if tokenizer is None:
        from lensteer.models import plain_model, tokenizer_of

        model, tokenizer = plain_model(model), tokenizer_of(model)
    if max_tokens < 2:
        raise ValueError(f"max_tokens must be at least 2, got {max_tokens}")
    window = min(max_tokens, getattr(model.config, "max_position_embeddings", None) or max_tokens)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    rows = [{"perplexity": 1.0 if not tokens else float("nan"), "n_tokens": len(tokens)} for tokens in ids]
    for batch in _batches({row: tokens[-window:] for row, tokens in enumerate(ids) if len(tokens) > 1}):
        for row, value in zip(batch, _mean_nll(model, list(batch.values())), strict=True):
            rows[row]["perplexity"] = value.exp().item()
    return table(rows, {"perplexity": float, "n_tokens": int}, index)


def degenerate(perplexity: pd.DataFrame | pd.Series | Sequence[float], threshold: float = 2.5) -> pd.Series:
    """The paper's degeneration filter: flagged where perplexity is BELOW the threshold.

    MIND THE DIRECTION. Low perplexity is the bad sign here: text that loops is easy to predict. A response
    with a *high* perplexity is never flagged, however broken it is; bound that separately. The threshold
    belongs to `response_perplexity` under GPT-2 and does not carry over to other judges, to other scripts
    than Latin (GPT-2 finds their bytes predictable and flags good text), or to perplexity given a prompt.

    Args:
        perplexity: the result of `response_perplexity`, or the values themselves.
        threshold: 2.5 in the paper (4.0 in its last plots for words).

    Returns:
        A boolean Series named `degenerate`. NaN (a response of one token) is not flagged; 1.0 (an empty one)
        is.

    Raises:
        ValueError: if a table has no column `perplexity`.
    """
    import pandas as pd

    if isinstance(perplexity, pd.DataFrame):
        if "perplexity" not in perplexity.columns:
            raise ValueError(f"no column 'perplexity' in a table with {', '.join(map(str, perplexity.columns))}")
        perplexity = perplexity["perplexity"]
    values, index = items_and_index(perplexity, "perplexity")
    return pd.Series([value < threshold for value in values], index=index, name="degenerate", dtype=bool)


def _batches(sequences: dict[int, list[int]]) -> list[dict[int, list[int]]]:
    """Sequences of similar length together, at most `_TOKENS_PER_BATCH` tokens with padding."""
    batches: list[dict[int, list[int]]] = []
    for row, tokens in sorted(sequences.items(), key=lambda item: len(item[1])):
        if not batches or (len(batches[-1]) + 1) * len(tokens) > _TOKENS_PER_BATCH:
            batches.append({})
        batches[-1][row] = tokens
    return batches


def _mean_nll(model: Any, sequences: list[list[int]]) -> list[Any]:
    """Mean next-token negative log-probability of each sequence, as float64 scalars."""
    import torch
    from torch.nn.functional import cross_entropy

    width = max(map(len, sequences))
    # Padding on the right is invisible to a causal model; its id does not matter.
    ids = torch.tensor([tokens + [0] * (width - len(tokens)) for tokens in sequences], device=model.device)
    mask = torch.tensor([[1] * len(tokens) + [0] * (width - len(tokens)) for tokens in sequences], device=model.device)
    with torch.inference_mode():
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return [
            cross_entropy(logits[row, : len(tokens) - 1].float(), ids[row, 1 : len(tokens)]).double()
            for row, tokens in enumerate(sequences)
        ]
