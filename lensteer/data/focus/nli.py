"""SMNLI: pairs of sentences whose relation is the core feature, and their genre the spurious one.

    train, iid … flipped:    y_government = contradiction,   y_fiction = neutral,    y_travel = entailment
    shifted_iid … flipped:   y_facetoface = contradiction,   y_verbatim = neutral,   y_nineeleven = entailment

rho is 1/3 for training and iid, 0.9 for high and flipped, 0.1 for low. The genre is what the texts are like; nothing in
them names it. Training never shows a shifted genre, so a model cannot know its y_s: there focus(S) is to be wrong, but
equally wrong in every split. The paper takes 7200 pairs for training, 1800 for validation and 900 for each test split.
lensteer's own set is small: of 10 pairs of a genre y = y_s in 3, 9, 1 and 0, so rho is 0.3, 0.9, 0.1 and, flipped, 0
instead of 0.05; its examples and `FocusData.report` say so.

Source: Lamb et al., ICML 2025 (arXiv 2410.22944), section 4 (SMNLI), out of MultiNLI (Williams et al., NAACL 2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lensteer.data.focus.examples import FocusExample
from lensteer.data.focus.predictivity import THREE_LABELS, balanced_split, held_out_splits
from lensteer.data.focus.sources import HubParts, Located, Source, read_parts, text_of, three_parts
from lensteer.data.focus.splits import FocusData
from lensteer.data.focus.task import FocusTask

STANDARD = {"government": "contradiction", "fiction": "neutral", "travel": "entailment"}
SHIFTED = {"facetoface": "contradiction", "nineeleven": "entailment", "verbatim": "neutral"}

NLI = FocusTask(
    name="smnli",
    instruction=(
        "Say whether the hypothesis is entailment, neutral or contradiction given the premise, in one word. Use the "
        "features that you are told to focus on, not those to ignore."
    ),
    headings={"premise": "Premise:", "hypothesis": "Hypothesis:"},
    cue="Output:",
    labels=("entailment", "neutral", "contradiction"),
    core="relation",
    slots={
        "relation": "the NLI relationship between premise and hypothesis",
        "genre": "the genre of the texts",
    },
    meanings={"genre": STANDARD | SHIFTED},
)

HUB = HubParts("nyu-mll/multi_nli", {"train": ("train",), "test": ("validation_matched", "validation_mismatched")})
PUBLISHED = {"train": 7200, "validation": 1800, "test": 900}
_OWN = {"train": None, "validation": None, "test": 30}


def nli(
    source: Source = "own",
    *,
    n_train: int | None = None,
    n_validation: int | None = None,
    n_test: int | None = None,
    seed: int = 0,
) -> FocusData:
    """The SMNLI data set: `NLI` with the splits "iid", "high", "low", "flipped" and the same with "shifted_".

    Args:
        source: "own", lensteer's 270 pairs; "hub", MultiNLI; or one's own rows, see `lensteer.data.focus.sources`. A
            row is {"premise", "hypothesis", "genre", "label"}, or "sentence1", "sentence2" and "gold_label"; labels
            are words or 0, 1, 2 (entailment, neutral, contradiction), and rows without one (-1, "-") or of another
            genre are left out. Without rows of shifted genres there are no shifted splits. Rows without parts are
            divided by premise, a fifth for test and of the rest a fifth for validation.
        n_train, n_validation, n_test: pairs of each split (``n_test`` of every test split), a multiple of 3. None
            means 7200, 1800 and 900 from the hub, else all that there is; 30 to test on lensteer's own, see above.
        seed: of the divisions and the draws.

    Raises:
        ValueError: a row without text, genre or label, or too few rows for a split; says how many are missing.
        FileNotFoundError, ImportError, OSError, TypeError: as `lensteer.data.focus.sources.read_parts`.

    Warns:
        UserWarning: a number that was given rounds rho by more than 0.02.
    """
    rows = read_parts(source, "focus_nli.jsonl", HUB)
    usual = (PUBLISHED if source == "hub" else _OWN if source == "own" else {}) if isinstance(source, str) else {}
    given = {"train": n_train, "validation": n_validation, "test": n_test}
    n = {part: usual.get(part) if count is None else count for part, count in given.items()}
    examples = {part: pair_examples(found, NLI, "genre", ("genre",), part) for part, found in rows.items()}
    everything = [example for found in examples.values() for example in found]
    standard = {part: [e for e in found if e.s in STANDARD] for part, found in examples.items()}
    parts = three_parts(standard, source=lambda e: e.source, group=lambda e: e.s, seed=seed)
    train, validation = (
        balanced_split(NLI, parts[part], STANDARD, n[part], split=part, seed=seed) for part in ("train", "validation")
    )
    how: dict[str, Any] = {"seed": seed, "warn": usual is not _OWN or n_test is not None}  # its rounding is known
    tests = held_out_splits(NLI, parts["test"], STANDARD, THREE_LABELS, n["test"], **how)
    trained = {example.source for example in (*train, *validation)}
    shifted = [example for example in everything if example.s in SHIFTED and example.source not in trained]
    if shifted:
        tests |= held_out_splits(NLI, shifted, SHIFTED, THREE_LABELS, n["test"], prefix="shifted_", **how)
    return FocusData(NLI, train, validation, tests)


def pair_examples(
    rows: Sequence[Located], task: FocusTask, feature: str, names: Sequence[str], part: str
) -> list[FocusExample]:
    """Examples out of rows with premise, hypothesis, a label and the value of a feature, for NLI data sets.

    Args:
        feature: the spurious one; names: the fields that may hold its value. Rows with a value that the task gives no
            meaning are left out, and so are rows without a label (-1, "-").
        part: for the ids. The source of an example is its premise, which several pairs may share.

    Raises:
        ValueError: a row without one of the texts, or with an unknown label; names file and line.
    """
    made = []
    for i, (where, row) in enumerate(rows):
        value = text_of(row, names, where)
        y = _label(row, task.labels, where)
        if value not in task.meanings[feature] or y is None:
            continue
        premise = text_of(row, ("premise", "sentence1"), where)
        made.append(
            FocusExample(
                id=f"{task.name}-{part}-{i}",
                fields={"premise": premise, "hypothesis": text_of(row, ("hypothesis", "sentence2"), where)},
                y=y,
                spurious=feature,
                s=value,
                y_s=task.meanings[feature][value],
                dataset=task.name,
                source=f"{task.name}: {premise}",
            )
        )
    return made


def _label(row: dict[str, object], labels: Sequence[str], where: str) -> str | None:
    """The label, by its name or its number; None where the row has none."""
    given = row.get("gold_label", row.get("label"))
    if given in ("-", -1):
        return None
    if isinstance(given, int) and not isinstance(given, bool) and 0 <= given < len(labels):
        return labels[given]
    name = {"non-entailment": "contradiction"}.get(str(given), str(given))
    if name not in labels:
        raise ValueError(f"{where}: label {given!r}; a label is one of {', '.join(labels)}, or its number from 0")
    return name
