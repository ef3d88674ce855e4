"""CPC, Hinge-CPC and CLAPP (docs/methods.md, 9 and 10): logits, negatives, InfoNCE, the hinge, layers that learn
alone."""

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
    hinge,
    info_nce,
    pairs,
    places_ahead,
    true_logits,
)
from lib.runtime.errors import UserError
from tests.alone import Training, built, normal

CLAPP = {"loss": "hinge", "local": True, "negatives": 1, "places": "same", "form": "asynchronous"}
VARIANTS = {"cpc": {}, "hinge_cpc": {"loss": "hinge"}, "clapp": CLAPP, "infomax": {"local": True}}


def method(variant: str = "cpc", **options) -> CPC:
    return built("cpc", channels=4, **{**VARIANTS[variant], **options})


def codes_of(images: int = 4, places: int = 6, width: int = 3) -> tuple[Tensor, Tensor]:
    """Predicted and true ones."""
    return normal(images, places, width), normal(images, places, width, seed=1)


def drawn(count: int, where: str = "any", images: int = 4, places: int = 6) -> Tensor:
    return draw_negatives(images, count, (places,), where)


def contrast(predicted: Tensor, codes: Tensor, negatives: Tensor) -> Tensor:
    return info_nce(true_logits(predicted, codes), false_logits(predicted, codes, negatives))


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def relu(value: float) -> float:
    return max(0.0, value)


def views(count: int = 6) -> list[Tensor]:
    return [normal(count, 3, 16, 16)]


def both_kinds() -> list[bool]:
    """A seed whose first coins, and those after them, fall on both sides; returns the first."""
    torch.manual_seed(0)
    first, second = (torch.rand(6) < 0.5 for _ in range(2))
    assert 0 < first.sum() < 6 and 0 < second.sum() < 6
    torch.manual_seed(0)
    return first.tolist()


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
    seen = set()
    for _ in range(50):
        negatives = drawn(1, "same")[:, :, 0]
        assert torch.equal(negatives % 6, torch.arange(6).expand(4, 6))
        chosen = negatives // 6
        assert torch.equal(chosen, chosen[:, :1].expand(4, 6))
        seen |= set(enumerate(chosen[:, 0].tolist()))
    assert seen == {(image, other) for image in range(4) for other in range(4) if image != other}


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


# the hinge


def logits_of(images: int = 5, places: int = 4, count: int = 3) -> tuple[Tensor, Tensor]:
    return 2 * normal(images, places, seed=2), 2 * normal(images, places, count, seed=3)


@pytest.mark.parametrize("same", [None, [1, 0, 0, 1, 1], [0, 0, 0, 0, 1], [1] * 5, [0] * 5])
def test_the_hinge_against_a_slow_twin(same):
    """Synchronous without ``same``; else each kind of image has a mean of its own, and an empty kind adds nothing."""
    true, false = logits_of()
    pulled = [relu(1 - u) for b in range(5) if same is None or same[b] for u in true[b].tolist()]
    pushed = [relu(1 + u) for b in range(5) if same is None or not same[b] for u in false[b].flatten().tolist()]
    found = hinge(true, false, same=None if same is None else torch.tensor(same).bool())
    assert found.item() == pytest.approx(mean(pulled) + mean(pushed), rel=1e-6)


def test_the_hinge_at_its_corners():
    true, false = torch.zeros(4, 3), torch.zeros(4, 3, 16)
    one = torch.tensor([True, False, False, False])
    assert hinge(true, false).item() == 2 and hinge(true, false, same=one).item() == 2
    assert hinge(true, false, same=one | True).item() == 1
    true, false = torch.full((4, 3), 1.5, requires_grad=True), torch.full((4, 3, 2), -1.5, requires_grad=True)
    for total in (hinge(true, false), hinge(true, false, same=one)):  # far enough costs nothing and teaches nothing
        gradients = torch.autograd.grad(total, (true, false))
        assert total.item() == 0 and all(gradient.abs().max() == 0 for gradient in gradients)


