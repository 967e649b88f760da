"""Attribution against plain autograd, and patching by brute force against torch hooks, on the Hugging Face models.

The oracle runs one unpadded prompt at a time without a cache, with hooks on the model's own modules; a neuron is the
output of the MLP's activation module.
"""

from __future__ import annotations

import functools

import oracles
import pytest
import torch

from analysis.patching import activation_patching, attribution_patching, attribution_patching_all, compare
from lensteer.answers import AnswerPair
from lensteer.capture import capture
from lensteer.hooks import ScaleElements

# Byte tokens: the blank and the first letters are shared by some answers, and none after a line break.
PAIRS = [
    AnswerPair("is the sky blue, or is it rather green at noon?", "yes", "no"),
    AnswerPair("two plus two", "four", "five"),
    AnswerPair("a\n", "b", "c"),
    AnswerPair("the longest of the prompts, longer than any window that a tiny model slides\n", "yes", "yet"),
    AnswerPair("is snow white?", "yes", "no"),
]
SITES = {"head": "z", "neuron": "act", "mlp_out": "mlp_out", "resid_post": "resid_post"}
KINDS = [("head", "mlp_out"), ("neuron", "mlp_out"), ("hidden", "mlp_out"), ("hidden", "resid_post")]


def hook(hf, site, layer, function):
    """As `oracles.hook`, and the output of the MLP's activation module."""
    if site != "act":
        return oracles.hook(hf, site, layer, function)
    mlp = oracles.blocks(hf)[layer].mlp
    module = mlp.act_fn if hasattr(mlp, "act_fn") else mlp.act
    return module.register_forward_hook(lambda m, args, out: function(out[0]).unsqueeze(0))


def tokens(case, pair):
    """Ids of the prompt and of what both answers begin with, the prompt's length, and the tokens that differ."""
    text = pair.prompt if pair.prompt[-1].isspace() else pair.prompt + " "
    start = len(case.tokenizer(pair.prompt)["input_ids"])
    right, wrong = (case.tokenizer(text + answer)["input_ids"] for answer in (pair.right, pair.wrong))
    place = next(i for i, (a, b) in enumerate(zip(right, wrong, strict=False)) if a != b)
    return torch.tensor([right[:place]]), start, right[place], wrong[place]


def log_odds(case, pair, change, site):
    """The metric with ``change(layer, x)`` added to what a site holds at the last prompt token, in all layers."""
    ids, start, right, wrong = tokens(case, pair)

    def function(layer, x):
        row = torch.arange(len(x))[:, None] == start - 1
        return x + row * change(layer, x[start - 1])

    layers = range(case.hf.config.num_hidden_layers)
    handles = [hook(case.hf, site, layer, functools.partial(function, layer)) for layer in layers]
    logs = case.hf(ids, use_cache=False).logits[0, -1].log_softmax(-1)
    for handle in handles:
        handle.remove()
    return logs[right] - logs[wrong]


@functools.cache
def plain(case, site):
    """Activations and gradients ``[layer, pair, width]``, one prompt at a time by autograd."""
    values, gradients = [], []
    for pair in PAIRS:
        seen, probes = {}, {}

        def change(layer, x, seen=seen, probes=probes):
            seen[layer], probes[layer] = x.detach().clone(), torch.zeros_like(x, requires_grad=True)
            return probes[layer]

        order = torch.autograd.grad(log_odds(case, pair, change, site), list(probes.values()))
        values.append(torch.stack([seen[i] for i in range(4)]))
        gradients.append(torch.stack([dict(zip(probes, order, strict=True))[i] for i in range(4)]))
    return torch.stack(values, 1).double(), torch.stack(gradients, 1).double()


def by_element(x, element):
    return x.unflatten(-1, (4, -1)).sum(-1) if element == "head" else x


def site_of(element, hidden_site):
    return hidden_site if element == "hidden" else SITES[element]


