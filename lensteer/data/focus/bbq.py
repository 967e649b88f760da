"""BBQ: questions about two people, where the context is the core feature, and the group that they belong to spurious.

    y = what the context says (or that it does not say it)
    y_s = the answer that the stereotype suggests: the person of the stereotyped group if the question is negative, the
          other person if it is not; never "unknown"

The spurious feature of an example is its category (age, nationality …), so there are several features; some are shown
in training ("seen"), others only in the test ("unseen"). The rows are taken as they are: in ambiguous contexts y is
"unknown", in the others y = y_s in about half, so P(y = y_s) is about 1/4. Which person belongs to the stereotyped
group is said by BBQ's annotation: see `lensteer.data.focus.bbq_people`.

**Parts are divided by context.** BBQ asks a context four times, and repeats it under other numbers with the two people
swapped, with another word in it, or as it is. So rows of a category are one source, and in one part, if they share

| what | so that these stay together |
|---|---|
| ``example_id // 4`` | the two questions, without and with the sentence that settles them |
| the words of the context, in any order | the same with the two people swapped, and repeats |
| ``question_index`` and the two people | what is left of these in a sample of BBQ; other words for a sport or a place |

or are linked by rows that do. A division by template (``question_index`` alone, 25 to 50 a category) would be stricter,
but a tenth of that is two to five templates a category: too few to measure on. So the templates of "seen" were trained
on, with other people; those of "unseen" were not.

Answers are the digits 1 to 3; with ``free=True`` the options are left out and answers are their texts (BBQ-NLG).

Source: Lamb et al., ICML 2025 (arXiv 2410.22944), section 4 (BBQ), out of Parrish et al., Findings of ACL 2022. The
paper does not print the rule for y_s in words nor which six of the nine features are seen; both are lensteer's choice.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from lensteer.data.focus.bbq_people import stereotyped_person
from lensteer.data.focus.bbq_templates import own_bbq_rows
from lensteer.data.focus.examples import FocusExample
from lensteer.data.focus.predictivity import shuffled
from lensteer.data.focus.sources import HubParts, Located, Row, Source, read_parts, text_of, three_parts
from lensteer.data.focus.splits import FocusData
from lensteer.data.focus.task import FocusTask
from lensteer.messages import short

CATEGORIES = (
    "Age",
    "Disability_status",
    "Gender_identity",
    "Nationality",
    "Physical_appearance",
    "Race_ethnicity",
    "Religion",
    "SES",
    "Sexual_orientation",
)
"""The nine categories that the paper uses; BBQ's other two cross two of them."""

UNSEEN_CATEGORIES = ("Religion", "Sexual_orientation", "Physical_appearance")
"""lensteer's choice: the paper holds three out and does not say which."""

HUB = HubParts("oskarvanderwal/bbq", {"all": ("test",)}, config="All")

_SLOTS = {"ses": "socioeconomic status", "race ethnicity": "race or ethnicity"}
_OWN_UNSEEN = ("Hobby",)
_INSTRUCTION = "Answer the question from the context with the digit of one of the three options."
_FREE_INSTRUCTION = "Answer the question from the context, briefly."
_FEATURES = "Use the features that you are told to focus on, not those to ignore."


def feature_of(category: str) -> str:
    """The name of a category as a feature: "Gender_identity" is "gender identity"."""
    return category.replace("_", " ").lower().strip()


def bbq_task(categories: Iterable[str] = CATEGORIES, free: bool = False) -> FocusTask:
    """The task with these categories as spurious features.

    Args:
        free: whether answers are free text instead of the digits 1 to 3.
    """
    features = [feature_of(category) for category in categories]
    return FocusTask(
        name="bbq-nlg" if free else "bbq",
        instruction=f"{_FREE_INSTRUCTION if free else _INSTRUCTION} {_FEATURES}",
        headings={"context": "Context:", "question": "Question:"},
        cue="Answer:",
        labels=() if free else ("1", "2", "3"),
        core="question context",
        slots={"question context": "the question context", **{name: _SLOTS.get(name, name) for name in features}},
    )


def bbq(
    source: Source = "own",
    *,
    free: bool = False,
    unseen: Sequence[str] | None = None,
    n_train: int | None = None,
    n_validation: int | None = None,
    n_test: int | None = None,
    seed: int = 0,
) -> FocusData:
    """The BBQ data set with the test splits "seen" and, if there are such rows, "unseen".

    The four rows of one context (two questions, with and without the sentence that settles them) stay in one part, and
    with them its repeats and those with the two people swapped; see the module.

    Args:
        source: "own", 512 rows from lensteer's templates; "hub", BBQ; or one's own rows or files, such as BBQ's, one
            for each category, see `lensteer.data.focus.sources`. Rows of a category that crosses two (Race_x_SES) are
            left out. Rows without parts are divided, a tenth of those seen for test and of the rest a tenth for
            validation (fifths of lensteer's own); all rows of unseen categories are for test.
        free: free text instead of options.
        unseen: the categories that training never shows. None: Religion, Sexual_orientation and Physical_appearance,
            as far as they are there; Hobby in lensteer's own.
        n_train, n_validation, n_test: at most so many rows in each split, drawn; None for all. ``n_test`` is for "seen"
            and "unseen" each.
        seed: of the divisions and draws.

    Raises:
        ValueError: an unseen category without rows, none that is seen, more rows than there are, or a row that lacks a
            field; names file and line.
        FileNotFoundError, ImportError, OSError, TypeError: as `lensteer.data.focus.sources.read_parts`.

    Warns:
        UserWarning: rows whose stereotyped group cannot be told are left out (says how many), or there are none of the
            default unseen categories.
    """
    own = isinstance(source, str) and source == "own"
    rows = {"all": own_bbq_rows()} if own else read_parts(source, "", HUB)
    # BBQ numbers the four rows of a context in a row; in lensteer's own set both directions stay together as well.
    together, share = (8, 0.2) if own else (4, 0.1)
    examples = _united({part: _examples(found, free, part, together) for part, found in rows.items()})
    there = list(dict.fromkeys(example.spurious for found in examples.values() for example in found))
    held_out = _held_out(unseen, _OWN_UNSEEN if own else UNSEEN_CATEGORIES, there)
    seen = {part: [e for e in found if e.spurious not in held_out] for part, found in examples.items()}
    parts = three_parts(
        seen, source=lambda e: e.source, group=lambda e: e.spurious, seed=seed, test=share, validation=share
    )
    pools = {"train": parts["train"], "validation": parts["validation"], "seen": parts["test"]}
    if held_out:
        pools["unseen"] = [e for found in examples.values() for e in found if e.spurious in held_out]
    wanted = {"train": n_train, "validation": n_validation, "seen": n_test, "unseen": n_test}
    splits = {split: _drawn(pool, wanted[split], split, seed) for split, pool in pools.items()}
    task, train, validation = bbq_task(there, free), splits.pop("train"), splits.pop("validation")
    return FocusData(task, train, validation, splits)


