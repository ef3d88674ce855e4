"""CLAPP and Hinge-CPC (docs/methods.md, 10): the hinge in both forms, the local rule, layers that learn alone."""

import copy
from dataclasses import replace

import pytest
import torch

from lib.encoders.vgg6 import places_ahead
from lib.losses.cpc import false_scores, same_place, true_scores
from lib.losses.hinge import asynchronous, coins, synchronous
from lib.methods import build_method
from lib.runtime.errors import UserError
from tests.examples import pretraining
from tests.test_cpc import grid, scores_by_loops


def method(variant: str = "clapp", **options):
    params = pretraining(variant)
    torch.manual_seed(0)
    return build_method(replace(params, options={**params.options, "channels": 4, **options}))


def views(count: int = 6) -> list[torch.Tensor]:
    return [torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))]


def without_predictions(clapp):
    with torch.no_grad():
        for name, weight in clapp.named_parameters():
            if name.startswith("maps"):
                weight.zero_()
    return clapp


def scores(images: int = 5, places: int = 4, count: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    stream = torch.Generator().manual_seed(2)
    return (2 * torch.randn(images, places, generator=stream), 2 * torch.randn(images, places, count, generator=stream))


def hinge(value: float) -> float:
    return max(0.0, value)


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def test_synchronous_is_what_its_formula_says():
    true, false = scores()
    expected = mean([hinge(1 - u) for u in true.flatten().tolist()]) + mean(
        [hinge(1 + u) for u in false.flatten().tolist()]
    )
    assert synchronous(true, false).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("same", [[1, 0, 0, 1, 1], [0, 0, 0, 0, 1], [1] * 5, [0] * 5])
def test_asynchronous_is_what_its_formula_says(same):
    """Each kind of image has a mean of its own; an empty kind adds nothing."""
    true, false = scores()
    pulled = [hinge(1 - u) for b in range(5) if same[b] for u in true[b].tolist()]
    pushed = [hinge(1 + u) for b in range(5) if not same[b] for u in false[b].flatten().tolist()]
    found = asynchronous(true, false, torch.tensor(same).bool())
    assert found.item() == pytest.approx(mean(pulled) + mean(pushed), rel=1e-6)


def test_scores_of_zero_cost_exactly_two():
    true, false = torch.zeros(4, 3), torch.zeros(4, 3, 16)
    assert synchronous(true, false).item() == 2
    assert asynchronous(true, false, torch.tensor([True, False, False, False])).item() == 2
    assert asynchronous(true, false, torch.tensor([True] * 4)).item() == 1


def test_what_is_far_enough_costs_nothing_and_teaches_nothing():
    true, false = torch.full((4, 3), 1.5, requires_grad=True), torch.full((4, 3, 2), -1.5, requires_grad=True)
    for total in (synchronous(true, false), asynchronous(true, false, torch.tensor([True, False, True, False]))):
        gradients = torch.autograd.grad(total, (true, false))
        assert total.item() == 0 and all(gradient.abs().max() == 0 for gradient in gradients)


def test_gradients():
    true, false = (values.double().requires_grad_() for values in scores())
    same = torch.tensor([True, False, True, False, False])
    assert torch.autograd.gradcheck(synchronous, (true, false))
    assert torch.autograd.gradcheck(lambda a, b: asynchronous(a, b, same), (true, false))


def test_the_gradient_is_the_papers_local_rule():
    """For an active hinge: dW = -y z c', dz = -y W c, dc = -y W' z; zero where it is not active."""
    stream = torch.Generator().manual_seed(5)
    weight = (0.1 * torch.randn(3, 3, generator=stream)).requires_grad_()
    context, code = (torch.randn(6, 3, generator=stream).requires_grad_() for _ in range(2))
    with torch.no_grad():
        code[4] = 5 * (weight @ context[4]) / (weight @ context[4]).square().sum()  # a score of 5
    predicted, there = (context @ weight.T)[:, None], code[:, None]  # one place in each of six images
    own = true_scores(predicted, there)
    same = torch.tensor([True, True, False, False, True, False])
    total = asynchronous(own, own[:, :, None], same)  # the same pairs, called true or false
    found = torch.autograd.grad(total, (weight, code, context))
    expected = [torch.zeros_like(gradient) for gradient in found]
    with torch.no_grad():
        for b in range(6):
            sign = 1.0 if same[b] else -1.0
            if sign * (code[b] @ weight @ context[b]) < 1:
                rate = -sign / 3  # of the mean over three images of each kind
                expected[0] += rate * torch.outer(code[b], context[b])
                expected[1][b] = rate * weight @ context[b]
                expected[2][b] = rate * weight.T @ code[b]
    assert expected[1][4].abs().max() == 0 and expected[1][0].abs().max() > 0
    for gradient, rule in zip(found, expected):
        torch.testing.assert_close(gradient, rule, atol=1e-6, rtol=1e-5)


def test_at_scores_of_zero_calling_true_false_turns_every_gradient_round():
    weight = torch.zeros(3, 3, requires_grad=True)
    context, code = torch.randn(4, 3), torch.randn(4, 3)
    gradients = []
    for same in (True, False):
        own = true_scores((context @ weight.T)[:, None], code[:, None])
        total = asynchronous(own, own[:, :, None], torch.full((4,), same))
        gradients.append(torch.autograd.grad(total, weight)[0])
    assert gradients[0].abs().max() > 0 and torch.equal(gradients[0], -gradients[1])


def test_coins_are_fair():
    torch.manual_seed(0)
    tossed = torch.stack([coins(40, torch.device("cpu")) for _ in range(200)]).double()
    assert tossed.mean().item() == pytest.approx(0.5, abs=0.02)
    assert tossed.mean(0).std() > 0  # not the same in every step


def test_joined_layers_learn_from_the_last_latent_and_others_do_not():
    def learning(clapp) -> set[str]:
        clapp.zero_grad()
        next(iter(clapp.latents(views()[0]).values())).sum().backward()
        return {name for name, weight in clapp.encoder.named_parameters() if weight.grad is not None}

    clapp = method()
    assert learning(clapp) == {"layers.5.weight", "layers.5.bias"}
    clapp.allow_end_to_end_gradient()
    assert learning(clapp) == set(dict(clapp.encoder.named_parameters()))


def both_kinds() -> None:
    """Seed so that six coins fall on both sides."""
    torch.manual_seed(0)
    assert 0 < coins(6, torch.device("cpu")).sum() < 6
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("variant", "options", "total"),
    [
        ("clapp", {}, 12),
        ("clapp", {"form": "synchronous"}, 12),
        ("clapp", {"asymmetric": True}, 24),
        ("hinge_cpc", {}, 2),
    ],
)
def test_without_predictions_each_loss_costs_two(variant, options, total):
    clapp = without_predictions(method(variant, **options))
    both_kinds()
    if options.get("asymmetric"):  # two rows of coins
        assert 0 < torch.stack([coins(6, torch.device("cpu")) for _ in range(2)])[1].sum() < 6
        torch.manual_seed(0)
    found, parts = clapp.loss(clapp.embed(views()))
    assert found.item() == total and parts["score"].item() == 0


