"""Patching from one focus instruction's prompt into the other's, against torch hooks, one unpadded prompt at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import focus_toy
import numpy as np
import oracles
import pytest
import torch

from analysis.focus_patching import focus_patching
from lensteer.hooks import Add
from lensteer.methods.focus_pairs import focus_pairs
from lensteer.steering import Steering

TASK, EXAMPLES = focus_toy.TASK, focus_toy.examples()
SURE = [example for example in EXAMPLES if example.informative]
QUIET: dict[str, Any] = {"progress": False, "n_resamples": 200}


@pytest.fixture(scope="module")
def case(fresh: Any) -> Any:
    return fresh("llama", max_position_embeddings=1024)


def scores(case: Any, prompt: str, labels: tuple[str, ...], change: Any = None) -> torch.Tensor:
    """Log-probability of each label after a prompt, with ``change(x)`` of the last prompt token at a site and layer."""
    ids = case.tokenizer(prompt)["input_ids"]
    found = []
    for label in labels:
        own = case.tokenizer(label)["input_ids"][case.tokenizer.bos_token_id is not None and case.name == "llama" :]
        changes = [] if change is None else [oracles.Change(*change, "last")]
        found.append(oracles.response_log_probs(case.hf, ids, own, changes).double().sum())
    return torch.stack(found)


def brute_force(case: Any, task: Any, site: str, layer: int, template: int, blank: str = "") -> dict[str, Any]:
    """Log-odds and answers of the run below, the patched one and the one above, example by example."""
    odds: dict[str, list[float]] = {"below": [], "patched": [], "above": []}
    says: dict[str, list[bool]] = {"below": [], "patched": [], "above": []}
    labels = tuple(blank + label for label in task.labels)
    for up, down in focus_pairs(task, SURE, templates=(template,)):
        ids = case.tokenizer(up.prompt)["input_ids"]
        value = oracles.read(case.hf, ids, site, [layer])[0][-1]
        change = (site, layer, lambda x, value=value: value.expand_as(x))
        runs = {
            "below": scores(case, down.prompt, labels),
            "patched": scores(case, down.prompt, labels, change),
            "above": scores(case, up.prompt, labels),
        }
        y, y_s = (task.labels.index(label) for label in (up.example.y, up.example.y_s))
        for name, own in runs.items():
            odds[name].append(float(own[y_s] - own[y]))
            says[name].append(int(own.argmax()) == y_s)
    return {"odds": {k: np.array(v) for k, v in odds.items()}, "says": {k: np.array(v) for k, v in says.items()}}


@pytest.mark.parametrize("site", ["resid_post", "attn_out", "mlp_out", "z"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_patching_equals_a_torch_hook_on_the_plain_model(fresh: Any, architecture: str, site: str) -> None:
    longer = {"gpt2": "n_positions", "llama": "max_position_embeddings"}[architecture]
    case = fresh(architecture, **{longer: 1024})
    table = focus_patching(case.model, TASK, EXAMPLES, templates=(2,), sites=site, **QUIET)
    assert table["layer"].tolist() == [0, 1, 2, 3] and set(table["n"]) == {len(SURE)}
    for row in table.itertuples():
        expected = brute_force(case, TASK, site, row.layer, 2)
        odds, says = expected["odds"], expected["says"]
        assert row.log_odds == pytest.approx(odds["patched"].mean(), abs=1e-4)
        assert row.log_odds_negative == pytest.approx(odds["below"].mean(), abs=1e-4)
        assert row.log_odds_positive == pytest.approx(odds["above"].mean(), abs=1e-4)
        assert row.says_y_s == pytest.approx(says["patched"].mean())
        assert row.flips == pytest.approx((says["patched"] & ~says["below"]).mean())
        assert row.flips_positive == pytest.approx((says["above"] & ~says["below"]).mean())
        assert (row.says_y_s_positive, row.says_y_s_negative) == (says["above"].mean(), says["below"].mean())
        below, patched, above = (odds[name].mean() for name in ("below", "patched", "above"))
        assert row.restored == pytest.approx((patched - below) / (above - below), abs=1e-2)


def test_at_the_last_layer_everything_is_restored_and_before_the_first_nothing(case: Any) -> None:
    table = focus_patching(case.model, TASK, EXAMPLES, sites=["resid_pre", "resid_post"], **QUIET)
    last = table[(table["site"] == "resid_post") & (table["layer"] == 3)].iloc[0]
    assert last["restored"] == pytest.approx(1, abs=1e-3)
    assert last["restored_low"] == pytest.approx(1, abs=1e-2) and last["restored_high"] == pytest.approx(1, abs=1e-2)
    assert last["says_y_s"] == last["says_y_s_positive"] and last["flips"] == last["flips_positive"]
    assert last["log_odds"] == pytest.approx(last["log_odds_positive"], abs=1e-4)
    # The last token is the same in both prompts: its embedding holds nothing of the focus.
    first = table[(table["site"] == "resid_pre") & (table["layer"] == 0)].iloc[0]
    assert first["restored"] == pytest.approx(0, abs=1e-3) and first["flips"] == 0
    before = table[table["site"] == "resid_pre"].set_index("layer")["restored"]
    after = table[table["site"] == "resid_post"].set_index("layer")["restored"]
    for layer in (1, 2, 3):
        assert before[layer] == pytest.approx(after[layer - 1], abs=1e-3)


# Labels after a cue that ends no line: with a token for each byte they all begin with the blank.
BLANK = replace(TASK, cue="Output:")
WORDS = {"a": "ab", "b": "ba"}
LONG = replace(BLANK, labels=("ab", "ba"), meanings={"fruit": {"fig": "ab", "plum": "ba"}})
LONG_EXAMPLES = [replace(e, y=WORDS[e.y], y_s=WORDS[e.y_s]) for e in EXAMPLES]


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize(("task", "examples"), [(BLANK, EXAMPLES), (LONG, LONG_EXAMPLES)])
def test_what_labels_begin_with_is_put_after_the_prompt_and_patched(
    fresh: Any, architecture: str, task: Any, examples: Any
) -> None:
    case = fresh(architecture, **{"gpt2": {"n_positions": 1024}}.get(architecture, {"max_position_embeddings": 1024}))
    table = focus_patching(case.model, task, examples, templates=(0,), layers=[1, 2, 3], **QUIET)
    for row in table.itertuples():
        odds: dict[str, list[float]] = {"below": [], "patched": [], "above": []}
        for up, down in focus_pairs(task, [e for e in examples if e.informative], templates=(0,)):
            ids = case.tokenizer(f"{up.prompt} ")["input_ids"]
            value = oracles.read(case.hf, ids, "resid_post", [row.layer])[0][-1]
            runs = {
                "below": scores(case, f"{down.prompt} ", task.labels),
                "patched": scores(
                    case, f"{down.prompt} ", task.labels, ("resid_post", row.layer, lambda x, v=value: v.expand_as(x))
                ),
                "above": scores(case, f"{up.prompt} ", task.labels),
            }
            y, y_s = (task.labels.index(label) for label in (up.example.y, up.example.y_s))
            for name, own in runs.items():
                odds[name].append(float(own[y_s] - own[y]))
        assert row.log_odds == pytest.approx(np.mean(odds["patched"]), abs=1e-4)
        assert row.log_odds_negative == pytest.approx(np.mean(odds["below"]), abs=1e-4)
        assert row.log_odds_positive == pytest.approx(np.mean(odds["above"]), abs=1e-4)
    if task is BLANK:  # one more token: the last layer holds all of it, where the prompt's own last token held nothing
        assert table["restored"].iloc[-1] == pytest.approx(1, abs=1e-3)


def test_intervals_and_templates_are_of_examples(case: Any) -> None:
    """Three templates of an example are one value of it: the interval is as wide as over their means."""
    parts = [focus_patching(case.model, TASK, EXAMPLES, templates=(i,), layers=1, **QUIET) for i in range(3)]
    table = focus_patching(case.model, TASK, EXAMPLES, templates=(0, 1, 2), layers=1, **QUIET)
    assert table["log_odds"].iloc[0] == pytest.approx(np.mean([part["log_odds"].iloc[0] for part in parts]), abs=1e-4)
    assert table["n"].iloc[0] == len(SURE)
    assert (table["log_odds_low"] < table["log_odds"]).all() and (table["log_odds"] < table["log_odds_high"]).all()
    assert (table["restored_low"] <= table["restored"]).all() and (table["restored"] <= table["restored_high"]).all()


def test_the_prompts_are_read_once_for_all_layers(case: Any, forwards: Any) -> None:
    with forwards(case) as calls:
        focus_patching(case.model, TASK, EXAMPLES, sites=["resid_post", "mlp_out"], batch_size=32, **QUIET)
    whole = max(rows * columns for rows, columns in calls)
    assert (
        sum(rows * columns for rows, columns in calls) < 3.5 * whole
    )  # two sites of four layers, and yet three readings


def test_the_same_prompts_on_both_sides_restore_nothing(case: Any) -> None:
    same = replace(TASK, slots={"mood": "the text", "fruit": "the text"})
    table = focus_patching(case.model, same, EXAMPLES, layers=[0, 3], **QUIET)
    assert (
        table["restored"].isna().all() or (table["log_odds_positive"] - table["log_odds_negative"]).abs().max() < 1e-5
    )
    assert (table["flips"] == 0).all()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"examples": [e for e in EXAMPLES if not e.informative]}, "y and y_s differ in none of 5 examples"),
        ({"examples": (e for e in EXAMPLES if not e.informative)}, "y and y_s differ in none of 5 examples"),
        ({"task": replace(TASK, labels=(), meanings={})}, "free text"),
        ({"positive": "focus(C)"}, "both 'focus"),
        ({"sites": []}, "one or several"),
        ({"sites": ["mlp_out", "mlp_out"]}, "each once"),
        ({"sites": "nowhere"}, "no hook point"),
        ({"sites": "resid_mid"}, "resid_mid"),
        ({"layers": [0, 9]}, "layer 9 is out of range"),
    ],
)
def test_what_cannot_be_patched_is_refused_before_any_pass_over_the_prompts(
    case: Any, forwards: Any, changes: dict[str, Any], said: str
) -> None:
    options = {"task": TASK, "examples": EXAMPLES, **changes, **QUIET}
    with forwards(case) as calls, pytest.raises(ValueError, match=said):
        focus_patching(case.model, options.pop("task"), options.pop("examples"), **options)
    assert all(shape[1] <= 8 for shape in calls)  # probes of the hook points


def test_a_model_that_is_being_steered_is_refused(case: Any) -> None:
    steering = Steering([("blocks.1.hook_resid_post", Add(torch.ones(32)))])
    with steering.on(case.model), pytest.raises(ValueError, match="is being steered"):
        focus_patching(case.model, TASK, EXAMPLES, **QUIET)
