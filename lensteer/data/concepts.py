"""Sentences written for lensteer: five concepts, everyday ones without them, and rude and civil ones.

The sentences of a concept say it in words that can be counted; the neutral ones, and those of every other concept,
hold none of these words. Openings are beginnings of texts for a model to continue.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib.resources import files
from types import MappingProxyType
from typing import Literal, NamedTuple, get_args

from lensteer.data.queries import first_rows, read_jsonl
from lensteer.data.subsets import Sides, sides

ToneSplit = Literal["fit", "test"]


class Concept(NamedTuple):
    """What a text can be about.

    Attributes:
        name: One word.
        gloss: What the word means, in one line.
        words: Lower-case words, with their inflections, any of which tells that the concept is there.
    """

    name: str
    gloss: str
    words: tuple[str, ...]


def concept(name: str, n: int | None = None, seed: int = 0) -> Sides:
    """Source: neutral sentences and those of the other concepts, equally many of each; target: the concept's.

    Args:
        name: One of `CONCEPTS`.
        n: Sentences a side; all 60 of the concept where None.
        seed: Of the draw.

    Raises:
        ValueError: No such concept, or ``n`` out of range.

    Source: Rodriguez et al., arXiv 2410.23054 (concept induction: sentences of one concept against those of others).
    """
    if name not in CONCEPTS:
        raise ValueError(f"unknown concept {name!r}; there are {', '.join(CONCEPTS)}")
    subsets = {each: _texts("concepts.jsonl", each) for each in (*CONCEPTS, "neutral")}
    return sides(subsets, [each for each in subsets if each != name], name, n, seed)


def tone(split: ToneSplit, n: int | None = None, seed: int = 0) -> Sides:
    """Source: rude and hostile sentences (insults, without slurs or threats); target: civil ones.

    Args:
        split: "fit" (80 a side) or "test" (40); they share no sentence.
        n: Sentences a side; all where None.
        seed: Of the draw.

    Raises:
        ValueError: An unknown split, or ``n`` out of range.
    """
    subsets = {each: _texts("tone.jsonl", each, _split(split)) for each in ("rude", "civil")}
    return sides(subsets, "rude", "civil", n, seed)


def neutral_sentences(n: int | None = None) -> list[str]:
    """The first ``n`` of 120 everyday sentences that touch none of the `CONCEPTS`; all where None.

    Raises:
        ValueError: ``n`` out of range.
    """
    return first_rows(_texts("concepts.jsonl", "neutral"), n, "the neutral sentences")


def openings(n: int | None = None) -> list[str]:
    """The first ``n`` of 40 neutral beginnings of a text, to continue; all where None.

    Raises:
        ValueError: ``n`` out of range.
    """
    return first_rows(_texts("concepts.jsonl", "opening"), n, "the openings")


def rude_openings(split: ToneSplit, n: int | None = None) -> list[str]:
    """The first ``n`` of 24 beginnings that invite a rude continuation; all where None.

    Raises:
        ValueError: An unknown split, or ``n`` out of range.
    """
    return first_rows(_texts("tone.jsonl", "rude_opening", _split(split)), n, f"the rude openings of {split!r}")


def _split(split: str) -> str:
    if split not in get_args(ToneSplit):
        raise ValueError(f"unknown split {split!r}; the splits are {', '.join(map(repr, get_args(ToneSplit)))}")
    return split


def _texts(file: str, name: str, split: str | None = None) -> list[str]:
    return [row["text"] for row in read_jsonl(file) if row["set"] == name and split in (None, row["split"])]


def _concepts() -> Mapping[str, Concept]:
    table = tomllib.loads(files("lensteer.data").joinpath("concepts.toml").read_text(encoding="utf-8"))
    rows = {name: Concept(name, row["gloss"], tuple(row["words"].split())) for name, row in table.items()}
    return MappingProxyType(rows)


CONCEPTS: Mapping[str, Concept] = _concepts()
