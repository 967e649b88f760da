"""IFEval through lm-eval's checkers: agreement with lm-eval, safe parameters, no network."""

from __future__ import annotations

import importlib
import os
import random
import subprocess
import sys

import pandas as pd
import pytest

pytest.importorskip("lm_eval.tasks")
pytest.importorskip("langdetect")

from lensteer.evaluate import _inputs, ifeval, instruction_ids, length

module = importlib.import_module("lensteer.evaluate.ifeval")  # the package's attribute of this name is the function

SENTENCES = "length_constraints:number_sentences"
CAPITAL_WORDS = "change_case:capital_word_frequency"
ENGLISH = "this is a plain english sentence about the weather in the mountains"
FRENCH = "Ceci est une phrase écrite en français sur le temps qu'il fait à la montagne."
# instruction: (parameters, a response that follows, one that does not)
CASES = {
    "keywords:existence": ({"keywords": ["peace", "war"]}, "War and peace", "Only peace"),
    "keywords:frequency": ({"keyword": "cat", "frequency": 2, "relation": "at least"}, "cat cat", "a cat"),
    "keywords:forbidden_words": ({"forbidden_words": ["cat"]}, "education", "my cat"),
    "keywords:letter_frequency": (
        {"letter": "z", "let_frequency": 2, "let_relation": "less than"},
        "zoo",
        "jazz",
    ),
    "language:response_language": ({"language": "fr"}, FRENCH, ENGLISH),
    SENTENCES: ({"num_sentences": 3, "relation": "less than"}, "One. Two.", "One. Two. Three."),
    "length_constraints:number_paragraphs": ({"num_paragraphs": 2}, "a\n***\nb", "a"),
    "length_constraints:number_words": ({"num_words": 3, "relation": "at least"}, "a b c", "a b"),
    "length_constraints:nth_paragraph_first_word": (
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"},
        "First.\n\nThen, more.",
        "First.\n\nNow more.",
    ),
    "detectable_content:number_placeholders": ({"num_placeholders": 1}, "Dear [name]", "Dear Ann"),
    "detectable_content:postscript": ({"postscript_marker": "P.S."}, "Bye.\nP.S. Write!", "Bye."),
    "detectable_format:number_bullet_lists": ({"num_bullets": 2}, "* a\n* b", "* a\n* b\n* c"),
    "detectable_format:constrained_response": ({}, "My answer is yes.", "Yes."),
    "detectable_format:number_highlighted_sections": ({"num_highlights": 1}, "a *b* c", "a b c"),
    "detectable_format:multiple_sections": (
        {"section_spliter": "Section", "num_sections": 2},
        "Section 1 a Section 2 b",
        "a",
    ),
    "detectable_format:json_format": ({}, '```json\n{"a": 1}\n```', '{"a": '),
    "detectable_format:title": ({}, "<<Ode>>\nOh.", "Ode\nOh."),
    "combination:two_responses": ({}, "One.\n******\nTwo.", "One."),
    "combination:repeat_prompt": ({"prompt_to_repeat": "Why?"}, "Why? Because.", "Because."),
    "startend:end_checker": ({"end_phrase": "The end."}, "So it was. The end.", "The end. Or not"),
    CAPITAL_WORDS: ({"capital_frequency": 2, "capital_relation": "at least"}, "NASA and ESA. ok", "NASA. ok"),
    "change_case:english_capital": ({}, ENGLISH.upper(), ENGLISH),
    "change_case:english_lowercase": ({}, ENGLISH, ENGLISH.title()),
    "punctuation:no_comma": ({}, "a b", "a, b"),
    "startend:quotation": ({}, '"quoted"', "not quoted"),
}
WRAPPERS = [
    "{}",
    "*{}*",
    "Sure:\n{}",
    "{}\nHope it helps, bye",
    "Sure:\n**{}**\nBye",
    " ",
    "",
    "123",
    "\n\n",
    "*",
    "** **\n1",
]


@pytest.fixture
def no_punkt(monkeypatch):
    def absent():
        raise LookupError("punkt_tab")

    monkeypatch.setattr(length, "_punkt", absent)
    _inputs.warn_once.cache_clear()
    yield
    _inputs.warn_once.cache_clear()


def test_all_twenty_five_instructions_are_there() -> None:
    assert instruction_ids() == sorted(CASES)
    assert len(CASES) == 25


@pytest.mark.filterwarnings("ignore:.*sentences are counted")
@pytest.mark.parametrize("name", CASES)
def test_a_response_that_follows_passes_and_one_that_does_not_fails(name) -> None:
    parameters, good, bad = CASES[name]
    found = ifeval([good, bad], name, parameters)
    assert found["strict"].tolist() == [True, False]
    assert found["loose"].tolist()[0]


@pytest.mark.parametrize("name", sorted(set(CASES) - {SENTENCES, CAPITAL_WORDS}))
def test_strict_and_loose_agree_with_lm_evals_own_scoring(name) -> None:
    parameters, good, bad = CASES[name]
    texts = [wrapper.format(text) for wrapper in WRAPPERS for text in (good, bad)]
    strict, loose = zip(*(_scored_by_lm_eval(text, name, parameters) for text in texts), strict=True)
    found = ifeval(texts, name, parameters)
    assert found["strict"].tolist() == list(strict)
    assert found["loose"].tolist() == list(loose)


