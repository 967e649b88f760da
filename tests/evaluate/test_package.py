"""The evaluate package as a whole."""

from __future__ import annotations

import subprocess
import sys

import pandas as pd
import pytest

from lensteer import evaluate
from lensteer.evaluate._inputs import lists_per_response


def test_importing_the_package_loads_no_heavy_library() -> None:
    code = (
        "import sys, types, importlib.machinery, lensteer.evaluate as e\n"
        "heavy = {'lm_eval', 'pandas', 'langdetect', 'nltk', 'sklearn', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert all(hasattr(e, name) for name in e.__all__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


SCORES = {
    "lengths": evaluate.lengths,
    "includes_words": lambda responses: evaluate.includes_words(responses, "cat"),
    "excludes_words": lambda responses: evaluate.excludes_words(responses, "cat"),
    "concept_presence": lambda responses: evaluate.concept_presence(responses, ["cat", "cats"]),
    "repetitions": evaluate.repetitions,
    "bullets": evaluate.bullets,
    "letter_case": evaluate.letter_case,
    "json_format": evaluate.json_format,
    "lines_matching": lambda responses: evaluate.lines_matching(responses, "-"),
    "exact_match": lambda responses: evaluate.exact_match(responses, ["cat"] * len(responses)),
    "toxicity": lambda responses: evaluate.toxicity(responses, lambda texts: [0.0] * len(texts)),
}


@pytest.mark.filterwarnings("ignore:.*sentences are counted")
@pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
def test_rows_follow_the_responses_and_keep_the_index_of_a_series(score) -> None:
    texts = ["A cat.", "", "- a\n- b"]
    plain = score(texts)
    assert isinstance(plain.index, pd.RangeIndex)
    labelled = score(pd.Series(texts, index=["x", "y", "z"]))
    assert list(labelled.index) == ["x", "y", "z"]
    pd.testing.assert_frame_equal(labelled.reset_index(drop=True), plain)
    assert list(score([]).columns) == list(plain.columns)
    assert score([]).dtypes.equals(plain.dtypes)


@pytest.mark.filterwarnings("ignore:.*sentences are counted")
@pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
def test_what_is_not_a_sequence_of_texts_is_refused(score) -> None:
    with pytest.raises(TypeError, match="sequence with one item per response, not str"):
        score("one text")
    with pytest.raises(TypeError, match=r"responses\['b'\] is nan"):
        score(pd.Series(["fine", float("nan")], index=["a", "b"], dtype=object))
    with pytest.raises(TypeError, match="one of its columns"):
        score(pd.DataFrame({"response": ["fine"]}))


def test_an_argument_is_one_string_or_one_list_for_all_or_one_list_per_response() -> None:
    assert lists_per_response("a", 2, "words") == [["a"], ["a"]]
    assert lists_per_response(["a", "b"], 3, "words") == [["a", "b"]] * 3
    assert lists_per_response([["a"], ["b", "c"]], 2, "words") == [["a"], ["b", "c"]]
    with pytest.raises(ValueError, match="words has 2 lists for 3 responses"):
        lists_per_response([["a"], ["b"]], 3, "words")
    with pytest.raises(TypeError, match="words holds"):
        lists_per_response([["a"], "b"], 2, "words")
