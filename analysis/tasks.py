"""What a study steers towards: an instruction, the operator that fits it, and a check that works on short responses.

IFEval's own checks judge a whole response ("exactly three bullets", "the text parses as JSON"), which a budget of a few
dozen tokens cuts off. The checks here ask for the same behaviour of what has been written so far;
`lensteer.evaluate.ifeval` has the originals for full-length responses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lensteer import data, evaluate
from lensteer.data import Instruction

if TYPE_CHECKING:
    from lensteer.methods.instruction import InstructionVectors, Unit

Check = Callable[[Sequence[str]], Any]


@dataclass(frozen=True)
class Task:
    """One instruction to steer towards.

    Attributes:
        instruction: what stands in the prompt in the "text" condition.
        check: responses -> success of each.
        operator: "set_projection" (formats) or "add" (length, words).
        strengths: the ones to try.
        unit: of the strengths, for "add".
        fit_on: the instruction whose vector is used, where it is another one: excluding a word is its inclusion
            vector at negative strength.
    """

    instruction: Instruction
    check: Check
    operator: Literal["set_projection", "add"] = "set_projection"
    strengths: tuple[float, ...] = (0.7, 1.0, 1.5)
    unit: Unit = "difference"
    fit_on: Instruction | None = None

    @property
    def name(self) -> str:
        return self.instruction.name

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of the operator."""
        return {"unit": self.unit} if self.operator == "add" else {}

    def steering(self, vectors: InstructionVectors, layer: int, strength: float) -> Any:
        """The Steering at a layer and strength."""
        return getattr(vectors, self.operator)(layer, strength, **self.options)


def in_language(code: str) -> Check:
    """Responses whose language langdetect finds to be ``code``: IFEval's check, but text without a language fails.

    IFEval lets text in which no language can be found ("ÊÌÌÌÌÌÌ") follow *any* language; steering writes such text.
    """
    instruction, other = "language:response_language", "fr" if code == "en" else "en"

    def check(responses: Sequence[str]) -> Any:
        found = evaluate.ifeval(responses, instruction, {"language": code})
        undetected = found["strict"] & evaluate.ifeval(responses, instruction, {"language": other})["strict"]
        return found["loose"] & ~undetected

    return check


def at_most_words(n: int) -> Check:
    """Finished responses of 1 to n words: the last sentence is complete, not cut off by the token budget."""
    ends = tuple(".!?\"')]*`")
    return lambda responses: [1 <= len(text.split()) <= n and text.rstrip().endswith(ends) for text in responses]


def by_ifeval(instruction: Instruction) -> Check:
    """IFEval's own check of an instruction, loose; it judges whole responses, so give it the tokens to finish."""
    return lambda r: evaluate.ifeval(r, str(instruction.ifeval_id), instruction.kwargs)["loose"]


def exactly_sentences(n: int) -> Check:
    """Responses of exactly n sentences."""
    return lambda r: evaluate.meets_length(evaluate.lengths(r), "exactly", n)


def named_task(name: str) -> Task:
    """The task of an instruction's name: as `lensteer.data.find_instruction` has them, "exclude:WORD" for instance.

    Raises:
        ValueError: no such instruction, or one that no check exists for ("medium").
    """
    instruction = data.find_instruction(name)
    word = instruction.name[8:]  # as the instruction has it: without blanks around it
    if name.startswith("include:"):
        return Task(instruction, lambda r: evaluate.includes_words(r, word), "add", (1.0, 2.0, 3.0))
    if name.startswith("exclude:"):
        check: Check = lambda r: evaluate.excludes_words(r, word)  # noqa: E731
        return Task(instruction, check, "add", (-1.0, -2.0, -3.0), fit_on=data.include_word(word))
    operator: Literal["set_projection", "add"] = "add" if instruction.kind == "length" else "set_projection"
    return Task(instruction, _check_of(instruction), operator)


def _check_of(instruction: Instruction) -> Check:
    if instruction.name in _CHECKS:
        return _CHECKS[instruction.name]
    if instruction.kwargs.get("relation") == "exactly":
        return exactly_sentences(instruction.kwargs["num_sentences"])
    if instruction.ifeval_id is None:
        raise ValueError(
            f"{instruction.name!r} says nothing that a response could be checked for; there are checks for "
            f"{', '.join(_CHECKS)}, sentences:N, include:WORD, exclude:WORD and every instruction with an IFEval id"
        )
    return by_ifeval(instruction)


_CHECKS: dict[str, Check] = {
    "bullet_list": lambda r: evaluate.bullets(r, minimum=1),
    "numbered": lambda r: evaluate.lines_matching(r, r"\s*\d+[.)]\s+\S", share=0.0),
    "json": lambda r: evaluate.json_format(r),
    "capitals": lambda r: evaluate.letter_case(r, "upper"),
    "lowercase": lambda r: evaluate.letter_case(r, "lower", share=1.0),
    "french": in_language("fr"),
    "spanish": in_language("es"),
    "german": in_language("de"),
    "no_commas": lambda r: [bool(text.strip()) and "," not in text for text in r],
    "quotation": lambda r: [text.lstrip().startswith('"') for text in r],
    "title": lambda r: ["<<" in text for text in r],
    "highlighted": lambda r: [re.search(r"\*[^\s*][^\n*]*\*", text) is not None for text in r],
    "very_short": at_most_words(12),
    "short": at_most_words(12),
}
