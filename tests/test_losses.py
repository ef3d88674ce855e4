"""The gradients of all losses. NT-Xent and the distance of views: closed forms, slow twins, other implementations."""

import math

import lightly.loss
import pytest
import torch
from pytorch_metric_learning.losses import NTXentLoss, SelfSupervisedLoss
from torch.nn import functional
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lib.methods.barlow_twins import barlow_twins
from lib.methods.byol import direction_distance
from lib.methods.cmc import bank_logits, in_batch, nce_error, softmax_error
from lib.methods.cpc import false_logits, hinge, info_nce, true_logits
from lib.methods.kwta import agreement, triplet
from lib.methods.kwta import contrast as code_contrast
from lib.methods.moco import queue_contrast
from lib.methods.patch_filters import hardest, patch_triplets, semi_hard
from lib.methods.simclr import TILE, contrast, frobenius_distance, nearest_images, nt_xent, nt_xent_among, nt_xent_floor
from lib.methods.supervised import cross_entropy
from lib.methods.vicreg import covariance, invariance, variance
from lib.runtime.chunks import chunks
from tests.examples import directions, normal


def random_pair(count: int, width: int, seed: int = 0, dtype: torch.dtype = torch.float32):
    """L2-normalized."""
    return directions(2 * count, width, seed=seed, dtype=dtype).chunk(2)


CLASSES, OWN = torch.tensor([0, 1, 2, 3, 0, 1]), torch.arange(6)
OTHERS = torch.tensor([[3, 4, 4], [2, 0, 5], [4, 5, 1], [0, 1, 5], [2, 2, 3], [0, 1, 3]])  # negatives of six images
PATCHES = OTHERS.view(3, 2, 3)  # and of two patches in each of three
KINDS = torch.tensor([True, False, True])


