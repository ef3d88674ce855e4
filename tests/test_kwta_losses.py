"""What compares sparse codes (docs/methods.md, 12): triplets, contrast, agreement."""

import pytest
import torch
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.losses import ContrastiveLoss, TripletMarginLoss
from pytorch_metric_learning.reducers import MeanReducer
from torch.nn.functional import cosine_similarity

from lib.methods.kwta import agreement, contrast, cosines, triplet
from tests.examples import normal

CODES = torch.tensor([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]])
GROUPS = torch.tensor([0, 0, 1, 1])


@pytest.mark.parametrize("mining", ["random", "semi_hard"])
def test_the_triplet_loss_at_its_corners(mining):
    codes = CODES.clone().requires_grad_()
    far = triplet(codes, GROUPS, 0.5, mining)  # equal positives, disjoint negatives
    far.backward()
    assert far.item() == 0 and codes.grad.abs().max() == 0
    assert triplet(CODES, GROUPS, 1.5, mining).item() == pytest.approx(0.5, abs=1e-6)
    same = triplet(CODES[:1].expand(4, -1), GROUPS, 0.5, mining).item()
    assert same == pytest.approx(0.5 if mining == "random" else 0)  # no negative is less similar than the positive
    for groups in (torch.arange(4), 0 * GROUPS):  # nobody has a positive; nobody has a negative
        assert triplet(CODES, groups, 0.5, mining).item() == 0


def test_random_triplets_against_a_slow_twin():
    """Each of four rows has one positive and two negatives, which are drawn evenly."""
    rows = normal(4, 5)
    cosine = [[float(cosine_similarity(a, b, dim=0)) for b in rows] for a in rows]
    values = [
        [max(0.0, cosine[i][n] - cosine[i][i ^ 1] + 0.5) for n in ((2, 3) if i < 2 else (0, 1))] for i in range(4)
    ]
    torch.manual_seed(0)
    found = [triplet(rows, GROUPS, 0.5, "random").item() for _ in range(400)]
    assert sum(found) / 400 == pytest.approx(sum(sum(pair) / 2 for pair in values) / 4, abs=0.03)
    assert min(found) == pytest.approx(sum(map(min, values)) / 4)
    assert max(found) == pytest.approx(sum(map(max, values)) / 4)


def test_the_semi_hard_negative_is_the_most_similar_one_within_the_margin():
    rows, losses, too_far = normal(12, 6), [], 0
    similarity = cosines(rows).tolist()
    for i in range(12):
        positive = similarity[i][(i + 6) % 12]
        below = [s for j, s in enumerate(similarity[i]) if j % 6 != i % 6 and s < positive]
        losses += [max(below) - positive + 0.1] if below and max(below) > positive - 0.1 else []
        too_far += bool(below) and max(below) <= positive - 0.1
    assert losses and too_far and len(losses) + too_far < 12
    found = triplet(rows, torch.arange(6).repeat(2), 0.1, "semi_hard")
    assert found.item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_losses_are_those_of_another_implementation():
    rows, metric = normal(10, 6), {"distance": CosineSimilarity(), "reducer": MeanReducer()}
    ours = triplet(rows[:3], torch.tensor([0, 0, 1]), 0.5, "random")  # two anchors without a choice
    chosen = torch.tensor([[0, 1], [1, 0], [2, 2]])  # anchors, positives, negatives
    torch.testing.assert_close(ours, TripletMarginLoss(margin=0.5, **metric)(rows[:3], torch.zeros(3), tuple(chosen)))
    groups = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0, 3, 1])
    theirs = ContrastiveLoss(pos_margin=0.9, neg_margin=0.5, **metric)(rows, groups)
    torch.testing.assert_close(contrast(rows, groups, 0.5), theirs)


def test_contrast_and_agreement_at_their_corners():
    same, crossed = CODES[:1].expand(4, -1), torch.tensor([0, 1, 0, 1])
    assert contrast(CODES, GROUPS, 0.5).item() == pytest.approx(0, abs=1e-6)
    assert contrast(same, GROUPS, 0.5).item() == pytest.approx(0.5, abs=1e-6)
    # pairs of a group are 1 apart, 0.9 too far; of the other 8 ordered pairs 4 are equal, 0.5 too near
    assert contrast(CODES, crossed, 0.5).item() == pytest.approx(1.15, abs=1e-6)
    assert agreement(same, GROUPS).item() == pytest.approx(0, abs=1e-6)
    assert agreement(CODES, crossed).item() == pytest.approx(1, abs=1e-6)
