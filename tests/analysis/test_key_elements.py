"""Criteria on synthetic activations against scikit-learn and sums by hand; agreement and stability where known."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from analysis.element_scores import sample_of
from analysis.key_elements import CRITERIA, Criteria, criteria, overlap, rank_correlation, stability
from lensteer.answers import AnswerPair
from lensteer.capture import Activations
from lensteer.contrast import Contrast, contrast
from lensteer.methods import sadi

LAYERS, PAIRS, WIDTH = 3, 24, 5
SITE = {"head": "z", "neuron": "neuron", "hidden": "mlp_out"}


def seen(element="neuron", *, pairs=PAIRS, questions=None, seed=0, shift=0.7):
    """Random activations in which a few elements differ between the classes, as `contrast` would return them."""
    draw = torch.Generator().manual_seed(seed)
    shape = (pairs, WIDTH, 6) if element == "head" else (pairs, WIDTH)
    names = [f"blocks.{i}.{element}" for i in range(LAYERS)]
    sides = [{name: torch.randn(shape, generator=draw) for name in names} for _ in range(2)]
    sides[0][names[1]][:, 2] += 3 * shift
    sides[0][names[2]][:, 0] -= 2 * shift
    questions = range(pairs) if questions is None else questions
    texts = [AnswerPair(f"question {q}", "yes", f"no {i}") for i, q in enumerate(questions)]
    return Contrast(Activations(sides[0]), Activations(sides[1]), {SITE[element]: names}, texts)


def by_hand(found, element):
    """[layer, pair, element] of both classes, of heads the mean over their coordinates."""
    sides = [side.double() for side in found.activations(SITE[element])]
    return [side.mean(-1) if element == "head" else side for side in sides]


@pytest.mark.parametrize("element", ["head", "neuron", "hidden"])
def test_unit_criteria_equal_their_definitions(element):
    found = seen(element)
    positive, negative = by_hand(found, element)
    scores = criteria(found, element, CRITERIA).scores
    labels = np.repeat([1, 0], PAIRS)
    for i in range(LAYERS):
        for j in range(WIDTH):
            a, b = positive[i, :, j].numpy(), negative[i, :, j].numpy()
            difference = a.mean() - b.mean()
            d = difference / np.sqrt((a.var() + b.var()) / 2)
            area = roc_auc_score(labels, np.concatenate([a, b]))
            expected = {"signed": difference, "abs": abs(difference), "effect_size": d, "abs_effect_size": abs(d)}
            for name, value in {**expected, "auroc": area, "abs_auroc": abs(area - 0.5)}.items():
                assert scores[name][i, j].item() == pytest.approx(value, abs=1e-12), name


@pytest.mark.parametrize("element", ["head", "neuron", "hidden"])
def test_the_signed_criterion_is_what_sadi_ranks_by(element):
    found = seen(element)
    result, fitted = criteria(found, element, ["signed"]), sadi.from_contrast(found, element)
    assert torch.allclose(result.scores["signed"], fitted.scores, atol=1e-12)
    assert torch.equal(result.top("signed", 7), fitted.top(7))
    ranked = fitted.ranked_by(criteria(found, element, ["auroc"]).scores["auroc"], "auroc")
    assert torch.equal(ranked.top(4), criteria(found, element, ["auroc"]).top("auroc", 4))


@pytest.mark.parametrize("element", ["head", "neuron"])
def test_probe_equals_scikit_learn_on_the_same_folds(element):
    found = seen(element, questions=[i // 2 for i in range(PAIRS)])
    folds = sample_of(found, element, None).folds(4, seed=3)
    split = PredefinedSplit(torch.cat([folds, folds]).numpy())
    labels = np.repeat([1, 0], PAIRS)
    model = (
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)) if element == "head" else NearestCentroid()
    )
    scores = criteria(found, element, ["probe"], folds=4, seed=3).scores["probe"]
    positive, negative = (side.double() for side in found.activations(SITE[element]))
    for i in range(LAYERS):
        for j in range(WIDTH):
            x = torch.cat([positive[i, :, j], negative[i, :, j]]).reshape(2 * PAIRS, -1).numpy()
            expected = (cross_val_predict(model, x, labels, cv=split) == labels).mean()
            assert scores[i, j].item() == pytest.approx(expected, abs=1e-12)


def test_a_question_is_in_one_fold_and_folds_are_even():
    questions = [i % 8 for i in range(PAIRS)]
    folds = sample_of(seen(questions=questions), "neuron", None).folds(4, seed=0)
    for question in range(8):
        assert len({int(folds[i]) for i in range(PAIRS) if questions[i] == question}) == 1
    assert torch.bincount(folds).tolist() == [6, 6, 6, 6]


def test_probes_do_not_see_the_questions_that_they_are_tested_on():
    """Every question's activations are its own random pattern, repeated: memory would score 1, and honest probes ½."""
    draw = torch.Generator().manual_seed(0)
    pattern = torch.randn(2, 40, 1, 4, 12, generator=draw)
    sides = [{"blocks.0.z": own.expand(40, 3, 4, 12).reshape(120, 4, 12)} for own in pattern]
    pairs = [AnswerPair(f"question {i // 3}", "yes", f"no {i}") for i in range(120)]
    found = Contrast(Activations(sides[0]), Activations(sides[1]), {"z": ["blocks.0.z"]}, pairs)
    assert criteria(found, "head", ["probe"]).scores["probe"].mean().item() == pytest.approx(0.5, abs=0.1)


