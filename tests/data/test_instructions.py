from __future__ import annotations

import inspect
import pickle

import pytest

from lensteer.data import (
    FORMATS,
    LENGTHS,
    Instruction,
    exclude_word,
    find_instruction,
    include_word,
    sentences,
)

PARAMETRIC = [
    sentences(1),
    sentences(3),
    sentences(2, "at most"),
    sentences(2, "at least"),
    include_word("river"),
    exclude_word("river"),
]
EVERY = [*FORMATS.values(), *LENGTHS.values(), *PARAMETRIC]
NEEDED = (
    "bullets json capitals lowercase french spanish german no_commas quotation title highlighted numbered "
    "sections end_phrase"
).split()


def by_name(instruction: Instruction) -> str:
    return instruction.name


def test_the_registry_of_formats_has_all_that_the_docs_promise() -> None:
    assert set(NEEDED) <= set(FORMATS)
    assert all(name == instruction.name and instruction.kind == "format" for name, instruction in FORMATS.items())


def test_the_registry_of_lengths_goes_from_very_short_to_very_long() -> None:
    assert list(LENGTHS) == ["very_short", "short", "medium", "long", "very_long"]
    assert [len(length.phrasings) for length in LENGTHS.values()] == [7, 7, 4, 4, 4]


@pytest.mark.parametrize("instruction", FORMATS.values(), ids=by_name)
def test_a_format_has_five_to_eight_phrasings(instruction: Instruction) -> None:
    assert 5 <= len(instruction.phrasings) <= 8


def test_no_phrasing_stands_in_two_instructions() -> None:
    phrasings = [phrasing for instruction in EVERY for phrasing in set(instruction.phrasings)]
    assert len(set(phrasings)) == len(phrasings)


@pytest.mark.parametrize("instruction", EVERY, ids=by_name)
def test_phrasings_are_distinct_whole_sentences(instruction: Instruction) -> None:
    assert len(set(instruction.phrasings)) == len(instruction.phrasings)
    for phrasing in instruction.phrasings:
        assert phrasing[0].isupper() and phrasing == phrasing.strip()
        assert phrasing[-1] in '."'


@pytest.mark.parametrize("instruction", [i for i in EVERY if i.ifeval_id], ids=by_name)
def test_ids_are_ifevals_and_kwargs_are_every_argument_of_that_check(instruction: Instruction) -> None:
    registry = pytest.importorskip("lm_eval.tasks.ifeval.instructions_registry", exc_type=ImportError)
    check = registry.INSTRUCTION_DICT[instruction.ifeval_id]
    taken = set(inspect.signature(check.build_description).parameters) - {"self"}
    assert set(instruction.kwargs) == taken
    built = check(instruction.ifeval_id)
    built.build_description(**instruction.kwargs)
    assert (built.get_instruction_args() or {}) == instruction.kwargs  # taken as they are, none drawn at random


@pytest.mark.parametrize(
    ("relation", "followed_by"), [("at most", [True, True, False]), ("at least", [False, True, True])]
)
def test_ifeval_decides_sentence_bounds_at_the_bound_itself(
    relation: str, followed_by: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = pytest.importorskip("lm_eval.tasks.ifeval.instructions_registry", exc_type=ImportError)
    util = registry.instructions.instructions_util
    monkeypatch.setattr(util, "count_sentences", lambda text: text.count("."))  # NLTK's data may be absent
    instruction = sentences(2, relation)  # type: ignore[arg-type]
    check = registry.INSTRUCTION_DICT[instruction.ifeval_id](instruction.ifeval_id)
    check.build_description(**instruction.kwargs)
    assert [check.check_following(text) for text in ("One.", "One. Two.", "One. Two. Three.")] == followed_by


def test_sentences_say_their_number_in_every_phrasing() -> None:
    assert sentences(4).phrasings[1] == "Respond with 4 sentences."
    assert sentences(1).phrasings == (
        "Answer using 1 sentence.",
        "Respond with one sentence.",
        "Provide an answer in one sentence.",
        "Give your answer in a single sentence.",
    )
    assert sentences(3, "at most").phrasings[0] == "Answer using at most 3 sentences."
    assert sentences(3).name == "exactly_3_sentences"


def test_inclusion_quotes_the_word_always_and_exclusion_not_always() -> None:
    assert all('"river"' in phrasing for phrasing in include_word("river").phrasings)
    assert all("river" in phrasing for phrasing in exclude_word("river").phrasings)
    assert 0 < sum('"river"' in phrasing for phrasing in exclude_word("river").phrasings) < 6


def test_the_end_phrase_stands_in_every_phrasing_of_its_instruction() -> None:
    end = FORMATS["end_phrase"]
    assert all(end.kwargs["end_phrase"] in phrasing for phrasing in end.phrasings)


@pytest.mark.parametrize("instruction", EVERY, ids=by_name)
def test_an_instruction_can_be_hashed_and_sent_to_another_process(instruction: Instruction) -> None:
    copy = pickle.loads(pickle.dumps(instruction))
    assert copy == instruction and hash(copy) == hash(instruction)


def test_registries_cannot_be_changed_by_accident() -> None:
    with pytest.raises(TypeError):
        FORMATS["bullets"] = FORMATS["json"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("json", FORMATS["json"]),
        ("very_long", LENGTHS["very_long"]),
        ("include:river", include_word("river")),
        ("exclude:river", exclude_word("river")),
        ("sentences:3", sentences(3)),
    ],
)
def test_instructions_are_found_by_name(name: str, expected: Instruction) -> None:
    assert find_instruction(name) == expected


@pytest.mark.parametrize("name", ["bullet", "sentences:many", "", "format:json"])
def test_an_unknown_name_is_answered_with_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match=r"unknown instruction .*bullets.*very_short.*include:WORD"):
        find_instruction(name)


@pytest.mark.parametrize("word", ["", "  ", 'a "b"', "a\nb"])
def test_words_that_cannot_be_quoted_are_refused(word: str) -> None:
    for make in (include_word, exclude_word):
        with pytest.raises(ValueError, match="the word"):
            make(word)


def test_bad_instructions_are_refused_with_their_name() -> None:
    with pytest.raises(TypeError, match="'mine'"):
        Instruction("mine", "format", "one string")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'mine' needs phrasings"):
        Instruction("mine", "format", ())
    with pytest.raises(ValueError, match=r"'style' of 'mine'"):
        Instruction("mine", "style", ("Do it.",))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs a name"):
        Instruction("", "format", ("Do it.",))
    with pytest.raises(ValueError, match="n=0"):
        sentences(0)
    with pytest.raises(ValueError, match="'about'"):
        sentences(2, "about")  # type: ignore[arg-type]
