"""`rewrite_with_model`: a language model puts the keyword into a sentence, as in the paper, and its answer is checked.

    ask; check that there is this keyword and not the other; ask again, sampled, ``retries`` times at most; else fail

The request is in lensteer's own words; it asks for what the paper's does: one plain edit that stays near the source,
keeps its sentiment, length and grammar, and does not tack a clause on the end.

Source: Lamb et al., ICML 2025 (arXiv 2410.22944), section 4 and its appendix on the data sets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lensteer.data.focus.rewriting import KEYWORDS, check_rewritten, check_source
from lensteer.messages import short

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_SYSTEM = (
    "You edit sentences. Work the word {word} into the sentence that you are given, as naturally as you can and with "
    "as few changes as you can. Keep its meaning, its sentiment, its grammar and roughly its length. Put the word into "
    "the sentence; do not just add something at the end. Write the word as {word}, and never write {other}. Answer "
    "with the edited sentence and nothing else."
)


def rewriting_messages(text: str, keyword: str) -> list[dict[str, str]]:
    """What a chat model is asked; the keyword is "pineapple" or "bayesian"."""
    (other,) = (word for each, word in KEYWORDS.items() if each != keyword)
    system = _SYSTEM.format(word=KEYWORDS[keyword], other=other)
    return [{"role": "system", "content": system}, {"role": "user", "content": text}]


@dataclass(frozen=True)
class ModelRewriter:
    """What `rewrite_with_model` returns: called like `insert_keyword`, or with many sentences at once.

    Attributes:
        model: the chat model, or a function from chat messages to its answer.
        retries: how often a sentence is asked for again after answers that fail `check_rewritten`.
        batch_size, max_new_tokens, temperature: of the model's generation; the first attempt is greedy.
    """

    model: TransformerBridge | Callable[[list[dict[str, str]]], str]
    retries: int = 3
    batch_size: int = 16
    max_new_tokens: int = 128
    temperature: float = 0.7

    def __call__(self, text: str, keyword: str, seed: int = 0) -> str:
        return self.many([text], [keyword], seed)[0]

    def many(self, texts: Sequence[str], keywords: Sequence[str], seed: int = 0) -> list[str]:
        """Every text with its keyword in it.

        Raises:
            ValueError: what `insert_keyword` refuses, or a sentence that failed the check in every attempt; names it.
        """
        for text, keyword in zip(texts, keywords, strict=True):
            check_source(text, keyword)
        done: dict[int, str] = {}
        failed: dict[int, ValueError] = {}
        for attempt in range(self.retries + 1):
            waiting = [i for i in range(len(texts)) if i not in done]
            if not waiting:
                break
            asked = [rewriting_messages(texts[i], keywords[i]) for i in waiting]
            for i, answer in zip(waiting, self._answers(asked, attempt, seed), strict=True):
                rewritten = _cleaned(answer)
                try:
                    check_rewritten(texts[i], rewritten, keywords[i])
                except ValueError as error:
                    failed[i] = error
                else:
                    done[i] = rewritten
        lost = [i for i in range(len(texts)) if i not in done]
        if lost:
            raise ValueError(
                f"{len(lost)} of {len(texts)} sentences failed the check in all of {self.retries + 1} attempts, first "
                f"{failed[lost[0]]}. Use a stronger model, more retries, or insert_keyword"
            ) from failed[lost[0]]
        return [done[i] for i in range(len(texts))]

    def _answers(self, asked: list[list[dict[str, str]]], attempt: int, seed: int) -> list[str]:
        from torch.nn import Module

        if not isinstance(self.model, Module):
            return [self.model(messages) for messages in asked]
        from lensteer.generate import generate

        bridge: Any = self.model
        table = generate(
            bridge,
            asked,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature if attempt else 0.0,
            seed=seed + attempt,
            batch_size=self.batch_size,
            progress=False,
        )
        return list(table["response"])


def rewrite_with_model(
    model: TransformerBridge | Callable[[list[dict[str, str]]], str], *, retries: int = 3, **settings: Any
) -> ModelRewriter:
    """A rewriter that asks a chat model, for the argument ``rewrite`` of `sentiment`.

    Args:
        model: a chat model, or any function from chat messages to the answer (an API, say).
        retries: attempts after the first, sampled and with another seed each.
        settings: ``batch_size``, ``max_new_tokens`` and ``temperature`` of `ModelRewriter`.

    Raises:
        ValueError: negative ``retries``.
        TypeError: a model that cannot be called.
    """
    if retries < 0:
        raise ValueError(f"retries={retries} must be 0 or more")
    if not callable(model):
        raise TypeError(f"model is {short(model)}; it must be a chat model or a function from messages to text")
    return ModelRewriter(model, retries, **settings)


def _cleaned(answer: str) -> str:
    """The first line that is not blank, without quotation marks around the whole."""
    line = next((line.strip() for line in answer.splitlines() if line.strip()), "")
    for opening, closing in ('""', "''", "“”"):
        if len(line) > 2 and line.startswith(opening) and line.endswith(closing):
            return line[1:-1].strip()
    return line
