"""Rendering, tokenising, marking, truncating, padding: every token accounted for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lensteer.prompts import (
    Pair,
    Row,
    batches,
    context_length,
    make_batch,
    pad_id,
    resolve_format,
    stop_ids,
    tokenize,
)

END = 4  # <|end|>


def one(case: Any, prompt: Any, **options: Any) -> Row:
    return tokenize(case.model, [prompt], **options)[0]


def marked(case: Any, row: Row) -> str:
    """The text of the tokens that are the prompt's own."""
    return case.tokenizer.decode([token for token, own in zip(row.ids, row.own, strict=True) if own])


def test_a_chat_prompt_is_rendered_by_the_tokenizers_own_template(tiny) -> None:
    if tiny.tokenizer.chat_template is None:
        with pytest.raises(ValueError, match="needs a tokenizer with a chat template; use 'plain' or 'qa'"):
            one(tiny, "Hello", prompt_format="chat")
        return
    messages = [{"role": "user", "content": "Hello"}]
    expected = tiny.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)
    for prompt in ("Hello", messages):
        assert one(tiny, prompt).ids == expected["input_ids"]


def test_there_is_one_bos_where_the_tokenizer_has_one_and_none_where_it_has_none(tiny) -> None:
    expected = 1 if tiny.name in ("llama", "gemma2", "mistral") else 0
    chat = ["auto", "chat"] if tiny.tokenizer.chat_template else ["auto"]
    for prompt_format in [*chat, "plain", "qa"]:
        assert one(tiny, "Hello", prompt_format=prompt_format).ids.count(1) == expected


@pytest.mark.parametrize("prompt_format", ["plain", "auto"])
def test_a_bos_that_the_text_brings_along_is_not_doubled(llama, prompt_format: str) -> None:
    if prompt_format == "plain":
        assert one(llama, "<bos>Hello", prompt_format="plain").ids == one(llama, "Hello", prompt_format="plain").ids
    rendered = "<bos><|start|>user Hello<|end|><|start|>bot "
    assert one(llama, rendered, prompt_format="plain").ids == one(llama, "Hello").ids


def test_a_template_that_writes_no_bos_gets_none(fresh_hf, new_tokenizer) -> None:
    """As Transformers' own rendering does, also where the tokenizer puts one before plain text."""
    import lensteer

    tokenizer = new_tokenizer(bos=True, chat="{{ messages[0]['content'] }}!")
    model = lensteer.load_model(fresh_hf("llama"), tokenizer=tokenizer)
    assert tokenize(model, ["Hi"])[0].ids == tokenizer("Hi!", add_special_tokens=False)["input_ids"]
    assert tokenize(model, ["Hi"], prompt_format="plain")[0].ids[0] == 1


def test_the_real_template_is_used_with_its_own_system_prompt(smollm2) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    expected = smollm2.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)
    row = one(smollm2, "Hello")
    assert row.ids == expected["input_ids"]
    assert row.text.startswith("<|im_start|>system")
    assert marked(smollm2, row) == "Hello"


def test_plain_formats_put_the_prompt_where_they_say(gpt2) -> None:
    assert one(gpt2, "Hello").text == "Hello"
    assert one(gpt2, "Hello", prompt_format="qa").text == "Q: Hello\nA:"
    assert one(gpt2, "Hello", prompt_format="Say {prompt} now").text == "Say Hello now"
    assert one(gpt2, "a {b} {prompt}", prompt_format="<{prompt}>").text == "<a {b} {prompt}>"


def test_only_the_prompts_own_text_is_marked_as_its_own(tiny) -> None:
    formats = ["auto", "plain", "qa", "Say {prompt} now"]
    for prompt_format in formats:
        for prompt in ("Hello you", "x", "user", "Éa — ü", " spaces "):
            row = one(tiny, prompt, prompt_format=prompt_format)
            assert len(row.own) == len(row.ids) == len(row)
            assert marked(tiny, row) == prompt


def test_in_a_conversation_the_last_message_is_the_prompts_own(llama) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "bot", "content": "Hello."},
        {"role": "user", "content": "Hi"},
    ]
    row = one(llama, messages)
    assert "Be brief." in row.text
    assert marked(llama, row) == "Hi"
    assert row.own.index(True) > row.text.index("Hello.") / 2  # the second "Hi", not the first


def test_a_conversation_is_not_cut_down_to_its_last_message_for_a_plain_format(gpt2) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "bot", "content": "Yes?"}]
    assert one(gpt2, messages[:1]).text == "Hi"
    with pytest.raises(ValueError, match="a conversation of 2 messages needs a chat template"):
        one(gpt2, messages)


def test_without_offsets_every_token_counts_as_the_prompts_own(llama, monkeypatch) -> None:
    monkeypatch.setattr(type(llama.tokenizer), "is_fast", False)
    row = one(llama, "Hello", prompt_format="plain")
    assert row.own == [True] * len(row.ids)


def test_rows_that_are_tokenised_already_pass_through(llama) -> None:
    row = Row([1, 7, 8], [False, True, True], "ab")
    assert tokenize(llama.model, [row]) == [row]


def test_a_pair_is_a_tuple_of_two_sides() -> None:
    positive, negative = Pair("with", "without")
    assert (positive, negative) == ("with", "without")


