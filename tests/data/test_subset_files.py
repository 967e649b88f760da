from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from jsonl import write

from lensteer.data import load_jigsaw, load_onesec, load_real_toxicity_prompts, load_subsets, sides

LABELS = ["toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"]
REAL = Path(__file__).resolve().parents[3] / "shared" / "data"


def table(file: Path, *rows: list[object]) -> Path:
    with file.open("w", encoding="utf-8", newline="") as lines:
        csv.writer(lines).writerows(rows)
    return file


@pytest.fixture
def jigsaw(tmp_path: Path) -> Path:
    header = ["id", "comment_text", *LABELS]
    table(
        tmp_path / "train.csv",
        header,
        ["a", "kind, and\non two lines", 0, 0, 0, 0, 0, 0],
        ["b", 'he said "fool"', 1, 0, 0, 0, 1, 0],
        ["c", "only obscene", 0, 0, 1, 0, 0, 0],
        ["d", " \n", 0, 0, 0, 0, 0, 0],
        ["e", "toxic é", 1, 0, 0, 0, 0, 0],
    )
    table(tmp_path / "test.csv", header[:2], ["t1", "not scored"], ["t2", "fine"], ["t3", "bad"])
    table(
        tmp_path / "test_labels.csv",
        ["id", *LABELS],
        ["t3", 1, 0, 0, 1, 0, 0],
        ["t1", -1, -1, -1, -1, -1, -1],
        ["t2", 0, 0, 0, 0, 0, 0],
    )
    return tmp_path


def onesec(folder: Path, *names: str) -> Path:
    table(folder / "concept_list.csv", ["group", "concept"], *(["sense", name] for name in names))
    (folder / "sense").mkdir()
    content = {"concept": "x", "sentences": {"positive": ["A ball.", "A pitch."], "negative": ["A tree."]}}
    for name in names:
        (folder / "sense" / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_subsets_are_read_from_json_and_feed_sides(file: Path) -> None:
    file.write_text('\ufeff{"giraffes": ["é", "b"], "other": ["c", "d", "e"]}', encoding="utf-8")
    subsets = load_subsets(str(file))
    assert subsets == {"giraffes": ["é", "b"], "other": ["c", "d", "e"]}
    assert sorted(sides(subsets, "other", "giraffes").target) == ["b", "é"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": ["x"],\n "b": }', r"data\.jsonl, line 2: not JSON"),
        (b'["x"]', r"data\.jsonl: a list; expected one JSON object"),
        (b"{}", "has no subsets"),
        (b'{"a": "x"}', "subset 'a' is 'x'; it must be a list"),
        (b'{"a": []}', r"subset 'a' is \[\]; it must be a list of at least one"),
        (b'{"a": ["x", " "]}', "subset 'a', sentence 2 is ' '; it must be text"),
        (b'{"a": ["x", 3]}', "subset 'a', sentence 2 is 3"),
        (b'{"a": ["x"], "a": ["y"]}', "the name 'a' stands 2 times"),
        (b'{"a": ["\xff"]}', "not UTF-8"),
    ],
)
def test_a_bad_file_of_subsets_is_refused_with_what_is_wrong(file: Path, content: bytes, message: str) -> None:
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_subsets(file)


def test_jigsaw_comments_are_sorted_by_label_and_other_labels_are_not_non_toxic(jigsaw: Path) -> None:
    subsets = load_jigsaw(jigsaw)
    assert subsets == load_jigsaw(jigsaw / "train.csv")
    assert subsets["toxic"] == ['he said "fool"', "toxic é"]
    assert subsets["insult"] == ['he said "fool"'] and subsets["obscene"] == ["only obscene"]
    assert subsets["non-toxic"] == ["kind, and\non two lines"]
    assert subsets["all"] == ['he said "fool"', "only obscene", "toxic é"]
    assert list(subsets) == [*LABELS, "all", "non-toxic"] and subsets["threat"] == []


