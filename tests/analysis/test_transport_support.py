"""The share of values that a support leaves alone, against plain hooks that count and edit by themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import lensteer as ls
from analysis.transport_support import untouched
from lensteer.points import resolve

SOURCE = ["The sea is calm.", "Ships sail at night on the water.", "A wave!", "Tides rise and fall twice."]
TARGET = ["The kitchen is warm.", "Bread is baked at dawn in the oven.", "A pan!", "Soup boils on the stove."]
PROMPTS = ["A quiet day", "Nobody knew why the old door was open", "So"]


@pytest.fixture(scope="module")
def fitted(llama: Any) -> ls.transport.Transport:
    return ls.transport.fit(llama.model, SOURCE, TARGET, "linear", ["norms", "mlp"], progress=False)


def counted_by_hand(
    case: Any, transport: Any, support: tuple[float, float], strength: float, skip: int
) -> list[list[int]]:
    """[values, below, above] of every site, one prompt at a time: plain hooks that count and edit by themselves."""
    counts = [[0, 0, 0] for _ in transport.maps]

    def hook_of(number: int, maps: Any) -> Any:
        low, high = maps.support(*support)

        def hook(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
            read = output[:, skip:]
            counts[number][0] += read.numel()
            counts[number][1] += int((read <= low).sum())
            counts[number][2] += int((read >= high).sum())
            moved = (1 - strength) * output + strength * (maps.scale * output + maps.shift)
            return torch.where((output > low) & (output < high), moved, output)

        return hook

    handles = []
    for number, (name, maps) in enumerate(transport.maps.items()):
        [point] = resolve(case.model, name)
        assert point.side == "out" and point.module is not None
        handles.append(case.hf.get_submodule(point.module).register_forward_hook(hook_of(number, maps)))
    with torch.inference_mode():
        for prompt in PROMPTS:
            case.hf(**case.tokenizer(prompt, return_tensors="pt"))
    for handle in handles:
        handle.remove()
    return counts


@pytest.mark.parametrize("support", [(0, 100), (10, 90), (40, 60)])
@pytest.mark.parametrize("bos", [True, False])
def test_the_counts_are_those_of_plain_hooks_that_edit_and_count(
    llama: Any, fitted: Any, support: tuple[float, float], bos: bool
) -> None:
    expected = counted_by_hand(llama, fitted, support, 0.7, skip=0 if bos else 1)
    steering = fitted.steering(0.7, support=support)
    for batch_size in (1, 3):  # padding never counts
        table = untouched(llama.model, steering, PROMPTS, bos=bos, batch_size=batch_size, progress=False)
        assert table["hook"].tolist() == list(fitted.maps)
        found = table.assign(below=table["below"] * table["values"], above=table["above"] * table["values"])
        assert found[["values", "below", "above"]].round(6).to_numpy().tolist() == expected
        shares = [(below + above) / values for values, below, above in expected]
        assert table["untouched"].tolist() == pytest.approx(shares)
    assert 0 < table["untouched"].mean() < 1


def test_maps_upstream_change_what_arrives_downstream(llama: Any, fitted: Any) -> None:
    weak, strong = (
        untouched(llama.model, fitted.steering(strength, support=(10, 90)), PROMPTS, progress=False)
        for strength in (0.0, 2.0)
    )
    assert weak["untouched"].iloc[0] == strong["untouched"].iloc[0]  # nothing lies before the first site
    assert (weak["untouched"].iloc[1:] != strong["untouched"].iloc[1:]).any()


def test_an_unbounded_support_leaves_nothing_alone_and_a_narrower_one_more(llama: Any, fitted: Any) -> None:
    shares = [
        untouched(llama.model, fitted.steering(support=support), PROMPTS, progress=False)["untouched"].mean()
        for support in (None, (0, 100), (20, 80), (40, 60))
    ]
    assert shares[0] == 0 and shares == sorted(shares) and shares[1] > 0


def test_heads_are_counted_unit_by_unit(llama: Any) -> None:
    heads = ls.transport.fit(llama.model, SOURCE, TARGET, "iti_m", "heads", progress=False)
    table = untouched(llama.model, heads.steering(support=(5, 95)), PROMPTS, progress=False)
    tokens = sum(len(llama.tokenizer(prompt)["input_ids"]) for prompt in PROMPTS)
    assert table["values"].tolist() == [tokens * 32] * 4
    assert table["untouched"].between(0, 1).all() and table["layer"].tolist() == [0, 1, 2, 3]


def test_nothing_stays_attached(llama: Any, fitted: Any) -> None:
    before = ls.generate(llama.model, PROMPTS, max_new_tokens=4, progress=False)["token_ids"].tolist()
    untouched(llama.model, fitted.steering(3.0), PROMPTS, progress=False)
    assert ls.generate(llama.model, PROMPTS, max_new_tokens=4, progress=False)["token_ids"].tolist() == before


def test_edits_without_a_support_of_this_kind_are_refused(llama: Any, fitted: Any) -> None:
    add = [("blocks.1.hook_resid_post", ls.Add(torch.ones(32)))]
    for steering, said in (
        ([], "no edits"),
        (add, "blocks.1.hook_resid_post' is Add"),
        (fitted.steering(tokens="generated"), "all tokens"),
        (fitted.steering([0.5, 1.0]), "strength per row"),
    ):
        with pytest.raises(ValueError, match=said):
            untouched(llama.model, steering, PROMPTS, progress=False)