@pytest.mark.parametrize(
    ("prompts", "options", "error", "words"),
    [
        ("Hello", {}, TypeError, r"prompts must be a list; for one prompt write \[prompt\]"),
        ([], {}, ValueError, r"no prompts were given; pass at least one"),
        (
            ["Hi", "x" * 200],
            {"prompt_format": "plain"},
            ValueError,
            r"prompt 1 has 201 tokens.*context of 128 leaves 128",
        ),
        (
            ["x" * 100],
            {"prompt_format": "plain", "room": 40},
            ValueError,
            r"101 tokens.*leaves 88 for it \(40 are kept",
        ),
        (["Hi"], {"room": 128}, ValueError, r"leaves 0 for it"),
        (["Hi"], {"room": 128, "truncate": True}, ValueError, r"leaves 0 for it"),
        (
            ["Hi"],
            {"prompt_format": "poem"},
            ValueError,
            r"prompt_format='poem' is unknown; use 'auto', 'chat', 'plain', 'qa'",
        ),
        ([[]], {}, TypeError, r"a prompt is a string or a list of \{'role', 'content'\} messages, got \[\]"),
        ([[{"role": "user"}]], {}, TypeError, r"messages, got \[\{'role': 'user'\}\]"),
        ([3], {}, TypeError, r"a prompt is a string or a list.*got 3"),
        ([["Hi"]], {}, TypeError, r"a prompt is a string or a list.*got \['Hi'\]"),
    ],
)
def test_bad_prompts_are_refused_with_their_number_and_what_would_work(llama, prompts, options, error, words) -> None:
    with pytest.raises(error, match=words):
        tokenize(llama.model, prompts, **options)


def test_an_empty_prompt_without_template_and_bos_has_nothing_to_run(gpt2) -> None:
    with pytest.raises(ValueError, match="prompt 1 has no tokens"):
        tokenize(gpt2.model, ["a", ""])


def test_a_model_without_tokenizer_says_how_to_give_one(fresh_hf) -> None:
    import lensteer

    model = lensteer.load_model(fresh_hf("llama"))
    with pytest.raises(ValueError, match=r"no tokenizer.*load_model\(hf_model, tokenizer=tokenizer\)"):
        tokenize(model, ["Hello"])


def test_truncation_keeps_the_end_of_the_prompt_and_its_bos(llama, gpt2) -> None:
    """Models with a BOS put their attention on it; a prompt that lost it is another kind of input."""
    text = "".join(chr(97 + i % 26) for i in range(200))
    row = one(llama, text, prompt_format="plain", truncate=True, room=20)
    assert len(row) == 108
    assert row.ids[0] == 1
    assert llama.tokenizer.decode(row.ids[1:]) == text[-107:]
    assert row.own == [False] + [True] * 107
    bare = one(gpt2, text, truncate=True, room=20)
    assert gpt2.tokenizer.decode(bare.ids) == text[-108:]


def test_the_context_length_is_the_models_own(tiny) -> None:
    assert context_length(tiny.model) == 128


def test_formats_resolve_by_what_the_tokenizer_can(llama, gpt2) -> None:
    assert resolve_format(llama.tokenizer, "auto") == "chat"
    assert resolve_format(gpt2.tokenizer, "auto") == "{prompt}"


# ---- stop tokens


def test_a_chat_models_end_of_turn_ends_a_response_besides_the_end_of_text(tiny) -> None:
    assert stop_ids(tiny.model) == ([2, END] if tiny.tokenizer.chat_template else [2])


def test_stop_tokens_of_the_generation_config_count_too(fresh) -> None:
    case = fresh("gpt2")
    case.hf.generation_config.eos_token_id = [9, 2]
    assert stop_ids(case.model) == [2, 9]
    case.hf.generation_config.eos_token_id = None
    assert stop_ids(case.model) == [2]


def test_the_real_model_stops_at_its_end_of_turn(smollm2) -> None:
    assert smollm2.tokenizer.convert_tokens_to_ids("<|im_end|>") in stop_ids(smollm2.model)


# ---- batches


def test_padding_is_on_the_left_and_positions_count_real_tokens() -> None:
    rows = [Row([5, 6, 7], [True] * 3, ""), Row([8], [True], "")]
    batch = make_batch(rows, [4, 2], 8, "cpu")
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 8, 8]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [0, 0, 1]]  # by length: the padding id is a real token here
    assert batch.position_ids.tolist() == [[0, 1, 2], [0, 0, 0]]
    assert batch.rows == [4, 2]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 100, "auto"])
@pytest.mark.parametrize("purpose", ["read", "write"])
def test_batches_hold_every_row_once_in_order_of_length(llama, batch_size: Any, purpose: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 60, (50,), generator=generator).tolist()
    rows = [Row([9] * n, [True] * n, "") for n in lengths]
    found = list(batches(llama.model, rows, batch_size, purpose=purpose))
    order = [i for batch in found for i in batch.rows]
    assert sorted(order) == list(range(50))
    assert [lengths[i] for i in order] == sorted(lengths)
    for batch in found:
        assert batch.attention_mask.sum(1).tolist() == [lengths[i] for i in batch.rows]
        if batch_size != "auto":
            assert len(batch.rows) <= batch_size


def test_automatic_batches_stay_within_their_budget_of_tokens(llama) -> None:
    rows = [Row([9] * n, [True] * n, "") for n in (5, 100, 120, 110, 90, 3)]
    for batch in batches(llama.model, rows, "auto", purpose="read", extra=200):
        assert len(batch.rows) == 1 or batch.input_ids.numel() + 200 * len(batch.rows) <= 1024


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, "large", None])
def test_a_batch_size_that_is_no_number_of_rows_is_refused(llama, batch_size: Any) -> None:
    with pytest.raises(ValueError, match=f"batch_size must be 'auto' or a positive integer, got {batch_size!r}"):
        next(batches(llama.model, [Row([9], [True], "")], batch_size))


def test_padding_uses_some_token_even_where_the_tokenizer_has_none(fresh_hf, new_tokenizer) -> None:
    import lensteer

    tokenizer = new_tokenizer()
    tokenizer.pad_token = None
    model = lensteer.load_model(fresh_hf("llama"), tokenizer=tokenizer)
    assert pad_id(model) == 2
