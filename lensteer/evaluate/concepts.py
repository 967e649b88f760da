"""Concepts: is a text about the thing it was steered to?

Two measures, which fail in different ways. `concept_presence` counts words: exact and free, blind to a text about
football that never says so, and content with one that says nothing else. `concept_judge` asks a model: it sees what is
meant, as far as that model can tell. Both are to be read beside `perplexity` and `repetitions`.

Source: Rodriguez et al., ICLR 2025 (arXiv 2410.23054), section 4.2 (concept induction; a judge that is told the
concept and its meaning).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lensteer.evaluate.judge import judge
from lensteer.evaluate.words import includes_words

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

    from lensteer.data import Concept

_SYSTEM = (
    "You decide whether a text is about a concept. The concept is {name}: {gloss}. A text may be about it without "
    "using the word. Answer Yes if the text is about the concept, and No if it is not."
)
_QUESTION = "Text: {text}\n\nIs this text about the concept? Answer Yes or No."


def concept_presence(
    responses: Sequence[str] | pd.Series, words: str | Concept | Sequence[str] | Sequence[Sequence[str]]
) -> pd.DataFrame:
    """Whether each response says any of a concept's words; whole words, in any letter case.

    Args:
        responses: texts, one per row of the result.
        words: a name of `data.CONCEPTS`, a `data.Concept`, one list of words for all responses, or one list per
            response. Inflections are words of their own: list "cloud" and "clouds".

    Returns:
        `success` (any of the words occurs), `count` (occurrences of all together), `share` (of the words, how many
        occur).

    Raises:
        TypeError: a response or a word that is not a string.
        ValueError: an unknown concept, no words, a blank one, or lists for another number of responses.
    """
    wanted = _concept(words).words if isinstance(words, str) or hasattr(words, "gloss") else words
    found = includes_words(responses, wanted, whole_word=True)
    return found.assign(success=found["count"] > 0)


def concept_judge(
    model: TransformerBridge, responses: Sequence[str] | pd.Series, concept: str | Concept, **options: Any
) -> pd.DataFrame:
    """How sure a model is that each response is about a concept.

    The judge is told the concept's name and meaning, and that the word itself may be absent.

    Args:
        model: the judge. Try it on `data.concept` first, whose sides are known: SmolLM2-135M-Instruct, the default
            model, says Yes to neither side, but ranks most sentences of a concept above others (AUROC 0.65 to 0.9, 20
            sentences a side). With such a judge compare the `log_odds` of conditions, and do not count p_yes > 0.5.
        concept: a name of `data.CONCEPTS`, or a `data.Concept` with a name and a gloss of one's own.
        options: `prompt_format`, `batch_size`, `progress` of `judge`.

    Returns:
        the table of `judge`: `p_yes`, `log_odds`, `probability_inside`; NaN for a blank response. The paper reports
        the median of `p_yes`.

    Raises:
        ValueError: an unknown concept, or as `judge`.
        TypeError: as `judge`.
    """
    meant = _concept(concept)
    system = _SYSTEM.format(name=meant.name, gloss=meant.gloss.strip().rstrip("."))
    return judge(model, responses, _QUESTION, system=system, **options)


def _concept(concept: Any) -> Concept:
    from lensteer.data import CONCEPTS

    if not isinstance(concept, str):
        if not hasattr(concept, "name") or not hasattr(concept, "gloss"):
            raise TypeError(f"concept must be the name of one or a data.Concept(name, gloss, words), got {concept!r}")
        return concept
    if concept not in CONCEPTS:
        raise ValueError(
            f"unknown concept {concept!r}; there are {', '.join(CONCEPTS)}. Give a data.Concept(name, gloss, words) of "
            "your own, or to concept_presence a list of words"
        )
    return CONCEPTS[concept]
