"""The momentum encoder of BYOL and MoCo (docs/methods.md, 7 and 8): how it moves, and what it must not do."""

import pytest
import torch
from torch import nn

from lib.methods import method_class
from lib.methods.base import MomentumMethod, update_ema
from tests.examples import VARIANTS, Training, built, views

MOMENTUM = [name for name in VARIANTS if issubclass(method_class(VARIANTS[name]["method"]), MomentumMethod)]
PAIRS = (("momentum_encoder", "encoder"), ("momentum_projector", "projector"))


def parameters(module: nn.Module) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in module.parameters()]


def equal(first, second) -> bool:
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second))


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.99, 1.0])
def test_towards_weights_at_rest_parameters_alone_move_by_a_power_of_the_momentum(momentum):
    torch.manual_seed(0)
    average, online = (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double() for _ in range(2))
    online(torch.randn(8, 3, dtype=torch.float64))
    start, goal = parameters(average), parameters(online)
    for _ in range(50):
        update_ema(average, online, momentum)
    expected = [there + momentum**50 * (here - there) for here, there in zip(start, goal)]
    exact = 0 if momentum in (0, 1) else 1e-12  # it copies, or rests
    torch.testing.assert_close(parameters(average), expected, atol=exact, rtol=0)
    assert equal(parameters(online), goal) and not equal(start, goal)
    assert average[1].num_batches_tracked == 0 and torch.equal(average[1].running_mean, torch.zeros(4).double())


@pytest.mark.parametrize("variant", MOMENTUM)
def test_it_starts_equal_and_is_without_gradient_a_mean_of_what_it_was_and_what_the_optimizer_left(variant):
    method = built(variant, momentum=0.75)
    places = [weight.data_ptr() for weight in method.parameters()]
    assert len(set(places)) == len(places), "each has storage of its own"
    before = [parameters(method.get_submodule(average)) for average, _ in PAIRS]
    for start, (_, online) in zip(before, PAIRS):
        assert equal(start, parameters(method.get_submodule(online)))
    frozen = {name.split(".")[0] for name, weight in method.named_parameters() if not weight.requires_grad}
    assert frozen == {average for average, _ in PAIRS}
    Training(method).step()
    for start, (average, online) in zip(before, PAIRS):
        learned = parameters(method.get_submodule(online))
        assert not equal(start, learned)
        expected = [0.75 * old + 0.25 * new for old, new in zip(start, learned)]
        torch.testing.assert_close(parameters(method.get_submodule(average)), expected)


@pytest.mark.parametrize("variant", MOMENTUM)
def test_in_training_it_normalizes_a_batch_by_that_batch(variant):
    """At the start both sides are equal, so that in train mode they give the same of the same images."""
    method = built(variant)
    images = 3 + views()[0]
    first = method.momentum_projection(images)
    assert torch.equal(first, method.projector(method.latents(images)["h"])) and not first.requires_grad
    norms = [norm for average, _ in PAIRS for norm in method.get_submodule(average).modules()]
    assert {norm.num_batches_tracked.item() for norm in norms if hasattr(norm, "num_batches_tracked")} == {1}
    method.momentum_encoder.eval()
    assert (method.momentum_projection(images) - first).abs().max() > 1e-3


@pytest.mark.parametrize("variant", MOMENTUM)
def test_evaluation_sees_the_online_side(variant):
    method, images = built(variant).eval(), views(4)[0]
    before = {**method.latents(images), **method.project(method.latents(images))}
    with torch.no_grad():
        for average, _ in PAIRS:
            for weight in method.get_submodule(average).parameters():
                weight.zero_()
    after = {**method.latents(images), **method.project(method.latents(images))}
    assert list(before) == ["h", "z"] and all(torch.equal(rows, after[name]) for name, rows in before.items())
