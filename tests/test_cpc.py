"""Contrastive predictive coding (docs/methods.md, 9): scores, draws, InfoNCE, and the method."""

import math
from dataclasses import replace

import pytest
import torch
from pytorch_metric_learning.distances import DotProductSimilarity
from pytorch_metric_learning.losses import NTXentLoss
from torch import nn
from torch.nn import functional

from lib.losses.cpc import any_place, false_scores, info_nce, same_place, true_scores
from lib.methods import build_method
from lib.runtime.errors import UserError
from tests.examples import pretraining


def rows(images: int = 4, places: int = 6, width: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    stream = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(images, places, width, generator=stream) for _ in range(2))


def loss(predicted: torch.Tensor, codes: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    return info_nce(true_scores(predicted, codes), false_scores(predicted, codes, draws))


def by_loops(predicted: torch.Tensor, codes: torch.Tensor, draws: torch.Tensor) -> float:
    images, places, _ = codes.shape
    flat, total = codes.flatten(0, 1).tolist(), 0.0
    for b in range(images):
        for p in range(places):

            def score(patch: int) -> float:
                return sum(u * v for u, v in zip(predicted[b, p].tolist(), flat[patch]))

            own = math.exp(score(b * places + p))
            total -= math.log(own / (own + sum(math.exp(score(q)) for q in draws[b, p].tolist())))
    return total / (images * places)


@pytest.mark.parametrize("draw", [any_place, same_place])
def test_it_is_what_its_formula_says(draw):
    predicted, codes = rows()
    draws = draw(codes, 5)
    assert loss(predicted, codes, draws).item() == pytest.approx(by_loops(predicted, codes, draws), rel=1e-5)


def test_it_is_cross_entropy_with_the_true_patch_first():
    predicted, codes = rows()
    draws = any_place(codes, 16)
    scores = torch.cat([true_scores(predicted, codes)[..., None], false_scores(predicted, codes, draws)], 2)
    expected = functional.cross_entropy(scores.flatten(0, 1), torch.zeros(4 * 6, dtype=torch.int64))
    torch.testing.assert_close(loss(predicted, codes, draws), expected)


def test_it_is_another_implementations_with_pairs_written_out():
    predicted, codes = rows()
    draws, own = any_place(codes, 16), torch.arange(4 * 6)
    theirs = NTXentLoss(1.0, distance=DotProductSimilarity(normalize_embeddings=False))(
        predicted.flatten(0, 1),
        indices_tuple=(own, own, own.repeat_interleave(16), draws.flatten()),
        ref_emb=codes.flatten(0, 1),
        ref_labels=None,
    )
    torch.testing.assert_close(loss(predicted, codes, draws), theirs, atol=1e-5, rtol=1e-5)


def test_predictions_of_zero_cost_log_17():
    predicted, codes = rows()
    assert loss(0 * predicted, codes, any_place(codes, 16)).item() == pytest.approx(2.833213, abs=1e-6)


def test_certain_predictions_cost_nothing():
    codes = torch.eye(24).view(4, 6, 24)
    assert loss(100 * codes, codes, any_place(codes, 16)).item() == 0
    assert loss(codes, codes, any_place(codes, 16)).item() > 1


def test_scores_far_apart_stay_finite():
    found = info_nce(torch.full((1, 1), -500.0), torch.full((1, 1, 2), 500.0))
    assert found.item() == pytest.approx(1000 + math.log(2))


def test_the_order_of_the_negatives_does_not_matter():
    predicted, codes = rows()
    draws = any_place(codes, 7)
    torch.testing.assert_close(loss(predicted, codes, draws[:, :, torch.randperm(7)]), loss(predicted, codes, draws))


@pytest.mark.parametrize(("images", "places"), [(2, 7), (5, 6)])
def test_negatives_are_of_any_other_image_and_any_place_alike(images, places):
    torch.manual_seed(0)
    draws = any_place(torch.zeros(images, places, 1), 3000)
    assert draws.shape == (images, places, 3000)
    for image in range(images):
        of_image = draws[image].flatten().bincount(minlength=images * places).view(images, places)
        assert of_image[image].sum() == 0
        others = of_image[torch.arange(images) != image].double()
        assert (others / others.mean() - 1).abs().max() < 0.1


def test_negatives_at_the_same_place_are_of_one_other_image_for_all_places():
    torch.manual_seed(0)
    seen = set()
    for _ in range(50):
        draws = same_place(torch.zeros(4, 6, 1), 1)[:, :, 0]
        assert torch.equal(draws % 6, torch.arange(6).expand(4, 6))
        chosen = draws // 6
        assert torch.equal(chosen, chosen[:, :1].expand(4, 6))
        seen |= set(enumerate(chosen[:, 0].tolist()))
    assert seen == {(image, other) for image in range(4) for other in range(4) if image != other}


@pytest.mark.parametrize("draw", [any_place, same_place])
def test_parts_are_scored_at_once_as_they_would_be_one_by_one(draw):
    """Draws, scores and means of each part, in the order of the parts."""
    predicted, codes = rows(5, 9)
    parts, found = (4, 2, 3), {}
    for together in (True, False):
        torch.manual_seed(0)
        if together:
            draws = draw(codes, 6, parts)
            false = false_scores(predicted, codes, draws)
            found[together] = info_nce(true_scores(predicted, codes), false, parts)
            owner = torch.tensor([0] * 4 + [1] * 2 + [2] * 3)
            assert torch.equal(owner[draws % 9], owner[None, :, None].expand_as(draws))
        else:
            pieces = zip(predicted.split(parts, 1), codes.split(parts, 1), strict=True)
            found[together] = torch.stack([loss(own, there, draw(there, 6)) for own, there in pieces])
    assert found[True].shape == (3,)
    torch.testing.assert_close(found[True], found[False])


@pytest.mark.parametrize("elements", [1, 100, 10**6])
def test_scores_do_not_depend_on_how_many_places_are_taken_at_a_time(elements, monkeypatch):
    predicted, codes = (values.requires_grad_() for values in rows())
    draws, found = any_place(codes, 5), []
    for size in (10**9, elements):
        monkeypatch.setattr("lib.runtime.chunks.ELEMENTS", size)
        scores = false_scores(predicted, codes, draws)
        found.append((scores, *torch.autograd.grad(scores.square().sum(), (predicted, codes))))
    torch.testing.assert_close(found[1], found[0])


def test_draws_follow_the_global_generator():
    codes = torch.zeros(4, 6, 1)
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(any_place(codes, 5))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_what_it_says_of_information_is_not_more_than_there_is():
    """Four equally likely symbols, predicted with certainty: log 4 of information, and log 17 - loss a bound on it."""
    torch.manual_seed(0)
    symbols = torch.eye(4)[torch.randint(4, (400, 10))]
    known = math.log(17) - loss(100 * symbols, symbols, any_place(symbols, 16)).item()
    assert 0.8 * math.log(4) < known <= math.log(4)


def test_gradients():
    predicted, codes = (values.double().requires_grad_() for values in rows(3, 2, 4))
    draws = any_place(codes, 3)
    assert torch.autograd.gradcheck(lambda a, b: loss(a, b, draws), (predicted, codes))


def method(**options):
    params = pretraining("cpc")
    torch.manual_seed(0)
    return build_method(replace(params, options={**params.options, "channels": 4, **options}))


def views(count: int = 6) -> list[torch.Tensor]:
    return [torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))]


