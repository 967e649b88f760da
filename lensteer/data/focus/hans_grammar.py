"""Pairs like those of HANS, made by a small grammar: a premise, a hypothesis of its words, and whether it follows.

Sixteen people, twelve verbs with an object whose past and participle are one ("thanked"), twelve without an object, and
frames for every heuristic and label. Frames and words are lensteer's own.

Source: the idea of McCoy et al., ACL 2019 (HANS).
"""

from __future__ import annotations

import random
import string

from lensteer.data.focus.sources import Row

_PEOPLE = (
    "doctor pilot baker judge singer farmer lawyer student banker painter nurse sailor teacher tailor author guide"
).split()
_DO_TO = "thanked helped called praised visited advised followed admired blamed noticed supported invited".split()
_DO = "danced slept laughed waited shouted arrived sang rested resigned smiled fainted waved".split()
_KNOW = "knew noticed saw remembered".split()
_CLAIM = "claimed believed hoped said".split()
_NEAR = "near behind beside".split()
_SLOTS = {
    **dict.fromkeys("abc", _PEOPLE),
    **dict.fromkeys("vw", _DO_TO),
    **dict.fromkeys("ij", _DO),
    "k": _KNOW,
    "m": _CLAIM,
    "n": _NEAR,
}

FRAMES: dict[tuple[str, str], tuple[tuple[str, str], ...]] = {
    ("lexical_overlap", "entailment"): (
        ("The {a} {v} the {b} and the {c}.", "The {a} {v} the {c}."),
        ("The {a} and the {b} {v} the {c}.", "The {a} {v} the {c}."),
        ("The {a} was {v} by the {b}.", "The {b} {v} the {a}."),
        ("The {a} that the {b} {v} {i}.", "The {b} {v} the {a}."),
        ("The {a} {n} the {b} {v} the {c}.", "The {a} {v} the {c}."),
        ("The {a} who {v} the {b} {i}.", "The {a} {i}."),
    ),
    ("lexical_overlap", "contradiction"): (
        ("The {a} {v} the {b}.", "The {b} {v} the {a}."),
        ("The {a} was {v} by the {b}.", "The {a} {v} the {b}."),
        ("The {a} that the {b} {v} {i}.", "The {a} {v} the {b}."),
        ("The {a} {v} the {b} {n} the {c}.", "The {a} {v} the {c}."),
        ("The {a} who {v} the {b} {w} the {c}.", "The {c} {w} the {b}."),
        ("The {a} and the {b} {v} the {c}.", "The {c} {v} the {a}."),
    ),
    ("subsequence", "entailment"): (
        ("The {a} and the {b} {i}.", "The {b} {i}."),
        ("The {a} {v} the {b} {n} the {c}.", "The {a} {v} the {b}."),
        ("The {a} {v} the {b} who {i}.", "The {a} {v} the {b}."),
        ("The {a} {v} the {b} and the {c}.", "The {a} {v} the {b}."),
    ),
    ("subsequence", "contradiction"): (
        ("The {a} {n} the {b} {i}.", "The {b} {i}."),
        ("The {a} who {v} the {b} {i}.", "The {b} {i}."),
        ("The {a} {n} the {b} {v} the {c}.", "The {b} {v} the {c}."),
        ("The {a} who {v} the {b} {w} the {c}.", "The {b} {w} the {c}."),
    ),
    ("constituent", "entailment"): (
        ("Because the {a} {i}, the {b} {j}.", "The {a} {i}."),
        ("Although the {a} {i}, the {b} {v} the {c}.", "The {b} {v} the {c}."),
        ("The {a} {k} that the {b} {i}.", "The {b} {i}."),
        ("After the {a} {v} the {b}, the {c} {i}.", "The {a} {v} the {b}."),
        ("The {a} {i}, and the {b} {v} the {c}.", "The {a} {i}."),
    ),
    ("constituent", "contradiction"): (
        ("If the {a} {i}, the {b} {j}.", "The {a} {i}."),
        ("Unless the {a} {i}, the {b} {v} the {c}.", "The {b} {v} the {c}."),
        ("The {a} {m} that the {b} {i}.", "The {b} {i}."),
        ("Whether or not the {a} {v} the {b}, the {c} {i}.", "The {a} {v} the {b}."),
        ("The {a} {i}, or the {b} {v} the {c}.", "The {a} {i}."),
    ),
}
"""(heuristic, label) -> frames of premise and hypothesis."""


def hans_rows(n: int, key: str) -> list[Row]:
    """``n`` pairs of every heuristic and label, as rows of HANS; of one kind no premise is there twice.

    Args:
        key: what the pairs depend on.

    Raises:
        ValueError: an ``n`` below 1, or more pairs than the grammar has.
    """
    if n < 1:
        raise ValueError(f"{n} pairs of each kind: it must be at least 1")
    rows = []
    for (heuristic, label), frames in FRAMES.items():
        chance = random.Random(f"{key}\n{heuristic}\n{label}")
        seen: set[str] = set()
        for attempt in range(50 * n):
            premise, hypothesis = _filled(frames[attempt % len(frames)], chance)
            if premise in seen:
                continue
            seen.add(premise)
            rows.append({"gold_label": label, "heuristic": heuristic, "sentence1": premise, "sentence2": hypothesis})
            if len(seen) == n:
                break
        else:
            raise ValueError(f"{n} pairs with ({heuristic}, {label}) were asked for; the grammar makes {len(seen)}")
    return rows


def _filled(frame: tuple[str, str], chance: random.Random) -> tuple[str, str]:
    """A frame with words in its slots, no word twice."""
    words: dict[str, str] = {}
    for _, slot, _, _ in string.Formatter().parse(frame[0]):
        if slot and slot not in words:
            words[slot] = chance.choice([word for word in _SLOTS[slot] if word not in words.values()])
    return frame[0].format(**words), frame[1].format(**words)
