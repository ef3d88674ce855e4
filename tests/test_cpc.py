"""CPC on patches, with either loss (docs/methods.md, 9): logits, negatives, InfoNCE, predictions, the method."""

import math

import pytest
import torch
from pytorch_metric_learning.distances import DotProductSimilarity
from pytorch_metric_learning.losses import NTXentLoss
from torch import Tensor
from torch.nn import functional

from lib.methods.cpc import (
    CPC,
    FURTHEST,
    Ahead,
    draw_negatives,
    false_logits,
    info_nce,
    pairs,
    places_ahead,
    true_logits,
)
from tests.examples import Training, normal
from tests.patches import VARIANTS, mean, method, relu, views


def codes_of(images: int = 4, places: int = 6, width: int = 3) -> tuple[Tensor, Tensor]:
    """Predicted and true ones."""
    return normal(images, places, width), normal(images, places, width, seed=1)


def drawn(count: int, where: str = "any", images: int = 4, places: int = 6) -> Tensor:
    return draw_negatives(images, count, (places,), where)


def contrast(predicted: Tensor, codes: Tensor, negatives: Tensor) -> Tensor:
    return info_nce(true_logits(predicted, codes), false_logits(predicted, codes, negatives))


@pytest.mark.parametrize("elements", [1, 100, 10**6])
def test_logits_are_products_with_the_patches_drawn_however_many_places_are_taken_at_a_time(elements, monkeypatch):
    monkeypatch.setattr("lib.runtime.chunks.ELEMENTS", elements)
    predicted, codes = (values.requires_grad_() for values in codes_of())
    negatives = drawn(5)
    found, rows = false_logits(predicted, codes, negatives), codes.flatten(0, 1)
    expected = (rows[negatives] * predicted[:, :, None]).sum(3)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(true_logits(predicted, codes), (predicted * codes).sum(2))
    gradients = [torch.autograd.grad(logits.square().sum(), (predicted, codes)) for logits in (found, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(("images", "places"), [(2, 7), (5, 6)])
def test_negatives_are_of_any_other_image_and_any_place_alike(images, places):
    torch.manual_seed(0)
    negatives = drawn(3000, "any", images, places)
    assert negatives.shape == (images, places, 3000)
    for image in range(images):
        of_image = negatives[image].flatten().bincount(minlength=images * places).view(images, places)
        assert of_image[image].sum() == 0
        others = of_image[torch.arange(images) != image].double()
        assert (others / others.mean() - 1).abs().max() < 0.1


def test_negatives_at_the_same_place_are_of_one_other_image_for_all_places():
    torch.manual_seed(0)
    negatives = torch.stack([drawn(1, "same")[:, :, 0] for _ in range(50)])  # [50, images, places]
    assert (negatives % 6 == torch.arange(6)).all() and (negatives // 6 == negatives[:, :, :1] // 6).all()
    for image, chosen in enumerate((negatives[:, :, 0] // 6).T.tolist()):
        assert set(chosen) == set(range(4)) - {image}


# InfoNCE


def test_info_nce_is_cross_entropy_and_another_implementations():
    predicted, codes = codes_of()
    negatives, own = drawn(5), torch.arange(24)
    loss = contrast(predicted, codes, negatives)
    logits = torch.cat([true_logits(predicted, codes)[..., None], false_logits(predicted, codes, negatives)], 2)
    torch.testing.assert_close(loss[0], functional.cross_entropy(logits.flatten(0, 1), 0 * own))
    theirs = NTXentLoss(1.0, distance=DotProductSimilarity(normalize_embeddings=False))(
        predicted.flatten(0, 1),
        indices_tuple=(own, own, own.repeat_interleave(5), negatives.flatten()),
        ref_emb=codes.flatten(0, 1),
        ref_labels=None,
    )
    torch.testing.assert_close(loss[0], theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(contrast(predicted, codes, negatives[:, :, torch.randperm(5)]), loss)


def test_info_nce_at_its_corners():
    predicted, codes = codes_of()
    assert contrast(0 * predicted, codes, drawn(16)).item() == pytest.approx(2.833213, abs=1e-6)  # log 17
    known = torch.eye(24).view(4, 6, 24)
    assert contrast(100 * known, known, drawn(16)).item() == 0 and contrast(known, known, drawn(16)).item() > 1
    far = info_nce(torch.full((1, 1), -500.0), torch.full((1, 1, 2), 500.0))
    assert far.item() == pytest.approx(1000 + math.log(2))

    # four equally likely symbols, predicted with certainty: log 17 - loss is a bound on log 4 of information
    torch.manual_seed(0)
    symbols = torch.eye(4)[torch.randint(4, (400, 10))]
    bound = math.log(17) - contrast(100 * symbols, symbols, drawn(16, "any", 400, 10)).item()
    assert 0.8 * math.log(4) < bound <= math.log(4)


# predictions


@pytest.mark.parametrize("width", [32, 256])
def test_of_a_code_all_rows_but_the_next_below_are_predicted_by_logits_that_start_of_the_order_of_one(width):
    """The next row shares pixels. Which code meets which prediction is in the loss by loops."""
    assert [size // 7 for size in places_ahead(FURTHEST)] == [5, 4, 3, 2, 1]
    torch.manual_seed(0)
    predicted, there = pairs(Ahead(width, 1)(normal(8, 7, 7, width)), normal(8, 49 * width, seed=1), places_ahead(1))
    assert 0.7 < true_logits(predicted, there).std().item() < 1.4


# the method


@pytest.mark.parametrize(
    ("variant", "options", "cost"),
    [
        ("cpc", {}, math.log(17)),
        ("infomax", {}, 6 * math.log(17)),
        ("hinge_cpc", {}, 4),
        ("hinge_cpc", {"asymmetric": False}, 2),
        ("clapp", {}, 24),
        ("clapp", {"form": "synchronous"}, 24),
        ("clapp_s", {}, 12),
    ],
)
def test_without_predictions_every_loss_costs_its_constant(variant, options, cost):
    cpc = method(variant, **options)
    for weight in cpc.maps.parameters():
        weight.data.zero_()
    torch.manual_seed(0)
    total, parts = cpc.loss(cpc.embed(views(30)))  # so many that no coins all fall on one side
    assert total.item() == pytest.approx(cost, abs=1e-5) and parts["score"].item() == 0


def by_loops(cpc: CPC, codes: Tensor, maps: Ahead) -> list[tuple[float, float]]:
    """For each distance one direction's loss and the mean size of its true logits; negatives and coins are the next."""
    options, sizes, found = cpc.options, places_ahead(len(maps.maps)), []
    negatives = draw_negatives(len(codes), options.negatives, sizes, options.places).tolist()
    same = (torch.rand(len(codes)) < 0.5).tolist() if options.form == "asynchronous" else []
    for k, layer in enumerate(maps.maps, 1):
        errors, pulled, pushed, size = [], [], [], []
        for b, row, column in torch.cartesian_prod(*map(torch.arange, (len(codes), 7 - k - 1, 7))).tolist():
            predicted, first = layer.weight.detach() @ codes[b, row, column], sum(sizes[: k - 1])
            own = (codes[b, row + k + 1, column] @ predicted).item()
            there = [divmod(q, sum(sizes)) for q in negatives[b][first + 7 * row + column]]
            there = [(image, *divmod(place - first, 7)) for image, place in there]
            others = [(codes[image, r + k + 1, c] @ predicted).item() for image, r, c in there]
            errors.append(math.log(1 + sum(math.exp(other - own) for other in others)))
            pulled += [relu(1 - own)] if not same or same[b] else []
            pushed += [relu(1 + other) for other in others] if not same or not same[b] else []
            size.append(abs(own))
        found.append((mean(errors) if options.loss == "info_nce" else mean(pulled) + mean(pushed), mean(size)))
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_loss_by_loops_from_codes_to_total(variant):
    """Codes that differ more than those of noise seen by a new encoder, whose logits are all near 0."""
    cpc, embeddings = method(variant, furthest=2), {}
    widths = dict(zip(cpc.names, cpc.encoder.widths if cpc.options.local else [32]))
    grids = {name: normal(6, 7, 7, width) for name, width in widths.items()}
    for name, codes in grids.items():
        ahead = {f"{name}_{way}": cpc.maps[f"{name}_{way}"](codes) for way in cpc.ways}
        embeddings |= {name: codes.flatten(1), **ahead}
    torch.manual_seed(0)
    total, parts = cpc.loss(embeddings)
    torch.manual_seed(0)
    ways = [[by_loops(cpc, codes, cpc.maps[f"{name}_{way}"]) for way in cpc.ways] for name, codes in grids.items()]
    layers = [[sum(error for error, _ in distance) for distance in zip(*both)] for both in ways]
    means = [mean(distances) for distances in layers]
    size = mean([size for _, size in ways[-1][0]])
    expected = means if cpc.options.local else layers[0]
    assert [part.item() for part in parts.values()] == pytest.approx([*expected, size], rel=1e-4) and size > 0.5
    assert total.item() == pytest.approx(sum(means), rel=1e-4)


@pytest.mark.parametrize("options", [{}, {"loss": "hinge"}])
def test_a_symmetric_loss_teaches_the_predicted_codes_and_the_predicting_ones(options):
    """The former are in rows 2 to 6, the latter in rows 0 to 4."""
    cpc = method(**options, furthest=1)
    codes = normal(4, 7, 7, 32).requires_grad_()
    for detached, rows in (("layer6", [True] * 5 + [False] * 2), ("layer6_ahead", [False] * 2 + [True] * 5)):
        embeddings = {"layer6": codes.flatten(1), "layer6_ahead": cpc.maps["layer6_ahead"](codes)}
        embeddings[detached] = embeddings[detached].detach()
        gradient = torch.autograd.grad(cpc.loss(embeddings)[0], codes)[0]
        assert (gradient.abs().amax((0, 2, 3)) > 0).tolist() == rows


def test_evaluation_sees_the_mean_code_and_of_layers_that_learn_alone_all_the_last_first():
    images, cpc = views()[0], method()
    assert cpc.reads(cpc.options) == frozenset() and cpc.encoder.name == "vgg6"
    found = method("clapp").latents(images)
    assert list(found) == ["layer6", "layer1", "layer2", "layer3", "layer4", "layer5"]
    assert [rows.shape[1] for rows in found.values()] == [32, 4, 8, 8, 16, 32]
    codes = cpc.embed([images])["layer6"].view(6, 49, -1)
    torch.testing.assert_close(cpc.latents(images)["h"], codes.mean(1))


@pytest.mark.parametrize(("variant", "bound"), [("cpc", math.log(17) - 0.5), ("clapp", 21.5)])
def test_it_learns_that_patches_of_an_image_belong_together(variant, bound):
    """Images of one brightness each: whoever knows a patch knows the others."""
    training, brightness = Training(method(variant, furthest=1), lr=6e-3), normal(50, 12, 1, 1, 1, seed=3)
    losses = [training.step(values.expand(12, 3, 16, 16)) for values in brightness]
    assert mean(losses[-10:]) < bound, losses