def test_the_gradient_is_the_papers_local_rule():
    """For an active hinge: dW = -y z c', dz = -y W c, dc = -y W' z; zero where it is not active."""
    weight = (0.1 * normal(3, 3, seed=5)).requires_grad_()
    context, code = normal(6, 3, seed=6).requires_grad_(), normal(6, 3, seed=7).requires_grad_()
    with torch.no_grad():
        code[4] = 5 * (weight @ context[4]) / (weight @ context[4]).square().sum()  # a logit of 5
    same = torch.tensor([True, True, False, False, True, False])

    def gradients(same: Tensor) -> tuple[Tensor, ...]:
        logits = true_logits((context @ weight.T)[:, None], code[:, None])  # one place in each of six images
        total = hinge(logits, logits[:, :, None], same=same)  # the same pairs, called true or false
        return torch.autograd.grad(total, (weight, code, context))

    expected = [torch.zeros_like(gradient) for gradient in gradients(same)]
    with torch.no_grad():
        for b in range(6):
            y = 1.0 if same[b] else -1.0
            if y * (code[b] @ weight @ context[b]) < 1:
                rate = -y / 3  # of the mean over three images of each kind
                expected[0] += rate * torch.outer(code[b], context[b])
                expected[1][b] = rate * weight @ context[b]
                expected[2][b] = rate * weight.T @ code[b]
    assert expected[1][4].abs().max() == 0 and expected[1][0].abs().max() > 0
    torch.testing.assert_close(gradients(same), tuple(expected), atol=1e-6, rtol=1e-5)
    weight.data.zero_()  # at logits of 0, calling true false turns the gradient round
    assert torch.equal(gradients(same | True)[0], -gradients(same & False)[0])
    assert gradients(same | True)[0].abs().max() > 0


def test_gradients():
    predicted, codes = (values.double().requires_grad_() for values in codes_of(3, 2, 4))
    negatives = drawn(3, "any", 3, 2)
    assert torch.autograd.gradcheck(lambda a, b: contrast(a, b, negatives), (predicted, codes))
    true, false = (values.double().requires_grad_() for values in logits_of())
    for same in (None, torch.tensor([True, False, True, False, False])):
        assert torch.autograd.gradcheck(lambda a, b: hinge(a, b, (1, 3), same), (true, false))


def test_losses_are_fp32_whatever_the_autocast():
    torch.manual_seed(0)
    predicted, codes = torch.randn(4, 3, 64), torch.randn(4, 3, 64)
    negatives, same = torch.randint(12, (4, 3, 16)), torch.tensor([True, False, True, True])

    def losses() -> Tensor:
        true, false = true_logits(predicted, codes), false_logits(predicted, codes, negatives)
        return torch.cat([info_nce(true, false), hinge(true, false), hinge(true, false, (1, 2), same)])

    with torch.autocast("cpu", torch.bfloat16):
        inside = losses()
    assert inside.dtype == torch.float32 and torch.equal(inside, losses())
    assert inside[0].item() == pytest.approx(12.2541, abs=5e-5)


# predictions


def test_predictions_meet_the_codes_of_the_rows_below():
    """Row r + k + 1 from row r: the next row shares pixels and is left out."""
    torch.manual_seed(0)
    codes, ahead, places = torch.randn(3, 7, 7, 4), Ahead(4, FURTHEST), places_ahead(FURTHEST)
    assert len(places) == 5 and sum(places) == 105
    both = (rows.split(places, 1) for rows in pairs(ahead(codes), codes.flatten(1), places))
    for k, (predicted, there) in enumerate(zip(*both, strict=True), 1):
        assert predicted.shape == there.shape == (3, (7 - k - 1) * 7, 4)
        for row, column in torch.cartesian_prod(torch.arange(7 - k - 1), torch.arange(7)).tolist():
            expected = ahead.maps[k - 1].weight @ codes[2, row, column]
            torch.testing.assert_close(predicted[2, 7 * row + column], expected)
            assert torch.equal(there[2, 7 * row + column], codes[2, row + k + 1, column])
    for width in (32, 256):  # logits start of the order of one
        predicted, there = pairs(Ahead(width, 1)(normal(8, 7, 7, width)), normal(8, 49 * width), places_ahead(1))
        assert 0.7 < true_logits(predicted, there).std().item() < 1.4


# the method