@pytest.mark.parametrize("name", [SENTENCES, CAPITAL_WORDS])
def test_counting_instructions_agree_with_lm_eval_where_nltk_has_its_data(name) -> None:
    try:
        length._punkt()
    except LookupError:
        pytest.skip("NLTK's punkt_tab data is not installed")
    parameters, good, bad = CASES[name]
    texts = [wrapper.format(text) for wrapper in WRAPPERS for text in (good, bad)]
    found = ifeval(texts, name, parameters)
    expected = [_scored_by_lm_eval(text, name, parameters) for text in texts]
    assert list(zip(found["strict"], found["loose"], strict=True)) == expected


def _scored_by_lm_eval(text: str, name: str, parameters: dict) -> tuple[bool, bool]:
    utils = importlib.import_module("lm_eval.tasks.ifeval.utils")
    example = utils.InputExample(key=0, instruction_id_list=[name], prompt="", kwargs=[dict(parameters)])
    strict = utils.test_instruction_following_strict(example, text).follow_all_instructions
    return strict, utils.test_instruction_following_loose(example, text).follow_all_instructions


@pytest.mark.parametrize("name", [SENTENCES, CAPITAL_WORDS])
def test_without_nltk_data_counting_instructions_fall_back_with_one_warning(no_punkt, name) -> None:
    parameters, good, bad = CASES[name]
    with pytest.warns(UserWarning, match="own rules") as caught:
        found = ifeval([good, bad] * 3, name, parameters)
        ifeval([good], name, parameters)
    assert found["strict"].tolist() == [True, False] * 3
    assert len(caught) == 1


def test_loose_removes_lines_and_asterisks_and_strict_does_not() -> None:
    texts = ["Sure, here:\na b", "a b\nBye, now", "Sure,\na b\nBye,", "Sure,\na, b"]
    found = ifeval(texts, "punctuation:no_comma")
    assert found["strict"].tolist() == [False] * 4
    assert found["loose"].tolist() == [True, True, True, False]
    assert ifeval(['*"quoted"*'], "startend:quotation")[["strict", "loose"]].iloc[0].tolist() == [False, True]


def test_several_instructions_must_all_be_followed_and_each_is_reported() -> None:
    ids = ["punctuation:no_comma", "startend:quotation"]
    found = ifeval(['"a b"', "a b", '"a, b"'], ids)
    assert found["strict"].tolist() == [True, False, False]
    assert found["strict_each"].tolist() == [(True, True), (True, False), (False, True)]
    assert found["loose_each"].tolist() == [(True, True), (True, False), (False, True)]


def test_kwargs_take_the_shape_of_the_ids() -> None:
    bullets, words = "detectable_format:number_bullet_lists", "keywords:existence"
    texts = ["* cat", "* a\n* dog"]
    one_per_response = ifeval(texts, bullets, [{"num_bullets": 1}, {"num_bullets": 2}])
    one_list_for_all = ifeval(texts, [bullets, words], [{"num_bullets": 1}, {"keywords": ["cat"]}])
    own_lists = ifeval(
        texts,
        [[bullets], [words, bullets]],
        [[{"num_bullets": 1}], [{"keywords": ["dog"]}, {"num_bullets": 2}]],
    )
    assert one_per_response["strict"].tolist() == [True, True]
    assert one_list_for_all["strict"].tolist() == [True, False]
    assert own_lists["strict"].tolist() == [True, True]


def test_rows_of_the_ifeval_data_set_fit_as_they_are() -> None:
    row = {"num_bullets": 2.0, "keywords": None, "relation": None, "num_words": float("nan")}
    assert ifeval(["* a\n* b"], [["detectable_format:number_bullet_lists"]], [[row]])["strict"].tolist() == [True]


def test_the_prompt_stands_in_for_the_prompt_to_repeat() -> None:
    found = ifeval(["Why? Because.", "Because."], "combination:repeat_prompt", prompts=["Why?", "Why?"])
    assert found["strict"].tolist() == [True, False]


def test_the_index_of_a_series_is_kept_and_blank_responses_fail() -> None:
    found = ifeval(pd.Series(["a b", "", " \n"], index=[7, 8, 9]), "punctuation:no_comma")
    assert found.index.tolist() == [7, 8, 9]
    assert found["strict"].tolist() == found["loose"].tolist() == [True, False, False]
    assert ifeval([], "punctuation:no_comma").dtypes.equals(found.dtypes)


def test_zero_is_a_parameter_and_not_a_missing_one() -> None:
    found = ifeval(["no list", "* a"], "detectable_format:number_bullet_lists", {"num_bullets": 0})
    assert found["strict"].tolist() == [True, False]


