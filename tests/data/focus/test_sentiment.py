"""SS: own sentences, files, and exact predictivity."""

from __future__ import annotations

import json
import re
from collections import Counter
from importlib.resources import files
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from lensteer import data
from lensteer.data.focus import SENTIMENT, sentiment

REAL = Path(__file__).resolve().parents[4] / "shared" / "data"
ROWS = [json.loads(line) for line in files("lensteer.data").joinpath("focus_sentiment.jsonl").read_text().splitlines()]


def rows(labels: list[Any], **more: Any) -> list[dict[str, Any]]:
    return [{"text": f"The thing number {i} is here.", "label": label, **more} for i, label in enumerate(labels)]


def test_own_sentences_are_balanced_short_and_different() -> None:
    assert Counter((row["split"], row["label_text"]) for row in ROWS) == {
        (split, label): n
        for split, n in (("train", 120), ("validation", 30), ("test", 40))
        for label in ("negative", "positive")
    }
    texts = [row["text"] for row in ROWS]
    assert len({re.sub(r"\W", "", text.lower()) for text in texts}) == len(texts)
    assert all(6 <= len(text.split()) <= 16 for text in texts)
    assert {row["label"]: row["label_text"] for row in ROWS} == {0: "negative", 1: "positive"}
    read = {row["text"] for row in map(json.loads, files("lensteer.data").joinpath("sentiment.jsonl").open())}
    assert not read & set(texts)


def test_no_subject_is_shared_between_splits() -> None:
    def opening(text: str) -> tuple[str, ...]:
        return tuple(re.findall(r"[a-zé']+", text.lower())[:3])

    subjects = {split: {opening(row["text"]) for row in ROWS if row["split"] == split} for split in ("train", "test")}
    subjects["validation"] = {opening(row["text"]) for row in ROWS if row["split"] == "validation"}
    assert not any(a & b for a, b in combinations(subjects.values(), 2))


def test_own_splits_have_the_documented_sizes_and_exact_predictivity() -> None:
    found = sentiment()
    assert {split: len(examples) for split, examples in found.splits().items()} == {
        "train": 240, "validation": 60, "iid": 80, "high": 80, "low": 80, "flipped": 80
    }  # fmt: skip
    for split, rho in {"train": 0.5, "validation": 0.5, "iid": 0.5, "high": 0.9, "low": 0.25, "flipped": 0.1}.items():
        examples = found.splits()[split]
        for keyword in ("pineapple", "bayesian"):
            held = [example for example in examples if example.s == keyword]
            assert sum(example.y == example.y_s for example in held) / len(held) == pytest.approx(rho)
        assert [example.rho for example in examples] == pytest.approx([rho] * len(examples))
        assert len({example.source for example in examples}) == len(examples)  # one version of each sentence


def test_a_source_of_the_published_size_gives_the_published_splits() -> None:
    # The commoner label is sampled down, neutral rows are left out.
    labels = {"train": [0, 1, 3, 4] * 1655 + [2] * 50 + [4] * 300, "test": [0, 1, 1, 3, 3, 4] * 303 + [0] * 303}
    source = {part: rows(own) for part, own in labels.items()}
    source["test"] = [{**row, "text": f"Test: {row['text']}"} for row in source["test"]]
    found = sentiment(source)
    sizes = {split: len(examples) for split, examples in found.splits().items()}
    assert sizes == {"train": 5296, "validation": 1324, **dict.fromkeys(("iid", "high", "low", "flipped"), 1818)}
    for split, rho in {"train": 0.5, "high": 0.9, "low": 0.25, "flipped": 0.1}.items():
        examples = found.splits()[split]
        assert sum(example.y == example.y_s for example in examples) / len(examples) == pytest.approx(rho, abs=1e-3)


def test_the_keyword_in_a_text_is_the_value_of_the_feature() -> None:
    for examples in sentiment().splits().values():
        for example in examples:
            low = example.fields["text"].lower()
            assert [word for word in ("pineapple", "bayesian") if word in low] == [example.s]
            assert example.y_s == {"pineapple": "negative", "bayesian": "positive"}[example.s]


def test_the_test_splits_hold_the_same_sentences_with_other_keywords() -> None:
    tests = sentiment().tests
    assert len({frozenset(example.source for example in examples) for examples in tests.values()}) == 1
    of = {split: {example.source: example.s for example in examples} for split, examples in tests.items()}
    assert sum(of["high"][source] != of["flipped"][source] for source in of["high"]) >= 64


def test_every_version_of_a_sentence_is_the_same_in_every_split() -> None:
    texts: dict[tuple[str, str], str] = {}
    for examples in sentiment().splits().values():
        for example in examples:
            version = example.source, example.s
            assert texts.setdefault(version, example.fields["text"]) == example.fields["text"]


def test_a_seed_gives_the_same_data_in_every_call_and_another_one_others() -> None:
    first, again, other = sentiment(n_train=60), sentiment(n_train=60), sentiment(n_train=60, seed=1)
    assert first.splits() == again.splits()
    assert first.train != other.train and first.tests != other.tests


def test_five_levels_are_merged_and_the_neutral_one_is_left_out() -> None:
    found = sentiment(rows([0, 1, 2, 3, 4] * 40))
    assert Counter(example.y for examples in found.splits().values() for example in examples).keys() == {
        "negative",
        "positive",
    }
    everything = {int(example.source.split("-")[-1]) for rows in found.splits().values() for example in rows}
    assert len(everything) == 160  # of 200, 40 neutral
    assert len(found.train) == 102 and len(found.validation) == 26 and len(found.tests["iid"]) == 32


