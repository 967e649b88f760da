"""Formats: graded checks that still make sense when the response was cut off.

    bullets         lines that are bullet points >= minimum
    letter_case     share of cased letters that are upper (or lower) case >= share
    json_format     begins as a JSON object or array and is valid as far as it goes
    lines_matching  share of non-empty lines that match a pattern >= share

IFEval judges a whole text: an exact number of bullets, JSON that is closed, language detection that may
take English in capitals for German. A small model with 48 tokens to spend fails these while plainly doing
what was asked. These checks give a number to average, and a `success` by a threshold that is an argument.
For what IFEval defines use `lensteer.evaluate.ifeval`; report which of the two was used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from lensteer.evaluate._inputs import score

if TYPE_CHECKING:
    import pandas as pd

_BULLET = r"\s*[-*•+–]\s+\S"
_NUMBERED = r"\s*\d+[.)]\s+\S"
_FENCE = re.compile(r"\A```\w*\s*(.*?)\s*(?:`{1,3})?\Z", re.DOTALL)


def lines_matching(
    responses: Sequence[str] | pd.Series,
    pattern: str | re.Pattern[str],
    *,
    share: float = 0.5,
    minimum: int = 1,
) -> pd.DataFrame:
    r"""Whether enough lines of each response match a pattern at their start.

    Example: `lines_matching(responses, r"Q:|A:")`.

    Args:
        responses: texts, one per row of the result.
        pattern: regular expression, matched from the start of each non-empty line.
        share: least share of the non-empty lines, from 0 to 1.
        minimum: least number of matching lines.

    Returns:
        `lines` (non-empty ones), `matching`, `share` (0 for a blank response), `success`.

    Raises:
        TypeError: if a response is not a string.
        ValueError: if `share` is outside [0, 1] or the pattern is no regular expression.
    """
    _check_share(share)
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"pattern {pattern!r} is not a regular expression: {error}") from error

    def measure(text: str) -> dict[str, Any]:
        lines = [line for line in text.splitlines() if line.strip()]
        matching = sum(expression.match(line) is not None for line in lines)
        found = matching / len(lines) if lines else 0.0
        success = bool(lines) and found >= share and matching >= minimum
        return {"lines": len(lines), "matching": matching, "share": found, "success": success}

    return score(responses, {"lines": int, "matching": int, "share": float, "success": bool}, measure)


def bullets(
    responses: Sequence[str] | pd.Series, *, minimum: int = 2, share: float = 0.0, numbered: bool = False
) -> pd.DataFrame:
    """Whether each response has at least `minimum` bullet points.

    A bullet point is a line that starts with `-`, `*`, `•`, `+` or `–`, a blank and some text; with
    `numbered` also "1." or "1)". (IFEval counts `-` without a blank too, knows no `•`, and asks for an exact
    number.)

    Args:
        responses: texts, one per row of the result.
        minimum: least number of bullet points.
        share: least share of the non-empty lines that are bullet points, from 0 to 1.
        numbered: count numbered points too.

    Returns:
        `bullet_lines`, `bullet_share`, `success`.

    Raises:
        TypeError: if a response is not a string.
        ValueError: if `share` is outside [0, 1].
    """
    pattern = f"{_BULLET}|{_NUMBERED}" if numbered else _BULLET
    found = lines_matching(responses, pattern, share=share, minimum=minimum)
    return found.drop(columns="lines").rename(columns={"matching": "bullet_lines", "share": "bullet_share"})


def letter_case(
    responses: Sequence[str] | pd.Series,
    case: Literal["upper", "lower"] = "upper",
    *,
    share: float = 0.9,
    minimum: int = 1,
) -> pd.DataFrame:
    """Whether enough of the letters of each response are in the given case.

    Only letters that have a case are counted. A text without any has `upper_share` NaN and fails.

    Args:
        responses: texts, one per row of the result.
        case: "upper" or "lower".
        share: least share of letters in that case, from 0 to 1.
        minimum: least number of cased letters, so that a response like "1. A" can be refused.

    Returns:
        `letters` (cased ones), `upper_share`, `success`.

    Raises:
        TypeError: if a response is not a string.
        ValueError: for another case, or if `share` is outside [0, 1].
    """
    _check_share(share)
    if case not in ("upper", "lower"):
        raise ValueError(f"unknown case {case!r}; use 'upper' or 'lower'")

    def measure(text: str) -> dict[str, Any]:
        upper, lower = sum(map(str.isupper, text)), sum(map(str.islower, text))
        letters = upper + lower
        found = upper / letters if letters else float("nan")
        in_case = found if case == "upper" else 1 - found
        return {"letters": letters, "upper_share": found, "success": letters >= minimum and in_case >= share}

    return score(responses, {"letters": int, "upper_share": float, "success": bool}, measure)


def json_format(responses: Sequence[str] | pd.Series, *, complete: bool = False) -> pd.DataFrame:
    """Whether each response is a JSON object or array, or the beginning of one.

    A Markdown code fence around it is taken off. Text before or after the JSON fails.

    Args:
        responses: texts, one per row of the result.
        complete: ask for JSON that is closed; by default a response that was cut off in the middle of valid
            JSON succeeds too, if at least one letter or digit of content is there.

    Returns:
        `opens` (first character is a brace or bracket), `valid_so_far` (valid JSON or a beginning of it),
        `parses` (valid and closed), `success`.

    Raises:
        TypeError: if a response is not a string.
    """

    def measure(text: str) -> dict[str, Any]:
        body = text.strip()
        fenced = _FENCE.match(body)
        body = fenced[1] if fenced else body
        opens = body.startswith(("{", "["))
        parses, so_far = _json_state(body) if opens else (False, False)
        begun = so_far and any(map(str.isalnum, body))
        return {
            "opens": opens,
            "valid_so_far": so_far,
            "parses": parses,
            "success": parses if complete else parses or begun,
        }

    return score(responses, {"opens": bool, "valid_so_far": bool, "parses": bool, "success": bool}, measure)


def _json_state(text: str) -> tuple[bool, bool]:
    """(valid and closed, valid as far as it goes) for text that opens with a brace or bracket."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        rest = text[error.pos :]
        cut = (
            not rest.strip()
            or error.msg.startswith("Unterminated string")
            or (
                error.msg == "Expecting value" and any(word.startswith(rest) for word in ("true", "false", "null", "-"))
            )
            or (text[error.pos - 1].isdigit() and re.fullmatch(r"\.|[eE][+-]?|\.\d+[eE][+-]?", rest) is not None)
            or (error.msg.startswith("Invalid \\u") and re.fullmatch(r"\\?u?[0-9a-fA-F]{0,4}", rest) is not None)
        )
        return False, cut
    except RecursionError:  # "[[[[[...": a loop, not data
        return False, False
    return True, True


def _check_share(share: float) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie between 0 and 1, got {share!r}")
