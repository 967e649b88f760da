"""What focus accuracy asks: every example under every kind of instruction, with or without demonstrations before it.

A demonstration is a training example under an instruction of the same kind and template, about its own spurious
feature, with the answer that this asks of it; demonstrations and query are separated by a blank line. Template and
demonstrations are drawn uniformly, and a draw depends on nothing but the seed and what the input says: the same input
in two splits has the same prompts, so that it needs to be scored only once, and its demonstrations are the same for all
kinds, so that kinds differ in nothing else.

Source: Lamb et al., ICML 2025 (arXiv 2410.22944), section 5 (four demonstrations, with the item's focus instruction).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace

from lensteer.data.focus import (
    KINDS,
    TRAINING,
    Asked,
    FocusExample,
    FocusTask,
    Kind,
    Wording,
    check_examples,
    instruction_of,
)
from lensteer.data.focus.instructions import check_kinds


def focus_prompts(
    task: FocusTask,
    examples: Sequence[FocusExample],
    *,
    kinds: Sequence[Kind] = KINDS,
    told: bool = True,
    wording: Wording = TRAINING,
    template: int | None = None,
    shots: int = 0,
    demonstrations: Sequence[FocusExample] = (),
    seed: int = 0,
) -> list[Asked]:
    """Every example under every kind, all kinds of the first example first.

    Args:
        examples: of one split or several. An example may be in several splits, but once in each.
        told: False leaves the focus instruction out of the prompt but keeps the kind's target: for steering by vectors
            alone.
        template: which one of the wording; None draws one per input and kind.
        shots: demonstrations before each query; drawn without replacement.
        demonstrations: what they are drawn from, training examples.
        seed: of both draws.

    Raises:
        TypeError: a template that is not a whole number, or as `FocusTask.require`.
        ValueError: unknown kinds, examples that are not the task's, no such template, fewer demonstrations than shots,
            or one that is among the examples.
    """
    asked, kinds = _required(task, examples), check_kinds(kinds)
    if template is not None and (isinstance(template, bool) or not isinstance(template, int)):
        raise TypeError(f"template must be a number or None, got {template!r}")
    pool = _pool(task, asked, shots, demonstrations)
    found = []
    for example in asked:
        chance = random.Random(f"{seed}\nshots\n{_content(example)}")  # a string seeds the same in every process
        shown = chance.sample(pool, shots)
        for kind in kinds:
            number = _template(task, example, kind, wording, seed) if template is None else template
            query, *before = (_ask(task, one, kind, told, wording, number) for one in (example, *shown))
            blocks = [f"{one.prompt} {one.target}" for one in before]
            found.append(replace(query, prompt="\n\n".join([*blocks, query.prompt])))
    return found


def _required(task: FocusTask, examples: Sequence[FocusExample]) -> list[FocusExample]:
    """The examples, checked split by split: two splits may share an id."""
    if isinstance(examples, FocusExample):
        check_examples(examples)  # it is refused there
    listed = list(examples)
    splits: dict[str, list[FocusExample]] = {}
    for example in listed:
        splits.setdefault(getattr(example, "split", ""), []).append(example)
    for own in splits.values() or [[]]:
        task.require(own)
    return listed


def _content(example: FocusExample) -> str:
    """What an input says, without the id and the split under which it is listed."""
    return repr((example.spurious, sorted(example.fields.items()), example.options))


def _template(task: FocusTask, example: FocusExample, kind: Kind, wording: Wording, seed: int) -> int:
    count = len(wording.templates(instruction_of(kind, task.core, example.spurious)))
    return random.Random(f"{seed}\n{kind}\n{_content(example)}").randrange(count) if count else 0


def _ask(task: FocusTask, example: FocusExample, kind: Kind, told: bool, wording: Wording, template: int) -> Asked:
    asked = task.ask(example, kind, wording=wording, template=template)
    return asked if told else replace(asked, prompt=task.prompt(example), template=0)


def _pool(
    task: FocusTask, examples: Sequence[FocusExample], shots: int, demonstrations: Iterable[FocusExample]
) -> list[FocusExample]:
    """The demonstrations, checked; none where no shots are wanted."""
    if isinstance(shots, bool) or not isinstance(shots, int) or shots < 0:
        raise ValueError(f"shots must be a whole number, 0 or more, got {shots!r}")
    given = list(demonstrations)
    if len(given) < shots:
        raise ValueError(
            f"shots={shots} needs {shots} demonstrations or more to draw from, got {len(given)}; pass training "
            "examples as demonstrations=…"
        )
    if shots == 0:
        return []
    ids, sources = {example.id for example in examples}, {example.source for example in examples}
    for demonstration in task.require(given):
        if demonstration.id in ids or demonstration.source in sources:
            raise ValueError(
                f"the demonstration {demonstration.id!r} (source {demonstration.source!r}) is among the test examples; "
                "take demonstrations from the training split"
            )
    return given
