"""Scores of responses: each function takes responses and returns a DataFrame with one row per response.

| module | question it answers |
|---|---|
| `ifeval` | does the response obey a verifiable instruction (IFEval, strict and loose)? |
| `length` | how many words, sentences, characters, tokens; is that at most / at least / exactly n? |
| `words` | does it contain, or avoid, the given words? |
| `formats` | does it take a form (bullets, case, JSON), also when it was cut off? |
| `repetition` | does it repeat itself? |
| `fluency` | how probable is it under the unsteered model or a judge? |

A `success` column says whether the response does what was asked; every score of success should be read beside
one of damage (`repetitions`, `perplexity`). Importing this package loads neither pandas, torch nor lm-eval.
"""

from __future__ import annotations

from lensteer.evaluate.fluency import degenerate, perplexity, response_perplexity
from lensteer.evaluate.formats import bullets, json_format, letter_case, lines_matching
from lensteer.evaluate.ifeval import ifeval, instruction_ids
from lensteer.evaluate.length import lengths, meets_length, split_sentences
from lensteer.evaluate.repetition import repetitions
from lensteer.evaluate.words import excludes_words, includes_words

__all__ = [
    "ifeval",
    "instruction_ids",
    "lengths",
    "meets_length",
    "split_sentences",
    "includes_words",
    "excludes_words",
    "bullets",
    "letter_case",
    "json_format",
    "lines_matching",
    "repetitions",
    "perplexity",
    "response_perplexity",
    "degenerate",
]
