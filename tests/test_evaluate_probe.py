"""The linear probe against torch's own optimizer, scikit-learn and known answers."""

import math

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch.nn import functional

from lib.evaluate import probe as probe_module
from lib.evaluate.probe import GRID, Setting, fit_grid, fit_probe
from lib.evaluate.scores import accuracy
from lib.runtime.seeds import generator


def split(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.arange(count)
    return rows[rows % 10 != 0], rows[rows % 10 == 0]


def gaussians(count: int, classes: int = 4, width: int = 12, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit gaussians around one centre for each class; the best classifier is linear."""
    centres = 1.2 * torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=draw)
    return centres[labels] + torch.randn(count, width, generator=draw), labels


def slow_fit(inputs, labels, classes, setting, epochs, batch_size, seed):
    """One setting with torch's Adam and autograd."""
    weight = torch.zeros(inputs.shape[1], classes, requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=setting.lr)
    total = epochs * math.ceil(len(inputs) / batch_size)
    step = 0
    for epoch in range(epochs):
        for rows in torch.randperm(len(inputs), generator=generator(seed, "probe", epoch)).split(batch_size):
            optimizer.param_groups[0]["lr"] = setting.lr * 0.5 * (1 + math.cos(math.pi * step / total))
            loss = functional.cross_entropy(inputs[rows] @ weight + bias, labels[rows])
            loss = loss + setting.weight_decay / 2 * weight.square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    return weight.detach(), bias.detach()


def test_each_setting_of_the_grid_equals_a_fit_of_its_own():
    inputs, labels = gaussians(110)
    grid = [Setting(1e-3, 0.0), Setting(1e-2, 0.1), Setting(0.1, 1e-3)]
    weights, biases = fit_grid(inputs, labels, 4, grid, epochs=3, batch_size=32, seed=5)
    for setting, weight, bias in zip(grid, weights, biases):
        slow_weight, slow_bias = slow_fit(inputs, labels, 4, setting, 3, 32, 5)
        torch.testing.assert_close(weight, slow_weight, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(bias, slow_bias, rtol=1e-3, atol=1e-5)


def test_gaussians_reach_the_best_possible_accuracy():
    features, labels = gaussians(3000)
    test, answers = gaussians(4000, seed=1)
    centres = 1.2 * torch.randn(4, 12, generator=torch.Generator().manual_seed(99))
    best = accuracy(-torch.cdist(test, centres), answers)
    probe = fit_probe(features, labels, *split(3000), 4, epochs=20, batch_size=128, seed=0)
    assert accuracy(probe.scores(test), answers) == pytest.approx(best, abs=1.0)


def test_digits_agree_with_scikit_learn_within_a_point():
    pixels, labels = (torch.tensor(values) for values in load_digits(return_X_y=True))
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    pixels, labels = pixels[order].float(), labels[order]
    train, test = slice(0, 1000), slice(1000, None)
    probe = fit_probe(pixels[train], labels[train], *split(1000), 10, epochs=50, batch_size=256, seed=0)
    inverse = 1 / (1000 * probe.setting.weight_decay)
    judge = LogisticRegression(C=inverse, max_iter=2000).fit((pixels[train] - probe.mean) / probe.std, labels[train])
    expected = 100 * judge.score((pixels[test] - probe.mean) / probe.std, labels[test])
    assert accuracy(probe.scores(pixels[test]), labels[test]) == pytest.approx(expected, abs=1.0)
    assert expected > 93


def test_validation_alone_chooses_and_ties_go_to_the_stronger_weight_decay():
    features, labels = torch.eye(3).repeat(40, 1), torch.arange(3).repeat(40)
    probe = fit_probe(features, labels, *split(120), 3, epochs=30, batch_size=32, seed=0)
    assert probe.validation_top1 == 100.0
    assert probe.setting.weight_decay == max(setting.weight_decay for setting in GRID)


def test_features_are_standardised_by_the_images_that_are_fitted_alone(monkeypatch):
    """First by the fitting split, from which the validation images are far away; then by both together."""
    inputs = []

    def spy(rows, *rest, **settings):
        inputs.append(rows)
        return fit_grid(rows, *rest, **settings)

    monkeypatch.setattr(probe_module, "fit_grid", spy)
    features, labels = gaussians(300)
    fitting, validation = split(300)
    features[validation] += 100
    probe = fit_probe(features, labels, fitting, validation, 4, epochs=1, batch_size=64, seed=0)
    assert [len(rows) for rows in inputs] == [270, 300]
    for rows in inputs:
        torch.testing.assert_close(rows.mean(0), torch.zeros(12), rtol=0, atol=1e-4)
        torch.testing.assert_close(rows.std(0, correction=0), torch.ones(12), rtol=0, atol=1e-4)
    torch.testing.assert_close(probe.mean, features.mean(0))
    torch.testing.assert_close(probe.std, features.std(0, correction=0))


def test_the_scale_of_a_feature_does_not_matter():
    features, labels = gaussians(300)
    scaled = features * torch.logspace(-3, 3, 12) + 5
    plain, other = (fit_probe(f, labels, *split(300), 4, epochs=5, batch_size=64, seed=0) for f in (features, scaled))
    torch.testing.assert_close(plain.scores(features), other.scores(scaled), rtol=1e-2, atol=1e-2)


def test_folded_weights_give_the_same_scores():
    features, labels = gaussians(200)
    features = torch.cat([3 * features + 1, torch.full((200, 1), 2.0)], dim=1)  # the last feature is constant
    probe = fit_probe(features, labels, *split(200), 4, epochs=3, batch_size=64, seed=0)
    weight, bias = probe.folded()
    torch.testing.assert_close(features @ weight + bias, probe.scores(features), rtol=1e-4, atol=1e-4)


def test_one_seed_one_result():
    features, labels = gaussians(200)
    first, again, other = (
        fit_probe(features, labels, *split(200), 4, epochs=3, batch_size=64, seed=seed) for seed in (0, 0, 1)
    )
    assert torch.equal(first.weight, again.weight) and torch.equal(first.bias, again.bias)
    assert not torch.equal(first.weight, other.weight)


def test_classes_above_ten_and_a_batch_larger_than_the_data():
    features, labels = torch.eye(12).repeat(20, 1), torch.arange(12).repeat(20)
    probe = fit_probe(features, labels, *split(240), 12, epochs=60, batch_size=1000, seed=0)
    assert accuracy(probe.scores(features), labels) == 100.0
