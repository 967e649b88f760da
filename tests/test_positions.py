"""Where edits act: the selection of tokens against positions counted by hand, and what a clock can and cannot know."""

from __future__ import annotations

import copy
from typing import Any

import oracles
import pytest
import torch

from lensteer import generate, positions
from lensteer.hooks import Add
from lensteer.positions import STEPS, At, Layout, at
from lensteer.steering import Steering

SCOPES: list[Any] = [
    "all",
    "prompt",
    "generated",
    "last",
    0,
    3,
    -2,
    -5,
    [0, -1],
    [1, 6],
    slice(-3, None),
    slice(1, -1),
    slice(2, 5),
    slice(None, -2),
    slice(-9, None),
    slice(None),
    STEPS,
]
LENGTHS = [2, 5, 4]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def selected(layout: Layout, scope: Any) -> torch.Tensor:
    chosen = layout.select(scope)
    shape = (len(layout.mask), layout.columns)
    return torch.full(shape, chosen) if isinstance(chosen, bool) else chosen


def expected(scope: Any, columns: range, width: int) -> torch.Tensor:
    """Row i starts after its padding; column c holds its token c − padding."""
    rows = []
    for length in LENGTHS:
        padding = width - length
        wanted = oracles.positions(scope, length, 100)
        rows.append([column >= padding and column - padding in wanted for column in columns])
    return torch.tensor(rows)


def mask(width: int, columns: int) -> torch.Tensor:
    return torch.tensor([[int(c >= width - length) for c in range(columns)] for length in LENGTHS])


def real(chosen: torch.Tensor, width: int, columns: range) -> torch.Tensor:
    """Padding is never attended to, so it does not matter whether it is edited."""
    return chosen & mask(width, columns.stop)[:, columns.start :].bool()


@pytest.mark.parametrize("scope", SCOPES, ids=repr)
def test_the_prompt_pass_of_a_padded_batch_edits_the_right_tokens(scope: Any) -> None:
    layout = Layout(5, 0, 5, mask(5, 5), torch.tensor(LENGTHS))
    assert torch.equal(real(selected(layout, scope), 5, range(5)), expected(scope, range(5), 5))


@pytest.mark.parametrize("scope", SCOPES, ids=repr)
@pytest.mark.parametrize("past", [5, 6, 8])
def test_every_cached_step_edits_the_right_tokens(scope: Any, past: int) -> None:
    layout = Layout(1, past, 5, mask(5, past + 1), torch.tensor(LENGTHS))
    assert torch.equal(selected(layout, scope), expected(scope, range(past, past + 1), 5))


@pytest.mark.parametrize("scope", SCOPES, ids=repr)
def test_a_whole_sequence_with_a_known_prompt_length_edits_the_right_tokens(scope: Any) -> None:
    layout = Layout(9, 0, None, mask(5, 9), torch.tensor(LENGTHS))
    assert torch.equal(real(selected(layout, scope), 5, range(9)), expected(scope, range(9), 5))


@pytest.mark.parametrize("past", [0, 4])
def test_steps_outside_the_scope_cost_no_tensor_work(past: int) -> None:
    layout = Layout(4 if past == 0 else 1, past, 4, torch.ones(1, 4 + past), torch.tensor([4]))
    assert layout.select("all") is True
    assert layout.select("generated") is (past > 0)
    if past:
        assert (layout.select("prompt"), layout.select("last")) == (False, False)


def test_steps_are_the_tokens_from_which_the_response_is_predicted() -> None:
    """One column of every cached step; in a whole sequence the last prompt token and all that follow."""
    whole = Layout(9, 0, None, mask(5, 9), torch.tensor(LENGTHS)).select(STEPS)
    prompt = Layout(5, 0, 5, mask(5, 5), torch.tensor(LENGTHS)).select(STEPS)
    step = Layout(1, 6, 5, mask(5, 7), torch.tensor(LENGTHS)).select(STEPS)
    assert isinstance(whole, torch.Tensor)
    assert isinstance(prompt, torch.Tensor)
    assert torch.equal(whole, torch.tensor([[False] * 4 + [True] * 5] * 3))
    assert torch.equal(prompt, torch.tensor([[False] * 4 + [True]] * 3))
    assert torch.equal(torch.as_tensor(step), torch.ones(3, 1, dtype=torch.bool))
    first = Layout(1, 4, None, mask(5, 5), torch.tensor(LENGTHS))  # the prompt's last token on top of a cache
    assert torch.equal(torch.as_tensor(first.select(STEPS)), torch.ones(3, 1, dtype=torch.bool))
    assert torch.equal(torch.as_tensor(first.select("last")), torch.ones(3, 1, dtype=torch.bool))
    assert not torch.as_tensor(first.select("generated")).any()


