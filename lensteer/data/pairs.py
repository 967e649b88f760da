"""Contrastive pairs of an instruction: positive = query + " " + phrasing, negative = query.

The phrasing of each pair is drawn by a generator of its own, seeded with (seed, instruction, query). The draw
depends on nothing else: not on the number of pairs, the order of calls, or the state of any global generator.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Literal, get_args

from lensteer.data.instructions import Instruction
from lensteer.data.queries import Split, queries

if TYPE_CHECKING:
    from lensteer.prompts import Pair

Place = Literal["after", "before", "mixed"]


def with_text(query: str, instruction: Instruction, seed: int = 0, *, place: Place = "after") -> str:
    """The query with the instruction put into words: the "text" condition, and the positive side of a pair.

    Args:
        query: A prompt without the instruction.
        instruction: What to add; one of its phrasings is drawn.
        seed: Another seed draws other phrasings.
        place: After the query, before it, or "mixed": one of the two, drawn as well. One blank between.

    Raises:
        ValueError: An unknown place.
    """
    if place not in get_args(Place):
        raise ValueError(f"place {place!r}: it must be one of {get_args(Place)}")
    draw = random.Random(f"{seed}\n{instruction.name}\n{query}")
    phrasing = draw.choice(instruction.phrasings)
    if place == "mixed":
        place = draw.choice(("after", "before"))
    return f"{query} {phrasing}" if place == "after" else f"{phrasing} {query}"


def instruction_pairs(
    instruction: Instruction,
    n: int | None = None,
    *,
    split: Split = "fit",
    seed: int = 0,
    place: Place = "after",
) -> list[Pair]:
    """Pairs (query with the instruction, the same query without) to fit an instruction vector on.

    Args:
        instruction: From `FORMATS`, `LENGTHS`, `sentences`, `include_word`, or one's own.
        n: The first ``n`` queries of the split; all where None.
        split: Which base queries.
        seed: Of the phrasings.
        place: As in `with_text`.

    Raises:
        ValueError: More pairs than the split has queries, or an unknown split or place.

    Source: Stolfo et al., arXiv 2410.12877, section 2 (pairs of prompts with and without one instruction).
    """
    from lensteer.prompts import Pair  # here, so that reading data needs no tokeniser library

    base = queries(split, n)
    return [Pair(positive=with_text(query, instruction, seed, place=place), negative=query) for query in base]
