"""VICReg (docs/methods.md, 5): closed-form values, a slow twin, and two other implementations."""

import math

import lightly.loss
import pytest
import torch
from pytorch_metric_learning.losses import VICRegLoss
from torch import nn

from lib.methods.vicreg import covariance, variance
from tests.examples import built, normal


def total(first: torch.Tensor, second: torch.Tensor, **options: float) -> torch.Tensor:
    return built("vicreg", expander=2, **options).loss({"y_a": first, "y_b": second})[0]


def outputs(count: int = 12, width: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    first = normal(count, width) @ normal(width, width, seed=1)
    return first, first + normal(count, width, seed=2)


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


@pytest.mark.parametrize(("count", "width"), [(12, 7), (5, 9)])
@pytest.mark.parametrize(
    "theirs",
    [
        lightly.loss.VICRegLoss(),  # its coefficients and its epsilon are the same as they come
        lambda a, b: VICRegLoss(invariance_lambda=25, variance_mu=25, covariance_v=1, eps=1e-4)(a, ref_emb=b),
    ],
)
def test_it_has_the_value_and_gradient_of_two_other_implementations(count, width, theirs):
    pair, found = torch.stack(outputs(count, width)) / 3, []  # most units vary too little
    assert 0 < variance(pair[0]).item() < 1
    for function in (total, theirs):
        leaf = pair.clone().requires_grad_()
        value = function(*leaf)
        found.append((value.detach(), *torch.autograd.grad(value, leaf)))
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("weights", "value"), [({}, 24.75), ({"variance": 50.0}, 49.5)])
def test_total_collapse_has_its_price_and_a_finite_gradient(weights, value):
    """solo-learn sums the variance terms of the two views, so that its weight of 25 is 50 here."""
    rows = torch.full((6, 5), 0.3, requires_grad=True)
    error = total(rows, rows, **weights)
    assert error.item() == pytest.approx(value, abs=1e-5)
    assert torch.autograd.grad(error, rows)[0].isfinite().all()


@pytest.mark.parametrize("shift", [0.0, 0.5, 2.0])
def test_whitened_embeddings_cost_nothing_and_a_shift_of_one_view_its_square(shift):
    assert variance(whitened()).item() == 0
    assert total(whitened(), whitened() + shift).item() == pytest.approx(25 * shift**2, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(("count", "width"), [(40, 6), (5, 12)])
def test_equal_columns_of_variance_one_share_everything(count, width):
    column = normal(count, 1, seed=1)
    rows = ((column - column.mean()) / column.std()).expand(count, width)
    assert 2 * covariance(rows).item() == pytest.approx(2 * (width - 1), rel=1e-4)


@pytest.mark.parametrize("variant", ["vicreg", "barlow_twins"])
def test_the_expander_has_batchnorm_after_its_hidden_layers_and_no_last_bias(variant):
    method = built(variant).eval()
    layers = method.expander
    assert [type(layer) for layer in layers] == 2 * [nn.Linear, nn.BatchNorm1d, nn.ReLU] + [nn.Linear]
    assert [layer.weight.shape for layer in layers[::3]] == [(128, 512), (128, 128), (128, 128)]
    assert [layer.bias is not None for layer in layers[::3]] == [True, True, False]
    h = normal(4, 512)
    assert torch.equal(method.project({"h": h})["y"], layers(h))  # not normalized
