"""Questions and their answers: what multiple choice scores, and what contrastive pairs are made of.

An answer follows its prompt as it would in a document: after a blank, or directly where the rendered prompt ends in
white space already (as chat templates do). Prompt and answer are tokenised together, and the prompt's own tokens must
come out unchanged; then the prompt can be read once for all of its answers, and the last answer token is where
contrastive methods read.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from operator import index
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from lensteer.messages import short
from lensteer.models import tokenizer_of
from lensteer.prompts import Prompt, Row, context_length, tokenize

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class Question:
    """A prompt, the answers to choose from, and which of them are right.

    Attributes:
        prompt: what is read before the answer, few-shot examples included.
        options: the answers, as text without the blank before it.
        right: numbers of the right options; one, or several (TruthfulQA's MC2).
        group: subject, genre or the like; "" where there is none.

    Raises:
        ValueError: an empty prompt, fewer than two options, an empty one, two equal ones, or no right one.
    """

    prompt: Prompt
    options: tuple[str, ...]
    right: tuple[int, ...]
    group: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.options, str):
            raise TypeError(f"options must be a list of answers, got the text {self.options!r}")
        object.__setattr__(self, "options", tuple(self.options))
        if _is_empty(self.prompt):
            raise ValueError(f"a question needs a prompt, got {self.prompt!r}")
        shown = f"the question {short(self.prompt)}"
        if len(self.options) < 2 or not all(isinstance(o, str) and o.strip() for o in self.options):
            raise ValueError(f"{shown} needs two or more options, none empty; got {self.options!r}")
        if len({option.strip() for option in self.options}) < len(self.options):
            raise ValueError(f"{shown} has equal options: {self.options!r}")
        right = _numbers(self.right)
        if right is None:
            raise TypeError(f"{shown} needs the numbers of its right options, as right=(0,); got right={self.right!r}")
        object.__setattr__(self, "right", right)
        if not right or not all(0 <= i < len(self.options) for i in right):
            raise ValueError(f"{shown} has options 0 to {len(self.options) - 1}, but right={right!r}")

    @property
    def gold(self) -> str:
        """The (first) right answer."""
        return self.options[self.right[0]]

    @property
    def wrong(self) -> tuple[int, ...]:
        """Numbers of the wrong options."""
        return tuple(i for i in range(len(self.options)) if i not in self.right)


def _numbers(given: Any) -> tuple[int, ...] | None:
    """One whole number or several, NumPy's too; None for anything else, such as texts or a mask of truth values."""
    several = (given,) if isinstance(given, Integral) else tuple(given) if isinstance(given, Iterable) else (None,)
    try:
        return None if any(isinstance(i, bool) for i in several) else tuple(index(i) for i in several)
    except TypeError:
        return None


class AnswerPair(NamedTuple):
    """A contrastive pair over one prompt: a right (positive) and a wrong (negative) answer to it."""

    prompt: Prompt
    right: str
    wrong: str


def answer_pairs(
    questions: Sequence[Question], *, wrong: Literal["one", "all"] = "one", seed: int = 0
) -> list[AnswerPair]:
    """Contrastive pairs of questions.

    Args:
        wrong: "one" draws one wrong option for the (first) right one, as SADI does; "all" pairs every right option
            with every wrong one, as ITI's data do.
        seed: of the draw, which depends on nothing but it and the question.

    Raises:
        TypeError: not a list of questions.
        ValueError: no questions, or a question without a wrong option.
    """
    questions = _listed(questions, "questions", Question)
    if not questions:
        raise ValueError("no questions were given; pairs need at least one")
    pairs = []
    for question in questions:
        if not question.wrong:
            raise ValueError(f"every option of the question {short(question.prompt)} is right: nothing to contrast")
        options = question.options
        if wrong == "all":
            pairs += [
                AnswerPair(question.prompt, options[i], options[j]) for i in question.right for j in question.wrong
            ]
        elif wrong == "one":
            drawn = random.Random(f"{seed}\n{question.prompt}\n{options}").choice(question.wrong)
            pairs.append(AnswerPair(question.prompt, question.gold, options[drawn]))
        else:
            raise ValueError(f"wrong must be 'one' or 'all', got {wrong!r}")
    return pairs


def _listed(given: Any, name: str, of: type) -> list[Any]:
    """What a user gave as several, as a list; not one alone, which may be iterable itself."""
    if isinstance(given, of | str | Mapping) or not isinstance(given, Iterable):
        one = f"; put it in a list: [{of.__name__}(…)]" if isinstance(given, of) else ""
        raise TypeError(f"{name} must be a list of {of.__name__}, got {type(given).__name__}{one}")
    return list(given)


def check_answer_pairs(pairs: Iterable[Any]) -> list[AnswerPair]:
    """The pairs, checked before any work.

    Each is an `AnswerPair`, or a (positive, negative) pair of chats that end with the assistant's answer.

    Raises:
        ValueError: none, an empty answer, two equal answers, or two chats that differ before the answer.
        TypeError: not a list, or an entry that is not such a pair.
    """
    pairs = _listed(pairs, "pairs", AnswerPair)
    if not pairs:
        raise ValueError("no pairs were given; a fit needs at least one (50 or more to be of use)")
    checked = [_answer_pair(pair, i) for i, pair in enumerate(pairs)]
    for i, pair in enumerate(checked):
        if _is_empty(pair.prompt) or not pair.right.strip() or not pair.wrong.strip():
            raise ValueError(f"pair {i} has an empty prompt or answer: {pair!r}")
        if pair.right.strip() == pair.wrong.strip():
            raise ValueError(f"pair {i} has the same answer {pair.right!r} on both sides; they must differ")
    return checked


def _answer_pair(pair: Any, number: int) -> AnswerPair:
    if isinstance(pair, Sequence) and not isinstance(pair, str):
        if len(pair) == 3 and isinstance(pair[1], str) and isinstance(pair[2], str):
            return AnswerPair(*pair)
        if len(pair) == 2 and all(map(_is_answered_chat, pair)):
            before = [list(side[:-1]) for side in pair]
            if before[0] != before[1]:
                raise ValueError(
                    f"the two sides of pair {number} ask different things: {short(before[0])} and "
                    f"{short(before[1])}; the prompt must be the same, only the answer differs"
                )
            return AnswerPair(before[0], pair[0][-1]["content"], pair[1][-1]["content"])
    raise TypeError(
        f"pair {number} is {pair!r}; each is AnswerPair(prompt, right, wrong), or two chats that end with an answer"
    )


def _is_answered_chat(side: Any) -> bool:
    if not isinstance(side, Sequence) or isinstance(side, str) or len(side) < 2:
        return False
    return all(isinstance(m, Mapping) and isinstance(m.get("content"), str) for m in side) and (
        side[-1].get("role") == "assistant"
    )


def answer_ids(model: TransformerBridge, row: Row, answer: str) -> list[int]:
    """Token ids of an answer after its prompt, from tokenising both together.

    Raises:
        ValueError: an empty answer, a prompt whose last token merges with the answer, or a sequence longer than the
            model's context.
    """
    tokenizer = tokenizer_of(model)
    if not answer.strip():
        raise ValueError(f"an answer to {short(row.text)} is empty")
    text = _joined(row, answer)
    # A row that was cut at its start keeps its text, so the whole text is compared with the whole text's tokens.
    plain, both = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in (row.text, text))
    if both[: len(plain)] != plain or len(both) == len(plain):
        raise ValueError(
            f"the answer {answer!r} merges with the end of its prompt {short(row.text)} in one token; "
            "let the prompt end in a full word or a line break"
        )
    ids = list(both[len(plain) :])
    if len(row) + len(ids) > context_length(model):
        raise ValueError(
            f"the prompt {short(row.text)} and its answer have {len(row)} + {len(ids)} tokens, more than the model's "
            f"context of {context_length(model)}; shorten one of them"
        )
    return ids


