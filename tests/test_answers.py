"""Questions, pairs and answers: token ids against tokenising by hand, with tokenizers of every habit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lensteer import AnswerPair, Question, answer_pairs, load_model
from lensteer.answers import answer_ids, answered_rows, check_answer_pairs
from lensteer.prompts import Row, tokenize

CHATS = [
    [{"role": "user", "content": "Is ice cold?"}, {"role": "assistant", "content": "yes"}],
    [{"role": "user", "content": "Is ice cold?"}, {"role": "assistant", "content": "no"}],
]


def byte_pairs(merges: list[tuple[str, str]], **options: Any) -> Any:
    """A byte-level tokenizer with some merges, over the whole text: words do not end at blanks."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = ["<bos>", "<eos>", *sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {token: i for i, token in enumerate([*alphabet, *("".join(pair) for pair in merges)])}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=merges))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<bos>", eos_token="<eos>", **options)


def sentence_pieces() -> Any:
    """As Llama-2's: a blank put before the text, blanks written as ▁, and a BOS."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = ["▁", *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,:?!'", "\n"]
    merges = [("▁", "y"), ("▁y", "e"), ("▁ye", "s"), ("▁", "n"), ("▁n", "o"), ("▁", "I"), ("e", "r")]
    tokens = ["<unk>", "<s>", "</s>", *letters, *("".join(pair) for pair in merges)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>"))
    inner.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    inner.decoder = tokenizers.decoders.Replace("▁", " ")
    inner.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="module")
def with_tokenizer(fresh_hf: Any) -> Any:
    """A tiny model under another tokenizer."""
    return lambda tokenizer: load_model(fresh_hf("llama", vocab_size=300), tokenizer=tokenizer)


# ---- questions


def test_a_question_knows_its_right_and_wrong_answers() -> None:
    question = Question("Which?", ["one", "two", "three"], [2, 0], "numbers")  # type: ignore[arg-type]
    assert (question.options, question.right, question.wrong) == (("one", "two", "three"), (2, 0), (1,))
    assert (question.gold, question.group) == ("three", "numbers")
    assert Question("Which?", ("a", "b"), 1).right == (1,)  # type: ignore[arg-type]


def test_right_may_be_a_numpy_number_as_it_comes_out_of_a_table() -> None:
    for right in (np.int64(1), np.array([1]), [np.int32(1)]):
        assert Question("Which?", ("a", "b"), right).right == (1,)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("", ("a", "b"), (0,)), ValueError, r"a question needs a prompt, got ''"),
        ((" \n", ("a", "b"), (0,)), ValueError, r"a question needs a prompt"),
        (([], ("a", "b"), (0,)), ValueError, r"a question needs a prompt, got \[\]"),
        (("Why", (), (0,)), ValueError, r"question 'Why' needs two or more options, none empty; got \(\)"),
        (("Why", ("a",), (0,)), ValueError, r"needs two or more options"),
        (("Why", ("a", " "), (0,)), ValueError, r"none empty; got \('a', ' '\)"),
        (("Why", ("a", None), (0,)), ValueError, r"none empty; got \('a', None\)"),
        (("Why", ("a", "b", "a "), (0,)), ValueError, r"has equal options"),
        (("Why", ("a", "b"), ()), ValueError, r"options 0 to 1, but right=\(\)"),
        (("Why", ("a", "b"), (2,)), ValueError, r"options 0 to 1, but right=\(2,\)"),
        (("Why", ("a", "b"), (-1,)), ValueError, r"right=\(-1,\)"),
        (("Why", "ab", (0,)), TypeError, r"options must be a list of answers, got the text 'ab'"),
        (("Why", ("a", "b"), ("b",)), TypeError, r"numbers of its right options, as right=\(0,\); got right=\('b',\)"),
        (("Why", ("a", "b"), "b"), TypeError, r"got right='b'"),
        (("Why", ("a", "b"), (False, True)), TypeError, r"got right=\(False, True\)"),
        (("Why", ("a", "b"), None), TypeError, r"got right=None"),
    ],
)
def test_a_question_that_cannot_be_asked_is_refused(arguments: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        Question(*arguments)


# ---- pairs


def test_one_wrong_answer_is_drawn_for_each_question_whatever_the_others_are() -> None:
    questions = [Question(f"Number {i}?", ("a", "b", "c", "d"), (i % 4,)) for i in range(200)]
    pairs = answer_pairs(questions)
    assert [pair.prompt for pair in pairs] == [q.prompt for q in questions]
    for pair, question in zip(pairs, questions, strict=True):
        assert pair.right == question.gold != pair.wrong
        assert pair.wrong in question.options
    assert answer_pairs(questions) == pairs
    assert answer_pairs(questions[::-1])[::-1] == pairs
    assert answer_pairs(questions[7:8]) == pairs[7:8]
    assert answer_pairs(questions, seed=1) != pairs
    first = [p.wrong for p, q in zip(pairs, questions, strict=True) if q.right == (0,)]
    assert all(10 <= first.count(option) <= 25 for option in "bcd")  # 50 drawn among three


def test_all_pairs_are_every_right_with_every_wrong_answer() -> None:
    pairs = answer_pairs([Question("Q", ("a", "b", "c", "d"), (1, 3)), Question("R", ("e", "f"), (0,))], wrong="all")
    expected = [("Q", "b", "a"), ("Q", "b", "c"), ("Q", "d", "a"), ("Q", "d", "c"), ("R", "e", "f")]
    assert [tuple(pair) for pair in pairs] == expected


def test_questions_that_make_no_pair_are_refused() -> None:
    with pytest.raises(ValueError, match="no questions were given"):
        answer_pairs([])
    with pytest.raises(ValueError, match=r"every option of the question 'Q' is right"):
        answer_pairs([Question("Q", ("a", "b"), (0, 1))])
    with pytest.raises(ValueError, match="wrong must be 'one' or 'all', got 'two'"):
        answer_pairs([Question("Q", ("a", "b"), (0,))], wrong="two")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"questions must be a list of Question, got Question; put it in a list"):
        answer_pairs(Question("Q", ("a", "b"), (0,)))  # type: ignore[arg-type]


def test_two_chats_with_the_same_question_are_a_pair() -> None:
    assert check_answer_pairs([CHATS]) == [AnswerPair(CHATS[0][:1], "yes", "no")]
    assert check_answer_pairs([tuple(CHATS), ("Why", "yes", "no")])[1] == AnswerPair("Why", "yes", "no")
    assert check_answer_pairs(("Why", *sides) for sides in [("yes", "no")]) == [AnswerPair("Why", "yes", "no")]


def chat(*texts: Any) -> list[dict[str, Any]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("pairs", "error", "words"),
    [
        ([], ValueError, r"no pairs were given"),
        ([("Why", "", "no")], ValueError, r"pair 0 has an empty prompt or answer"),
        ([("Why", "yes", "no"), ("Why", "yes", "\n")], ValueError, r"pair 1 has an empty prompt or answer"),
        ([("", "yes", "no")], ValueError, r"pair 0 has an empty prompt"),
        ([(" ", "yes", "no")], ValueError, r"pair 0 has an empty prompt"),
        ([("Why", "yes", " yes")], ValueError, r"pair 0 has the same answer 'yes' on both sides"),
        ([(chat("Why", "yes"), chat("How", "no"))], ValueError, r"pair 0 ask different things: .*Why.*How.*same"),
        ([(chat("Why", "a", "And", "yes"), chat("Why", "b", "And", "no"))], ValueError, r"ask different things"),
        ([(chat("Why", "yes"), chat("Why", "yes"))], ValueError, r"same answer"),
        ([(chat("Why", ""), chat("Why", "no"))], ValueError, r"empty prompt or answer"),
        ([(chat("Why"), chat("Why"))], TypeError, r"pair 0 is .*AnswerPair\(prompt, right, wrong\)"),
        ([(chat("Why", None), chat("Why", "no"))], TypeError, r"pair 0 is"),
        ([("Why yes", "Why no")], TypeError, r"pair 0 is .*two chats that end with an answer"),
        (["abc"], TypeError, r"pair 0 is 'abc'"),
        ([5], TypeError, r"pair 0 is 5"),
        ([("Why", 1, 2)], TypeError, r"pair 0 is"),
        (AnswerPair("Why", "yes", "no"), TypeError, r"pairs must be a list of AnswerPair, got AnswerPair; put it in a"),
        (torch.nn.Identity(), TypeError, r"pairs must be a list of AnswerPair, got Identity"),
        ({"Why": ("yes", "no")}, TypeError, r"got dict"),
    ],
)
def test_what_is_not_a_contrastive_pair_is_refused(pairs: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        check_answer_pairs(pairs)


# ---- token ids


@pytest.mark.parametrize("prompt_format", ["plain", "qa", "Say: {prompt}\n", "chat"])
@pytest.mark.parametrize("prompt", ["Is it so?", "Is it so?\nAnswer:", "Is it so?\n", "Is it so? "])
def test_an_answer_follows_its_prompt_as_in_a_document(tiny, prompt: str, prompt_format: str) -> None:
    tokenizer = tiny.tokenizer
    if prompt_format == "chat":
        if not tokenizer.chat_template:
            pytest.skip("no chat template")
        turn = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        start = tokenizer(text, add_special_tokens=False)["input_ids"]
    else:
        text = {"plain": "{prompt}", "qa": "Q: {prompt}\nA:"}.get(prompt_format, prompt_format).format(prompt=prompt)
        start = tokenizer(text)["input_ids"]
    blank = "" if text[-1] in " \n" else " "
    (row,) = tokenize(tiny.model, [prompt], prompt_format=prompt_format)
    for answer in ("yes", " yes ", "two words"):
        expected = tokenizer(blank + answer.strip(), add_special_tokens=False)["input_ids"]
        assert answer_ids(tiny.model, row, answer) == expected
        (joined,) = answered_rows(tiny.model, [prompt], [answer], prompt_format=prompt_format)
        assert joined.ids == start + expected
        assert joined.text == text + blank + answer.strip()
        assert len(joined.own) == len(joined.ids)
        assert joined.own[-len(expected) :] == [True] * len(expected)


def test_rows_are_in_the_order_of_the_answers_also_where_prompts_repeat(llama) -> None:
    prompts, answers = ["Why", "How", "Why", CHATS[0][:1]], ["a", "b", "c", "d"]
    rows = answered_rows(llama.model, prompts, answers)
    assert [row.text for row in rows] == ["Why a", "How b", "Why c", "Is ice cold? d"]


def test_tokens_that_grow_across_words_are_taken_from_the_text_as_a_whole(with_tokenizer) -> None:
    model = with_tokenizer(byte_pairs([("Ġ", "y"), ("Ġy", "e"), ("e", "s")]))
    tokenizer = model.tokenizer
    (row,) = tokenize(model, ["Is it so?"], prompt_format="plain")
    ids = answer_ids(model, row, "yes")
    assert row.ids + ids == tokenizer("Is it so? yes")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["Ġye", "s"]


@pytest.mark.parametrize("prompt", ["Is it so? ", "Is it so?\n"])
def test_an_answer_that_merges_with_its_prompt_is_refused_with_both(with_tokenizer, prompt: str) -> None:
    model = with_tokenizer(byte_pairs([("Ġ", "y"), ("Ċ", "y")]))
    (row,) = tokenize(model, [prompt], prompt_format="plain")
    with pytest.raises(ValueError, match=r"the answer 'yes' merges with the end of its prompt 'Is it so.*line break"):
        answer_ids(model, row, "yes")
    assert len(answer_ids(model, row, "no")) == 2  # no merge: n and o


def test_a_tokenizer_that_writes_blanks_as_pieces_and_adds_its_own_is_read_right(with_tokenizer) -> None:
    model = with_tokenizer(sentence_pieces())
    tokenizer = model.tokenizer
    for prompt in ("Is water wet?", "Is water wet?\nAnswer:", "yes"):
        (row,) = tokenize(model, [prompt], prompt_format="plain")
        assert row.ids[0] == tokenizer.bos_token_id
        for answer, pieces in (("yes", ["▁yes"]), ("no", ["▁no"]), ("Ice", ["▁I", "c", "e"])):
            ids = answer_ids(model, row, answer)
            assert tokenizer.convert_ids_to_tokens(ids) == pieces
            assert row.ids + ids == tokenizer(f"{prompt} {answer}")["input_ids"]
    (row,) = tokenize(model, ["Is water wet?\n"], prompt_format="plain")
    assert tokenizer.convert_ids_to_tokens(answer_ids(model, row, "yes")) == ["y", "e", "s"]


def test_a_prompt_that_writes_its_own_bos_has_one_and_the_answer_none(llama) -> None:
    (row,) = answered_rows(llama.model, ["<bos>Why"], ["yes"])
    assert row.ids.count(llama.tokenizer.bos_token_id) == 1
    assert row.ids == llama.tokenizer("Why yes")["input_ids"]


def test_an_answer_to_a_prompt_that_was_cut_at_its_start_is_the_same(llama) -> None:
    (whole,) = tokenize(llama.model, ["x" * 100 + " Why"], prompt_format="plain")
    (cut,) = tokenize(llama.model, ["x" * 100 + " Why"], prompt_format="plain", truncate=True, room=100)
    assert len(cut) == 28
    assert answer_ids(llama.model, cut, "yes") == answer_ids(llama.model, whole, "yes")


def test_a_question_and_its_answer_must_fit_the_context(llama) -> None:
    (row,) = tokenize(llama.model, ["x" * 120], prompt_format="plain")
    assert len(answer_ids(llama.model, row, "y" * 6)) == 7
    with pytest.raises(ValueError, match=r"have 121 \+ 8 tokens, more than the model's context of 128; shorten"):
        answer_ids(llama.model, row, "y" * 7)
    with pytest.raises(ValueError, match=r"has 201 tokens.*context of 128"):
        answered_rows(llama.model, ["x" * 200], ["y"])


def test_an_empty_answer_is_refused(llama) -> None:
    for answer in ("", " \n"):
        with pytest.raises(ValueError, match="an answer to 'Why' is empty"):
            answer_ids(llama.model, Row([1], [True], "Why"), answer)