@pytest.mark.parametrize(
    "options", [{}, {"asymmetric": True}, {"form": "synchronous", "negatives": 4, "places": "any"}]
)
def test_a_layers_loss_reaches_that_layer_and_its_maps_alone(options):
    clapp = method(**options)
    both_kinds()
    _, parts = clapp.loss(clapp.embed(views()))
    names, weights = zip(*clapp.named_parameters())
    for number in range(1, 7):
        gradients = torch.autograd.grad(parts[f"layer{number}"], weights, retain_graph=True, allow_unused=True)
        reached = {name for name, gradient in zip(names, gradients) if gradient is not None}
        own = {name for name in names if name.startswith((f"encoder.layers.{number - 1}.", f"maps.layer{number}_"))}
        assert reached == own


def test_hinge_cpc_reaches_all_layers_from_the_last():
    hinge_cpc = method("hinge_cpc")
    total, parts = hinge_cpc.loss(hinge_cpc.embed(views()))
    total.backward()
    assert set(parts) == {"layer6", "score"} and list(hinge_cpc.latents(views()[0])) == ["h"]
    assert all(layer.weight.grad.abs().max() > 0 for layer in hinge_cpc.encoder.layers)


def test_one_adam_over_all_layers_is_one_for_each():
    together = method(form="synchronous", places="same")
    apart = copy.deepcopy(together)
    one = torch.optim.Adam(together.parameters(), lr=1e-2)
    own = [
        torch.optim.Adam([*layer.parameters(), *apart.maps[f"layer{number}_ahead"].parameters()], lr=1e-2)
        for number, layer in enumerate(apart.encoder.layers, 1)
    ]
    for step in range(3):
        torch.manual_seed(step)
        one.zero_grad()
        together.loss(together.embed(views()))[0].backward()
        one.step()
        for number, optimizer in enumerate(own, 1):
            optimizer.zero_grad()
        torch.manual_seed(step)
        _, parts = apart.loss(apart.embed(views()))
        for number, optimizer in enumerate(own, 1):
            parts[f"layer{number}"].backward(retain_graph=True)
        for optimizer in own:
            optimizer.step()
    torch.testing.assert_close(list(together.parameters()), list(apart.parameters()))


