"""IFEval compliance: does a response follow a verifiable instruction, strictly and loosely?

    strict(y)  = y is not blank and check(y)
    loose(y)   = any check(v) over the non-blank v among the 8 variants
                 {y, y without first line, without last line, without both} x {as is, asterisks removed}
    several instructions:  all of them

The checkers are those of lm-eval (`lm_eval.tasks.ifeval`, extra `eval`), all 25, with three things made safe:

1. Parameters: a checker with one missing or out of range invents a random one. Here that is an error.
2. Language detection is random by default. Here langdetect's seed is set to 0 at each call, and stays set.
3. NLTK data: lm-eval tries to download it when imported. Here nothing is downloaded. The two instructions
   that split sentences (`length_constraints:number_sentences`, `change_case:capital_word_frequency`) do so by
   `lensteer.evaluate.length`: with Punkt, as lm-eval does, or with its fallback and one warning.

As in IFEval a response whose language cannot be detected (only digits, only punctuation) *follows* a language
instruction; look at a repetition or fluency score beside it.

Source: Zhou et al. 2023 (IFEval, arXiv 2311.07911).
"""

from __future__ import annotations

import importlib
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from numbers import Real
from typing import TYPE_CHECKING, Any

from lensteer.evaluate._inputs import items_and_index, lists_per_response, table, texts_and_index
from lensteer.evaluate.length import sentence_splitter
from lensteer.messages import needs_extra

if TYPE_CHECKING:
    import pandas as pd

Kwargs = Mapping[str, Any]
_COLUMNS = {"strict": bool, "loose": bool, "strict_each": object, "loose_each": object}
_REPEAT_PROMPT = "combination:repeat_prompt"
_WORD_LISTS = ("keywords", "forbidden_words")
_LEAST = {"nth_paragraph": 1}  # every other number may be 0


