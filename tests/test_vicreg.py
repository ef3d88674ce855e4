"""VICReg (docs/methods.md, 5): closed-form values, a slow twin, and another implementation."""

import math
from dataclasses import replace

import lightly.loss
import pytest
import torch
from lib.losses.vicreg import covariance, invariance, variance
from pytorch_metric_learning.losses import VICRegLoss
from torch import nn

from lib.methods import build_method
from tests.examples import pretraining


def total(first: torch.Tensor, second: torch.Tensor, **options: float) -> torch.Tensor:
    method = build_method(replace(pretraining("vicreg"), options=options))
    return method.loss({"y_a": first, "y_b": second})[0]


def outputs(count: int = 12, width: int = 7, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    stream = torch.Generator().manual_seed(seed)
    first = torch.randn(count, width, generator=stream) @ torch.randn(width, width, generator=stream)
    return first, first + torch.randn(count, width, generator=stream)


def whitened(count: int = 8) -> torch.Tensor:
    """[N, N - 1]: columns with mean 0, unbiased variance 1 and no covariance, from a Hadamard matrix."""
    matrix = torch.ones(1, 1)
    while len(matrix) < count:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix[:, 1:] * math.sqrt((count - 1) / count)


def by_loops(first: torch.Tensor, second: torch.Tensor) -> float:
    count, width = first.shape
    agreement = sum((a - b) ** 2 for a, b in zip(first.flatten().tolist(), second.flatten().tolist())) / (count * width)
    hinge, shared = 0.0, 0.0
    for rows in (first.double().tolist(), second.double().tolist()):
        means = [sum(row[d] for row in rows) / count for d in range(width)]
        matrix = [
            [sum((row[d] - means[d]) * (row[e] - means[e]) for row in rows) / (count - 1) for e in range(width)]
            for d in range(width)
        ]
        hinge += sum(max(0.0, 1 - math.sqrt(matrix[d][d] + 1e-4)) for d in range(width)) / width / 2
        shared += sum(matrix[d][e] ** 2 for d in range(width) for e in range(width) if d != e) / width
    return 25 * agreement + 25 * hinge + shared


@pytest.mark.parametrize(("count", "width"), [(12, 7), (5, 9), (2, 3)])
def test_it_is_what_its_formula_says(count, width):
    first, second = (rows / 3 for rows in outputs(count, width))
    assert total(first, second).item() == pytest.approx(by_loops(first, second), rel=1e-5)


def test_total_collapse_costs_24_75():
    rows = torch.full((6, 5), 0.3)
    assert total(rows, rows).item() == pytest.approx(24.75, abs=1e-5)


def test_total_collapse_costs_49_5_on_the_scale_of_solo_learn():
    """It sums the variance terms of the two views, so that its weight of 25 is 50 here."""
    rows = torch.full((6, 5), 0.3)
    assert total(rows, rows, variance=50.0).item() == pytest.approx(49.5, abs=1e-5)


def test_at_collapse_the_gradient_is_finite():
    rows = torch.full((6, 5), 0.3, requires_grad=True)
    total(rows, rows).backward()
    assert rows.grad.isfinite().all()


def test_whitened_equal_outputs_cost_nothing():
    rows = whitened()
    assert total(rows, rows).item() == pytest.approx(0, abs=1e-4)
    assert variance(rows).item() == 0


@pytest.mark.parametrize("shift", [0.5, 2.0])
def test_a_shift_of_one_view_costs_its_square(shift):
    assert total(whitened(), whitened() + shift).item() == pytest.approx(25 * shift**2, rel=1e-4)


@pytest.mark.parametrize(("count", "width"), [(40, 6), (5, 12)])
def test_equal_columns_of_variance_one_share_everything(count, width):
    column = torch.randn(count, 1, generator=torch.Generator().manual_seed(1))
    rows = ((column - column.mean()) / column.std()).expand(count, width)
    assert 2 * covariance(rows).item() == pytest.approx(2 * (width - 1), rel=1e-4)


def test_order_and_signs_do_not_matter():
    first, second = outputs()
    rows, columns = torch.randperm(12), torch.randperm(7)
    signs = torch.tensor([1.0, -1, 1, 1, -1, -1, 1])
    moved = total(first[rows][:, columns] * signs, second[rows][:, columns] * signs)
    torch.testing.assert_close(total(first, second), moved, rtol=1e-5, atol=1e-5)


def test_the_expander_has_batchnorm_after_its_hidden_layers_and_no_last_bias():
    method = build_method(pretraining("vicreg")).eval()
    layers = method.expander
    assert [type(layer) for layer in layers] == 2 * [nn.Linear, nn.BatchNorm1d, nn.ReLU] + [nn.Linear]
    assert [layer.weight.shape for layer in layers[::3]] == [(2048, 512), (2048, 2048), (2048, 2048)]
    assert [layer.bias is not None for layer in layers[::3]] == [True, True, False]
    assert [layer.num_features for layer in layers[1::3]] == [2048, 2048]
    h = torch.randn(4, 512, generator=torch.Generator().manual_seed(0))
    assert torch.equal(method.project({"h": h})["y"], layers(h))  # raw


def test_it_is_another_implementations():
    first, second = outputs()
    theirs = VICRegLoss(invariance_lambda=25, variance_mu=25, covariance_v=1, eps=1e-4)
    torch.testing.assert_close(total(first, second), theirs(first, ref_emb=second), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("count", "width"), [(12, 7), (5, 9)])
def test_it_has_the_value_and_gradient_of_a_third_implementation(count, width):
    """Its coefficients and its epsilon are the same as they come, so no factor is between the two."""
    given = torch.stack(outputs(count, width)) / 3  # most units vary too little
    assert 0 < variance(given[0]).item() < 1
    found = []
    for function in (total, lightly.loss.VICRegLoss()):
        leaf = given.clone().requires_grad_()
        value = function(*leaf)
        found.append((value.detach(), *torch.autograd.grad(value, leaf)))
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)


def test_gradients():
    first, second = (rows.double().requires_grad_() for rows in outputs(6, 4))
    assert variance(first / 9).item() > 0.5  # the hinge is open, so that it has a slope
    spread = lambda a, b: variance(a / 9) + variance(b / 9)  # noqa: E731
    for term in (invariance, spread, lambda a, b: covariance(a) + covariance(b)):
        assert torch.autograd.gradcheck(term, (first, second))