@pytest.mark.parametrize(
    ("variant", "options", "cost"),
    [
        ("cpc", {}, math.log(17)),
        ("infomax", {}, 6 * math.log(17)),
        ("hinge_cpc", {}, 2),
        ("clapp", {}, 12),
        ("clapp", {"form": "synchronous"}, 12),
        ("clapp", {"asymmetric": True}, 24),
    ],
)
def test_without_predictions_every_loss_costs_its_constant(variant, options, cost):
    cpc = method(variant, **options)
    for weight in cpc.maps.parameters():
        weight.data.zero_()
    both_kinds()
    total, parts = cpc.loss(cpc.embed(views()))
    assert total.item() == pytest.approx(cost, abs=1e-5) and parts["score"].item() == 0


def by_loops(cpc: CPC, codes: Tensor, maps: Ahead, same: list[bool]) -> list[tuple[float, float]]:
    """For each distance one layer's loss and the mean size of its true logits; the negatives are the next drawn."""
    options, sizes, found = cpc.options, places_ahead(len(maps.maps)), []
    negatives = draw_negatives(len(codes), options.negatives, sizes, options.places).tolist()
    for k, layer in enumerate(maps.maps, 1):
        errors, pulled, pushed, size = [], [], [], []
        for b, row, column in torch.cartesian_prod(*map(torch.arange, (len(codes), 7 - k - 1, 7))).tolist():
            predicted, first = layer.weight.detach() @ codes[b, row, column], sum(sizes[: k - 1])
            own = (codes[b, row + k + 1, column] @ predicted).item()
            there = [divmod(q, sum(sizes)) for q in negatives[b][first + 7 * row + column]]
            there = [(image, *divmod(place - first, 7)) for image, place in there]
            others = [(codes[image, r + k + 1, c] @ predicted).item() for image, r, c in there]
            errors.append(math.log(1 + sum(math.exp(other - own) for other in others)))
            synchronous = options.form == "synchronous"
            pulled += [relu(1 - own)] if same[b] or synchronous else []
            pushed += [relu(1 + other) for other in others] if not same[b] or synchronous else []
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
        embeddings |= {name: codes.flatten(1), f"{name}_ahead": cpc.maps[f"{name}_ahead"](codes)}
    same = both_kinds()
    total, parts = cpc.loss(embeddings)
    both_kinds()
    if cpc.options.loss == "hinge":
        torch.rand(6)  # the coins, of both forms
    layers = [by_loops(cpc, codes, cpc.maps[f"{name}_ahead"], same) for name, codes in grids.items()]
    means = [mean([error for error, _ in distances]) for distances in layers]
    expected = means if cpc.options.local else [error for error, _ in layers[0]]
    size = mean([size for _, size in layers[-1]])
    assert [part.item() for part in parts.values()] == pytest.approx([*expected, size], rel=1e-4) and size > 0.5
    assert total.item() == pytest.approx(sum(means), rel=1e-4)


@pytest.mark.parametrize("variant", ["cpc", "hinge_cpc"])
def test_one_loss_reaches_all_layers_through_the_predicted_codes_and_the_predicting_ones(variant):
    """The former are in rows 2 to 6, the latter in rows 0 to 4."""
    cpc = method(variant, furthest=1)
    cpc.loss(cpc.embed(views()))[0].backward()
    assert all(weight.grad.abs().max() > 0 for weight in cpc.parameters())
    codes = normal(4, 7, 7, 32).requires_grad_()
    for detached, rows in (("layer6", [True] * 5 + [False] * 2), ("layer6_ahead", [False] * 2 + [True] * 5)):
        embeddings = {"layer6": codes.flatten(1), "layer6_ahead": cpc.maps["layer6_ahead"](codes)}
        embeddings[detached] = embeddings[detached].detach()
        gradient = torch.autograd.grad(cpc.loss(embeddings)[0], codes)[0]
        assert (gradient.abs().amax((0, 2, 3)) > 0).tolist() == rows


SYNCHRONOUS = {"form": "synchronous", "negatives": 4, "places": "any"}


