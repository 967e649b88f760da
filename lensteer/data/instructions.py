"""An instruction is one demand in several phrasings, with the IFEval check that says whether it was followed.

Pooling phrasings makes the mean difference of the pairs about the demand and not about its wording.
``FORMATS`` and ``LENGTHS`` are the registries; `sentences`, `include_word` and `exclude_word` take a
parameter. The structure follows Stolfo et al. (ICLR 2025, arXiv 2410.12877): format instructions, five
relative and any number of absolute length classes, one instruction per word.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, get_args

from lensteer.data.queries import read_jsonl

Kind = Literal["format", "length", "word"]
Relation = Literal["exactly", "at most", "at least"]


@dataclass(frozen=True)
class Instruction:
    """One demand on a response.

    Attributes:
        name: Short and unique; it names vectors, table rows and figures.
        kind: "format", "length" or "word".
        phrasings: Ways to say it, each a sentence that can stand before or after a query.
        ifeval_id: Id of the IFEval check of exactly this demand; None where IFEval has none.
        kwargs: The demand's parameters. With an ``ifeval_id`` they are all keyword arguments of that check,
            because the checks draw missing ones at random.

    Raises:
        ValueError: An empty name, an unknown kind, no phrasings or an empty one.
        TypeError: ``phrasings`` is one string.
    """

    name: str
    kind: Kind
    phrasings: tuple[str, ...]
    ifeval_id: str | None = None
    kwargs: dict[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if isinstance(self.phrasings, str):
            raise TypeError(f"phrasings of {self.name!r} must be a tuple of strings, not one string")
        object.__setattr__(self, "phrasings", tuple(self.phrasings))
        if not self.name:
            raise ValueError("an instruction needs a name")
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind {self.kind!r} of {self.name!r}: it must be one of {get_args(Kind)}")
        if not self.phrasings or not all(text.strip() for text in self.phrasings):
            raise ValueError(f"the instruction {self.name!r} needs phrasings, none of them empty")


def sentences(n: int, relation: Relation = "exactly") -> Instruction:
    """Answer in ``n`` sentences: exactly (the length classes of the method), at most or at least.

    "At most n" is IFEval's "less than n + 1"; IFEval has no check for exactly n, so count sentences there.

    Raises:
        ValueError: ``n`` below 1, or an unknown relation.
    """
    if n < 1:
        raise ValueError(f"sentences(n={n}): n must be at least 1")
    if relation not in get_args(Relation):
        raise ValueError(f"relation {relation!r}: it must be one of {get_args(Relation)}")
    stems = ("Answer using", "Respond with", "Provide an answer in", "Give your answer in")
    noun = "sentence" if n == 1 else "sentences"
    if relation == "exactly":
        counts = ("1", "one", "one", "a single") if n == 1 else (str(n),) * len(stems)
    else:
        counts = (f"{relation} {n}",) * len(stems)
    check: dict[Relation, tuple[str | None, dict[str, Any]]] = {
        "exactly": (None, {"num_sentences": n, "relation": "exactly"}),
        "at most": ("length_constraints:number_sentences", {"num_sentences": n + 1, "relation": "less than"}),
        "at least": ("length_constraints:number_sentences", {"num_sentences": n, "relation": "at least"}),
    }
    phrasings = tuple(f"{stem} {count} {noun}." for stem, count in zip(stems, counts, strict=True))
    return Instruction(f"{relation.replace(' ', '_')}_{n}_{noun}", "length", phrasings, *check[relation])


def include_word(word: str) -> Instruction:
    """The answer contains ``word``, which every phrasing quotes (IFEval: in any case, also inside a word).

    Raises:
        ValueError: An empty word, or one with a double quote or a line break.
    """
    word = _checked(word)
    phrasings = (
        f'Make sure to use the word "{word}".',
        f'Please include the word "{word}".',
        f'The answer should contain the word "{word}".',
        f'The word "{word}" must occur in your answer.',
        f'Your reply should say the word "{word}".',
    )
    return Instruction(f"include:{word}", "word", phrasings, "keywords:existence", {"keywords": [word]})


def exclude_word(word: str) -> Instruction:
    """The answer does not contain ``word`` (IFEval: as a whole word, in any case).

    The method steers with the `include_word` vector at a negative strength; a vector fitted on these
    phrasings is its ablation, and the phrasings themselves are the instruction in text.

    Raises:
        ValueError: An empty word, or one with a double quote or a line break.
    """
    word = _checked(word)
    phrasings = (
        f"Do not mention the word {word}.",
        f'Make sure that the word "{word}" does not occur.',
        f"Avoid the word {word}.",
        f'Do not say "{word}" anywhere.',
        f'Please leave out the word "{word}".',
        f'Your answer should not contain the word "{word}".',
    )
    return Instruction(f"exclude:{word}", "word", phrasings, "keywords:forbidden_words", {"forbidden_words": [word]})


def find_instruction(name: str) -> Instruction:
    """The instruction of that name: a format, a length, "include:WORD", "exclude:WORD" or "sentences:N".

    Raises:
        ValueError: No such instruction; the message lists what there is.
    """
    known = {**FORMATS, **LENGTHS}
    if name in known:
        return known[name]
    family, _, parameter = name.partition(":")
    if family == "include":
        return include_word(parameter)
    if family == "exclude":
        return exclude_word(parameter)
    if family == "sentences" and parameter.isdecimal():
        return sentences(int(parameter))
    raise ValueError(
        f"unknown instruction {name!r}; there are {', '.join(known)}, include:WORD, exclude:WORD and sentences:N"
    )


def _checked(word: str) -> str:
    word = word.strip()
    if not word or '"' in word or "\n" in word:
        raise ValueError(f"the word {word!r}: it must not be empty nor hold a double quote or line break")
    return word


def _registry(kind: Kind) -> Mapping[str, Instruction]:
    rows = (row for row in read_jsonl("instructions.jsonl") if row["kind"] == kind)
    return MappingProxyType({row["name"]: Instruction(**row) for row in rows})


FORMATS: Mapping[str, Instruction] = _registry("format")
LENGTHS: Mapping[str, Instruction] = _registry("length")
