from __future__ import annotations

import pytest
import torch
from sklearn.metrics import roc_auc_score

from analysis.stability import auroc, compare_with_random, random_directions, split_half_stability


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_auroc_agrees_with_scikit_learn_at_every_trailing_index_ties_included():
    positive, negative = (normal(13, 2, 3) * 2).round() + 1, (normal(9, 2, 3, seed=1) * 2).round()
    result = auroc(positive, negative)
    labels = [1] * 13 + [0] * 9
    for i in range(2):
        for j in range(3):
            scores = torch.cat([positive[:, i, j], negative[:, i, j]]).numpy()
            assert result[i, j].item() == pytest.approx(roc_auc_score(labels, scores))


def test_a_shared_direction_is_stable_between_halves_and_noise_is_not():
    differences = normal(40, 2, 64) * 0.1
    differences[:, 1] += normal(64, seed=1)
    table = split_half_stability(differences)
    assert table["layer"].tolist() == [0, 1]
    assert abs(table.loc[0, "cosine"]) < 0.3
    assert table.loc[1, "cosine"] > 0.99
    assert (table["low"] <= table["cosine"]).all()
    assert (table["cosine"] <= table["high"]).all()


def test_split_halves_of_two_pairs_are_the_pairs_themselves():
    differences = normal(2, 1, 5)
    table = split_half_stability(differences, n_splits=3)
    expected = torch.cosine_similarity(differences[0, 0], differences[1, 0], dim=0).item()
    assert table.loc[0, "cosine"] == pytest.approx(expected, abs=1e-6)


def test_split_halves_have_sizes_that_differ_by_one_at_most():
    pairs = torch.eye(6)[1:] + torch.eye(6)[0]
    table = split_half_stability(pairs[:, None], n_splits=20)
    expected = 6 / ((2**2 + 2) * (3**2 + 3)) ** 0.5  # k = 2: sums (2, two ones) and (3, three ones)
    assert table.loc[0, ["cosine", "low", "high"]].tolist() == pytest.approx([expected] * 3)


def test_random_directions_keep_the_norm_of_every_row_and_follow_the_seed():
    direction = normal(4, 32) * torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None]
    drawn = random_directions(direction, 6, seed=2)
    assert drawn.shape == (6, 4, 32)
    torch.testing.assert_close(drawn.norm(dim=-1), direction.norm(dim=-1).expand(6, 4))
    assert torch.equal(drawn, random_directions(direction, 6, seed=2))
    assert not torch.equal(drawn, random_directions(direction, 6, seed=3))
    assert torch.cosine_similarity(drawn[0, 0], drawn[1, 0], dim=0).abs() < 0.7


def test_a_real_direction_beats_random_ones_and_a_random_one_does_not():
    direction = normal(2, 64, seed=77)  # a seed that the random directions do not start from
    positive, negative = normal(60, 2, 64, seed=1), normal(60, 2, 64, seed=2)
    positive[:, 0] += 0.5 * direction[0]
    table = compare_with_random(positive, negative, direction)
    assert table.loc[0, "auroc"] > table.loc[0, "random_high"]
    assert table.loc[0, "p_value"] == pytest.approx(1 / 201)
    assert table.loc[1, "p_value"] > 0.05
    assert (table["random"] >= 0.5).all()
    assert table.equals(compare_with_random(positive, negative, direction))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: auroc(normal(0, 2), normal(3, 2)), r"got \(0, 2\) and \(3, 2\)"),
        (lambda: auroc(normal(3, 2), normal(3, 3)), r"got \(3, 2\) and \(3, 3\)"),
        (lambda: auroc(torch.tensor([float("nan")]), normal(3)), "positive hold 1 NaN"),
        (lambda: split_half_stability(normal(1, 2, 3)), "two pairs or more"),
        (lambda: split_half_stability(normal(4, 3)), "two pairs or more"),
        (lambda: random_directions(normal(3), 0), "n must be at least 1"),
        (lambda: compare_with_random(normal(3, 2, 4), normal(3, 2, 4), normal(2, 5)), r"and \(2, 5\)"),
    ],
)
def test_bad_input_gets_one_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()