@pytest.mark.parametrize(
    ("variant", "options"), [("clapp", {}), ("clapp", {"asymmetric": True}), ("clapp", SYNCHRONOUS), ("infomax", {})]
)
def test_a_layers_loss_reaches_that_layer_and_its_maps_alone(variant, options):
    clapp = method(variant, **options)
    both_kinds()
    _, parts = clapp.loss(clapp.embed(views()))
    names, weights = zip(*clapp.named_parameters())
    for number in range(1, 7):
        gradients = torch.autograd.grad(parts[f"layer{number}"], weights, retain_graph=True, allow_unused=True)
        reached = {name for name, gradient in zip(names, gradients) if gradient is not None}
        own = {name for name in names if name.startswith((f"encoder.layers.{number - 1}.", f"maps.layer{number}_"))}
        assert reached == own


def test_asymmetric_with_equal_maps_is_twice_symmetric():
    """Two images and the very place: there is one negative, so that both directions have the same."""
    plain, twice = method("clapp", form="synchronous"), method("clapp", form="synchronous", asymmetric=True)
    state = plain.state_dict()
    twice.load_state_dict({name: state[name.replace("_back", "_ahead")] for name in twice.state_dict()})
    totals = [clapp.loss(clapp.embed(views(2)))[0] for clapp in (plain, twice)]
    assert totals[1].item() == pytest.approx(2 * totals[0].item(), rel=1e-6)
    for total in totals:
        total.backward()
    others = dict(plain.named_parameters())
    for name, weight in twice.named_parameters():  # each direction teaches one end of a pair
        torch.testing.assert_close(weight.grad, others[name.replace("_back", "_ahead")].grad, atol=1e-6, rtol=1e-4)


def test_coins_are_fair_one_for_all_layers_and_each_direction_tosses_its_own(monkeypatch):
    clapp, tossed = method("clapp", asymmetric=True), []
    monkeypatch.setattr("lib.methods.cpc.hinge", lambda *given: tossed.append(given[3]) or hinge(*given))
    embeddings = clapp.embed(views())
    for _ in range(40):
        clapp.loss(embeddings)
    coins = torch.stack(tossed).view(40, 6, 2, 6).float()  # steps, layers, directions, images
    assert torch.equal(coins, coins[:, :1].expand_as(coins))
    ahead, back = coins[:, 0].unbind(1)
    assert 0.35 < (ahead == back).float().mean() < 0.65 and 0.4 < coins.mean() < 0.6


def test_evaluation_sees_the_mean_code_and_of_layers_that_learn_alone_all_the_last_first():
    images, cpc = views()[0], method()
    assert cpc.reads(cpc.options) == frozenset() and cpc.encoder.name == "vgg6"
    found = method("clapp").latents(images)
    assert list(found) == ["layer6", "layer1", "layer2", "layer3", "layer4", "layer5"]
    assert [rows.shape[1] for rows in found.values()] == [32, 4, 8, 8, 16, 32]
    codes = cpc.embed([images])["layer6"].view(6, 49, -1)
    torch.testing.assert_close(cpc.latents(images)["h"], codes.mean(1))


def test_joined_layers_learn_from_the_last_latent_and_others_do_not():
    def learning(clapp: CPC) -> set[str]:
        clapp.zero_grad()
        clapp.latents(views()[0])["layer6"].sum().backward()
        return {name for name, weight in clapp.encoder.named_parameters() if weight.grad is not None}

    clapp = method("clapp")
    assert learning(clapp) == {"layers.5.weight", "layers.5.bias"}
    clapp.allow_end_to_end_gradient()
    assert learning(clapp) == set(dict(clapp.encoder.named_parameters()))


@pytest.mark.parametrize(("variant", "bound"), [("cpc", math.log(17) - 0.5), ("hinge_cpc", 1.5), ("clapp", 9.0)])
def test_it_learns_that_patches_of_an_image_belong_together(variant, bound):
    """Images of one brightness each: whoever knows a patch knows the others."""
    training, brightness = Training(method(variant, furthest=1), lr=3e-3), normal(80, 16, 1, 1, 1, seed=3)
    losses = [training.step(values.expand(16, 3, 16, 16)) for values in brightness]
    assert mean(losses[-10:]) < bound, losses


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"furthest": 6}, "variants.cpc.furthest is 6; allowed: a whole number .* at most 5"),
        ({"form": "asynchronous"}, "form is asynchronous, which has no effect with loss info_nce; set loss to hinge"),
    ],
)
def test_options_that_cannot_work_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        method(**options)
