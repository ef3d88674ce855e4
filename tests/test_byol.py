"""BYOL (docs/methods.md, 7): closed-form values, a slow twin, another implementation, what may not have a gradient."""

import math
import re
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from lightly.loss import NegativeCosineSimilarity
from torch import nn

from lib.methods.byol import direction_distance, momentum_at
from lib.params.experiment import parse_experiment
from lib.params.pretraining import Augment, Pretraining
from lib.params.spec import read_yaml
from lib.resolve import resolve
from tests.examples import ROOT, Training, built, normal, raw_params, trainer, views


def pair(count: int = 9, width: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    first, second = 3 * normal(2, count, width) + 0.5
    return first, second


def by_loops(predictions: torch.Tensor, targets: torch.Tensor) -> float:
    total = 0.0
    for prediction, target in zip(predictions.double().tolist(), targets.double().tolist()):
        lengths = [math.sqrt(sum(x * x for x in row)) for row in (prediction, target)]
        total += sum((x / lengths[0] - y / lengths[1]) ** 2 for x, y in zip(prediction, target))
    return total / len(predictions)


@pytest.mark.parametrize(("count", "width"), [(9, 6), (1, 2), (3, 40)])
def test_it_is_what_its_formula_and_another_implementation_say(count, width):
    first, second = pair(count, width)
    value = direction_distance(first, second)
    assert value.item() == pytest.approx(by_loops(first, second), rel=1e-5)
    torch.testing.assert_close(value, 2 + 2 * NegativeCosineSimilarity()(first, second), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("targets", "value"), [(5 * torch.eye(4), 0.0), (torch.eye(4).roll(1, 0), 2.0), (-0.1 * torch.eye(4), 4.0)]
)
def test_parallel_orthogonal_and_opposed_embeddings(targets, value):
    assert direction_distance(torch.eye(4), targets).item() == pytest.approx(value, abs=1e-6)


def test_targets_get_no_gradient_and_a_length_of_zero_has_a_finite_one():
    first, second = (rows.requires_grad_() for rows in pair())
    direction_distance(first, second).backward()
    assert first.grad.abs().max() > 0 and second.grad is None
    nothing = torch.zeros(3, 4, requires_grad=True)
    direction_distance(nothing, torch.ones(3, 4)).backward()
    assert nothing.grad.isfinite().all()


def test_each_view_predicts_the_target_of_the_other():
    method, (first, second) = built("byol"), pair()
    assert method.loss({"p_a": first, "t_b": first, "p_b": second, "t_a": second})[0].item() < 1e-6
    total, parts = method.loss({"p_a": first, "t_b": -first, "p_b": second, "t_a": second})
    assert [total.item(), *(part.item() for part in parts.values())] == pytest.approx([4, 4, 0], abs=1e-5)
    assert list(parts) == ["distance_ab", "distance_ba"]
    assert method.loss({"p_a": first, "t_b": second, "p_b": second, "t_a": first})[0].item() > 0.1


@pytest.mark.parametrize(("head", "width"), [("projector", 512), ("momentum_projector", 512), ("predictor", 256)])
def test_projector_and_predictor_have_a_hidden_layer_with_batchnorm(head, width):
    layers = built("byol").get_submodule(head)
    assert [type(layer) for layer in layers] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert [layer.weight.shape for layer in layers[::3]] == [(128, width), (256, 128)]
    assert [layer.bias is not None for layer in layers[::3]] == [False, True]  # BatchNorm has the hidden layer's


def test_predictions_and_targets_are_of_their_view_and_the_predictor_is_on_the_online_side_alone():
    method, images = built("byol").eval(), views()
    embeddings = method.embed(images)
    assert embeddings.keys() == {"p_a", "p_b", "t_a", "t_b"}
    for side, view in zip("ab", images):
        torch.testing.assert_close(embeddings[f"t_{side}"], method.momentum_projection(view))
        prediction = method.predictor(method.projector(method.latents(view)["h"]))
        torch.testing.assert_close(embeddings[f"p_{side}"], prediction)
        assert embeddings[f"p_{side}"].requires_grad and not embeddings[f"t_{side}"].requires_grad


@pytest.mark.parametrize(("start", "end"), [(0.9, 1.0), (0.99, 0.99), (0.9, 0.999), (0.0, 1.0)])
def test_the_momentum_rises_along_half_a_cosine_from_its_start_to_its_end(start, end):
    values = [momentum_at(step, 40, start, end) for step in range(41)]
    assert values == sorted(values) and momentum_at(40, 40, start) == 1
    assert [values[step] for step in (0, 20, 40)] == pytest.approx([start, (start + end) / 2, end], abs=1e-12)
    if start == end:
        assert set(values) == {start}


@pytest.mark.parametrize(("name", "trust"), [("sgd", 0.001), ("lars", 0.5)])
def test_the_predictor_moves_by_its_multiple_of_the_step_and_nothing_else_moves_otherwise(name, trust):
    moves = {}
    for factor in (1.0, 4.0):
        rule = {"name": name, "lr": 0.01, "trust": trust}
        training = trainer("byol", optimizer=rule, predictor_lr=factor)
        before = {each: weight.detach().clone() for each, weight in training.method.named_parameters()}
        training.step(0, 0, training.order(0)[0])
        moves[factor] = {each: weight.detach() - before[each] for each, weight in training.method.named_parameters()}
    for each, move in moves[1.0].items():
        factor = 4 if each.startswith("predictor.") else 1
        torch.testing.assert_close(moves[4.0][each], factor * move, rtol=1e-3, atol=1e-6)
    assert moves[1.0]["predictor.0.weight"].abs().max() > 1e-5


def test_one_rate_is_one_group_and_a_rate_of_the_predictors_own_is_kept_through_a_resume():
    assert [group["factor"] for group in trainer("byol").optimizer.param_groups] == [1.0]
    training, again = (trainer("byol", predictor_lr=4.0) for _ in range(2))
    training.step(0, 0, training.order(0)[0])
    again.restore(deepcopy(training.state()))
    for each in (training, again):
        each.step(0, 1, each.order(0)[1])
        assert [group["lr"] for group in each.optimizer.param_groups] == pytest.approx([0.001, 0.004])
    torch.testing.assert_close(again.method.state_dict(), training.method.state_dict(), rtol=0, atol=0)


def test_solo_learns_recipe_resolves_as_the_page_has_it():
    (block,) = re.findall(r"```yaml\n(byol:.*?)```", (ROOT / "docs/methods.md").read_text(), re.DOTALL)
    stored = resolve(parse_experiment(raw_params(variants=read_yaml(block, "docs"), epochs=1000)))["byol"]
    params = Pretraining.from_json(stored)
    first = Augment(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, jitter=0.8, grayscale=0.2, flip=0.5)
    assert params.recipes == (first, replace(first, solarize=0.2))
    assert (params.options["momentum"], params.options["momentum_end"]) == (0.99, 1.0)


def test_training_uses_the_momentum_of_its_step(monkeypatch):
    training, used = Training(built("byol")), []
    monkeypatch.setattr(type(training.method), "update_momentum", lambda self, momentum: used.append(momentum))
    for _ in range(4):
        training.step()
    assert used == [momentum_at(step, 8, 0.99) for step in range(4)]
    training, used[:] = Training(built("byol", momentum=0.9, momentum_end=0.9)), []
    training.step()
    assert used == [0.9]