def test_jigsaw_test_comments_take_the_labels_of_their_id_and_unscored_ones_are_left_out(jigsaw: Path) -> None:
    subsets = load_jigsaw(jigsaw, "test")
    assert subsets == load_jigsaw(jigsaw / "test.csv", "test")
    assert {name: texts for name, texts in subsets.items() if texts} == {
        "toxic": ["bad"],
        "threat": ["bad"],
        "all": ["bad"],
        "non-toxic": ["fine"],
    }


def test_a_wrong_jigsaw_table_is_named_with_line_and_column(jigsaw: Path) -> None:
    header = ["id", "comment_text", *LABELS]
    with pytest.raises(ValueError, match="unknown split 'dev'; the splits are 'train', 'test'"):
        load_jigsaw(jigsaw, "dev")  # type: ignore[arg-type]
    for rows, message in (
        ([header[:-1]], r"train\.csv, line 1: no column 'identity_hate'; there are 'id', 'comment_text'"),
        ([header], r"train\.csv has no rows"),
        ([header, ["a", "x", 0, 0, 2, 0, 0, 0]], "line 2: field 'obscene' is '2'; a label is one of 0, 1"),
        ([header, ["a", "x\ny", -1, 0, 0, 0, 0, 0]], "line 3: field 'toxic' is '-1'"),
        ([header, ["a", "x", 0, 0]], "line 2: no value for the column 'obscene'"),
        ([header, ["a", "x", *"000000", 9]], "line 2: more values than columns; line 1 names 8"),
    ):
        table(jigsaw / "train.csv", *rows)
        with pytest.raises(ValueError, match=message):
            load_jigsaw(jigsaw)
    for content, message in ((b'id,"comment', "not comma-separated values"), (b"id,\xff\n", "not UTF-8")):
        (jigsaw / "train.csv").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            load_jigsaw(jigsaw)


def test_a_missing_jigsaw_file_or_label_is_named(jigsaw: Path) -> None:
    table(jigsaw / "test_labels.csv", ["id", *LABELS], ["t1", *"000000"])
    with pytest.raises(ValueError, match=r"test\.csv, line 3: the id 't2' has no labels in test_labels\.csv"):
        load_jigsaw(jigsaw, "test")
    for name, split in (("test_labels.csv", "test"), ("train.csv", "train")):
        (jigsaw / name).unlink()
        with pytest.raises(FileNotFoundError, match=rf"{name} is not a file; expected comma-separated columns id"):
            load_jigsaw(jigsaw, split)  # type: ignore[arg-type]


def test_prompts_are_read_nested_or_flat_and_those_without_a_toxicity_are_dropped(file: Path) -> None:
    write(
        file,
        {"prompt": {"text": "a", "toxicity": 0.5}, "continuation": {"text": "x"}},
        {"prompt": {"text": "b", "toxicity": None}},
        {"prompt": {"text": "c", "toxicity": 0.49}},
        {"prompt": "d", "toxicity": 1},
    )
    assert load_real_toxicity_prompts(file) == ["a", "c", "d"]
    assert load_real_toxicity_prompts(file, toxic=True) == ["a", "d"]
    assert load_real_toxicity_prompts(file, toxic=False) == ["c"]