@pytest.mark.parametrize("use_cache", [True, False])
def test_steps_in_generation_edit_the_last_prompt_token_and_every_new_one(llama, use_cache: bool) -> None:
    seen: list[torch.Tensor] = []

    def note(x: torch.Tensor, hook: Any) -> torch.Tensor:
        layout = positions._PASS.get().layout  # type: ignore[union-attr]
        seen.append(torch.as_tensor(layout.select(STEPS)).expand(2, x.shape[1]).int())  # type: ignore[union-attr]
        return x

    class Look(Add):
        def __call__(self, activation: torch.Tensor, hook: Any = None) -> torch.Tensor:
            return note(activation, hook)

    steering = Steering([("blocks.1.hook_resid_post", Look(random(32)))])
    options: dict[str, Any] = {"prompt_format": "plain", "progress": False, "use_cache": use_cache}
    with Steering([("blocks.2.hook_resid_post", at(Add(random(32), 0.0), STEPS))]).on(llama.model):
        generate(llama.model, ["Why", "A long one"], steering, max_new_tokens=3, **options)
    counts = [chosen.sum(1).tolist() for chosen in seen]
    assert counts == ([[1, 1]] * 3 if use_cache else [[1, 1], [2, 2], [3, 3]])


def test_at_everywhere_is_the_edit_itself() -> None:
    edit = Add(random(32))
    assert at(edit, "all") is edit
    assert at(edit) is edit


def test_at_passes_strength_shape_and_device_through() -> None:
    edit = at(Add(random(32), 2.0), "last")
    assert isinstance(edit, At)
    assert (edit.strength, edit.shape, edit.at_strength(3.0).strength) == (2.0, (32,), 3.0)
    assert isinstance(edit.to("cpu"), At)
    assert edit.at_strength(torch.ones(2)).strength.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("tokens", "error", "words"),
    [
        ("response", ValueError, r"tokens='response' is unknown.*'generated'"),
        (slice(0, 4, 2), ValueError, r"slice\(0, 4, 2\).*step is not supported"),
        (1.5, TypeError, r"tokens=1.5"),
        (None, TypeError, r"tokens=None"),
        ([0, "last"], TypeError, r"tokens=\[0, 'last'\]"),
        ([], ValueError, r"tokens=\[\].*no"),
        (slice("a", None), TypeError, r"slice\('a'"),
    ],
)
def test_tokens_that_mean_nothing_are_refused_when_the_edit_is_made(tokens: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        at(Add(random(32)), tokens)


def test_ranges_tuples_and_numpy_numbers_are_taken_as_lists_of_indices() -> None:
    import numpy as np

    assert at(Add(random(32)), range(2)).tokens == [0, 1]  # type: ignore[attr-defined]
    assert at(Add(random(32)), (0, -1)).tokens == [0, -1]  # type: ignore[attr-defined]
    assert at(Add(random(32)), np.array([2, 3])).tokens == [2, 3]  # type: ignore[attr-defined]
    assert at(Add(random(32)), np.int64(-2)).tokens == -2  # type: ignore[attr-defined]


def test_an_at_inside_an_at_is_refused() -> None:
    with pytest.raises(ValueError, match="already"):
        at(at(Add(random(32)), "prompt"), "last")


def test_outside_a_model_that_has_a_clock_the_error_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match=r"tokens='last'.*steering\.on\(model\)"):
        at(Add(random(32)), "last")(random(1, 4, 32))


@pytest.fixture(scope="module")
def foreign(llama) -> Any:
    """A bridge that lensteer did not make."""
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    hf = copy.deepcopy(llama.hf)
    hf.set_attn_implementation("eager")
    bridge = build_bridge_from_module(hf, type(hf).__name__, hf_config=hf.config).eval()
    bridge._tokenizer = llama.tokenizer
    return bridge


def test_a_bridge_of_another_maker_gets_a_clock_while_steering_is_on(foreign, llama) -> None:
    ids, name = torch.tensor([[1, 70, 80, 90]]), "blocks.1.hook_resid_post"
    steering = Steering([(name, at(Add(random(32), 2.0), -2))])
    change = oracles.Change("resid_post", 1, oracles.add(random(32), 2.0), -2)
    foreign(ids)  # TransformerLens puts hooks of its own on at the first pass
    with pytest.raises(RuntimeError, match=r"steering\.on"):
        foreign.run_with_hooks(ids, fwd_hooks=steering)
    before = oracles.hooks_on(foreign)
    with torch.no_grad(), steering.on(foreign):
        found = foreign(ids)[0, -1].log_softmax(-1)
    expected = oracles.next_log_probs(llama.hf, ids[0].tolist(), [change], 4)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert oracles.hooks_on(foreign) == before