@pytest.mark.parametrize(("element", "hidden_site"), KINDS)
@pytest.mark.parametrize("reference", ["mean", "zero"])
def test_attribution_equals_autograd_on_the_plain_model(tiny, element, hidden_site, reference):
    values, gradients = plain(tiny, site_of(element, hidden_site))
    target = values.mean(1, keepdim=True) if reference == "mean" else 0.0
    expected = by_element(((target - values) * gradients).mean(1), element)
    found = attribution_patching(
        tiny.model, PAIRS, element, reference=reference, hidden_site=hidden_site, progress=False
    )
    assert found.shape == expected.shape
    assert expected.abs().max() > 0.01
    assert torch.allclose(found, expected, atol=2e-5 * float(expected.abs().max()), rtol=1e-4)


def test_given_references_for_all_or_for_each_pair(llama):
    values, gradients = plain(llama, "z")
    shape = (4, len(PAIRS), 4, 8)
    each = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for given in (each, each[:, 0]):
        target = given.flatten(-2) if given.ndim == 4 else given.flatten(-2).unsqueeze(1)
        expected = by_element(((target - values) * gradients).mean(1), "head")
        found = attribution_patching(llama.model, PAIRS, "head", reference=given, batch_size=2, progress=False)
        assert torch.allclose(found, expected, atol=1e-4)


def test_counterpart_prompts_are_a_reference(llama):
    prompts = [pair.prompt for pair in PAIRS]
    own = capture(llama.model, prompts, "mlp_out", prompt_format="plain", progress=False).stacked()
    found = attribution_patching(llama.model, PAIRS, "hidden", reference=own, progress=False)
    assert found.abs().max() < 1e-5  # what is there already


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_batches_do_not_matter_and_kinds_share_their_passes(tiny, forwards, batch_size):
    with forwards(tiny) as calls:
        both = attribution_patching_all(tiny.model, PAIRS, batch_size=batch_size, progress=False)
    passes = {1: 10, 2: 6, 5: 2}[batch_size]  # what lies before the last token, and the rest
    assert len(calls) <= passes
    for element, scores in both.items():
        alone = attribution_patching(tiny.model, PAIRS, element, progress=False)
        assert torch.allclose(scores, alone, atol=1e-5 * float(alone.abs().max()), rtol=1e-3)


def test_prompts_of_one_token_in_a_padded_batch(tiny):
    pairs = [PAIRS[0], AnswerPair("a", "b", "c"), AnswerPair("a", "yes", "yet")]
    one_by_one = attribution_patching(tiny.model, pairs, "hidden", batch_size=1, progress=False)
    together = attribution_patching(tiny.model, pairs, "hidden", batch_size=3, progress=False)
    assert torch.isfinite(together).all()
    assert torch.allclose(together, one_by_one, atol=1e-5 * float(one_by_one.abs().max()), rtol=1e-3)


@pytest.mark.parametrize(("element", "hidden_site"), KINDS)
def test_minus_the_zero_attribution_is_the_derivative_of_scaling(tiny, element, hidden_site):
    site, step = site_of(element, hidden_site), 1e-2
    scores = attribution_patching(tiny.model, PAIRS, element, reference="zero", hidden_site=hidden_site, progress=False)
    width = 8 if element == "head" else 1
    for index in scores[:3].abs().flatten().topk(2).indices.tolist():
        layer, number = divmod(index, scores.shape[1])

        def odds(delta, layer=layer, number=number):
            def change(i, x):
                here = torch.zeros_like(x)
                if i == layer:
                    here[number * width : (number + 1) * width] = delta * x[number * width : (number + 1) * width]
                return here

            with torch.no_grad():
                return torch.stack([log_odds(tiny, pair, change, site) for pair in PAIRS]).double().mean()

        slope = (odds(step) - odds(-step)) / (2 * step)
        assert -scores[layer, number].item() == pytest.approx(slope.item(), rel=0.02, abs=1e-3)


