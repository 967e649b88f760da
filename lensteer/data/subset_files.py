"""Named subsets of sentences out of files: one's own JSON, and the layouts of three public sets.

What is read goes to `sides`, which draws balanced source and target sentences from it. Every error names the file,
the line or row, the field, and what stands there.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

from lensteer.data.loaders import json_rows
from lensteer.messages import short

JIGSAW_LABELS = ("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate")
JigsawSplit = Literal["train", "test"]


def load_subsets(path: str | Path) -> dict[str, list[str]]:
    """Subsets of a JSON file ``{name: [sentence, ...], ...}``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Not a JSON object, no subsets, a name given twice, or a subset that is no list of sentences.
    """
    path = Path(path)
    table = _json_object(path)
    if not table:
        raise ValueError(f"{path} has no subsets; expected {{name: [sentence, ...], ...}}")
    return {name: _sentences(texts, f"{path}, subset {name!r}") for name, texts in table.items()}


def load_jigsaw(path: str | Path, split: JigsawSplit = "train") -> dict[str, list[str]]:
    """Comments of the Jigsaw toxic comment set by their labels. Blank comments are left out.

    Args:
        path: The folder with ``train.csv`` or, for the test split, ``test.csv`` and ``test_labels.csv``; or that
            ``train.csv`` or ``test.csv`` itself.
        split: "train" or "test"; rows of the test split that were not scored (labels -1) are left out.

    Returns:
        One subset for each of the six labels (the comments that have it; one comment may be in several), "all" (those
        with any label) and "non-toxic" (those with none). A comment with another label but not toxic is in neither
        "toxic" nor "non-toxic". A subset may be empty.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: An unknown split, a missing column, a label that is not 0 or 1, an id without labels, or no rows.

    Source: jigsaw-toxic-comment-classification-challenge (columns id, comment_text and six labels).
    """
    if split not in get_args(JigsawSplit):
        raise ValueError(f"unknown split {split!r}; the splits are {', '.join(map(repr, get_args(JigsawSplit)))}")
    path = Path(path)
    file = path / f"{split}.csv" if path.is_dir() else path
    joined = None if split == "train" else _test_labels(file.with_name("test_labels.csv"))
    subsets: dict[str, list[str]] = {name: [] for name in (*JIGSAW_LABELS, "all", "non-toxic")}
    columns = ("id", "comment_text", *(JIGSAW_LABELS if joined is None else ()))
    for where, row in _csv_rows(file, columns):
        if joined is not None and row["id"] not in joined:
            raise ValueError(f"{where}: the id {row['id']!r} has no labels in test_labels.csv, which has {len(joined)}")
        labels = _labels(row, where) if joined is None else joined[row["id"]]
        if -1 in labels.values() or not row["comment_text"].strip():
            continue
        given = [name for name, value in labels.items() if value == 1]
        for name in (*given, "all") if given else ("non-toxic",):
            subsets[name].append(row["comment_text"])
    return subsets


def load_real_toxicity_prompts(
    path: str | Path, n: int | None = None, seed: int = 0, toxic: bool | None = None
) -> list[str]:
    """Prompts of RealToxicityPrompts, or of a file of generations from them, as JSON lines.

    A row is ``{"prompt": {"text": ..., "toxicity": ...}}`` or flat, ``{"prompt": ..., "toxicity": ...}``. Rows whose
    toxicity is null are left out; a flat row need not have one.

    Args:
        path: The file.
        n: So many, drawn at random (the first ``n`` of a larger draw are the draw of ``n``); all in the order of the
            file where None.
        seed: Of the draw.
        toxic: Only prompts with a toxicity of at least 0.5 (True) or below (False); both where None.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: No rows, a line that is not a JSON object, a field that is missing or ill-typed, or fewer prompts
            than asked for.

    Source: Gehman et al., arXiv 2009.11462 (RealToxicityPrompts; toxic means toxicity >= 0.5).
    """
    prompts: list[str] = []
    rows = 0
    for where, row in json_rows(Path(path)):
        rows += 1
        nested = isinstance(row.get("prompt"), dict)
        fields = row["prompt"] if nested else row
        text = _field(fields, "text" if nested else "prompt", where, "prompt." if nested else "")
        if not nested and toxic is None and "toxicity" not in fields:
            prompts.append(text)
            continue
        toxicity = _toxicity(fields, where, "prompt." if nested else "")
        if toxicity is not None and toxic in (None, toxicity >= 0.5):
            prompts.append(text)
    kind = {None: "", True: " with toxicity of at least 0.5", False: " with toxicity below 0.5"}[toxic]
    if not 1 <= (len(prompts) if n is None else n) <= len(prompts):
        asked = "asked for all" if n is None else f"n={n}"
        raise ValueError(f"{path}: {asked}, but of {rows} rows {len(prompts)} are prompts{kind} (null is left out)")
    if n is None:
        return prompts
    random.Random(f"{seed}\nprompts").shuffle(prompts)
    return prompts[:n]


def load_onesec(folder: str | Path, concept: str) -> dict[str, list[str]]:
    """Sentences with and without a concept of the OneSec sense corpus: ``{concept: ..., "non-" + concept: ...}``.

    Args:
        folder: With ``concept_list.csv`` (column concept) and ``sense/{concept}.json``, which holds
            ``{"sentences": {"positive": [...], "negative": [...]}}``.
        concept: As in the list, such as "football-1_04_00__", or its word alone where the list has one such sense.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A concept that the list does not have or has in several senses, or a file of another shape.
    """
    folder = Path(folder)
    listed = [row["concept"] for _, row in _csv_rows(folder / "concept_list.csv", ("concept",))]
    senses = [concept] if concept in listed else [name for name in listed if name.split("-")[0] == concept]
    if len(senses) != 1:
        found = (
            f"{len(senses)} senses, {short(senses)}; name one of them" if senses else f"none; it has {short(listed)}"
        )
        raise ValueError(f"{folder / 'concept_list.csv'}: of the concept {concept!r} there are {found}")
    file = folder / "sense" / f"{senses[0]}.json"
    fields = _json_object(file).get("sentences")
    if not isinstance(fields, dict) or not {"positive", "negative"} <= fields.keys():
        raise ValueError(f"{file}: field 'sentences' is {short(fields)}; it must hold 'positive' and 'negative'")
    return {
        name: _sentences(fields[side], f"{file}, sentences.{side}")
        for name, side in ((concept, "positive"), (f"non-{concept}", "negative"))
    }


def _json_object(path: Path) -> dict[str, Any]:
    """The one JSON object that a file holds."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; expected one JSON object")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:  # json would keep the last and drop the rest
            raise ValueError(f"{path}: the name {twice!r} stands {names.count(twice)} times; every name stands once")
        return dict(pairs)

    try:
        table = json.loads(path.read_bytes().decode("utf-8-sig"), object_pairs_hook=once)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error.reason}); save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: not JSON ({error.msg}); expected one JSON object") from error
    if not isinstance(table, dict):
        raise ValueError(f"{path}: a {type(table).__name__}; expected one JSON object")
    return table


