"""Tokens, masks and the loss of focus training, against Eq. 3 computed by hand with plain Hugging Face."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import ARCHITECTURES, make_case
from focus_cases import TASK, examples, roomy

from lensteer.data.focus import KINDS
from lensteer.methods.focus_batches import (
    IGNORED,
    answer_log_probs,
    answer_logits,
    can_share_beginnings,
    collate,
    encode,
)


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def case(request: pytest.FixtureRequest) -> Any:
    return make_case(request.param, **roomy(request.param))


def batch_of(case: Any, n: int, *, eos: bool = True, kinds: Any = KINDS) -> Any:
    asked = [TASK.ask(x, kinds[i % len(kinds)], template=i) for i, x in enumerate(examples(n))]
    rows = [encode(case.model, one, max_length=500, eos=eos) for one in asked]
    return asked, rows, collate(rows, pad=0)


def by_hand(case: Any, prompt: str, answer: str, *, eos: bool) -> float:
    """−log p of an answer: one token after the other, no padding, no cache."""
    before = case.tokenizer(prompt)["input_ids"]
    after = case.tokenizer(prompt + " " + answer)["input_ids"][len(before) :]
    after = [*after, case.tokenizer.eos_token_id] if eos else after
    total = 0.0
    for i, token in enumerate(after):
        with torch.no_grad():
            logits = case.hf(torch.tensor([before + after[:i]]), use_cache=False).logits[0, -1].double()
        total -= float(logits.log_softmax(-1)[token])
    return total


@pytest.mark.parametrize("eos", [True, False])
def test_the_loss_is_equation_3_computed_by_hand_on_two_examples(case: Any, eos: bool) -> None:
    asked, _, batch = batch_of(case, 2, eos=eos, kinds=("focus(S)", "empty"))
    wanted = sum(by_hand(case, one.prompt, one.target, eos=eos) for one in asked) / 2
    with torch.no_grad():
        loss = -answer_log_probs(*answer_logits(case.hf, batch)).mean()
    assert float(loss) == pytest.approx(wanted, abs=1e-4)


def test_a_shared_beginning_changes_neither_loss_nor_gradients() -> None:
    case = make_case("llama", **roomy("llama"))
    _, _, batch = batch_of(case, 6)
    found = []
    for share in (False, True):
        case.hf.zero_grad()
        case.hf.requires_grad_(True)
        loss = -answer_log_probs(*answer_logits(case.hf, batch, share=share)).mean()
        loss.backward()
        found.append((float(loss), case.hf.model.layers[1].self_attn.v_proj.weight.grad.clone()))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-4, rtol=1e-4)


def test_a_shared_beginning_gives_the_same_log_probabilities_on_every_architecture_without_a_window(case: Any) -> None:
    if not can_share_beginnings(case.hf):
        assert case.name == "gemma2"  # its window would count the padding between the two parts
        return
    _, _, batch = batch_of(case, 5)
    with torch.no_grad():
        alone, together = (answer_log_probs(*answer_logits(case.hf, batch, share=share)) for share in (False, True))
    torch.testing.assert_close(alone, together, atol=1e-4, rtol=1e-5)


def test_a_batch_gives_what_its_rows_give_one_by_one(case: Any) -> None:
    _, rows, batch = batch_of(case, 5)
    with torch.no_grad():
        together = answer_log_probs(*answer_logits(case.hf, batch))
        alone = torch.cat([answer_log_probs(*answer_logits(case.hf, collate([row], 0))) for row in rows])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("eos", [True, False])
def test_labels_cover_the_answer_tokens_and_nothing_else(case: Any, eos: bool) -> None:
    asked, rows, batch = batch_of(case, 4, eos=eos)
    for one, row, ids, labels in zip(asked, rows, batch["input_ids"], batch["labels"], strict=True):
        own = labels[labels != IGNORED].tolist()
        assert own == row.answer
        assert ids[-len(own) :].tolist() == own
        text = case.tokenizer.decode(own[:-1] if eos else own)
        assert text == f" {one.target}"
        assert (own[-1] == case.tokenizer.eos_token_id) == eos


def test_the_mask_comes_from_lengths_so_that_an_end_token_that_is_also_padding_is_read() -> None:
    case = make_case("gpt2", **roomy("gpt2"))
    _, rows, _ = batch_of(case, 3)
    batch = collate(rows, pad=case.tokenizer.eos_token_id)
    assert batch["attention_mask"].sum(1).tolist() == [len(row) for row in rows]
    assert batch["labels"][:, -1].tolist() == [case.tokenizer.eos_token_id] * 3


def test_a_prompt_that_is_too_long_is_refused_and_not_cut(llama: Any) -> None:
    asked = TASK.ask(examples(1)[0], "focus(S)")
    with pytest.raises(ValueError, match=r"example '0' as 'focus\(S\)' has \d+ tokens .* would lose the answer cue"):
        encode(llama.model, asked, max_length=60, eos=True)
