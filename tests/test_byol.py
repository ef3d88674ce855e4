"""BYOL (docs/methods.md, 7): closed-form values, a slow twin, another implementation, what may not have a gradient."""

import math

import pytest
import torch
from lib.losses.byol import direction_distance
from lightly.loss import NegativeCosineSimilarity
from torch import nn
from torch.nn.functional import normalize

from lib.core.health import spread
from lib.core.trainer import Pretrainer
from lib.methods import build_method
from lib.methods.byol import momentum
from lib.params.pretraining import pretraining_params
from tests.examples import CPU, images, params_file, pretraining
from tests.test_momentum import run_of, steps


def pair(count: int = 9, width: int = 6, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    stream = torch.Generator().manual_seed(0)
    first, second = 3 * torch.randn(2, count, width, generator=stream, dtype=dtype) + 0.5
    return first, second


def by_loops(predictions: torch.Tensor, targets: torch.Tensor) -> float:
    total = 0.0
    for found, wanted in zip(predictions.double().tolist(), targets.double().tolist()):
        lengths = [math.sqrt(sum(x * x for x in row)) for row in (found, wanted)]
        total += sum((x / lengths[0] - y / lengths[1]) ** 2 for x, y in zip(found, wanted))
    return total / len(predictions)


def built():
    torch.manual_seed(0)
    return build_method(pretraining("byol")).train()


def views(count: int = 8) -> list[torch.Tensor]:
    stream = torch.Generator().manual_seed(1)
    return [torch.randn(count, 3, 16, 16, generator=stream) for _ in range(2)]


@pytest.mark.parametrize(("count", "width"), [(9, 6), (1, 2), (3, 40)])
def test_it_is_what_its_formula_says(count, width):
    first, second = pair(count, width)
    assert direction_distance(first, second).item() == pytest.approx(by_loops(first, second), rel=1e-5)
    cosines = (normalize(first, dim=1) * normalize(second, dim=1)).sum(1)
    assert direction_distance(first, second).item() == pytest.approx(2 - 2 * cosines.mean().item(), rel=1e-4)


@pytest.mark.parametrize(
    ("targets", "value"), [(5 * torch.eye(4), 0.0), (torch.eye(4).roll(1, 0), 2.0), (-0.1 * torch.eye(4), 4.0)]
)
def test_parallel_orthogonal_and_opposed_rows(targets, value):
    assert direction_distance(torch.eye(4), targets).item() == pytest.approx(value, abs=1e-6)


def test_lengths_do_not_matter():
    first, second = pair()
    factors = torch.linspace(0.01, 100, len(first))[:, None]
    expected = direction_distance(first, second)
    torch.testing.assert_close(direction_distance(factors * first, second), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(direction_distance(first, factors * second), expected, rtol=1e-5, atol=1e-6)


def test_its_gradient_is_the_numerical_one_and_the_target_has_none():
    first, second = (rows.requires_grad_() for rows in pair(5, 4, torch.float64))
    assert torch.autograd.gradcheck(lambda rows: direction_distance(rows, second), (first,))
    direction_distance(first, second).backward()
    assert first.grad.abs().max() > 0 and second.grad is None


def test_it_is_another_implementations():
    theirs = NegativeCosineSimilarity()
    first, second = pair()
    torch.testing.assert_close(direction_distance(first, second), 2 + 2 * theirs(first, second), rtol=1e-5, atol=1e-6)


def test_rows_of_zeros_have_a_finite_gradient():
    first = torch.zeros(3, 4, requires_grad=True)
    direction_distance(first, torch.ones(3, 4)).backward()
    assert first.grad.isfinite().all()


def test_each_view_predicts_the_copy_of_the_other():
    first, second = pair()
    total, parts = built().loss({"p_a": first, "t_b": first, "p_b": second, "t_a": second})
    assert total.item() == pytest.approx(0, abs=1e-6)
    total, parts = built().loss({"p_a": first, "t_b": -first, "p_b": second, "t_a": second})
    assert parts["distance_ab"].item() == pytest.approx(4, abs=1e-5)
    assert parts["distance_ba"].item() == pytest.approx(0, abs=1e-6)
    assert total.item() == pytest.approx(4, abs=1e-5)
    assert built().loss({"p_a": first, "t_b": second, "p_b": second, "t_a": first})[0].item() > 0.1


@pytest.mark.parametrize(("head", "width"), [("projector", 512), ("momentum_projector", 512), ("predictor", 256)])
def test_projector_and_predictor_have_a_hidden_layer_with_batchnorm(head, width):
    layers = built().get_submodule(head)
    assert [type(layer) for layer in layers] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert [layer.weight.shape for layer in layers[::3]] == [(1024, width), (256, 1024)]
    assert [layer.bias is not None for layer in layers[::3]] == [False, True]  # BatchNorm has the hidden layer's
    assert layers[1].num_features == 1024 and layers[1].affine


def test_the_predictor_is_on_the_learning_side_alone():
    method = built()
    pictures = views()
    before = method.embed(pictures)
    with torch.no_grad():
        for weight in method.predictor.parameters():
            weight.mul_(-1.5).add_(0.1)
    after = method.embed(pictures)
    for side in "ab":
        assert torch.equal(before[f"t_{side}"], after[f"t_{side}"])
        assert (before[f"p_{side}"] - after[f"p_{side}"]).abs().max() > 1e-3
        assert before[f"p_{side}"].requires_grad and not before[f"t_{side}"].requires_grad


def test_predictions_and_targets_are_of_the_view_that_they_are_named_after():
    method = built().eval()
    first, second = views()
    found = method.embed([first, second])
    for side, view in (("a", first), ("b", second)):
        torch.testing.assert_close(found[f"t_{side}"], method.momentum_projection(view))
        torch.testing.assert_close(found[f"p_{side}"], method.predictor(method.projector(method.latents(view)["h"])))


@pytest.mark.parametrize("start", [0.9, 0.99, 1.0])
def test_the_momentum_rises_along_half_a_cosine_to_one(start):
    assert momentum(0, 40, start) == pytest.approx(start, abs=1e-12)
    assert momentum(20, 40, start) == pytest.approx((1 + start) / 2, abs=1e-12)
    assert momentum(40, 40, start) == 1
    values = [momentum(step, 40, start) for step in range(41)]
    assert values == sorted(values)


def test_training_uses_the_momentum_of_its_step(monkeypatch):
    run, used = run_of("byol"), []
    monkeypatch.setattr(type(run.method), "follow", lambda self, value: used.append(value))
    steps(run, range(8))
    assert used == [momentum(step, 8, 0.99) for step in range(8)]


def test_it_can_learn_by_an_optimiser_of_its_own():
    """Two steps of LARS with solo-learn's trust, against its formula, where the other variants have Adam."""
    raw = params_file()
    raw["variants"]["byol"]["optimizer"] = {"name": "lars", "lr": 0.3, "weight_decay": 1e-5, "trust": 0.02}
    params = pretraining_params(raw, "byol")
    assert pretraining_params(raw, "moco").optimizer.name == "adam"
    torch.manual_seed(0)
    run, slopes = Pretrainer(build_method(params), images(), params, CPU), []
    weight = run.method.predictor[0].weight
    weight.register_post_accumulate_grad_hook(lambda it: slopes.append(it.grad.clone()))
    expected, moved = weight.detach().clone(), torch.zeros_like(weight)
    for step in range(2):
        steps(run, range(step, step + 1))
        slope = slopes[step] + 1e-5 * expected
        moved = 0.9 * moved + 0.02 * expected.norm() / slope.norm() * slope
        expected = expected - 0.3 * moved
        torch.testing.assert_close(weight.detach(), expected)


def test_the_spread_of_unit_rows_is_their_deviation_in_each_unit_times_the_root_of_the_width():
    """What is watched for collapse, 1 / sqrt(D) in each unit of the scaled targets, is a spread of one."""
    rows = normalize(torch.randn(200, 16, generator=torch.Generator().manual_seed(2)), dim=1)
    deviation = rows.var(0, correction=0).mean().sqrt().item()
    assert spread(rows).item() == pytest.approx(deviation * 16**0.5, rel=1e-5)
    assert deviation == pytest.approx(1 / 16**0.5, rel=0.05)