def test_prompts_are_drawn_by_seed_and_a_smaller_draw_begins_a_larger_one(file: Path) -> None:
    write(file, *({"kind": "insult", "prompt": f"p{i}"} for i in range(30)))
    drawn = load_real_toxicity_prompts(file, 30, seed=1)
    assert sorted(drawn) == sorted(load_real_toxicity_prompts(file)) and drawn != load_real_toxicity_prompts(file)
    assert load_real_toxicity_prompts(file, 4, seed=1) == drawn[:4] != load_real_toxicity_prompts(file, 4, seed=2)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a"}, r"line 2: field 'prompt' is missing; there are \['text'\]"),
        ({"prompt": 3}, "line 2: field 'prompt' is 3; it must be text"),
        ({"prompt": {"toxicity": 0.1}}, r"line 2: field 'prompt\.text' is missing; there are \['toxicity'\]"),
        ({"prompt": {"text": "a"}}, r"line 2: no field 'prompt\.toxicity'; there are 'text'"),
        ({"prompt": {"text": "a", "toxicity": "high"}}, r"line 2: field 'prompt\.toxicity' is 'high'"),
        ({"prompt": "a", "toxicity": 1.5}, "line 2: field 'toxicity' is 1.5; it must be from 0 to 1"),
    ],
)
def test_a_bad_row_of_prompts_is_named_with_line_and_field(file: Path, row: object, message: str) -> None:
    write(file, {"prompt": "good", "toxicity": 0.2}, row)
    with pytest.raises(ValueError, match=rf"data\.jsonl, {message}"):
        load_real_toxicity_prompts(file)


def test_more_prompts_than_there_are_are_refused_with_the_counts(file: Path) -> None:
    write(file, {"prompt": "a", "toxicity": 0.2}, {"prompt": "b", "toxicity": None})
    for n in (2, 0):
        with pytest.raises(ValueError, match=rf"n={n}, but of 2 rows 1 are prompts \(null is left out\)"):
            load_real_toxicity_prompts(file, n)
    with pytest.raises(ValueError, match=r"asked for all, but of 2 rows 0 are prompts with toxicity of at least 0\.5"):
        load_real_toxicity_prompts(file, toxic=True)
    write(file, {"prompt": "a"})
    with pytest.raises(ValueError, match="line 1: no field 'toxicity'; there are 'prompt'"):
        load_real_toxicity_prompts(file, toxic=False)


def test_real_prompts_are_read() -> None:
    file = REAL / "toxicity_prompts.jsonl"
    if not file.is_file():
        pytest.skip("no toxicity_prompts.jsonl in the data folder beside the project")
    assert len(load_real_toxicity_prompts(file)) == 400


def test_onesec_sentences_are_read_by_the_name_of_the_sense_or_by_its_word_alone(tmp_path: Path) -> None:
    onesec(tmp_path, "football-1_04_00__", "baby-1_18_00__")
    assert load_onesec(tmp_path, "football") == {"football": ["A ball.", "A pitch."], "non-football": ["A tree."]}
    assert list(load_onesec(tmp_path, "baby-1_18_00__")) == ["baby-1_18_00__", "non-baby-1_18_00__"]


def test_a_wrong_concept_or_file_of_onesec_is_named(tmp_path: Path) -> None:
    onesec(tmp_path, "bank-1_14_00__", "bank-1_17_01__")
    with pytest.raises(ValueError, match=r"concept_list\.csv: of the concept 'bank' there are 2 senses, \['bank-1_14"):
        load_onesec(tmp_path, "bank")
    with pytest.raises(ValueError, match=r"of the concept 'sky' there are none; it has \['bank-1_14"):
        load_onesec(tmp_path, "sky")
    file = tmp_path / "sense" / "bank-1_14_00__.json"
    for content, message in (
        ('{"sentences": {"positive": ["a"]}}', "field 'sentences' is .*; it must hold 'positive' and 'negative'"),
        ('{"sentences": {"positive": ["a", ""], "negative": ["b"]}}', r"sentences\.positive, sentence 2 is ''"),
    ):
        file.write_text(content)
        with pytest.raises(ValueError, match=message):
            load_onesec(tmp_path, "bank-1_14_00__")
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"bank-1_14_00__\.json is not a file; expected one JSON object"):
        load_onesec(tmp_path, "bank-1_14_00__")
    with pytest.raises(FileNotFoundError, match=r"concept_list\.csv is not a file; .* columns concept"):
        load_onesec(tmp_path / "elsewhere", "bank")