def test_a_prompt_length_for_another_number_of_rows_is_refused(llama) -> None:
    steering = Steering([("blocks.1.hook_resid_post", at(Add(random(32)), "generated"))])
    with (
        pytest.raises(ValueError, match="3 values but the batch has 2 rows"),
        steering.on(llama.model, prompt_length=torch.tensor([1, 2, 3])),
    ):
        llama.hf(torch.tensor([[5, 6, 7], [7, 8, 9]]))


@pytest.mark.parametrize("face", ["lens", "plain"])
def test_a_cache_whose_prompt_was_not_seen_is_an_error_only_where_positions_matter(llama, face: str) -> None:
    module = llama.hf if face == "plain" else llama.model.original_model
    llama.model(torch.tensor([[5, 6], [7, 8], [9, 10]]))  # the lens has seen some other prompt, of three rows
    with torch.no_grad():
        ids = torch.tensor([[5, 6, 7]])
        cache = llama.hf(ids, use_cache=True).past_key_values
        module(torch.tensor([[8]]), past_key_values=copy.deepcopy(cache))  # no edit needs to know
        steering = Steering([("blocks.1.hook_resid_post", at(Add(random(32), 3.0), "generated"))])
        with steering.on(llama.model), pytest.raises((ValueError, RuntimeError), match="prompt_length"):
            module(torch.tensor([[8]]), past_key_values=copy.deepcopy(cache))
        with steering.on(llama.model, prompt_length=3):
            found = module(torch.tensor([[8]]), past_key_values=copy.deepcopy(cache)).logits[0, -1]
    change = oracles.Change("resid_post", 1, oracles.add(random(32), 3.0), "generated")
    expected = oracles.next_log_probs(llama.hf, [5, 6, 7, 8], [change], 3)
    torch.testing.assert_close(found.log_softmax(-1), expected, atol=1e-4, rtol=1e-4)


def test_two_prompts_in_turn_are_not_mixed_up(llama) -> None:
    """The lens remembers the prompt that it read last; a cache of the one before is not taken for its continuation."""
    lens = llama.model.original_model
    steering = Steering([("blocks.1.hook_resid_post", at(Add(random(32), 3.0), "generated"))])
    with torch.no_grad():
        first = lens(torch.tensor([[5, 6, 7]]), use_cache=True).past_key_values
        second = lens(torch.tensor([[8, 9, 10, 11, 12]]), use_cache=True).past_key_values
        with llama.model.hooks(fwd_hooks=steering):
            with pytest.raises(RuntimeError, match="prompt was not seen"):
                lens(torch.tensor([[13]]), past_key_values=first)
            found = lens(torch.tensor([[13]]), past_key_values=second).logits[0, -1]
    change = oracles.Change("resid_post", 1, oracles.add(random(32), 3.0), "generated")
    expected = oracles.next_log_probs(llama.hf, [8, 9, 10, 11, 12, 13], [change], 5)
    torch.testing.assert_close(found.log_softmax(-1), expected, atol=1e-4, rtol=1e-4)


def test_an_attention_mask_that_cannot_be_read_is_an_error_only_where_positions_matter(llama) -> None:
    ids, mask = torch.tensor([[5, 6, 7]]), torch.zeros(1, 1, 3, 3)
    mask[..., :, :] = torch.triu(torch.full((3, 3), -1e9), 1)
    with torch.no_grad():
        llama.hf(ids, attention_mask=mask)
        with Steering([("blocks.1.hook_resid_post", at(Add(random(32)), "last"))]).on(llama.model):
            with pytest.raises((ValueError, RuntimeError), match="attention mask"):
                llama.hf(ids, attention_mask=mask)
            llama.hf(ids)  # no mask: no padding


def test_another_model_run_from_inside_a_hook_does_not_disturb_the_positions(llama, gpt2) -> None:
    """A hook may ask a judge model, whose passes have positions of their own."""

    def ask(x: torch.Tensor, hook: Any) -> torch.Tensor:
        gpt2.model(torch.tensor([[7, 8]]))
        return x

    ids = torch.tensor([[1, 70, 80, 90]])
    steering = Steering([("blocks.2.hook_resid_post", at(Add(random(32), 2.0), -2))])
    with torch.no_grad():
        plain = llama.model.run_with_hooks(ids, fwd_hooks=steering)
        asked = llama.model.run_with_hooks(ids, fwd_hooks=[("blocks.0.hook_resid_post", ask), *steering])
    assert torch.equal(plain, asked)
