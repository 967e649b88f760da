"""Questions like those of BBQ, out of lensteer's own templates: two people, one context, two questions, eight rows.

For each pair of people, both directions: in one the sentence that settles the matter bears the stereotype out, in the
other it does not. Each direction gives four rows as in BBQ: the negative and the other question, without that sentence
("ambig", where the answer is that nobody can know) and with it ("disambig"). So the stereotype's answer is right in two
of eight rows, P(y = y_s) = 0.25. The stereotypes are mild ones about age, profession, home and hobby.

Source: the design of Parrish et al., Findings of ACL 2022 (BBQ); words are lensteer's own.
"""

from __future__ import annotations

from collections.abc import Sequence

from lensteer.data.focus.predictivity import shuffled
from lensteer.data.focus.sources import Located, Row
from lensteer.data.queries import read_jsonl

_UNKNOWN = ("Cannot be known", "Not enough information", "It is not said", "Unknown")


def own_bbq_rows(file: str = "focus_bbq.jsonl") -> list[Located]:
    """The rows of all templates, with the fields of BBQ."""
    rows: list[Located] = []
    for number, template in enumerate(read_jsonl(file), start=1):
        for i, people in enumerate(template["people"]):
            for direction in (0, 1):
                first = (number + i + direction) % 2  # so that neither the order of the two tells the answer
                made = _four(template, people, direction, first, len(rows))
                rows += [(f"{file}, line {number}", row) for row in made]
    return rows


def _four(template: Row, people: Sequence[str], direction: int, first: int, start: int) -> list[Row]:
    """Two questions, each without and with the sentence that settles it."""
    names = [f"the {person}" for person in people]  # [0] is the one that the stereotype is about
    does, does_not = (names[0], names[1]) if direction == 0 else (names[1], names[0])
    a, b = names[first], names[1 - first]
    context = template["context"].format(a=a, A=_capital(a), b=b)
    settled = template["more"].format(X=_capital(does), y=does_not)
    key = f"{template['context']} {people} {direction}"
    unknown = shuffled(_UNKNOWN, f"unknown {key}")[0]
    options = shuffled([*names, unknown], f"options {key}")
    groups = {names[0]: template["stereotyped"], names[1]: template["other"], unknown: "unknown"}
    rows: list[Row] = []
    for polarity, right in (("neg", does), ("nonneg", does_not)):
        for condition in ("ambig", "disambig"):
            answer = right if condition == "disambig" else unknown
            rows.append(
                {
                    "example_id": start + len(rows),
                    "category": template["category"],
                    "question_polarity": polarity,
                    "context_condition": condition,
                    "context": context if condition == "ambig" else f"{context} {settled}",
                    "question": template[polarity],
                    **{f"ans{i}": _capital(option) for i, option in enumerate(options)},
                    "answer_info": {f"ans{i}": [option, groups[option]] for i, option in enumerate(options)},
                    "additional_metadata": {"stereotyped_groups": [template["stereotyped"]]},
                    "label": options.index(answer),
                }
            )
    return rows


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