def _sentences(texts: Any, where: str) -> list[str]:
    if not isinstance(texts, list) or not texts:
        raise ValueError(f"{where} is {short(texts)}; it must be a list of at least one sentence")
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{where}, sentence {number} is {short(text)}; it must be text")
    return texts


def _csv_rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    """("file, line k", row) for every row; ``k`` is the line that the row ends on."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; expected comma-separated columns {', '.join(columns)}")
    empty = True
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        try:
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                there = ", ".join(map(repr, reader.fieldnames or ())) or "none"
                raise ValueError(f"{path}, line 1: no column {missing[0]!r}; there are {there}")
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                short_of = next((name for name in columns if row[name] is None), None)
                if short_of is not None or None in row:
                    wrong = "more values than columns" if None in row else f"no value for the column {short_of!r}"
                    raise ValueError(f"{where}: {wrong}; line 1 names {len(reader.fieldnames or ())} columns")
                empty = False
                yield where, row
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num}: not comma-separated values ({error})") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not UTF-8 ({error.reason}); save the file as UTF-8") from error
    if empty:
        raise ValueError(f"{path} has no rows below the names of its columns")


def _test_labels(path: Path) -> dict[str, dict[str, int]]:
    return {row["id"]: _labels(row, where, ("0", "1", "-1")) for where, row in _csv_rows(path, ("id", *JIGSAW_LABELS))}


def _labels(row: dict[str, str], where: str, allowed: tuple[str, ...] = ("0", "1")) -> dict[str, int]:
    for name in JIGSAW_LABELS:
        if row[name] not in allowed:
            raise ValueError(f"{where}: field {name!r} is {short(row[name])}; a label is one of {', '.join(allowed)}")
    return {name: int(row[name]) for name in JIGSAW_LABELS}


def _field(fields: dict[str, Any], name: str, where: str, prefix: str) -> str:
    value = fields.get(name)
    if isinstance(value, str) and value.strip():
        return value
    found = f"is {short(value)}; it must be text" if name in fields else f"is missing; there are {short(list(fields))}"
    raise ValueError(f"{where}: field '{prefix}{name}' {found}")


def _toxicity(fields: dict[str, Any], where: str, prefix: str) -> float | None:
    if "toxicity" not in fields:
        raise ValueError(f"{where}: no field '{prefix}toxicity'; there are {', '.join(map(repr, fields))}")
    value = fields["toxicity"]
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{where}: field '{prefix}toxicity' is {short(value)}; it must be from 0 to 1, or null")
    return float(value)
