from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from jsonl import write

from lensteer.data import FORMATS, data_hash, instruction_pairs, load_pairs, load_prompts

CHAT = [{"role": "user", "content": "Why?"}]


def test_pairs_are_read_as_text_or_chat_in_their_order(file: Path) -> None:
    write(file, {"positive": "a", "negative": "b", "note": 1}, {"positive": CHAT, "negative": "d"})
    assert [tuple(pair) for pair in load_pairs(file)] == [("a", "b"), (CHAT, "d")]


def test_ifeval_style_rows_are_pairs_of_the_prompt_with_and_without_the_instruction(file: Path) -> None:
    write(file, {"prompt": "Why? In French.", "prompt_without_instruction": "Why?", "kwargs": [{}]})
    assert [tuple(pair) for pair in load_pairs(file)] == [("Why? In French.", "Why?")]
    assert load_prompts(file) == ["Why? In French."]
    assert load_prompts(file, field="prompt_without_instruction") == ["Why?"]


def test_saved_pairs_come_back_equal_and_with_the_same_hash(file: Path) -> None:
    pairs = instruction_pairs(FORMATS["quotation"], 12)
    write(file, *(pair._asdict() for pair in pairs))
    assert load_pairs(file) == pairs
    assert data_hash(load_pairs(file)) == data_hash(pairs)


def test_blank_lines_a_byte_order_mark_and_windows_line_ends_do_no_harm(file: Path) -> None:
    file.write_bytes('\ufeff{"prompt": "é"}\r\n\r\n{"prompt": "b\u2028c"}\r\n'.encode())
    assert load_prompts(str(file)) == ["é", "b\u2028c"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"prompt": "a"', "not JSON"),
        (b'["a"]', "a list; every line must be a JSON object"),
        (b'{"text": "a"}', "no field 'prompt'; there are 'text'"),
        (b'{"prompt": ""}', "field 'prompt' is ''"),
        (b'{"prompt": 3}', "field 'prompt' is 3"),
        (b'{"prompt": []}', r"field 'prompt' is \[\]"),
        (b'{"prompt": [{"role": "user"}]}', "role and content"),
        (b'{"prompt": "\xff"}', "not UTF-8"),
    ],
)
def test_a_bad_line_is_named_with_file_line_and_field(file: Path, line: bytes, message: str) -> None:
    file.write_bytes(b'{"prompt": "good"}\n\n' + line + b"\n")
    with pytest.raises(ValueError, match=rf"data\.jsonl, line 3: .*{message}"):
        load_prompts(file)


def test_a_pair_with_a_missing_or_an_equal_side_is_refused(file: Path) -> None:
    with pytest.raises(
        ValueError, match=r"line 1: a pair needs .*'positive' \+ 'negative' or .*; there are 'positive'"
    ):
        load_pairs(write(file, {"positive": "a"}))
    with pytest.raises(ValueError, match="line 1: 'positive' and 'negative' are equal"):
        load_pairs(write(file, {"positive": "a", "negative": "a"}))
    with pytest.raises(ValueError, match="line 1: field 'negative' is None"):
        load_pairs(write(file, {"positive": "a", "negative": None}))


def test_empty_and_missing_files_are_refused_by_name(file: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data\.jsonl is not a file"):
        load_prompts(file)
    file.write_text("\n\n")
    for load in (load_prompts, load_pairs):
        with pytest.raises(ValueError, match=r"data\.jsonl has no rows"):
            load(file)


def test_a_long_value_is_cut_in_the_message(file: Path) -> None:
    write(file, {"prompt": list(range(500))})
    with pytest.raises(ValueError, match=r"\.\.\.") as error:
        load_prompts(file)
    assert len(str(error.value)) < 300


def test_the_hash_is_sha256_of_the_rows_as_json_lines() -> None:
    assert data_hash(["a", "b"]) == hashlib.sha256(b'"a"\n"b"\n').hexdigest()


def test_the_hash_tells_content_and_order_apart_but_not_containers_or_key_order() -> None:
    hashes = [data_hash(rows) for rows in ([], ["a", "b"], ["b", "a"], ["ab"], [["a", "b"]])]
    assert len(set(hashes)) == len(hashes)
    assert data_hash(iter(["a", ("b", "c")])) == data_hash(("a", ["b", "c"]))
    assert data_hash([{"x": 1, "y": 2}]) == data_hash([{"y": 2, "x": 1}])


def test_the_hash_takes_instructions_and_refuses_what_has_no_content() -> None:
    assert data_hash([FORMATS["json"]]) != data_hash([FORMATS["title"]])
    with pytest.raises(TypeError, match="one string"):
        data_hash("abc")
    with pytest.raises(TypeError, match="object"):
        data_hash([object()])