def test_asymmetric_with_equal_maps_is_twice_symmetric():
    """Two images and the very place: there is one negative, so that both directions have the same."""
    settings = {"form": "synchronous", "places": "same", "negatives": 1}
    plain, twice = method(**settings), method(asymmetric=True, **settings)
    state = plain.state_dict()
    twice.load_state_dict({name: state[name.replace("_back", "_ahead")] for name in twice.state_dict()})
    totals = [clapp.loss(clapp.embed(views(2)))[0] for clapp in (plain, twice)]
    assert totals[1].item() == pytest.approx(2 * totals[0].item(), rel=1e-6)
    for total in totals:
        total.backward()
    for first, second in zip(plain.encoder.layers, twice.encoder.layers):  # each direction teaches one end of a pair
        torch.testing.assert_close(second.weight.grad, first.weight.grad, atol=1e-6, rtol=1e-4)
    for name, maps in twice.maps.items():
        other = plain.maps[name.replace("_back", "_ahead")]
        for first, second in zip(maps.maps, other.maps):
            torch.testing.assert_close(first.weight.grad, second.weight.grad, atol=1e-6, rtol=1e-4)


def met_their_own(slopes: torch.Tensor) -> torch.Tensor:
    """Of the gradient of predictions, where feature b marks image b: which images met their true patches, bool [6]."""
    own = slopes[range(6), :, range(6)]  # [6, P], of the feature that says that a code is the image's own
    pulled = (own < 0).any(1)
    assert torch.equal((own < 0).all(1), pulled) and not own[~pulled].any()
    assert torch.equal((slopes > 0).flatten(1).any(1), ~pulled)
    return pulled


def test_the_two_directions_toss_their_own_coins_and_share_no_weight():
    """Each code says whose it is, so that a prediction's slope tells whether it met its own image or another.

    A direction's coins are the same in all layers; the other direction's agree with them half of the time.
    """
    clapp, places = method(asymmetric=True, channels=8), sum(places_ahead(5))
    tossed = {"ahead": [], "back": []}
    for seed in range(20):
        given = {}
        for name, width in zip(clapp.names, clapp.encoder.widths):
            given[name] = torch.eye(6, width).repeat(1, 49)
            given |= {f"{name}_{way}": torch.zeros(6, places * width, requires_grad=True) for way in tossed}
        torch.manual_seed(seed)
        clapp.loss(given)[0].backward()
        for way, coins_of in tossed.items():
            first, *others = [met_their_own(given[f"{name}_{way}"].grad.view(6, places, -1)) for name in clapp.names]
            assert all(torch.equal(first, other) for other in others)
            coins_of.append(first)
    ahead, back = map(torch.stack, tossed.values())
    assert 0.3 < (ahead == back).float().mean() < 0.7
    names = {name for name, _ in clapp.named_parameters()}
    assert {name.replace("_ahead", "_back") for name in names if "_ahead" in name} <= names


