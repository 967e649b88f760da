"""Which of the two people in a row of BBQ belongs to the stereotyped group, as its annotation says it.

    answer_info: {"ans0": [text, tag], …}      stereotyped_groups: [group, …]

It is the one person of whom a tag or the text names one of the groups. Names are compared without case, blanks and
signs, in this order:

| tag or text | names the group | because |
|---|---|---|
| "lowSES" | "low SES" | equal |
| "girl", "woman", "F" | "F", "women" | words for women are one name, and so are those for men |
| "F-Black", "M-white" | "Black", "White" | F and M as a part of a tag say the sex of a name, not the group |
| "trans", "trans_F" | "Transgender women", "trans" | both begin with "trans"; "nonTrans_F" does not |
| "Muslim" | "Muslims" | one begins with the other, four letters at least, but not "African" and "African American" |

Source: Parrish et al., Findings of ACL 2022 (BBQ); the rules are those of its script ``BBQ_results_metadata.R``, but
the group is the row's own: where the script looks into the templates for a row that names none, here it is left out.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from typing import Any

from lensteer.data.focus.sources import Row
from lensteer.messages import short

_SEXES = {
    **dict.fromkeys(("woman", "women", "girl", "girls", "female", "females"), "f"),
    **dict.fromkeys(("man", "men", "boy", "boys", "male", "males"), "m"),
}
_APART = {("african", "africanamerican")}  # one begins with the other, and they are different groups


def stereotyped_person(row: Row, where: str) -> tuple[int, str, int] | None:
    """(the person of the stereotyped group, the group, the other person); None where the annotation does not tell.

    Returns:
        numbers of options, 0 to 2. None if there are not two people, no group, a group of neither or of both.

    Raises:
        ValueError: a row without this annotation; names it.
    """
    info, more = row.get("answer_info"), row.get("additional_metadata")
    groups = more.get("stereotyped_groups") if isinstance(more, dict) else None
    answers = [info.get(f"ans{k}") for k in range(3)] if isinstance(info, dict) else [None]
    if not all(answers) or not isinstance(groups, Sequence) or isinstance(groups, str):
        raise ValueError(
            f"{where}: answer_info is {short(info)} and additional_metadata {short(more)}; a row of BBQ has "
            "{'ans0': [text, group], …} and {'stereotyped_groups': […]}"
        )
    texts = [[str(text) for text in answer or ()] for answer in answers]
    people = [k for k in range(3) if "unknown" not in [tag.lower() for tag in texts[k][1:]]]
    if len(people) != 2:
        return None
    names = {k: [_plain(texts[k][0]), *(_plain(_without_sex(tag)) for tag in texts[k][1:])] for k in people}
    for alike in (operator.eq, _begins):  # a beginning will do only where nothing is equal
        found = [(k, group) for k in people for group in groups if any(alike(name, _plain(group)) for name in names[k])]
        if len({k for k, _ in found}) == 1:
            person, group = found[0]
            return person, str(group), next(k for k in people if k != person)
    return None


def _without_sex(tag: str) -> str:
    """ "F-Black" is "Black" and "trans_F" is "trans"; what says nothing but the sex stays."""
    return "".join(part for part in re.split("[-_]", tag) if part.lower() not in ("f", "m")) or tag


def _plain(name: Any) -> str:
    plain = "".join(letter for letter in str(name).lower() if letter.isalnum())
    return _SEXES.get(plain, plain)


def _begins(name: str, group: str) -> bool:
    if name.startswith("trans") and group.startswith("trans"):
        return True
    shorter, longer = sorted((name, group), key=len)
    return len(shorter) >= 4 and longer.startswith(shorter) and (shorter, longer) not in _APART