def answered_rows(
    model: TransformerBridge, prompts: Sequence[Prompt], answers: Sequence[str], *, prompt_format: str = "plain"
) -> list[Row]:
    """One tokenised row per prompt and answer, the answer last; for `capture`.

    Raises:
        ValueError: as `answer_ids`, and whatever `tokenize` refuses.
    """
    texts = {repr(prompt): prompt for prompt in prompts}
    rows = dict(zip(texts, tokenize(model, list(texts.values()), prompt_format=prompt_format), strict=True))
    joined = []
    for prompt, answer in zip(prompts, answers, strict=True):
        row = rows[repr(prompt)]
        ids = answer_ids(model, row, answer)
        joined.append(Row(row.ids + ids, row.own + [True] * len(ids), _joined(row, answer)))
    return joined


def require_prefix_free(model: TransformerBridge, labels: Sequence[str], ids: Sequence[list[int]]) -> None:
    """Refuse labels of which one is the beginning of another: what is said cannot tell these apart.

    Args:
        ids: the tokens of each label, as `answer_ids` gives them.

    Raises:
        ValueError: names the two labels and their tokens.
    """
    tokenizer = tokenizer_of(model)
    for short_one, own in zip(labels, ids, strict=True):
        for long_one, other in zip(labels, ids, strict=True):
            if long_one != short_one and other[: len(own)] == own:
                pieces = [[str(tokenizer.decode([token])) for token in tokens] for tokens in (own, other)]
                raise ValueError(
                    f"the label {short_one!r} is the beginning of {long_one!r} for this model ({pieces[0]} and "
                    f"{pieces[1]}), so a response cannot tell them apart; name one of them in other words"
                )


def _joined(row: Row, answer: str) -> str:
    return row.text + ("" if row.text[-1:].isspace() else " ") + answer.strip()


def _is_empty(prompt: Any) -> bool:
    return not prompt or (isinstance(prompt, str) and not prompt.strip())