def test_elements_that_are_constant_score_chance():
    found = seen()
    for side in (found.positive, found.negative):
        side["blocks.0.neuron"][:] = 0.3
    scores = criteria(found, "neuron", CRITERIA).scores
    chance = {"auroc": 0.5, "probe": 0.5}
    for name, values in scores.items():
        assert values[0].tolist() == pytest.approx([chance.get(name, 0.0)] * WIDTH), name


def test_classes_swapped_reverse_the_signed_criteria_and_leave_the_others():
    found = seen("head")
    swapped = Contrast(found.negative, found.positive, found.names, found.pairs)
    names = CRITERIA
    one, other = criteria(found, "head", names).scores, criteria(swapped, "head", names).scores
    for name in names:
        expected = {"signed": -one[name], "effect_size": -one[name], "auroc": 1 - one[name]}.get(name, one[name])
        assert torch.allclose(other[name], expected, atol=1e-12), name


def test_table_and_top_are_in_order_with_ties_to_the_lower_layer():
    found = Criteria(
        "neuron", {"a": torch.tensor([[1.0, 3.0], [3.0, 2.0]]), "b": torch.tensor([[0.0, 1.0], [2.0, 3.0]])}
    )
    assert found.top("a", 3).tolist() == [[0, 1], [1, 0], [1, 1]]
    table = found.table()
    assert list(table.columns) == ["criterion", "layer", "element", "score", "rank"]
    assert table[table.criterion == "a"][["layer", "element", "score", "rank"]].to_numpy().tolist() == [
        [0, 1, 3.0, 1],
        [1, 0, 3.0, 2],
        [1, 1, 2.0, 3],
        [0, 0, 1.0, 4],
    ]
    assert len(found.table(2)) == 4
    assert "2 layers x 2" in repr(found)


def test_agreement_and_layers_by_hand():
    a, b = torch.tensor([[4.0, 3.0], [2.0, 1.0]]), torch.tensor([[4.0, 1.0], [3.0, 2.0]])
    found = Criteria("neuron", {"a": a, "b": b}).with_scores("attribution", -a)
    table = found.agreement(2)
    assert list(table.columns) == ["first", "second", "overlap", "chance", "rank_correlation", "k"]
    assert table[["first", "second"]].to_numpy().tolist() == [["a", "b"], ["a", "attribution"], ["b", "attribution"]]
    assert table.overlap.tolist() == [0.5, 0.0, 0.5]
    assert table.chance.tolist() == [0.5] * 3
    # ranks 4 3 2 1 and 4 1 3 2: 1 - 6 (0 + 4 + 1 + 1) / (4 * 15)
    assert table.rank_correlation.tolist() == pytest.approx([0.4, -1.0, -0.4])
    layers = found.layer_distribution(2)
    assert layers[layers.criterion == "a"]["count"].tolist() == [2, 0]
    assert layers[layers.criterion == "b"]["count"].tolist() == [1, 1]


def test_rank_correlation_agrees_with_pandas_ties_included():
    a, b = ((torch.randn(50, generator=torch.Generator().manual_seed(i)) * 2).round() for i in (0, 1))
    expected = pd.Series(a.numpy()).corr(pd.Series(b.numpy()), method="spearman")
    assert rank_correlation(a, b) == pytest.approx(expected)
    assert np.isnan(rank_correlation(a, torch.zeros(50)))
    assert overlap(a, a, 5) == 1.0


def test_stability_is_high_for_real_differences_and_chance_for_noise():
    signal = stability(seen(pairs=60, shift=5.0), "neuron", k=1, names=["signed"], n_splits=4)
    assert list(signal.columns) == ["criterion", "split", "overlap", "rank_correlation", "k"]
    assert signal.overlap.tolist() == [1.0] * 4
    noise = stability(seen(pairs=60, shift=0.0), "neuron", k=5, names=["abs", "probe"], n_splits=20, folds=2)
    means = noise.groupby("criterion")[["overlap", "rank_correlation"]].mean()
    assert means.overlap.to_numpy() == pytest.approx([1 / 3] * 2, abs=0.15)
    assert means.rank_correlation.to_numpy() == pytest.approx([0] * 2, abs=0.2)


