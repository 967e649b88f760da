"""Focus instructions: which feature of an input decides, which one must not, and which answer is then asked for.

    empty | focus(F) | ignore(G) | focus(F) and ignore(G),   F and G different features        (Eq. 2 of the paper)

    >>> focus_on("sentiment") & ignore("keyword")
    focus(sentiment) and ignore(keyword)

The answer that an instruction asks for (Definition 1), where C is the core feature, with label y, and S the spurious
feature that the input carries, whose value stands for the label y_s:

| instruction | answer |
|---|---|
| empty, focus(C), ignore(S), focus(C) and ignore(S) | y |
| focus(S), focus(S) and ignore(C), focus(S) and ignore(any other) | y_s |
| ignore(C) | y_s (the paper's Figure 2; not in its definition, and never evaluated) |
| ignore(T), focus(C) and ignore(T), T a spurious feature that the input does not carry | y (ours) |

Source: Lamb et al., ICML 2025 (arXiv 2410.22944), Eq. 2, Definition 1 and Figure 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal["empty", "focus(C)", "focus(C)+ignore(S)", "ignore(S)", "focus(S)", "focus(S)+ignore(C)", "ignore(C)"]
"""What an instruction says of the core feature C and the spurious feature S of an example."""

KINDS: tuple[Kind, ...] = get_args(Kind)[:6]
"""The six kinds that the paper trains and evaluates, in the order of its tables."""

CORE_KINDS: tuple[Kind, ...] = KINDS[:4]
"""Those of them that ask for y; the other two ask for y_s."""


@dataclass(frozen=True)
class FocusInstruction:
    """One focus instruction; made with `EMPTY`, `focus_on`, `ignore` and ``&``.

    Attributes:
        focused: the feature to attend to, None where the instruction names none.
        ignored: the feature to leave out, likewise.

    Raises:
        ValueError: focus and ignore of one feature, or a feature without a name.
    """

    focused: str | None = None
    ignored: str | None = None

    def __post_init__(self) -> None:
        for name in (self.focused, self.ignored):
            if name is not None and (not isinstance(name, str) or not name.strip()):
                raise ValueError(f"a focus instruction names its features by text, got {name!r}")
        if self.focused is not None and self.focused == self.ignored:
            raise ValueError(
                f"focus({self.focused}) and ignore({self.ignored}) contradict each other; name two different features"
            )

    def __and__(self, other: FocusInstruction) -> FocusInstruction:
        if not isinstance(other, FocusInstruction):
            return NotImplemented
        for word, mine, theirs in (("focus", self.focused, other.focused), ("ignore", self.ignored, other.ignored)):
            if mine is not None and theirs is not None:
                raise ValueError(
                    f"{word}({mine}) and {word}({theirs}) cannot be put together: an instruction focuses on one "
                    "feature at most and ignores one at most"
                )
        return FocusInstruction(self.focused or other.focused, self.ignored or other.ignored)

    @property
    def features(self) -> tuple[str, ...]:
        """The features that it names, the focused one first."""
        return tuple(name for name in (self.focused, self.ignored) if name is not None)

    def __repr__(self) -> str:
        parts = [("focus", self.focused), ("ignore", self.ignored)]
        return " and ".join(f"{word}({name})" for word, name in parts if name is not None) or "empty"


EMPTY = FocusInstruction()
"""No focus instruction at all."""


def focus_on(feature: str) -> FocusInstruction:
    """focus(F): only this feature decides."""
    return FocusInstruction(focused=feature)


def ignore(feature: str) -> FocusInstruction:
    """ignore(F): this feature must not decide."""
    return FocusInstruction(ignored=feature)


def instruction_of(kind: Kind, core: str, spurious: str) -> FocusInstruction:
    """The instruction of a kind for an example's core feature C and spurious feature S.

    Raises:
        ValueError: an unknown kind, or one feature that is both.
    """
    if core == spurious:
        raise ValueError(f"the core and the spurious feature are both {core!r}; they must differ")
    (checked,) = check_kinds([kind])
    names = {"C": core, "S": spurious}
    instruction = EMPTY
    for part in checked.split("+") if checked != "empty" else ():
        word, name = part[:-1].split("(")
        instruction = instruction & (focus_on if word == "focus" else ignore)(names[name])
    return instruction


def check_kinds(kinds: Sequence[Kind]) -> tuple[Kind, ...]:
    """The kinds, checked before any work.

    Raises:
        TypeError: one text instead of several.
        ValueError: none, one twice, or an unknown one.
    """
    if isinstance(kinds, str):
        raise TypeError(f"kinds must be several, got the text {kinds!r}; put it in a list")
    known = get_args(Kind)
    unknown = [kind for kind in kinds if kind not in known]
    if unknown or not kinds or len(set(kinds)) < len(kinds):
        raise ValueError(f"kinds must be some of {', '.join(known)}, each once; got {list(kinds)}")
    return tuple(kinds)


def focus_label(instruction: FocusInstruction, core: str, spurious: str, y: str, y_s: str) -> str:
    """The answer that an instruction asks for, y_focus(I_focus, s, y); see the module's table.

    Args:
        core, spurious: the features that the input carries.
        y: its label by the core feature; y_s: the label that its spurious value stands for, by the mapping that was
            fixed for training, whatever the labels of this data say.

    Raises:
        ValueError: a focus on a feature that the input does not carry: it has no value of it, so no label.
    """
    focused, ignored = instruction.focused, instruction.ignored
    if focused not in (None, core, spurious):
        raise ValueError(
            f"{instruction!r} focuses on {focused!r}, which this input does not carry; its features are {core!r} "
            f"(core) and {spurious!r} (spurious)"
        )
    return y_s if focused == spurious or (focused is None and ignored == core) else y