def test_without_predictions_the_method_costs_log_17():
    cpc = method()
    with torch.no_grad():
        for layer in cpc.ahead.maps:
            layer.weight.zero_()
    total, parts = cpc.loss(cpc.embed(views()))
    assert total.item() == pytest.approx(math.log(17), abs=1e-6) and len(parts) == 5


@pytest.mark.parametrize("furthest", [1, 3])
def test_it_is_the_mean_over_the_distances(furthest):
    cpc = method(furthest=furthest)
    total, parts = cpc.loss(cpc.embed(views()))
    assert list(parts) == [f"ahead{k}" for k in range(1, furthest + 1)] and len(cpc.ahead.maps) == furthest
    assert total.item() == pytest.approx(sum(part.item() for part in parts.values()) / furthest, abs=1e-6)


Scores = list[tuple[float, list[float]]]


def grid() -> torch.Tensor:
    """Codes of six images that differ more than those of noise seen by a new encoder, whose scores are all near 0."""
    return torch.randn(6, 7, 7, 32, generator=torch.Generator().manual_seed(2))


def scores_by_loops(codes: torch.Tensor, maps: nn.ModuleList, count: int) -> list[Scores]:
    """For each distance, what each prediction scores with its true patch and with those drawn at any place.

    From the codes of the grid, [B, 7, 7, D]; the draws are the next of the global generator.
    """
    images, found = len(codes), []
    for distance, layer in enumerate(maps, 1):
        weight, ahead = layer.weight.detach(), distance + 1  # rows; the nearest is left out
        places = [(row, column) for row in range(7 - ahead) for column in range(7)]
        draws = any_place(torch.zeros(images, len(places), 1), count).tolist()
        found.append([])
        for image in range(images):
            for (row, column), drawn in zip(places, draws[image]):
                predicted = weight @ codes[image, row, column]
                there = [divmod(number, len(places)) for number in drawn]
                others = torch.stack([codes[other, places[at][0] + ahead, places[at][1]] for other, at in there])
                found[-1].append(
                    ((codes[image, row + ahead, column] @ predicted).item(), (others @ predicted).tolist())
                )
    return found


