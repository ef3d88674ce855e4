"""Hinge-CPC and CLAPP (docs/methods.md, 10): the hinge, layers that learn alone, what is published."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lib.methods import build_method, typed_options
from lib.methods.cpc import CPC, CPCOptions, hinge, true_logits
from lib.params.experiment import read_experiment
from tests.examples import normal
from tests.patches import CLAPP, CLAPP_S, HINGE_CPC, mean, method, relu, views

ROOT = Path(__file__).parents[1]


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


# layers that learn alone, and what is published


@pytest.mark.parametrize("variant", ["clapp", "clapp_s", "infomax"])
def test_a_layers_loss_reaches_that_layer_and_its_maps_alone(variant):
    clapp = method(variant)
    torch.manual_seed(0)
    _, parts = clapp.loss(clapp.embed(views(20)))
    names, weights = zip(*clapp.named_parameters())
    for number in range(1, 7):
        gradients = torch.autograd.grad(parts[f"layer{number}"], weights, retain_graph=True, allow_unused=True)
        reached = {name for name, gradient in zip(names, gradients) if gradient is not None}
        own = {name for name in names if name.startswith((f"encoder.layers.{number - 1}.", f"maps.layer{number}_"))}
        assert reached == own


def test_asymmetric_with_equal_maps_is_twice_symmetric():
    """Two images and the very place: there is one negative, so that both directions have the same."""
    plain, twice = (method("clapp", form="synchronous", asymmetric=each) for each in (False, True))
    state = plain.state_dict()
    twice.load_state_dict({name: state[name.replace("_back", "_ahead")] for name in twice.state_dict()})
    totals = [clapp.loss(clapp.embed(views(2)))[0] for clapp in (plain, twice)]
    assert totals[1].item() == pytest.approx(2 * totals[0].item(), rel=1e-6)
    for total in totals:
        total.backward()
    others = dict(plain.named_parameters())
    for name, weight in twice.named_parameters():  # each direction teaches one end of a pair
        torch.testing.assert_close(weight.grad, others[name.replace("_back", "_ahead")].grad, atol=1e-6, rtol=1e-4)


def test_coins_are_fair_and_each_layer_and_each_direction_tosses_its_own(monkeypatch):
    clapp, tossed = method("clapp"), []
    monkeypatch.setattr("lib.methods.cpc.hinge", lambda *given: tossed.append(given[3]) or hinge(*given))
    embeddings = clapp.embed(views())
    torch.manual_seed(0)
    for _ in range(60):
        clapp.loss(embeddings)
    coins = torch.stack(tossed).view(60, 12, 6).double()  # steps, layers with two directions each, images
    assert 0.48 < coins.mean() < 0.52
    correlation = torch.corrcoef(coins.transpose(0, 1).flatten(1))
    assert (correlation - torch.eye(12)).abs().max() < 4 / 360**0.5


def test_joined_layers_learn_from_the_last_latent_and_others_do_not():
    def learning(clapp: CPC) -> set[str]:
        clapp.zero_grad()
        clapp.latents(views()[0])["layer6"].sum().backward()
        return {name for name, weight in clapp.encoder.named_parameters() if weight.grad is not None}

    clapp = method("clapp")
    assert learning(clapp) == {"layers.5.weight", "layers.5.bias"}
    clapp.allow_end_to_end_gradient()
    assert learning(clapp) == set(dict(clapp.encoder.named_parameters()))


def test_the_preset_has_the_published_configurations_so_that_clapp_differs_from_each_by_one_thing():
    """From hinge_cpc by locality, from clapp_s by the form with its negatives, weights and epochs; their floor is one
    of them before training."""
    variants = read_experiment(ROOT / "presets/all.yaml").variants
    for name, published in (("hinge_cpc", HINGE_CPC), ("clapp", CLAPP), ("clapp_s", CLAPP_S)):
        assert typed_options(variants[name]) == CPCOptions(**published, channels=32), name
        epochs = 6 if name == "clapp_s" else 12  # of 300 and 600: an asynchronous step has half of the hinges
        same = {"variant": "cpc", "options": variants["cpc"].options}
        assert variants[name].epochs == epochs and replace(variants[name], **same, epochs=12) == variants["cpc"]
    torch.manual_seed(0)
    floor = build_method(variants["untrained_vgg6"]).encoder.state_dict()
    for name in ("cpc", "hinge_cpc", "clapp", "clapp_s"):
        torch.manual_seed(0)
        torch.testing.assert_close(build_method(variants[name]).encoder.state_dict(), floor, rtol=0, atol=0)
