"""One's own data: JSON lines in, pairs or prompts out, and a hash that says which data a result came from.

A row of pairs is {"positive": P, "negative": P} or, as in IFEval-style files, {"prompt": P,
"prompt_without_instruction": P}. A row of prompts is {"prompt": P}. P is a string or a list of chat messages
{"role": ..., "content": ...}. Other fields are ignored, blank lines are skipped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lensteer.prompts import Pair

Prompt = str | list[dict[str, str]]
PAIR_FIELDS = (("positive", "negative"), ("prompt", "prompt_without_instruction"))


def load_pairs(path: str | Path) -> list[Pair]:
    """Contrastive pairs of a JSON-lines file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: No rows, a line that is not a JSON object, a missing, empty or ill-typed field, or a pair
            of two equal sides. The message names file, line and field.
    """
    from lensteer.prompts import Pair  # here, so that reading data needs no tokeniser library

    pairs = []
    for where, row in json_rows(Path(path)):
        fields = next((names for names in PAIR_FIELDS if set(names) <= row.keys()), None)
        if fields is None:
            needed = " or ".join(" + ".join(map(repr, names)) for names in PAIR_FIELDS)
            raise ValueError(f"{where}: a pair needs the fields {needed}; there are {_names(row)}")
        positive, negative = (_prompt(row, field, where) for field in fields)
        if positive == negative:
            raise ValueError(f"{where}: {fields[0]!r} and {fields[1]!r} are equal; a pair needs a difference")
        pairs.append(Pair(positive=positive, negative=negative))
    return pairs


def load_prompts(path: str | Path, *, field: str = "prompt") -> list[Prompt]:
    """Prompts of a JSON-lines file.

    Args:
        path: The file.
        field: Where the prompt is; "prompt_without_instruction" takes the bare one of an IFEval-style row.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: No rows, a line that is not a JSON object, or a missing, empty or ill-typed field. The
            message names file, line and field.
    """
    return [_prompt(row, field, where) for where, row in json_rows(Path(path))]


def data_hash(rows: Iterable[Any]) -> str:
    """SHA-256 (64 hex digits) of the content: equal for equal rows in equal order, wherever they came from.

    Rows are strings, pairs, chat messages, dataclasses or anything else that JSON holds.

    Raises:
        TypeError: ``rows`` is one string, or a row holds something that JSON cannot.
    """
    if isinstance(rows, str):
        raise TypeError("data_hash takes an iterable of rows, not one string; put it into a list")
    digest = hashlib.sha256()
    for row in rows:
        line = json.dumps(row, ensure_ascii=True, sort_keys=True, separators=(",", ":"), default=_plain)
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def _plain(value: object) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"data_hash: a {type(value).__name__} in a row; rows hold strings, numbers, lists and dicts")


def json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """("file, line k", row) for every line that is not blank."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; expected JSON lines, one object a line")
    empty = True
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except UnicodeDecodeError as error:
                raise ValueError(f"{where}: not UTF-8 ({error.reason}); save the file as UTF-8") from error
            except json.JSONDecodeError as error:
                raise ValueError(f"{where}: not JSON ({error.msg}); every line must be a JSON object") from error
            if not isinstance(row, dict):
                raise ValueError(f"{where}: a {type(row).__name__}; every line must be a JSON object")
            empty = False
            yield where, row
    if empty:
        raise ValueError(f"{path} has no rows; expected JSON lines, one object a line")


def _prompt(row: dict[str, Any], field: str, where: str) -> Prompt:
    if field not in row:
        raise ValueError(f"{where}: no field {field!r}; there are {_names(row)}")
    value = row[field]
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, list) and value and all(_is_message(message) for message in value):
        return value
    shown = repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + "..."
    raise ValueError(
        f"{where}: field {field!r} is {shown}; it must be text or a list of messages with role and content"
    )


def _names(row: dict[str, Any]) -> str:
    return ", ".join(map(repr, row)) or "none"


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("role", "content"))