@pytest.mark.parametrize(("element", "hidden_site"), KINDS)
@pytest.mark.parametrize("reference", ["mean", "zero"])
def test_brute_force_equals_torch_hooks_on_the_plain_model(tiny, element, hidden_site, reference):
    site = site_of(element, hidden_site)
    values, _ = plain(tiny, site)
    target = values.mean(1) if reference == "mean" else torch.zeros_like(values[:, 0])
    chosen, width = [(0, 1), (2, 3), (3, 0)], 8 if element == "head" else 1
    found = activation_patching(
        tiny.model, PAIRS, element, chosen, reference=reference, hidden_site=hidden_site, batch_size=3, progress=False
    )
    assert list(found.columns) == ["layer", "element", "effect"]
    assert found[["layer", "element"]].to_numpy().tolist() == [list(pair) for pair in chosen]
    with torch.no_grad():
        clean = [log_odds(tiny, pair, lambda i, x: 0.0, site) for pair in PAIRS]
        for (layer, number), effect in zip(chosen, found.effect, strict=True):
            part = slice(number * width, (number + 1) * width)

            def change(i, x, layer=layer, part=part):
                here = torch.zeros_like(x)
                if i == layer:
                    here[part] = target[layer, part].float() - x[part]
                return here

            patched = [log_odds(tiny, pair, change, site) for pair in PAIRS]
            expected = (torch.stack(patched) - torch.stack(clean)).mean().item()
            assert effect == pytest.approx(expected, abs=2e-4)


def test_sharing_the_prompt_changes_the_cost_and_not_the_effect(llama, forwards):
    options = {"sample": 6, "seed": 1, "batch_size": 5, "progress": False}
    with forwards(llama) as shared:
        quick = activation_patching(llama.model, PAIRS[:2], "head", **options)
    with forwards(llama) as whole:
        slow = activation_patching(llama.model, PAIRS[:2], "head", share_prompt=False, **options)
    assert quick.effect.to_numpy() == pytest.approx(slow.effect.to_numpy(), abs=1e-5)
    assert quick[["layer", "element"]].equals(slow[["layer", "element"]])
    assert sum(width for _, width in shared[2:]) < sum(width for _, width in whole[1:]) / 5


def test_for_small_changes_attribution_is_the_effect(tiny):
    values, _ = plain(tiny, "mlp_out")
    near = (values * 1.002).float()
    options = {"reference": near, "progress": False}
    scores = attribution_patching(tiny.model, PAIRS, "hidden", **options)
    strong = [divmod(i, 32) for i in scores.abs().flatten().topk(6).indices.tolist()]
    found = compare(scores, activation_patching(tiny.model, PAIRS, "hidden", strong, **options))
    assert found.correlation > 0.999
    assert found.table.attribution.to_numpy() == pytest.approx(found.table.effect.to_numpy(), rel=0.05, abs=1e-5)


def test_comparison_by_hand(llama):
    scores = torch.tensor([[1.0, 2.0], [4.0, 3.0]])
    patched = activation_patching(llama.model, PAIRS[:1], "head", [(0, 0), (0, 1), (1, 0)], progress=False)
    patched["effect"] = [10.0, 5.0, 20.0]
    found = compare(scores, patched)
    assert found.table.columns.tolist() == ["layer", "element", "attribution", "effect"]
    assert found.table.attribution.tolist() == [1.0, 2.0, 4.0]
    assert found.rank_correlation == pytest.approx(0.5)
    assert found.correlation == pytest.approx(torch.corrcoef(torch.tensor([[1.0, 2, 4], [10, 5, 20]]))[0, 1].item())


def test_nothing_stays_behind(tiny):
    faces = (tiny.hf, tiny.model.original_model)
    before = [oracles.hooks_on(face) for face in faces]
    with torch.inference_mode():  # gradients are made all the same
        attribution_patching_all(tiny.model, PAIRS, progress=False)
    activation_patching(tiny.model, PAIRS[:2], "neuron", sample=2, progress=False)
    assert [oracles.hooks_on(face) for face in faces] == before
    assert all(parameter.grad is None for parameter in tiny.hf.parameters())
    assert all(parameter.requires_grad for parameter in tiny.hf.parameters())