def test_a_loss_by_loops_from_codes_to_total(monkeypatch):
    cpc, codes = method(furthest=3), grid()
    monkeypatch.setattr(cpc.encoder, "forward", lambda images: [codes])
    embedded = cpc.embed(views())
    torch.manual_seed(0)
    total, parts = cpc.loss(embedded)
    torch.manual_seed(0)
    expected = [
        sum(math.log(sum(math.exp(score - own) for score in (own, *others))) for own, others in scores) / len(scores)
        for scores in scores_by_loops(codes, cpc.ahead.maps, 16)
    ]
    assert [part.item() for part in parts.values()] == pytest.approx(expected, rel=1e-4)
    assert total.item() == pytest.approx(sum(expected) / 3, rel=1e-4)
    assert abs(total.item() - math.log(17)) > 0.1  # the scores differ


def test_a_distance_beyond_the_grid_is_refused():
    with pytest.raises(UserError, match="variants.cpc.furthest is 6; allowed: a whole number .* at most 5"):
        method(furthest=6)


def test_nothing_is_detached():
    """The predicted code, the predicting one and the maps all learn."""
    codes = torch.randn(4, 7, 7, 32, requires_grad=True)
    cpc = method(furthest=1)
    ahead = cpc.ahead(codes)
    ahead.retain_grad()
    cpc.loss({"codes": codes.detach().flatten(1), "ahead": ahead})[0].backward()
    assert (codes.grad.abs().amax((0, 2, 3)) > 0).tolist() == [True] * 5 + [False] * 2  # predicting: rows 0 to 4
    assert ahead.grad.abs().max() > 0 and cpc.ahead.maps[0].weight.grad.abs().max() > 0
    predicted = codes.detach().flatten(1).requires_grad_()
    cpc.loss({"codes": predicted, "ahead": ahead.detach()})[0].backward()
    reached = predicted.grad.view(4, 7, 7, 32).abs().amax((0, 2, 3)) > 0
    assert reached.tolist() == [False] * 2 + [True] * 5  # predicted: rows 2 to 6


def test_its_latent_is_the_mean_of_the_codes():
    cpc, images = method(), views()[0]
    with torch.no_grad():
        codes = cpc.embed([images])["codes"].view(6, 49, -1)
        torch.testing.assert_close(cpc.latents(images)["h"], codes.mean(1))


def test_it_learns_that_patches_of_an_image_belong_together():
    """Images of one brightness each: whoever knows a patch knows the others."""
    cpc = method()
    learning = torch.optim.Adam(cpc.parameters(), lr=3e-3)
    stream = torch.Generator().manual_seed(3)
    losses = []
    for _ in range(60):
        images = torch.randn(16, 1, 1, 1, generator=stream).expand(16, 3, 16, 16)
        total, _ = cpc.loss(cpc.embed([images]))
        learning.zero_grad()
        total.backward()
        learning.step()
        losses.append(total.item())
    assert sum(losses[-5:]) / 5 < math.log(17) - 0.5, losses
