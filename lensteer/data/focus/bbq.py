"""BBQ: questions about two people, where the context is the core feature, and the group that they belong to spurious.

    y = what the context says (or that it does not say it)
    y_s = the answer that the stereotype suggests: the person of the stereotyped group if the question is negative, the
          other person if it is not; never "unknown"

The spurious feature of an example is its category (age, nationality …), so there are several features; some are shown
in training ("seen"), others only in the test ("unseen"). The rows are taken as they are: in ambiguous contexts y is
"unknown", in the others y = y_s in about half, so P(y = y_s) is about 1/4. Which person belongs to the stereotyped
group is said by BBQ's annotation: the option whose group tag or text is among ``stereotyped_groups``.

Answers are the digits 1 to 3; with ``free=True`` the options are left out and answers are their texts (BBQ-NLG).

Source: Lamb et al., ICML 2025 (arXiv 2410.22944), section 4 (BBQ), out of Parrish et al., Findings of ACL 2022. The
paper does not print the rule for y_s in words nor which six of the nine features are seen; both are lensteer's choice.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

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

    The four rows of one context (two questions, with and without the sentence that settles them) stay in one part.

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
        UserWarning: rows whose stereotyped group cannot be told are left out; says how many.
    """
    own = isinstance(source, str) and source == "own"
    rows = {"all": own_bbq_rows()} if own else read_parts(source, "", HUB)
    # BBQ numbers the four rows of a context in a row; in lensteer's own set both directions stay together as well.
    together, share = (8, 0.2) if own else (4, 0.1)
    examples = {part: _examples(found, free, part, together) for part, found in rows.items()}
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
    if not set(there) - set(held_out):
        raise ValueError(f"all categories ({', '.join(there) or 'none'}) are unseen; training needs others")
    return held_out


def _drawn(pool: Sequence[FocusExample], n: int | None, split: str, seed: int) -> list[FocusExample]:
    if n is not None and not 1 <= n <= len(pool):
        raise ValueError(f"{n} rows for {split!r}: it must be from 1 to {len(pool)}, or None for all")
    return [replace(example, split=split) for example in shuffled(pool, f"{seed}\n{split}")[:n]]


def _examples(rows: Sequence[Located], free: bool, part: str, together: int) -> list[FocusExample]:
    made, lost = [], []
    for i, (where, row) in enumerate(rows):
        category = text_of(row, ("category",), where)
        if "_x_" in category:
            continue
        options, label = [text_of(row, (f"ans{k}",), where) for k in range(3)], _label(row, where)
        stereotyped = _stereotyped(row, where)
        if stereotyped is None:
            lost.append(where)
            continue
        person, group, other = stereotyped
        chosen = person if text_of(row, ("question_polarity",), where) == "neg" else other
        number = row.get("example_id")
        context = number // together if isinstance(number, int) else text_of(row, ("context",), where)
        made.append(
            FocusExample(
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
        )
    if lost:
        warnings.warn(
            f"{len(lost)} of {len(rows)} rows are left out: their annotation does not say which of the two people "
            f"belongs to the stereotyped group; the first is {lost[0]}",
            stacklevel=3,
        )
    return made


def _label(row: Row, where: str) -> int:
    label = row.get("label", row.get("answer_label"))
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label <= 2:
        raise ValueError(f"{where}: label {short(label)}; the right option is 0, 1 or 2")
    return label


def _stereotyped(row: Row, where: str) -> tuple[int, str, int] | None:
    """(the person of the stereotyped group, the group, the other person); None where the annotation does not tell."""
    info, more = row.get("answer_info"), row.get("additional_metadata")
    groups = more.get("stereotyped_groups") if isinstance(more, dict) else None
    if not isinstance(info, dict) or not isinstance(groups, Sequence) or isinstance(groups, str) or not groups:
        raise ValueError(
            f"{where}: answer_info is {short(info)} and additional_metadata {short(more)}; a row of BBQ has "
            "{'ans0': [text, group], …} and {'stereotyped_groups': […]}"
        )
    tags = [[str(tag) for tag in info.get(f"ans{k}", ())] for k in range(3)]
    people = [k for k in range(3) if "unknown" not in [tag.lower() for tag in tags[k][1:]]]
    if len(people) != 2:
        return None
    for alike in (_same, _begins):  # the exact tag first: "trans" begins "transgender women", but "man" begins too much
        found = [(k, group) for k in people for group in groups if any(alike(tag, str(group)) for tag in tags[k])]
        persons = {k for k, _ in found}
        if len(persons) == 1:
            (person,) = persons
            return person, str(found[0][1]), next(k for k in people if k != person)
    return None


_SAME_GROUP = {"f": ("woman", "girl", "female"), "m": ("man", "boy", "male")}


def _plain(name: Any) -> str:
    return "".join(letter for letter in str(name).lower() if letter.isalnum())


def _same(tag: str, group: str) -> bool:
    """Equal but for case, blanks and signs; BBQ calls women "F" in some places."""
    return _plain(tag) == _plain(group) or _plain(tag) in _SAME_GROUP.get(_plain(group), ())


def _begins(tag: str, group: str) -> bool:
    """One begins with the other, four letters at least: "trans" and "transgender women"."""
    shorter, longer = sorted((_plain(tag), _plain(group)), key=len)
    return len(shorter) >= 4 and longer.startswith(shorter)
