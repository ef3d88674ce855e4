"""The linear probe against scikit-learn, against loops, and against answers that are known."""

import math

import numpy
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from lib.evaluate import probe as probe_module
from lib.evaluate.codes import k_winners
from lib.evaluate.probe import STRENGTHS, Probe, fit_probe, objective, solve
from lib.evaluate.scores import accuracy


def split(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.arange(count)
    return rows[rows % 10 != 0], rows[rows % 10 == 0]


def gaussians(count: int, classes: int = 4, width: int = 12, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit gaussians around one center for each class; the best classifier is linear."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=draw)
    return centers(classes, width)[labels] + torch.randn(count, width, generator=draw), labels


def centers(classes: int = 4, width: int = 12) -> torch.Tensor:
    return 1.2 * torch.randn(classes, width, generator=torch.Generator().manual_seed(99))


def fit(features: torch.Tensor, labels: torch.Tensor, classes: int = 4, strengths=(0.1, 0.01)) -> Probe:
    return fit_probe(features, labels, *split(len(features)), classes, strengths=strengths)


def covariance(inputs: torch.Tensor) -> torch.Tensor:
    return inputs.double().T @ inputs.double() / len(inputs)


def digits(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels [1797, 64], or 100 random ReLU features of them; labels."""
    pixels, labels = (torch.tensor(values) for values in load_digits(return_X_y=True))
    draw = torch.Generator().manual_seed(0)
    hidden = pixels.float() / 16 @ torch.randn(64, 100, generator=draw) / 4 + 0.3 * torch.randn(100, generator=draw)
    return (pixels.float() if kind == "pixels" else hidden.relu()), labels


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 6))])
@pytest.mark.parametrize("kind", ["pixels", "random ReLU features"])
def test_digits_have_scikit_learns_optimum_and_accuracy(kind, seed):
    """The same L2 strengths: 0.1 points of 797 test images are less than one image."""
    features, labels = digits(kind)
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))
    train, test = order[:1000], order[1000:]
    for strength in STRENGTHS[3:8:2]:  # 0.046 to 0.000036
        probe = fit_probe(features, labels, train[:900], train[900:], 10, strengths=[strength])
        inputs, queries = (((features[rows] - probe.mean) / probe.std).double().numpy() for rows in (train, test))
        inputs[:, probe.std.isinf()] = queries[:, probe.std.isinf()] = 0
        judge = LogisticRegression(C=1 / (1000 * strength), max_iter=10_000, tol=1e-7).fit(inputs, labels[train])
        best = objective(
            torch.tensor(inputs), labels[train], torch.tensor(judge.coef_), torch.tensor(judge.intercept_), strength
        )
        ours = objective(torch.tensor(inputs), labels[train], probe.weight.T.double(), probe.bias.double(), strength)
        assert ours.item() == pytest.approx(best.item(), rel=1e-5)
        expected = 100 * judge.score(queries, labels[test])
        assert accuracy(probe.logits(features[test]), labels[test]) == pytest.approx(expected, abs=0.1)


def test_codes_as_they_are_have_scikit_learns_optimum_and_accuracy():
    """Neither centered nor scaled: the same optimum as that of an outside fit on the zeros and ones themselves."""
    features, labels = digits("random ReLU features")
    codes = k_winners(features, 10)
    order = torch.randperm(len(codes), generator=torch.Generator().manual_seed(0))
    train, test = order[:1200], order[1200:]
    probe = fit_probe(codes, labels, train[:1100], train[1100:], 10, strengths=[1e-3], standardize=False)
    judge = LogisticRegression(C=1 / (1200 * 1e-3), max_iter=10_000, tol=1e-7).fit(codes[train], labels[train])
    assert torch.equal(probe.mean, torch.zeros(100)) and torch.equal(probe.std, torch.ones(100))
    assert probe.weight.T.numpy() == pytest.approx(judge.coef_, abs=0.01)
    expected = 100 * judge.score(codes[test], labels[test])
    assert accuracy(probe.logits(codes[test]), labels[test]) == pytest.approx(expected, abs=0.1)
    other = fit_probe(codes, labels, train[:1100], train[1100:], 10, strengths=[1e-3])
    assert not torch.equal(probe.logits(codes[test]), other.logits(codes[test]))


def test_the_objective_and_its_gradient_equal_their_loop_form():
    inputs, labels = gaussians(9, classes=3, width=2)
    weight = torch.randn(3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    bias = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64).requires_grad_()
    value = objective(inputs.double(), labels, weight, bias, 0.5)
    value.backward()
    total, slopes, shifts = 0.0, numpy.zeros((3, 2)), numpy.zeros(3)
    for x, label in zip(inputs.tolist(), labels.tolist()):
        logits = [sum(w * v for w, v in zip(row, x)) + b for row, b in zip(weight.tolist(), bias.tolist())]
        shares = [math.exp(logit) / sum(map(math.exp, logits)) for logit in logits]
        total -= math.log(shares[label]) / 9
        for c in range(3):
            error = (shares[c] - (c == label)) / 9
            shifts[c] += error
            slopes[c] += error * numpy.array(x)
    total += 0.25 * sum(w * w for row in weight.tolist() for w in row)
    assert value.item() == pytest.approx(total, rel=1e-9)
    assert weight.grad.numpy() == pytest.approx(slopes + 0.5 * weight.detach().numpy(), rel=1e-6)
    assert bias.grad.numpy() == pytest.approx(shifts, rel=1e-6)


@pytest.mark.parametrize("plain", [False, True])
def test_the_gradient_at_the_solution_is_zero_wherever_it_started(plain):
    inputs, labels = gaussians(300)
    for start in (torch.zeros(4, 12), torch.randn(4, 12, generator=torch.Generator().manual_seed(3))):
        found = solve(inputs, labels, 1e-3, start, torch.zeros(4), None if plain else covariance(inputs))
        weight, bias = (tensor.double().requires_grad_() for tensor in found)
        objective(inputs.double(), labels, weight, bias, 1e-3).backward()
        assert max(weight.grad.abs().max(), bias.grad.abs().max()) < 1e-4


def test_gaussians_reach_the_best_possible_accuracy():
    features, labels = gaussians(3000)
    test, answers = gaussians(4000, seed=1)
    best = accuracy(-torch.cdist(test, centers()), answers)
    probe = fit(features, labels, strengths=STRENGTHS)
    assert accuracy(probe.logits(test), answers) == pytest.approx(best, abs=0.5) and not probe.at_end


def test_validation_alone_chooses_and_among_equals_its_loss(capsys):
    features, labels = torch.eye(3).repeat(40, 1), torch.arange(3).repeat(40)
    validation = split(120)[1]
    for shift, strength, top1 in ((0, 1e-6, "100.00"), (1, 10.0, "0.00")):  # all are equally right, or wrong
        answers = labels.clone()
        answers[validation] = (labels[validation] + shift) % 3
        probe = fit(features, answers, 3, STRENGTHS)
        assert probe.strength == strength and probe.at_end
        line = f"probe: L2 strength {strength:g}, an end of the path from 10 to 1e-06; validation {top1} %\n"
        assert capsys.readouterr().out == line


def test_features_are_standardized_by_the_images_that_are_fitted_alone(monkeypatch):
    """First by the fitting split, from which the validation images are far away; then by both together."""
    inputs = []
    monkeypatch.setattr(probe_module, "solve", lambda rows, *rest: inputs.append(rows.clone()) or solve(rows, *rest))
    features, labels = gaussians(300)
    features[split(300)[1]] += 100
    before = features.clone()
    probe = fit(features, labels)
    assert [len(rows) for rows in inputs] == [270, 270, 300] and torch.equal(features, before)
    for rows in inputs:
        torch.testing.assert_close(rows.mean(0), torch.zeros(12), rtol=0, atol=1e-4)
        torch.testing.assert_close(rows.std(0, correction=0), torch.ones(12), rtol=0, atol=1e-4)
    torch.testing.assert_close(probe.mean, features.mean(0))
    torch.testing.assert_close(probe.std, features.std(0, correction=0))


def test_neither_scale_nor_order_of_features_or_images_matters(monkeypatch):
    features, labels = gaussians(300)
    expected = fit(features, labels).logits(features)
    assert torch.equal(fit(features, labels).logits(features), expected)
    scaled = features * torch.logspace(-9, 9, 12) + torch.linspace(0, 1e-9, 12)
    rows = torch.arange(299, -1, -1)
    fitting, validation = (299 - part for part in split(300))
    moved = fit_probe(features[rows], labels[rows], fitting, validation, 4, strengths=[0.1, 0.01])
    for logits in (
        fit(scaled, labels).logits(scaled),
        fit(features.flip(1), labels).logits(features.flip(1)),
        moved.logits(features),
    ):
        torch.testing.assert_close(logits, expected, rtol=2e-3, atol=2e-3)
    monkeypatch.setattr(probe_module, "PER_FEATURE", 100)  # too few images for the covariance
    torch.testing.assert_close(fit(features, labels).logits(features), expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("value", [0.0, 7.3, 1e20])
def test_constant_features_are_left_out_and_folded_weights_give_the_same_logits(value):
    features, labels = gaussians(200)
    more = torch.cat([3 * features + 1, torch.full((200, 2), value)], dim=1)
    probe = fit(more, labels)
    weight, bias = probe.folded()
    assert (probe.weight[12:] == 0).all() and (weight[12:] == 0).all()
    torch.testing.assert_close(probe.logits(more), fit(features, labels).logits(features), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(more @ weight + bias, probe.logits(more), rtol=1e-4, atol=1e-4)
    collapsed = fit(more[:, 12:], labels)
    assert collapsed.logits(more[:, 12:]).std(0).max() == 0 and collapsed.bias.isfinite().all()


def test_features_that_repeat_each_other_are_no_problem():
    features, labels = gaussians(300, classes=3, width=2)
    repeated = features.repeat(1, 300) * (1 + 1e-6 * torch.arange(600))
    assert accuracy(fit(repeated, labels, 3).logits(repeated), labels) > 60


def test_a_fit_that_does_not_end_says_so(monkeypatch, capsys):
    monkeypatch.setattr(probe_module, "MOST_STEPS", 2)
    fit(*gaussians(300), strengths=[1e-4])
    assert "probe: not at the minimum after 2 steps at L2 strength 0.0001" in capsys.readouterr().out