def patch_logits(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    predicted, codes = first.unflatten(0, (3, 2)), second.unflatten(0, (3, 2))
    return true_logits(predicted, codes), false_logits(predicted, codes, PATCHES)


def of_patches(first: torch.Tensor, second: torch.Tensor, mining) -> torch.Tensor:
    torch.manual_seed(0)
    return patch_triplets(torch.cat([first, second]).unflatten(0, (3, 4)), 2.0, mining)[0]


LOSSES = {  # of the embeddings of two views, [6, D] each
    "nt_xent": lambda a, b: nt_xent(a, b, 0.3),
    "frobenius_distance": frobenius_distance,
    "nt_xent_among": lambda a, b: nt_xent_among(a, b, nearest_images(a, b, 2), 0.3),
    "barlow_twins": barlow_twins,
    "invariance": invariance,
    "variance": lambda a, b: (variance(a), variance(b)),
    "covariance": lambda a, b: (covariance(a), covariance(b[:3])),  # more images than units, and fewer
    "direction_distance": direction_distance,
    "queue_contrast": lambda a, b: queue_contrast(a, b, torch.eye(9, a.shape[1]).to(a), 0.3),
    "cross_entropy": lambda a, b: cross_entropy(a, CLASSES) + cross_entropy(b, CLASSES),
    "cmc in_batch": lambda a, b: in_batch(a, b, 0.3),
    "cmc bank": lambda a, b: softmax_error(bank_logits(a, b, OWN, OTHERS, 0.3)),
    "cmc nce": lambda a, b: nce_error(bank_logits(a, b, OWN, OTHERS, 0.3), torch.tensor(3.0).to(a), 9),
    "info_nce": lambda a, b: info_nce(*patch_logits(a, b)),
    "hinge": lambda a, b: hinge(*patch_logits(a, b)),
    "hinge, asynchronous": lambda a, b: hinge(*patch_logits(a, b), (1, 1), KINDS),
    "kwta triplet": lambda a, b: triplet(torch.cat([a, b]), OWN.repeat(2), 0.5, "semi_hard"),
    "kwta contrast": lambda a, b: code_contrast(torch.cat([a, b]), OWN.repeat(2), 0.5),
    "kwta agreement": lambda a, b: agreement(torch.cat([a, b]), OWN.repeat(2)),
    "patches, semi-hard": lambda a, b: of_patches(a, b, semi_hard),
    "patches, hardest": lambda a, b: of_patches(a, b, hardest),
}
OF_THE_FIRST_ALONE = ("direction_distance", "queue_contrast", "cmc bank", "cmc nce")  # of targets, keys, a bank


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_is_the_numerical_one_and_fp64_stays(name):
    first, second = (rows.requires_grad_() for rows in random_pair(6, 4, dtype=torch.float64))
    values = tree_leaves(LOSSES[name](first, second))
    assert all(value.dtype == torch.float64 and value.any() for value in values)
    constant = [second.detach()] if name in OF_THE_FIRST_ALONE else []
    learning = [first] if constant else [first, second]
    assert torch.autograd.gradcheck(lambda *rows: LOSSES[name](*rows, *constant), learning)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_fp32_whatever_the_autocast(name):
    pair = random_pair(6, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = tree_leaves(LOSSES[name](*pair))
    for value, expected in zip(inside, tree_leaves(LOSSES[name](*pair))):
        assert value.dtype == torch.float32 and torch.equal(value, expected)


def nt_xent_by_loops(first, second, temperature: float) -> float:
    rows = [*first.double(), *second.double()]
    count = len(first)
    total = 0.0
    for i, row in enumerate(rows):
        partner = (i + count) % (2 * count)
        others = sum(math.exp(float(row @ other) / temperature) for k, other in enumerate(rows) if k != i)
        total += -float(row @ rows[partner]) / temperature + math.log(others)
    return total / len(rows)


def nt_xent_at_once(first, second, temperature: float) -> torch.Tensor:
    """The whole matrix, and torch's cross entropy and gradient."""
    rows = torch.cat([first, second])
    logits = (rows @ rows.T / temperature).masked_fill(torch.eye(len(rows), dtype=torch.bool), -torch.inf)
    return functional.cross_entropy(logits, torch.arange(len(rows)).roll(len(first)))


def value_and_gradient(loss, leaves: torch.Tensor, *rest) -> tuple[torch.Tensor, torch.Tensor]:
    leaves = leaves.clone().requires_grad_()
    value = loss(*leaves, *rest)
    return value.detach(), torch.autograd.grad(value, leaves)[0]


@pytest.mark.parametrize("temperature", [0.07, 0.5, 1.0])
@pytest.mark.parametrize("count", [2, 5, 16])
def test_nt_xent_equals_its_formula(count, temperature):
    first, second = random_pair(count, 12)
    expected = nt_xent_by_loops(first, second, temperature)
    assert nt_xent(first, second, temperature).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
@pytest.mark.parametrize("count", [2, 64])
def test_nt_xent_has_the_value_and_gradient_of_two_other_implementations(count, temperature):
    """Theirs scale to unit length themselves, so the gradients are compared where all do."""
    raw = normal(2, count, 32, seed=7)
    value, gradient = value_and_gradient(lambda *ab: nt_xent(*(normalize(r, dim=1) for r in ab), temperature), raw)
    for theirs in (lightly.loss.NTXentLoss(temperature), SelfSupervisedLoss(NTXentLoss(temperature=temperature))):
        torch.testing.assert_close((value, gradient), value_and_gradient(theirs, raw), atol=1e-5, rtol=0)
    assert gradient.abs().max() > 1e-3
    assert (raw * gradient).sum(2).abs().max() < 1e-6, "lengths do not matter"


EYE = torch.eye(16)
SAME = normalize(torch.ones(512, 8), dim=1)


@pytest.mark.parametrize(
    ("first", "second", "temperature", "value"),
    [
        (SAME[:256], SAME[:256], 0.5, 6.236370),  # all the same: the log of the others
        (SAME[:256], SAME[:256], 0.2, 6.236370),
        (SAME, SAME, 0.5, 6.930495),
        (EYE[:8], EYE[8:], 0.5, math.log(15)),  # all orthogonal
        (EYE[:4], EYE[:4], 0.5, 0.594438),  # equal positives, images orthogonal
        (EYE[:8], EYE[:8], 0.5, 1.062879),
        (EYE[:4], -EYE[:4], 0.5, 3.814065),  # opposed positives
    ],
)
def test_nt_xent_at_its_corners(first, second, temperature, value):
    assert nt_xent(first, second, temperature).item() == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize(
    ("count", "temperature", "floor"), [(256, 0.5, 4.241064), (512, 0.5, 4.932835), (256, 0.2, 1.474678)]
)
def test_the_simplex_reaches_the_floor_and_nothing_random_is_below_it(count, temperature, floor):
    simplex = normalize(torch.eye(count, dtype=torch.float64) - 1 / count, dim=1)
    for value in (nt_xent_floor(count, temperature), nt_xent(simplex, simplex, temperature).item()):
        assert value == pytest.approx(floor, abs=1e-6)
    assert nt_xent(simplex.float(), simplex.float(), temperature).item() == pytest.approx(floor, abs=1e-5)
    for seed in range(3):
        assert nt_xent(*random_pair(count, 300, seed), temperature).item() > floor


def test_nt_xent_does_not_see_order_side_or_rotation():
    first, second = random_pair(20, 10)
    value = nt_xent(first, second, 0.5).item()
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    rotation = torch.linalg.qr(normal(10, 10, seed=2))[0]
    for moved in ((first[order], second[order]), (second, first), (first @ rotation, second @ rotation)):
        assert nt_xent(*moved, 0.5).item() == pytest.approx(value, abs=1e-6)
    assert abs(nt_xent(first, second[order], 0.5).item() - value) > 1e-3  # the pairing itself does matter


@pytest.mark.parametrize("temperature", [0.05, 0.5])
@pytest.mark.parametrize("elements", [1, 5 * 42, 42 * 42])  # one row, five rows, all 42 rows at a time
def test_nt_xent_in_tiles_has_the_value_and_gradient_of_the_whole_matrix(monkeypatch, temperature, elements):
    monkeypatch.setattr("lib.methods.simclr.TILE", elements)
    pair = torch.stack(random_pair(21, 8))
    found = value_and_gradient(lambda *ab: 3 * nt_xent(*ab), pair, temperature)
    expected = value_and_gradient(lambda *ab: 3 * nt_xent_at_once(*ab), pair, temperature)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("elements", [40, 256 * 256])  # in tiles; at once
@pytest.mark.parametrize(("temperature", "loss"), [(0.05, 5.6e-6), (0.07, 6.3e-4), (0.5, 3.66)])
def test_nearly_solved_nt_xent_keeps_its_precision(monkeypatch, temperature, loss, elements):
    """128 images, views 0.3 apart. Of fp64, against the error that torch's cross entropy makes in fp32."""
    monkeypatch.setattr("lib.methods.simclr.TILE", elements)
    stream = torch.Generator().manual_seed(0)
    first, off = normalize(torch.randn(2, 128, 128, generator=stream, dtype=torch.float64), dim=2)
    pair = torch.stack([first, normalize(first + 0.3 * off, dim=1)])
    value, gradient = value_and_gradient(nt_xent_at_once, pair, temperature)
    assert value.item() == pytest.approx(loss, rel=0.05)

    def error(function) -> float:
        return ((value_and_gradient(function, pair.float(), temperature)[1] - gradient).norm() / gradient.norm()).item()

    assert error(nt_xent) < min(1e-5, 2 * error(nt_xent_at_once))
    assert nt_xent(*pair.float(), temperature).item() == pytest.approx(value.item(), rel=1e-5)


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements that any operation gave back."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.elements = max(self.elements, *(leaf.numel() for leaf in tree_leaves(result) if torch.is_tensor(leaf)), 0)
        return result


def test_nt_xent_never_holds_its_matrix():
    first, second = (rows.requires_grad_() for rows in random_pair(2048, 8))
    with LargestTensor() as largest:
        nt_xent(first, second, 0.5).backward()
    assert largest.elements == TILE == 2**22  # the matrix has 2**24


def test_chunks_cover_every_row_once():
    assert [(part.start, part.stop) for part in chunks(7, 10, 30)] == [(0, 3), (3, 6), (6, 7)]
    assert [(part.start, part.stop) for part in chunks(2, 10, 3)] == [(0, 1), (1, 2)]


def test_distance_equals_its_formula_and_the_mean_cosine():
    first, second = random_pair(50, 16, dtype=torch.float64)
    value = frobenius_distance(first, second).item()
    squares = sum(float((a - b) ** 2) for x, y in zip(first, second) for a, b in zip(x, y))
    assert value == pytest.approx(math.sqrt(squares), abs=1e-12)
    assert value**2 == pytest.approx(2 * 50 * (1 - (first * second).sum(1).mean().item()), rel=1e-12)


def test_distance_and_its_gradient_at_their_corners():
    rows = torch.eye(512)[:256]
    assert 0.01 * frobenius_distance(rows, torch.eye(512)[256:]).item() == pytest.approx(0.226274, abs=1e-6)
    assert 0.01 * frobenius_distance(rows, -rows).item() == pytest.approx(0.320000, abs=1e-6)
    first, second = (rows.clone().requires_grad_() for rows in random_pair(30, 8))
    for gradient in torch.autograd.grad(frobenius_distance(first, second), (first, second)):
        assert gradient.norm().item() == pytest.approx(1.0, abs=1e-5)
    coinciding = frobenius_distance(first, first.detach().clone())
    assert coinciding.item() == pytest.approx(0.0, abs=2e-6)
    assert torch.autograd.grad(coinciding, first)[0].abs().max() == 0


def test_all_images_as_negatives_are_nt_xent_and_none_is_zero():
    pair = random_pair(7, 12)
    everyone = torch.ones(7, 7, dtype=torch.bool)
    expected, slope = value_and_gradient(nt_xent, torch.stack(pair), 0.3)
    value, found = value_and_gradient(nt_xent_among, torch.stack(pair), everyone, 0.3)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(found, slope)
    assert nt_xent_among(*pair, ~everyone, 0.3) == 0


def test_negatives_of_one_class_are_nt_xent_of_that_class():
    """Two classes whose images are in the batch by turns: the mean of the classes' own losses."""
    first, second = random_pair(8, 12)
    labels = torch.arange(8) % 2
    parts = [nt_xent(first[labels == label], second[labels == label], 0.2) for label in (0, 1)]
    value = nt_xent_among(first, second, labels[:, None] == labels, 0.2)
    torch.testing.assert_close(value, torch.stack(parts).mean())


def test_among_its_neighbors_an_image_is_told_from_both_of_their_views():
    first, second = random_pair(3, 8)
    negatives = torch.tensor([[0, 1, 0], [0, 0, 1], [1, 0, 0]], dtype=torch.bool)
    losses = []
    for own, other in ((first, second), (second, first)):
        for image, negative in enumerate((1, 2, 0)):
            against = [own[image] @ other[image], own[image] @ own[negative], own[image] @ other[negative]]
            losses.append(-functional.log_softmax(torch.stack(against) / 0.3, 0)[0])
    torch.testing.assert_close(nt_xent_among(first, second, negatives, 0.3), torch.stack(losses).mean())


def test_the_nearest_images_are_those_of_the_largest_mean_cosine_and_carry_no_gradient():
    first, second = random_pair(9, 5)
    first.requires_grad_()
    found = nearest_images(first, second, 3)
    pairs = [*zip(first.detach(), second.detach())]
    cosines = torch.tensor([[float((a + b) @ (c + d)) for c, d in pairs] for a, b in pairs])
    for image, row in enumerate(found):
        others = [other for other in range(9) if other != image]
        expected = sorted(others, key=lambda other: -cosines[image, other])[:3]
        assert row.nonzero().flatten().tolist() == sorted(expected)
    assert not found.requires_grad and nearest_images(first, second, 100).sum() == 9 * 8


def test_the_contrastive_accuracy_counts_embeddings_nearest_to_their_other_view():
    first = torch.eye(3, 4)
    second = first.clone()
    assert contrast(first, second, 0.5)[1] == 1
    second[2] = first[0]  # the third image's second view is the first image's first
    # the first image's two views tie with it, the third's first view has none alike, its second is nearer to others
    assert contrast(first, second, 0.5)[1] == pytest.approx(2 / 6)
