"""Small data sets written for lensteer, and loaders for one's own.

Base queries without any constraint in three disjoint splits, instructions in several phrasings (format,
length, words), and the pairs they give: ``positive = query + " " + instruction text, negative = query``.
Reading it opens two small text files; no model or tokeniser library is loaded.

    >>> from lensteer import data
    >>> pairs = data.instruction_pairs(data.FORMATS["bullet_list"], n=48)
    >>> prompts = data.queries("validation", n=8)
"""

from __future__ import annotations

from lensteer.data.instructions import (
    FORMATS,
    LENGTHS,
    Instruction,
    exclude_word,
    find_instruction,
    include_word,
    sentences,
)
from lensteer.data.loaders import data_hash, load_pairs, load_prompts
from lensteer.data.pairs import instruction_pairs, with_text
from lensteer.data.queries import SPLITS, LikelyWords, Split, likely_words, queries

__all__ = [
    "SPLITS",
    "Split",
    "queries",
    "LikelyWords",
    "likely_words",
    "Instruction",
    "FORMATS",
    "LENGTHS",
    "sentences",
    "include_word",
    "exclude_word",
    "find_instruction",
    "instruction_pairs",
    "with_text",
    "load_pairs",
    "load_prompts",
    "data_hash",
]