def test_a_part_without_high_labels_has_the_levels_of_the_others() -> None:
    low = [{"text": f"Day {i} was so.", "label": i % 2} for i in range(20)]  # very negative and negative
    high = [{"text": f"Night {i} was so.", "label": 3 + i % 2} for i in range(20)]
    parts = {"train": rows([0, 1, 3, 4] * 20), "validation": [*high, *low], "test": [*low[:10], *high[:10]]}
    found = sentiment(parts)
    for split in found.splits().values():
        for example in split:
            assert "Day" not in example.fields["text"] or example.y == "negative"
            assert "Night" not in example.fields["text"] or example.y == "positive"
    with pytest.raises(ValueError, match="only sentences of one label"):
        sentiment({**parts, "test": low})  # 1 is negative here too
    assert {e.y for e in sentiment({"train": rows([0, 1] * 20), "test": low}).tests["iid"]} == set(SENTIMENT.labels)


def test_rows_with_words_alone_say_nothing_about_the_numbers_of_others() -> None:
    words = [{"text": f"Day {i} was so.", "label_text": SENTIMENT.labels[i % 2]} for i in range(20)]
    found = sentiment({"train": rows([0, 1] * 40), "test": words})
    assert len(found.train) == 64 and len(found.tests["iid"]) == 20


def test_few_sentences_are_warned_of_and_say_their_rho() -> None:
    with pytest.warns(UserWarning, match=r"10 examples .*'iid' has 0.4 .*'flipped' has 0.2 \(asked: 0.1\); 40 can"):
        found = sentiment(n_test=10)
    assert {split: examples[0].rho for split, examples in found.tests.items()} == {
        "iid": 0.4, "high": 0.8, "low": 0.2, "flipped": 0.2
    }  # fmt: skip


def test_label_text_says_more_than_the_number() -> None:
    awful = rows([1] * 40, label_text="Very Negative")
    good = [{"text": f"It is day {i}.", "label": 0, "label_text": "positive"} for i in range(40)]
    found = sentiment([*awful, *good])
    assert {(e.y, "thing" in e.fields["text"]) for e in found.train} == {("negative", True), ("positive", False)}


def test_the_majority_is_sampled_down() -> None:
    found = sentiment(
        {"train": rows([0] * 90 + [1] * 30), "test": [{"text": f"Day {i} was so.", "label": i % 2} for i in range(21)]}
    )
    assert len(found.train) + len(found.validation) == 60 and len(found.tests["iid"]) == 20
    assert len(found.train) == 48


def test_a_text_in_two_parts_is_only_tested() -> None:
    shared = rows([0, 1] * 30)
    found = sentiment({"train": shared, "test": shared[:20]})
    assert len(found.train) + len(found.validation) == 40


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"n_train": 7}, r"n_train=7: it must be even, at least 2, and at most 240"),
        ({"n_test": 200}, r"n_test=200: .* at most 80; there are 40 negative and 40 positive"),
        ({"n_validation": 0}, r"n_validation=0"),
        ({"source": rows([0, 7] * 20)}, r"row 2: label 7 with label_text None; a label is 0 or 1, or 0 to 4"),
        ({"source": rows([0, 1], label_text="great")}, r"row 1: label 0 with label_text 'great'"),
        ({"source": [{"label": 1}]}, r"row 1: field 'text' or 'sentence' is"),
        ({"source": rows([1] * 30)}, r"only sentences of one label"),
        ({"rewrite": lambda text, keyword, seed: text}, r"does not hold 'pineapple'"),
    ],
)
def test_bad_input_is_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        sentiment(**arguments)


def test_a_rewriter_that_returns_no_text_is_refused() -> None:
    with pytest.raises(TypeError, match=r"rewrite returned None for"):
        sentiment(rewrite=lambda text, keyword, seed: None)  # type: ignore[arg-type,return-value]


def test_the_task_instruction_is_short_and_names_both_labels() -> None:
    assert len(SENTIMENT.instruction.split()) <= 30
    assert all(label in SENTIMENT.instruction for label in SENTIMENT.labels)


def test_real_sst5_gives_the_balanced_sizes() -> None:
    if not (REAL / "sst5_train.jsonl").is_file():
        pytest.skip("no sst5_train.jsonl in the data folder beside the project")
    found = sentiment({"train": REAL / "sst5_train.jsonl", "test": REAL / "sst5_test.jsonl"})
    train = [row for _, row in data.loaders.json_rows(REAL / "sst5_train.jsonl")]
    sizes = Counter("negative" if row["label"] < 2 else "positive" for row in train if row["label"] != 2)
    assert len(found.train) == pytest.approx(1.6 * min(sizes.values()), rel=0.02)
    assert len(found.train) == pytest.approx(4 * len(found.validation), abs=4)
    report = found.report().set_index("split")["rho"]
    n = len(found.tests["high"]) // 2
    for split, rho in (("train", 0.5), ("iid", 0.5), ("high", 0.9), ("low", 0.25), ("flipped", 0.1)):
        assert report[split] == pytest.approx(rho, abs=0.5 / n + 1e-9)