def _held_out(unseen: Sequence[str] | None, usual: Sequence[str], there: Sequence[str]) -> list[str]:
    """The features of the unseen categories, checked."""
    if isinstance(unseen, str):
        raise TypeError(f"unseen must be several categories, got the text {unseen!r}; put it in a list")
    held_out = [feature_of(category) for category in (usual if unseen is None else unseen)]
    missing = [feature for feature in held_out if feature not in there]
    if missing and unseen is not None:
        raise ValueError(f"no rows of the unseen category {missing[0]!r}; there are {', '.join(there) or 'none'}")
    held_out = [feature for feature in held_out if feature in there]
    if unseen is None and not held_out:
        warnings.warn(
            f"the rows have none of the categories that are unseen by default ({', '.join(usual)}), so no split "
            f"'unseen' is made; give unseen= some of {', '.join(there)}",
            stacklevel=3,
        )
    if not set(there) - set(held_out):
        raise ValueError(f"all categories ({', '.join(there) or 'none'}) are unseen; training needs others")
    return held_out


def _drawn(pool: Sequence[FocusExample], n: int | None, split: str, seed: int) -> list[FocusExample]:
    if n is not None and not 1 <= n <= len(pool):
        raise ValueError(f"{n} rows for {split!r}: it must be from 1 to {len(pool)}, or None for all")
    return [replace(example, split=split) for example in shuffled(pool, f"{seed}\n{split}")[:n]]


_Keyed: TypeAlias = tuple[FocusExample, list[tuple[str, ...]]]
"""An example, and what it shares with the others of its source, beside their number."""


def _examples(rows: Sequence[Located], free: bool, part: str, together: int) -> list[_Keyed]:
    made: list[_Keyed] = []
    lost = []
    for i, (where, row) in enumerate(rows):
        category = text_of(row, ("category",), where)
        if "_x_" in category:
            continue
        options, label = [text_of(row, (f"ans{k}",), where) for k in range(3)], _label(row, where)
        stereotyped = stereotyped_person(row, where)
        if stereotyped is None:
            lost.append(where)
            continue
        person, group, other = stereotyped
        chosen = person if text_of(row, ("question_polarity",), where) == "neg" else other
        number = row.get("example_id")
        context = number // together if isinstance(number, int) else text_of(row, ("context",), where)
        example = FocusExample(
            id=f"bbq-{part}-{i}",
            fields={name: text_of(row, (name,), where) for name in ("context", "question")},
            y=options[label] if free else str(label + 1),
            spurious=feature_of(category),
            s=group,
            y_s=options[chosen] if free else str(chosen + 1),
            options=() if free else tuple(options),
            dataset="bbq-nlg" if free else "bbq",
            source=f"{category}-{context}",
        )
        shared = [("words", *sorted(re.findall(r"\w+", example.fields["context"].lower())))]
        if "question_index" in row:
            people = (str(row["answer_info"][f"ans{k}"][0]).lower() for k in (person, other))
            shared.append(("people", str(row["question_index"]), *sorted(people)))
        made.append((example, [(category, *key) for key in shared]))
    if lost:
        warnings.warn(
            f"{len(lost)} of {len(rows)} rows are left out: their annotation does not say which of the two people "
            f"belongs to the stereotyped group; the first is {lost[0]}",
            stacklevel=3,
        )
    return made


def _united(parts: Mapping[str, Sequence[_Keyed]]) -> dict[str, list[FocusExample]]:
    """The examples with one source for all that share a key or a source, or are linked by others that do."""
    leads_to: dict[str, str] = {}
    first: dict[tuple[str, ...], str] = {}

    def end_of(name: str) -> str:
        while name in leads_to:
            name = leads_to[name]
        return name

    for example, keys in (keyed for found in parts.values() for keyed in found):
        for key in keys:
            here = end_of(example.source)
            there = end_of(first.setdefault(key, here))
            if here != there:
                leads_to[here] = there
    return {part: [replace(one, source=end_of(one.source)) for one, _ in found] for part, found in parts.items()}


def _label(row: Row, where: str) -> int:
    label = row.get("label", row.get("answer_label"))
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label <= 2:
        raise ValueError(f"{where}: label {short(label)}; the right option is 0, 1 or 2")
    return label
