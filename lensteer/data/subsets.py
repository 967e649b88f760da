"""Source and target sentences out of named subsets: the behaviour to leave, and the one to reach.

The sides take turns, and so do the subsets of a side: each draws the next sentence of its own shuffled list that
nobody has drawn yet. So both sides have the same number, no sentence is on both, the subsets of a side contribute
equally, and a subset that is source and target is shared out. The shuffles depend on the seed and the subset's name,
not on Python's hash seed nor on the order of names.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import NamedTuple

from lensteer.messages import short


class Sides(NamedTuple):
    """The two sets that a method is fitted on.

    Attributes:
        source: Sentences of the behaviour to leave.
        target: Sentences of the behaviour to reach.
    """

    source: list[str]
    target: list[str]


def sides(
    subsets: Mapping[str, Sequence[str]],
    source: str | Iterable[str],
    target: str | Iterable[str],
    n: int | tuple[int, int] | None = None,
    seed: int = 0,
) -> Sides:
    """As many source as target sentences, drawn from named subsets, none of them twice.

    Args:
        subsets: Names to sentences. One that stands twice, in one subset or in several, is drawn at most once.
        source: Name or names of the subsets to leave. Several contribute equally (to within one sentence).
        target: Likewise, of those to reach. A name on both sides is shared out between them.
        n: Sentences a side; ``(source, target)`` for unequal sides; None for as many as equal sides can have.
            The first ``n`` of a larger draw are the draw of ``n``.
        seed: Another seed draws other sentences.

    Raises:
        ValueError: No such subset, a side without subsets or with one named twice, ``n`` below 1, or a subset with
            too few sentences; the message names it, its size and what was asked for.
        TypeError: A subset that is one string, or an ``n`` that is neither a whole number nor two.

    Source: Rodriguez et al., arXiv 2410.23054 (as many source as target sentences, both from named sets).
    """
    names = {"source": _names(source, "source", subsets), "target": _names(target, "target", subsets)}
    wanted = _counts(n)
    lists = {name: _shuffled(subsets[name], name, seed) for name in {*names["source"], *names["target"]}}
    unread = {name: iter(texts) for name, texts in lists.items()}
    turns = {side: cycle(given) for side, given in names.items()}
    chosen: dict[str, list[str]] = {"source": [], "target": []}
    drawn: set[str] = set()
    while wanted is None or any(len(chosen[side]) < wanted[side] for side in chosen):
        for side, texts in chosen.items():
            if wanted is not None and len(texts) == wanted[side]:
                continue
            name = next(turns[side])
            text = next((text for text in unread[name] if text not in drawn), None)
            if text is not None:
                drawn.add(text)
                texts.append(text)
            elif wanted is None and chosen["target"]:  # the first to run dry ends the draw, after full turns
                equal = len(chosen["target"])
                return Sides(chosen["source"][:equal], chosen["target"])
            else:
                raise ValueError(_too_few(name, lists, names, n, chosen))
    return Sides(chosen["source"], chosen["target"])


def _shuffled(texts: Sequence[str], name: str, seed: int) -> list[str]:
    if isinstance(texts, str):
        raise TypeError(f"the subset {name!r} is one string, {short(texts)}; it must be a list of sentences")
    unique = list(dict.fromkeys(texts))
    random.Random(f"{seed}\n{name}").shuffle(unique)  # a string seeds the same in every process
    return unique


def _names(given: str | Iterable[str], side: str, subsets: Mapping[str, Sequence[str]]) -> list[str]:
    """The names of a side in alphabetical order, so that theirs in the call does not matter."""
    names = [given] if isinstance(given, str) else sorted(given)
    there = ", ".join(f"{name!r} ({len(texts)})" for name, texts in subsets.items()) or "none"
    if not names:
        raise ValueError(f"the {side} names no subset; there are {there}")
    for name in names:
        if name not in subsets:
            raise ValueError(f"{side}: no subset {name!r}; there are {there}")
        if names.count(name) > 1:
            raise ValueError(f"{side}: the subset {name!r} is named {names.count(name)} times; name it once")
    return names


def _counts(n: int | tuple[int, int] | None) -> dict[str, int] | None:
    if n is None:
        return None
    pair = n if isinstance(n, tuple) else (n, n)
    if len(pair) != 2 or not all(isinstance(count, int) and not isinstance(count, bool) for count in pair):
        raise TypeError(f"n={n!r}: it must be a whole number, two of them (source, target), or None")
    if min(pair) < 1:
        raise ValueError(f"n={n!r}: each side needs at least 1 sentence")
    return dict(zip(("source", "target"), pair, strict=True))


def _too_few(
    name: str,
    lists: Mapping[str, list[str]],
    names: Mapping[str, list[str]],
    n: int | tuple[int, int] | None,
    chosen: Mapping[str, list[str]],
) -> str:
    parts = [f"{side} {', '.join(f'{each!r} ({len(lists[each])})' for each in names[side])}" for side in names]
    asked = "one sentence a side" if n is None else f"n={n}"
    return (
        f"too few sentences for {asked}: the {len(lists[name])} different ones of the subset {name!r} ran out after "
        f"{len(chosen['source'])} source and {len(chosen['target'])} target sentences; there are {parts[0]} and "
        f"{parts[1]}, each drawn at most once"
    )
