"""Multiple-choice and open tasks as questions, from small sets that come with lensteer, from files, or from the hub.

    >>> from lensteer import data
    >>> data.questions("sentiment", "test", 20)                       # lensteer's own, offline
    >>> data.questions("boolq", source="boolq.jsonl", n=100)          # a file with the fields of the public set
    >>> data.questions("mmlu", source="hub", layout="cloze", shots=5)

What a task is stands in ``tasks.toml``: prompts, options, where the right answer is, and which data set it has on the
hub. The names of public benchmarks always mean those benchmarks: lensteer's own sets have names of their own.
Equal options of a row are one option. An answer that a row lists as right and as wrong says nothing and is left out.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from lensteer.data.few_shot import primed, with_shots
from lensteer.data.task_fields import listed, number_of, right_and_wrong, text_of, value_at
from lensteer.data.task_rows import Located, Source, has_training_split, task_rows
from lensteer.data.task_table import Task, find_task
from lensteer.messages import short

if TYPE_CHECKING:
    from lensteer.answers import AnswerPair, Question

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class OpenQuestion:
    """A prompt without options, and every answer that counts as right.

    Attributes:
        prompt: what is read before the answer, few-shot examples included.
        answers: the usual answer first, then other spellings and names of it; for exact match.
        group: subject, genre or the like; "" where there is none.

    Raises:
        ValueError: an empty prompt, no answers or an empty one.
    """

    prompt: str
    answers: tuple[str, ...]
    group: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "answers", tuple(self.answers))
        if not self.prompt.strip():
            raise ValueError(f"a question needs a prompt, got {self.prompt!r}")
        if not self.answers or not all(isinstance(answer, str) and answer.strip() for answer in self.answers):
            raise ValueError(f"the question {short(self.prompt)} needs answers, none empty; got {self.answers!r}")

    @property
    def gold(self) -> str:
        """The usual answer."""
        return self.answers[0]


def questions(
    task: str | Task,
    split: str = "test",
    n: int | None = None,
    *,
    source: Source = None,
    layout: str | None = None,
    shots: int = 0,
    seed: int = 0,
) -> list[Question]:
    """The questions of one split of a task, in their fixed order.

    Args:
        task: a name of `TASKS`, or a `Task` of one's own.
        split: "fit", "validation" or "test".
        n: the first ``n``; all where None.
        source: None for lensteer's own set of that name; the path of a JSON-lines file with the fields of the public
            set (a ``split`` field in its rows is heeded; without one, the whole file is the split that is asked for);
            a mapping of splits to paths; or "hub", which downloads the public set with the ``datasets`` library.
        layout: one of the task's layouts, its first where None. "letters" lists the options in the prompt and answers
            with their letters, "cloze" answers with their texts. TruthfulQA has "all" and "mc1".
        shots: worked examples in front of every question, the same ones for all (MMLU: for all of a subject), so that
            their tokens are shared. They are taken from the split "fit", and in equal numbers for each option where
            the options are the same in all rows. TruthfulQA, which has no such split, takes them from a few that were
            written for lensteer.
        seed: of the draw of the examples.

    Raises:
        ValueError: an unknown task, split or layout; more questions or examples than there are; few-shot examples for
            the split they come from or without a training split; a row with a missing field, a label outside
            the mapping or too few options (named with file, line and field).
        TypeError: a source that is no path, such as a list of rows.
        FileNotFoundError: no such file.
        ImportError: "hub" without the ``datasets`` library.
        OSError: the hub cannot be reached, or no longer has the set.
    """
    described = find_task(task)
    if described.is_open:
        raise ValueError(f"{described.name!r} has open answers and no options; use open_questions({described.name!r})")
    return _asked(described, split, n, source, layout, shots, seed)


def open_questions(
    task: str | Task,
    split: str = "test",
    n: int | None = None,
    *,
    source: Source = None,
    shots: int = 0,
    seed: int = 0,
) -> list[OpenQuestion]:
    """The questions of a task with open answers; arguments and errors as `questions`."""
    described = find_task(task)
    if not described.is_open:
        raise ValueError(f"{described.name!r} is multiple choice; use questions({described.name!r})")
    return _asked(described, split, n, source, None, shots, seed)


def contrastive_pairs(
    task: str | Task, questions: Sequence[Question] | Sequence[OpenQuestion], *, seed: int = 0
) -> list[AnswerPair]:
    """One pair of a right and a wrong answer per question, the wrong one as the task prescribes.

    Labels with an opposite get that (SST-5: the other pole at the same intensity; for neutral one of the two mild ones
    is drawn), all other questions any wrong option. An open question gets the answer of another one, because an empty
    answer has no last token to read.

    Args:
        seed: of the draws; each depends on nothing but it and its question.

    Raises:
        ValueError: no questions, options that are not the task's, or open questions that all have the same answer.
    """
    from lensteer.answers import AnswerPair, answer_pairs  # here, so that reading data needs no tokeniser library

    described, asked = find_task(task), cast("Sequence[Any]", questions)
    if described.is_open:
        return [AnswerPair(q.prompt, q.gold, _other_answer(q, asked, seed)) for q in asked]
    if not described.opposite or not asked:
        return answer_pairs(asked, seed=seed)
    labels, pairs = described.options, []
    for question in asked:
        if len(question.options) != len(labels):
            raise ValueError(
                f"the question {short(question.prompt)} has the options {question.options!r}; {described.name!r} has "
                f"{list(labels)}"
            )
        wrong = described.opposite[labels[question.right[0]]]
        drawn = random.Random(f"{seed}\n{question.prompt}").choice(wrong)
        # By number, so that it works for letters as for the labels themselves.
        pairs.append(AnswerPair(question.prompt, question.gold, question.options[labels.index(drawn)]))
    return pairs


def _other_answer(question: Any, others: Sequence[Any], seed: int) -> str:
    own = {answer.casefold() for answer in question.answers}
    answers = sorted({other.gold for other in others if other.gold.casefold() not in own})
    if not answers:
        raise ValueError(f"no other question has another answer than {short(question.prompt)}; pairs need several")
    return random.Random(f"{seed}\n{question.prompt}").choice(answers)


def _asked(
    task: Task, split: str, n: int | None, source: Source, layout: str | None, shots: int, seed: int
) -> list[Any]:
    layout = task.layout(layout)
    if n is not None and n < 1:
        raise ValueError(f"n={n} of the task {task.name!r}: n must be at least 1, or None for all")
    if shots < 0:
        raise ValueError(f"shots={shots}: the number of examples must not be negative")
    from_primer = bool(shots and task.primer and not has_training_split(task, source))
    if shots and not from_primer:
        if not has_training_split(task, source):
            raise ValueError(
                f"shots={shots}: this source of {task.name!r} has no training split to take examples from; give "
                "source={'fit': PATH, 'test': PATH}, or divide the questions by `split_questions` and use `with_shots`"
            )
        if split == "fit":
            raise ValueError(f"shots={shots} with the split 'fit': examples come from that split; ask another one")
    rows = task_rows(task, split, source)
    asked = []
    for where, row in rows:
        asked.append(_question(task, layout, where, row))
        if len(asked) == n:
            break
    if not asked or (n is not None and len(asked) < n):
        raise ValueError(f"n={n}: the split {split!r} of {task.name!r} has {len(asked)} questions")
    if not shots:
        return asked
    if from_primer:
        return primed(task, layout, asked, shots)
    known = {question.prompt for question in asked}  # public sets repeat a sentence here and there
    examples = (_question(task, layout, where, row) for where, row in task_rows(task, "fit", source))
    others = [example for example in examples if example.prompt not in known]
    return with_shots(asked, others, shots, seed=seed, same_group=task.same_group)


def _question(task: Task, layout: str, where: str, row: dict[str, Any]) -> Any:
    located: Located = (where, row)
    group = str(value_at(located, (task.group,), None) or "") if task.group else ""
    try:
        if task.is_open:
            return OpenQuestion(_prompt(task, layout, located), _answers(task, located), group)
        from lensteer.answers import Question  # here, so that reading data needs no tokeniser library

        options, right = _options(task, layout, located)
        lettered = "options" in task.placeholders(layout)
        if lettered and len(options) > len(LETTERS):
            raise ValueError(f"{len(options)} options, but only {len(LETTERS)} letters")
        lines = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=False))
        shown = LETTERS[: len(options)] if lettered else options
        return Question(_prompt(task, layout, located, options=lines), tuple(shown), right, group)
    except ValueError as error:
        raise error if str(error).startswith(where) else ValueError(f"{where}: {error}") from error


def _prompt(task: Task, layout: str, located: Located, **given: str) -> str:
    parts = dict(given)
    for name in task.placeholders(layout):
        if name in parts:
            continue
        if name in task.words:
            table = task.words[name]
            said = text_of(located, table["field"])
            if said not in table or said == "field":
                ways = ", ".join(repr(key) for key in table if key != "field")
                raise ValueError(f"field {table['field']!r} is {said!r}; it must be one of {ways}")
            parts[name] = table[said]
        else:
            text = text_of(located, name)
            end = task.ends.get(name, "")
            parts[name] = text if not end or text[-1] in ".?!" else text + end
    return task.layouts[layout].format_map(parts)


def _options(task: Task, layout: str, located: Located) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The distinct options of a row, and which are right."""
    if task.kind == "wrong":
        every = [name for names in task.right.values() for name in names]
        return right_and_wrong(located, task.right[layout], task.options[0], every, task.labelled.get(layout))
    if task.kind == "labels":
        return task.options, (task.options.index(_label(task, located)),)
    if task.kind == "fields":
        names, texts = list(LETTERS[: len(task.options)]), [text_of(located, name) for name in task.options]
    else:
        names, texts = listed(located, task.options)
    gold = texts[number_of(located, task.gold, names, texts, task.first)]
    distinct = tuple(dict.fromkeys(texts))
    return distinct, (distinct.index(gold),)


def _label(task: Task, located: Located) -> str:
    value = value_at(located, task.gold)
    said = str(value).strip().lower()
    meanings = {**{label.lower(): label for label in task.options}, **task.values}
    if said not in meanings:
        fields = " or ".join(map(repr, task.gold))
        raise ValueError(
            f"{located[0]}: the label {value!r} (field {fields}) is none of {', '.join(map(repr, meanings))}, which "
            f"{task.name!r} knows"
        )
    return meanings[said]


def _answers(task: Task, located: Located) -> tuple[str, ...]:
    found: list[str] = []
    for name in task.options:
        value = value_at(located, (name,), ())
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, list | tuple):  # an object holds the fields that are listed before it
            found += value
    if not found:
        raise ValueError(f"{located[0]}: no answers in {' or '.join(map(repr, task.options))}")
    return tuple(dict.fromkeys(str(answer).strip() for answer in found))
