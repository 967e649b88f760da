"""Perplexity of given texts under a model, steered or not: what a steering costs the model on ordinary text.

    nll        = −(1/T) Σ_t log p(x_t | x_<t)             over the text's tokens after the first
    perplexity = exp(nll)

The first token only gives context: it is the BOS where the tokenizer writes one, so that every token of the text is
scored, else the text's own first token, for which the model has no prediction.

Source: Rodriguez et al., ICLR 2025 (arXiv 2410.23054), section 4.1 (perplexity on Wikipedia sentences).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from lensteer.evaluate._inputs import table, texts_and_index

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

    from lensteer.hooks import Edit

_COLUMNS = {"perplexity": float, "nll": float, "n_tokens": int}


def text_perplexity(
    model: TransformerBridge,
    texts: Sequence[str] | pd.Series,
    steering: Iterable[tuple[str, Edit]] | None = None,
    *,
    max_tokens: int = 50,
    batch_size: int | Literal["auto"] = "auto",
    progress: bool = True,
) -> pd.DataFrame:
    """Perplexity of each text itself; no prompt, no chat template.

    The paper's number for a model is the **mean over texts** of the perplexities, ``found["perplexity"].mean()``, in
    which a few odd sentences weigh much. It is not the perplexity of the corpus, usually lower:
    ``np.exp((found["nll"] * found["n_tokens"]).sum() / found["n_tokens"].sum())``. Compare like with like, the same
    texts under the same tokenizer. For its perplexity of generations under another model, give prompt and response
    joined, the other model and ``max_tokens=128``; `perplexity` scores the response alone, given its prompt.

    Args:
        steering: strengths may hold one value per text. The first token counts as the prompt and the others as
            generated, for edits that act on one of them only; an edit at all tokens acts on the first as well.
        max_tokens: of a longer text the first so many tokens are read, BOS included; never more than the model's
            context.

    Returns:
        `perplexity`, `nll` (mean over the scored tokens, in nats), `n_tokens` (how many were scored). Without a token
        to score (an empty text; one token without a BOS): NaN, NaN, 0. Where the steering makes the logits NaN, both
        are infinite, so that a mean does not pass over it.

    Raises:
        TypeError: a text that is not a string.
        ValueError: ``max_tokens`` below 2, or strengths for another number of texts.
    """
    from lensteer.generate import as_steering
    from lensteer.models import tokenizer_of
    from lensteer.prompts import Row, context_length
    from lensteer.scoring import score

    items, index = texts_and_index(texts, "texts")
    steered = as_steering(steering)
    if max_tokens < 2:
        raise ValueError(f"max_tokens must be at least 2, one to read and one to score, got {max_tokens}")
    if steered.n_rows not in (None, len(items)):
        raise ValueError(f"the steering has values for {steered.n_rows} texts, but {len(items)} were given")
    longest, tokenizer = min(max_tokens, context_length(model)), tokenizer_of(model)
    ids = [list(tokenizer(text)["input_ids"])[:longest] for text in items]
    filled = [i for i, own in enumerate(ids) if len(own) > 1]
    rows: list[dict[str, Any]] = [{"perplexity": math.nan, "nll": math.nan, "n_tokens": 0} for _ in items]
    if filled:
        starts = [Row(ids[i][:1], [True], items[i]) for i in filled]
        rests = [ids[i][1:] for i in filled]
        options: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
        for i, scored in zip(filled, score(model, starts, rests, steered.rows(filled), **options), strict=True):
            rows[i] = _row(-float(scored.log_probs.double().mean()), len(scored.log_probs))
    return table(rows, _COLUMNS, index)


def _row(nll: float, count: int) -> dict[str, float]:
    nll = math.inf if math.isnan(nll) else nll
    return {"perplexity": math.exp(nll) if nll < 700 else math.inf, "nll": nll, "n_tokens": count}
