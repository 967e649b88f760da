"""`FocusTask`: what is asked of every input, and the prompt that asks it (Figure 10 of the paper).

    <INSTRUCTION>
    {task instruction}
    <END OF INSTRUCTION>

    <FEATURE CONSIDERATIONS>        the whole block, tags included, is left out for the empty instruction
    {focus instruction}
    <END FEATURE CONSIDERATIONS>

    Input: {text}

    Output:                         the answer follows, after a blank

It is plain text: whether the authors wrapped it in a chat template is not known; lensteer does not.

Source: Lamb et al., ICML 2025 (arXiv 2410.22944), Figure 10.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from lensteer.data.focus.examples import FocusExample, check_examples
from lensteer.data.focus.instructions import EMPTY, FocusInstruction, Kind, focus_label, instruction_of
from lensteer.data.focus.wording import TRAINING, Wording


@dataclass(frozen=True)
class Asked:
    """One example under one focus instruction.

    Attributes:
        prompt: the whole text before the answer.
        target: the answer that the instruction asks for.
        kind, template: of the instruction.
        example: what it is asked of.
    """

    prompt: str
    target: str
    kind: Kind
    template: int
    example: FocusExample


@dataclass(frozen=True)
class FocusTask:
    """A task with a core feature and one or more spurious ones.

    Attributes:
        name: "ss", "smnli", "bbq" …
        instruction: what the model is told to do, the same for every input.
        headings: field of the examples -> what stands before it in the prompt ("Input:").
        cue: what the answer follows.
        labels: the answers to choose from; none where the answer is free text.
        core: the name of the core feature C.
        slots: feature -> what focus instructions call it, for C and every spurious feature. It should name the
            feature (genre), never a value (travel), which would give y_s away.
        meanings: spurious feature -> value -> y_s, the mapping that is fixed for training; a feature without one has
            its y_s in each example.

    Raises:
        ValueError: a core feature without a slot text, no spurious feature, a meaning that is not a label, one label
            or two equal ones, or an empty text.
        TypeError: labels or headings of another kind.
    """

    name: str
    instruction: str
    headings: Mapping[str, str]
    cue: str
    labels: tuple[str, ...]
    core: str
    slots: Mapping[str, str]
    meanings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.labels, str) or not isinstance(self.headings, Mapping):
            raise TypeError(
                f"labels must be several texts and headings a dict of field -> heading, got {self.labels!r} and "
                f"{self.headings!r}"
            )
        object.__setattr__(self, "labels", tuple(self.labels))
        for what in ("name", "instruction", "cue", "core"):
            if not str(getattr(self, what)).strip():
                raise ValueError(f"a focus task needs a text as its {what}, got {getattr(self, what)!r}")
        if len(self.labels) == 1 or len(set(self.labels)) < len(self.labels):
            raise ValueError(f"the labels of {self.name!r} must be two or more different ones, got {self.labels}")
        if self.core not in self.slots or len(self.slots) < 2:
            raise ValueError(
                f"slots of {self.name!r} must name the core feature {self.core!r} and a spurious one; they name "
                f"{list(self.slots)}"
            )
        for feature, meaning in self.meanings.items():
            self.require_feature(feature)
            wrong = {value: label for value, label in meaning.items() if label not in self.labels}
            if wrong:
                raise ValueError(f"{feature!r} of {self.name!r} means {wrong}, but the labels are {self.labels}")

    @property
    def spurious(self) -> tuple[str, ...]:
        """The spurious features."""
        return tuple(name for name in self.slots if name != self.core)

    def require_feature(self, name: str) -> None:
        """Refuse a feature that the task does not have.

        Raises:
            ValueError: names it and the features that there are.
        """
        if name not in self.slots:
            raise ValueError(
                f"unknown feature {name!r}; {self.name!r} has {self.core!r} (core) and "
                f"{', '.join(map(repr, self.spurious))}"
            )

    def require(self, examples: Iterable[FocusExample]) -> list[FocusExample]:
        """The examples, checked against the task before any work.

        Raises:
            ValueError: another field, an unknown feature or value, or a label that is not the task's; names the
                example.
            TypeError: as `check_examples`.
        """
        checked = check_examples(examples)
        for example in checked:
            if set(example.fields) != set(self.headings):
                raise ValueError(
                    f"example {example.id!r} has the fields {list(example.fields)}; {self.name!r} reads "
                    f"{list(self.headings)}"
                )
            if example.spurious == self.core:
                raise ValueError(f"example {example.id!r} names the core feature {self.core!r} as its spurious one")
            self.require_feature(example.spurious)
            meaning = self.meanings.get(example.spurious)
            if meaning is not None and meaning.get(example.s) != example.y_s:
                raise ValueError(
                    f"example {example.id!r} says that {example.spurious}={example.s!r} stands for {example.y_s!r}; "
                    f"{self.name!r} fixed {dict(meaning)} for training"
                )
            unknown = [label for label in (example.y, example.y_s) if self.labels and label not in self.labels]
            if unknown:
                raise ValueError(f"example {example.id!r} has the label {unknown[0]!r}; the labels are {self.labels}")
        return checked

    def prompt(
        self,
        example: FocusExample,
        instruction: FocusInstruction = EMPTY,
        *,
        wording: Wording = TRAINING,
        template: int = 0,
    ) -> str:
        """The text before the answer.

        Raises:
            ValueError: a feature that the task does not have, or no such template.
        """
        for name in instruction.features:
            self.require_feature(name)
        words = wording.text(instruction, self.slots, template)
        blocks = [f"<INSTRUCTION>\n{self.instruction}\n<END OF INSTRUCTION>"]
        if words:
            blocks.append(f"<FEATURE CONSIDERATIONS>\n{words}\n<END FEATURE CONSIDERATIONS>")
        blocks.append(self._input(example))
        return "\n\n".join([*blocks, self.cue])

    def _input(self, example: FocusExample) -> str:
        lines = [f"{heading} {example.fields[name].strip()}" for name, heading in self.headings.items()]
        if example.options:
            lines.append("Answer options:")
            lines += [f"({number}) {option}" for number, option in enumerate(example.options, start=1)]
        return "\n".join(lines)

    def ask(self, example: FocusExample, kind: Kind, *, wording: Wording = TRAINING, template: int = 0) -> Asked:
        """An example under the instruction of a kind: the prompt, and the answer that is asked for."""
        instruction = instruction_of(kind, self.core, example.spurious)
        prompt = self.prompt(example, instruction, wording=wording, template=template)
        target = focus_label(instruction, self.core, example.spurious, example.y, example.y_s)
        return Asked(prompt, target, kind, template, example)