def test_a_loss_by_loops_from_images_to_total():
    """One other image at the very place, each image's coin for all distances and layers, means over places."""
    clapp = method(furthest=2)
    both_kinds()
    embedded = clapp.embed(views())
    total, parts = clapp.loss(embedded)
    torch.manual_seed(0)
    same = coins(6, torch.device("cpu")).tolist()
    expected = 0.0
    for number, width in enumerate(clapp.encoder.widths, 1):
        codes = embedded[f"layer{number}"].detach().view(6, 7, 7, width)
        for k in (1, 2):
            weight = clapp.maps[f"layer{number}_ahead"].maps[k - 1].weight.detach()
            places = [(row, column) for row in range(7 - k - 1) for column in range(7)]
            other = same_place(torch.zeros(6, len(places), 1), 1)[:, 0, 0] // len(places)
            values = {True: [], False: []}
            for b in range(6):
                of = b if same[b] else other[b]
                for row, column in places:
                    score = (codes[of, row + k + 1, column] @ weight @ codes[b, row, column]).item()
                    values[same[b]].append(hinge(1 - score if same[b] else 1 + score))
            expected += (mean(values[True]) + mean(values[False])) / 2
    assert total.item() == pytest.approx(expected, rel=1e-4)
    assert total.item() == pytest.approx(sum(parts[f"layer{number}"].item() for number in range(1, 7)), rel=1e-6)


def test_hinge_cpc_by_loops_from_codes_to_total(monkeypatch):
    """Sixteen patches at any place of other images beside the true one, means over places and distances."""
    hinge_cpc, codes = method("hinge_cpc", furthest=2), grid()
    monkeypatch.setattr(hinge_cpc.encoder, "forward", lambda images: [codes])
    embedded = hinge_cpc.embed(views())
    torch.manual_seed(0)
    total, parts = hinge_cpc.loss(embedded)
    torch.manual_seed(0)
    coins(6, torch.device("cpu"))  # tossed in this form too
    found = scores_by_loops(codes, hinge_cpc.maps["layer6_ahead"].maps, 16)
    expected = [
        mean([hinge(1 - own) for own, _ in scores])
        + mean([hinge(1 + score) for _, others in scores for score in others])
        for scores in found
    ]
    assert total.item() == pytest.approx(mean(expected), rel=1e-5)
    sizes = [mean([abs(own) for own, _ in scores]) for scores in found]
    assert parts["score"].item() == pytest.approx(mean(sizes), rel=1e-4) and min(sizes) > 0.5  # the scores differ


@pytest.mark.parametrize("variant", ["clapp", "hinge_cpc"])
def test_a_distance_beyond_the_grid_is_refused(variant):
    with pytest.raises(UserError, match=f"variants.{variant}.furthest is 6; allowed: a whole number .* at most 5"):
        method(variant, furthest=6)


def test_evaluation_sees_every_layer_the_last_first():
    latents = method().latents(views()[0])
    assert {name: rows.shape[1] for name, rows in latents.items()} == {
        "layer6": 32,
        "layer1": 4,
        "layer2": 8,
        "layer3": 8,
        "layer4": 16,
        "layer5": 32,
    }
    assert next(iter(latents)) == "layer6"


def test_false_scores_are_those_of_the_patches_drawn():
    stream = torch.Generator().manual_seed(0)
    predicted, codes = (torch.randn(3, 2, 4, generator=stream) for _ in range(2))
    draws = torch.tensor([[[2, 5], [4, 4]], [[0, 1], [5, 0]], [[1, 3], [2, 0]]])
    found = false_scores(predicted, codes, draws)
    for b, p, n in torch.cartesian_prod(*map(torch.arange, draws.shape)).tolist():
        image, place = divmod(draws[b, p, n].item(), 2)
        torch.testing.assert_close(found[b, p, n], predicted[b, p] @ codes[image, place])


@pytest.mark.parametrize("variant", ["clapp", "hinge_cpc"])
def test_it_learns_that_patches_of_an_image_belong_together(variant):
    """Images of one brightness each: whoever knows a patch knows the others."""
    clapp = method(variant)
    learning = torch.optim.Adam(clapp.parameters(), lr=3e-3)
    stream = torch.Generator().manual_seed(3)
    losses = []
    for _ in range(80):
        images = torch.randn(16, 1, 1, 1, generator=stream).expand(16, 3, 16, 16)
        total, parts = clapp.loss(clapp.embed([images]))
        learning.zero_grad()
        total.backward()
        learning.step()
        losses.append(parts["layer6"].item())
    assert sum(losses[-10:]) / 10 < 1.5, losses