@pytest.mark.filterwarnings("ignore:.*sentences are counted")
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[0]])
def test_each_missing_parameter_is_named_and_none_is_drawn_at_random(name) -> None:
    parameters = CASES[name][0]
    state = random.getstate()
    ifeval(["text"], name, parameters)
    for missing in parameters:
        rest = {key: value for key, value in parameters.items() if key != missing}
        with pytest.raises(ValueError, match=f"{name} lacks the kwarg {missing} "):
            ifeval(["text"], name, rest)
        with pytest.raises(ValueError, match=f"lacks the kwarg {missing} "):
            ifeval(["text"], name, {**rest, missing: None})
    assert random.getstate() == state


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("keywords:existence", {"keywords": "peace"}, "must be a list of one or more words"),
        ("keywords:existence", {"keywords": []}, "must be a list of one or more words"),
        ("keywords:existence", {"keywords": 3}, "must be a list of one or more words"),
        ("detectable_format:number_bullet_lists", {"num_bullets": [2]}, "must be a whole number"),
        ("detectable_format:number_bullet_lists", {"num_bullets": float("inf")}, "must be a whole number"),
        ("keywords:letter_frequency", {"letter": "é"}, "one letter from a to z"),
        (
            "language:response_language",
            {"language": "French"},
            "language is 'French', but must be one of ar, ",
        ),
        (
            "detectable_format:number_bullet_lists",
            {"num_bullets": -1},
            "num_bullets is -1, but must be a whole number",
        ),
        ("detectable_format:number_bullet_lists", {"num_bullets": 1.5}, "must be a whole number"),
        ("detectable_format:number_bullet_lists", {"num_bullets": "two"}, "must be a whole number"),
        (
            "length_constraints:nth_paragraph_first_word",
            {"nth_paragraph": 3},
            "at most num_paragraphs, which is 2",
        ),
        (
            "length_constraints:number_words",
            {"relation": "exactly"},
            "number_words: .*'less than', 'at least'",
        ),
        ("startend:end_checker", {"end_phrase": " "}, "a text that is not blank"),
        ("keywords:frequency", {"keyword": "C("}, "escape special characters with re.escape"),
        ("punctuation:no_comma", {"commas": 0}, "does not know the kwarg commas .it takes none"),
    ],
)
def test_parameters_that_a_checker_would_replace_or_misread_are_refused(name, change, message) -> None:
    with pytest.raises(ValueError, match=message):
        ifeval(["text"], name, {**CASES[name][0], **change})


def test_unknown_ids_and_unequal_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown instruction id 'no_comma'; known: .*punctuation:no_comma"):
        ifeval(["a"], "no_comma")
    with pytest.raises(ValueError, match="instruction_ids has 1 lists for 2 responses"):
        ifeval(["a", "b"], [["punctuation:no_comma"]])
    with pytest.raises(ValueError, match="kwargs has 1 entries for 2 responses"):
        ifeval(["a", "b"], "punctuation:no_comma", [{}])
    with pytest.raises(ValueError, match="must be a list of 2 mappings"):
        ifeval(["a"], ["punctuation:no_comma", "startend:quotation"], [{}])
    with pytest.raises(ValueError, match="list of instruction ids is empty"):
        ifeval(["a"], [])
    with pytest.raises(ValueError, match="2 prompts for 1 responses"):
        ifeval(["a"], "punctuation:no_comma", prompts=["x", "y"])


def test_language_detection_gives_the_same_answer_every_time() -> None:
    from langdetect import DetectorFactory

    DetectorFactory.seed = None
    texts = ["pasta pizza menu"] * 20  # short enough for an unseeded detector to change its mind
    assert ifeval(texts, "language:response_language", {"language": "it"})["strict"].nunique() == 1
    assert DetectorFactory.seed == 0


def test_a_response_without_a_detectable_language_counts_as_followed() -> None:
    assert ifeval(["123 456 !"], "language:response_language", {"language": "fr"})["strict"].tolist() == [True]


def test_it_works_without_a_network_and_tries_no_download() -> None:
    code = (
        "import socket, warnings, nltk\n"
        "warnings.simplefilter('ignore')\n"
        "calls = []\n"
        "nltk.download = lambda *a, **k: calls.append(a)\n"
        "socket.socket.connect = lambda *a: calls.append(a)\n"
        "socket.getaddrinfo = lambda *a, **k: calls.append(a)\n"
        "nltk.data.path[:] = []\n"
        "from lensteer.evaluate import ifeval\n"
        "for name, number, relation in [\n"
        f"    ('{SENTENCES}', 'num_sentences', 'relation'),\n"
        f"    ('{CAPITAL_WORDS}', 'capital_frequency', 'capital_relation'),\n"
        "]:\n"
        "    found = ifeval(['NASA. ESA.', 'NASA'], name, {number: 2, relation: 'at least'})\n"
        "    assert found['strict'].tolist() == [True, False], found\n"
        "assert calls == [], calls\n"
        "import os; assert 'LOCAL_RANK' not in os.environ\n"
    )
    environment = {key: value for key, value in os.environ.items() if key not in ("LOCAL_RANK", "NLTK_DATA")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "punkt" not in done.stdout + done.stderr


def test_without_lm_eval_the_error_names_the_extra(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    module._registry.cache_clear()
    with pytest.raises(ImportError, match=r'pip install "lensteer\[eval\]"'):
        ifeval(["a"], "punctuation:no_comma")