def test_a_sample_is_drawn_once_each_and_by_its_seed(gpt2):
    options = {"sample": 5, "progress": False}
    one, again = (activation_patching(gpt2.model, PAIRS[:1], "head", seed=3, **options) for _ in range(2))
    assert one.equals(again)
    assert len(one.drop_duplicates(["layer", "element"])) == 5
    every = activation_patching(gpt2.model, PAIRS[:1], "head", sample=999, progress=False)
    assert len(every) == 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"element": "nerve"}, r"element must be one of \('head', 'neuron', 'hidden'\), got 'nerve'"),
        ({"hidden_site": "z"}, r"hidden_site must be one of \('mlp_out', 'resid_post'\), got 'z'"),
        ({"reference": "median"}, r"reference must be 'mean', 'zero' or values, got 'median'"),
        ({"reference": torch.zeros(4, 3)}, r"\[layer, \*shape\] = \(4, 4, 8\), or \(4, 5, 4, 8\) .* got \(4, 3\)"),
        ({"reference": torch.full((4, 4, 8), torch.nan)}, r"reference values of 'head' hold NaN"),
        (
            {"pairs": [AnswerPair("is it", "yes", "yes it is")]},
            r"answers 'yes' and 'yes it is' of pair 0 have the same",
        ),
        ({"pairs": []}, "no pairs were given"),
        ({"pairs": [AnswerPair("is it " * 60, "yes", "no")]}, "context"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_any_work(llama, forwards, arguments, message):
    arguments = {"pairs": PAIRS, "element": "head", "progress": False, **arguments}
    for function in (attribution_patching, activation_patching):
        with forwards(llama) as calls, pytest.raises(ValueError, match=message):
            function(llama.model, **arguments)
        assert not calls


def test_other_bad_input_is_refused(llama, gpt2):
    for elements in ([(4, 0)], [(0, -1)], [], [1, 2], 3, [(0, 1, 2)]):
        with pytest.raises(ValueError, match=r"elements are \(layer, element\) from \(0, 0\) to \(3, 3\)"):
            activation_patching(llama.model, PAIRS, "head", elements)
    with pytest.raises(ValueError, match="sample must be at least 1, got 0"):
        activation_patching(llama.model, PAIRS, "head", sample=0)
    with pytest.raises(ValueError, match="no elements were given"):
        attribution_patching_all(llama.model, PAIRS, [])
    with pytest.raises(ValueError, match="reference values of 'neuron' must be"):
        attribution_patching_all(llama.model, PAIRS, ["head", "neuron"], reference={"head": torch.zeros(4, 4, 8)})
    scores = torch.zeros(4, 4)
    patched = activation_patching(llama.model, PAIRS[:1], "neuron", [(0, 0), (1, 60), (2, 3)], progress=False)
    with pytest.raises(ValueError, match=r"scores are \[layer, element\] = \(4, 4\), but the table goes up to"):
        compare(scores, patched)
    with pytest.raises(ValueError, match="three elements or more"):
        compare(scores, patched.head(2))
    with pytest.raises(ValueError, match="with columns"):
        compare(scores, patched.drop(columns="effect"))


def test_a_steered_model_is_refused(llama):
    from lensteer.steering import Steering

    steering = Steering([("blocks.1.hook_mlp_out", ScaleElements(torch.ones(32, dtype=torch.bool), 1.0))])
    with steering.on(llama.model), pytest.raises(ValueError, match="the model is being steered"):
        attribution_patching(llama.model, PAIRS, progress=False)


def test_a_model_without_such_neurons_is_refused(new_tokenizer):
    import transformers

    from lensteer import load_model

    shape = {"vocab_size": 262, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.MixtralConfig(**shape, num_key_value_heads=2, intermediate_size=64, num_local_experts=2)
    model = load_model(transformers.AutoModelForCausalLM.from_config(config).eval(), tokenizer=new_tokenizer())
    for function in (attribution_patching, activation_patching):
        with pytest.raises(ValueError, match=r"mixture of experts.*mlp_out"):
            function(model, PAIRS, "neuron", progress=False)
    assert attribution_patching(model, PAIRS, "hidden", progress=False).shape == (2, 32)