def test_halves_share_no_question():
    """Two questions, each with elements of its own: halves that mixed them would agree."""
    values = torch.zeros(8, 4)
    values[:4, 0], values[4:, 1] = 1.0, 1.0
    pairs = [AnswerPair(f"question {i // 4}", "yes", f"no {i}") for i in range(8)]
    sides = [Activations({"blocks.0.neuron": side}) for side in (values, torch.zeros(8, 4))]
    found = Contrast(*sides, {"neuron": ["blocks.0.neuron"]}, pairs)
    assert stability(found, k=1, element="neuron", names=["signed"], n_splits=5).overlap.tolist() == [0.0] * 5


def test_on_a_model_from_one_reading(llama):
    pairs = [AnswerPair(f"{i} plus {i} is", str(2 * i), str(2 * i + 1)) for i in range(6)]
    found = contrast(llama.model, pairs, ["z", "neuron", "mlp_out", "resid_post"], progress=False)
    for element, width in (("head", 4), ("neuron", 64), ("hidden", 32)):
        result = criteria(found, element, folds=3, progress=False)
        assert all(tuple(scores.shape) == (4, width) for scores in result.scores.values())
        assert torch.allclose(result.scores["signed"], sadi.from_contrast(found, element).scores)
    hidden = criteria(found, "hidden", ["signed"], site="resid_post").scores["signed"]
    assert torch.allclose(hidden, sadi.from_contrast(found, "hidden", "resid_post").scores)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"element": "nerve"}, r"element must be one of \('head', 'neuron', 'hidden'\), got 'nerve'"),
        ({"element": "head"}, r"site 'z' was not read; there are \['neuron'\]"),
        ({"site": "z"}, r"site of 'neuron' elements must be one of \('neuron',\), got 'z'"),
        ({"names": ["signed", "loud"]}, r"names must be some of .*'probe'\), got \['loud'\]"),
        ({"names": []}, r"names must be some of"),
        ({"folds": 25}, r"folds=25: .* there are 24 questions"),
        ({"folds": 1}, r"folds=1: .* two folds"),
    ],
)
def test_what_cannot_be_asked_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        criteria(seen(), **{"element": "neuron", **arguments})


def test_moments_some_layers_and_nan_are_refused(llama):
    pairs = [AnswerPair("1 plus 1 is", "2", "3")]
    found = contrast(llama.model, pairs, "z", reduce="moments", progress=False)
    with pytest.raises(ValueError, match="only the moments of 'z' were kept; read it again with reduce=None"):
        criteria(found, "head")
    for layers, message in (
        ([1, 2], "holds 2 of 4 layers of 'z' only"),
        ([1, 0, 2, 3], r"another order: \[1, 0, 2, 3\]"),
    ):
        some = contrast(llama.model, pairs, "z", layers=layers, progress=False)
        for refuse in (partial(criteria, names="abs"), partial(stability, k=1, names="abs")):
            with pytest.raises(ValueError, match=message):
                refuse(some, "head")
    with pytest.raises(TypeError, match=r"expected a Contrast, got .*read the pairs first"):
        criteria(llama.model)
    broken = seen()
    broken.positive["blocks.1.neuron"][3, 2] = float("nan")
    with pytest.raises(ValueError, match="activations at 'neuron' hold 1 NaN or infinite"):
        criteria(broken, "neuron")


def test_one_criterion_may_be_given_by_its_name_alone():
    found = seen()
    assert list(criteria(found, "neuron", "auroc").scores) == ["auroc"]
    for name in ("signed", "probe"):
        one, many = (stability(found, "neuron", k=3, names=own, n_splits=2) for own in (name, [name]))
        pd.testing.assert_frame_equal(one, many)
    with pytest.raises(ValueError, match=r"names must be some of .*got \['loud'\]"):
        stability(found, "neuron", k=3, names="loud")


def test_k_and_scores_out_of_range_are_refused():
    found = criteria(seen(), "neuron", ["signed", "abs"])
    for k in (0, 16, 2.0, True):
        with pytest.raises(ValueError, match=r"3 layers of 5 neuron elements, so K is a whole number from 1 to 15"):
            found.agreement(k)
    with pytest.raises(ValueError, match="from 1 to 15"):
        stability(seen(), "neuron", k=16, names=["abs"])
    with pytest.raises(ValueError, match=r"criterion must be one of \('signed', 'abs'\), got 'auroc'"):
        found.top("auroc", 1)
    with pytest.raises(ValueError, match="there is a criterion 'abs' already"):
        found.with_scores("abs", torch.zeros(3, 5))
    with pytest.raises(ValueError, match=r"of one shape, got .*'attribution': \(5, 3\)"):
        found.with_scores("attribution", torch.zeros(5, 3))
    with pytest.raises(ValueError, match=r"scores of \['attribution'\] hold NaN"):
        found.with_scores("attribution", torch.full((3, 5), float("nan")))
    with pytest.raises(ValueError, match="halves need 10 questions"):
        stability(seen(pairs=9), "neuron", k=2)
    with pytest.raises(ValueError, match="no criteria were given"):
        Criteria("neuron", {})