def ifeval(
    responses: Sequence[str] | pd.Series,
    instruction_ids: str | Sequence[str] | Sequence[Sequence[str]],
    kwargs: Kwargs | Sequence[Kwargs] | Sequence[Sequence[Kwargs]] | None = None,
    prompts: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Check each response against one or several IFEval instructions.

    Args:
        responses: texts, one per row of the result.
        instruction_ids: one id, one list for all responses, or one list per response (see
            `instruction_ids()`).
        kwargs: the checkers' parameters, in the same shape as the ids. For one id: a mapping for all
            responses, or a list with one mapping per response. For a list of ids: a list with one mapping per
            id, or one such list per response. Entries that are None are dropped, so rows of the IFEval data
            set fit as they are.
        prompts: one per response; where given, the prompt stands in for a missing `prompt_to_repeat`.

    Returns:
        `strict`, `loose` (bool: all instructions are followed), `strict_each`, `loose_each` (tuples of bool,
        one per instruction). A blank response fails all.

    Raises:
        ValueError: for an unknown id; a parameter that is missing, unknown or out of range (named); numbers
            of ids, kwargs, prompts and responses that do not fit together.
        TypeError: if a response is not a string.
        ImportError: without the extra `eval`.
    """
    texts, index = texts_and_index(responses)
    ids = lists_per_response(instruction_ids, len(texts), "instruction_ids")
    if not all(ids):
        raise ValueError("a list of instruction ids is empty; a response without instructions has no compliance")
    parameters = _kwargs_per_response(kwargs, ids, single=isinstance(instruction_ids, str))
    if prompts is not None and len(prompts) != len(texts):
        raise ValueError(f"{len(prompts)} prompts for {len(texts)} responses; give one prompt per response")
    repeated = [None] * len(texts) if prompts is None else items_and_index(prompts, "prompts")[0]
    checks = _checks(ids, parameters, repeated)  # all of them first: a mistake in the last row is found at once
    _seed_language_detection()
    return table([_follow(text, row) for text, row in zip(texts, checks, strict=True)], _COLUMNS, index)


def instruction_ids() -> list[str]:
    """The ids of all instructions that `ifeval` can check, sorted."""
    return sorted(_registry())


def _follow(text: str, checks: Sequence[Callable[[str], bool]]) -> dict[str, Any]:
    variants = _variants(text)
    strict = tuple(bool(text.strip()) and check(text) for check in checks)
    loose = tuple(any(check(variant) for variant in variants) for check in checks)
    return {"strict": all(strict), "loose": all(loose), "strict_each": strict, "loose_each": loose}


def _variants(text: str) -> list[str]:
    """The different non-blank ones of the 8 variants, the response itself first."""
    lines = text.split("\n")
    cut = [text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return [variant for variant in dict.fromkeys([*cut, *(part.replace("*", "") for part in cut)]) if variant.strip()]


def _checks(
    ids: list[list[str]], parameters: list[list[Kwargs]], prompts: list[str | None]
) -> list[list[Callable[[str], bool]]]:
    """The checks of each response; rows that ask for the same share one."""
    built: dict[str, Callable[[str], bool]] = {}
    rows = []
    for names, row_kwargs, prompt in zip(ids, parameters, prompts, strict=True):
        row = []
        for name, given in zip(names, row_kwargs, strict=True):
            to_repeat = prompt if name == _REPEAT_PROMPT else None
            key = repr((name, dict(given), to_repeat))
            if key not in built:
                built[key] = _check(name, given, to_repeat)
            row.append(built[key])
        rows.append(row)
    return rows


def _check(instruction_id: str, given: Kwargs, to_repeat: str | None) -> Callable[[str], bool]:
    """A function from text to pass or fail for one instruction with checked parameters."""
    registry = _registry()
    if instruction_id not in registry:
        raise ValueError(f"unknown instruction id {instruction_id!r}; known: {', '.join(sorted(registry))}")
    checker = registry[instruction_id](instruction_id)
    parameters = {key: value for key, value in given.items() if not _is_missing(value)}
    if to_repeat is not None:
        parameters.setdefault("prompt_to_repeat", to_repeat)
    _check_names(instruction_id, parameters, checker.get_instruction_args_keys())
    parameters = {key: _checked(instruction_id, key, value, parameters) for key, value in parameters.items()}
    try:
        checker.build_description(**parameters)
    except ValueError as error:  # an unknown relation
        raise ValueError(f"{instruction_id}: {error}") from error
    check = _counting_check(instruction_id, parameters) or checker.check_following

    def passes(text: str) -> bool:
        try:
            return bool(check(text))
        except re.error as error:
            raise ValueError(
                f"{instruction_id} reads words as regular expressions; one in {parameters} is invalid"
                f" ({error}); escape special characters with re.escape"
            ) from error

    return passes


def _check_names(instruction_id: str, given: Kwargs, needed: Sequence[str]) -> None:
    needs = f"it needs {', '.join(needed)}" if needed else "it takes none"
    if missing := [key for key in needed if key not in given]:
        raise ValueError(
            f"{instruction_id} lacks the kwarg {', '.join(missing)} ({needs}); it would be drawn at random"
        )
    if unknown := [key for key in given if key not in needed]:
        raise ValueError(f"{instruction_id} does not know the kwarg {', '.join(unknown)} ({needs})")


def _checked(instruction_id: str, key: str, value: Any, given: Kwargs) -> Any:
    """`value` if the checker takes it as it is; what it would replace by a random value is refused."""
    wanted = None
    if key in _WORD_LISTS:
        words = [] if isinstance(value, str) or not hasattr(value, "__iter__") else list(value)
        if not words or not all(isinstance(word, str) and word.strip() for word in words):
            wanted = "a list of one or more words"
    elif key == "letter":
        if not (isinstance(value, str) and re.fullmatch("[A-Za-z]", value)):
            wanted = "one letter from a to z"
    elif key == "language":
        codes = _language_codes()
        if value not in codes:
            wanted = f"one of {', '.join(sorted(codes))}"
    elif key.startswith(("num_", "nth_")) or key.endswith("frequency"):
        least = _LEAST.get(key, 0)
        if isinstance(value, bool) or not isinstance(value, Real) or value % 1 or value < least:
            wanted = f"a whole number of at least {least}"
        elif key == "nth_paragraph" and value > given["num_paragraphs"]:
            wanted = f"at most num_paragraphs, which is {given['num_paragraphs']}"
    elif not isinstance(value, str) or not value.strip():
        wanted = "a text that is not blank"
    if wanted:
        raise ValueError(f"{instruction_id}: {key} is {value!r}, but must be {wanted}")
    return int(value) if isinstance(value, float) else value


def _counting_check(instruction_id: str, parameters: Kwargs) -> Callable[[str], bool] | None:
    """The check of an instruction that splits sentences, with the splitter supplied; None for others."""
    if instruction_id == "length_constraints:number_sentences":
        number, relation = parameters["num_sentences"], parameters["relation"]
        split = sentence_splitter()

        def count(text: str) -> int:
            return len(split(text))

    elif instruction_id == "change_case:capital_word_frequency":
        from nltk.tokenize import word_tokenize

        number, relation = parameters["capital_frequency"], parameters["capital_relation"]
        split = sentence_splitter()

        def count(text: str) -> int:  # NLTK's word_tokenize, with the sentences supplied
            words = (word for part in split(text) for word in word_tokenize(part, preserve_line=True))
            return sum(word.isupper() for word in words)

    else:
        return None
    return lambda text: count(text) < number if relation == "less than" else count(text) >= number


def _kwargs_per_response(kwargs: Any, ids: list[list[str]], *, single: bool) -> list[list[Kwargs]]:
    """One mapping per instruction per response, whatever the shape given (see `ifeval`)."""
    if kwargs is None:
        return [[{}] * len(row) for row in ids]
    if isinstance(kwargs, Mapping):
        rows: list[Any] = [[kwargs]] * len(ids)
    else:
        given, _ = items_and_index(kwargs, "kwargs")
        if all(isinstance(entry, Mapping) for entry in given):
            rows = [[entry] for entry in given] if single else [given] * len(ids)
        else:
            rows = given
    if len(rows) != len(ids):
        raise ValueError(f"kwargs has {len(rows)} entries for {len(ids)} responses")
    for row, names in zip(rows, ids, strict=True):
        if isinstance(row, Mapping) or len(row) != len(names) or not all(isinstance(entry, Mapping) for entry in row):
            raise ValueError(
                f"kwargs for the instructions {names} must be a list of {len(names)} mappings, got {row!r}"
            )
    return [list(row) for row in rows]


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)


def _seed_language_detection() -> None:
    from langdetect import DetectorFactory

    DetectorFactory.seed = 0  # read anew by every detection


@cache
def _registry() -> dict[str, Any]:
    """lm-eval's checkers by id, imported without its download of NLTK data."""
    try:
        importlib.import_module("lm_eval.tasks")  # outside: only the module that downloads sees another rank
        with _local_rank("1"):
            registry = importlib.import_module("lm_eval.tasks.ifeval.instructions_registry")
    except ImportError as error:
        raise needs_extra("IFEval", "lm-eval", error) from error
    # A text without a language ("123", an empty one) is a result like any other, not an error to print.
    logging.getLogger("lm_eval.tasks.ifeval.instructions").setLevel(logging.CRITICAL)
    return registry.INSTRUCTION_DICT


@contextmanager
def _local_rank(rank: str) -> Iterator[None]:
    """LOCAL_RANK set for a moment: lm-eval downloads NLTK data on rank 0 only, which can hang offline."""
    before = os.environ.get("LOCAL_RANK")
    os.environ["LOCAL_RANK"] = rank
    try:
        yield
    finally:
        del os.environ["LOCAL_RANK"]
        if before is not None:
            os.environ["LOCAL_RANK"] = before


def _language_codes() -> Mapping[str, str]:
    from lm_eval.tasks.ifeval.instructions_util import LANGUAGE_CODES

    return LANGUAGE_CODES
