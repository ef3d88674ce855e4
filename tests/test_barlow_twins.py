"""Barlow Twins (docs/methods.md, 14): closed-form values, a slow twin, another implementation, gradients."""

import math

import pytest
import torch
from lib.losses.barlow_twins import barlow_twins, cross_correlation
from lightly.loss import BarlowTwinsLoss
from torch import nn

from lib.methods import build_method
from tests.examples import pretraining


def outputs(count: int = 10, width: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    stream = torch.Generator().manual_seed(0)
    first = torch.randn(count, width, generator=stream, dtype=torch.float64)
    return first, first + torch.randn(count, width, generator=stream, dtype=torch.float64)


def by_loops(first: torch.Tensor, second: torch.Tensor) -> tuple[float, float]:
    count, width = first.shape
    columns = []
    for rows in (first.T.tolist(), second.T.tolist()):
        means = [sum(column) / count for column in rows]
        roots = [math.sqrt(sum((x - m) ** 2 for x in column) / count + 1e-5) for column, m in zip(rows, means)]
        columns.append([[(x - m) / root for x in column] for column, m, root in zip(rows, means, roots)])
    table = [
        [sum(a * b for a, b in zip(columns[0][d], columns[1][e])) / count for e in range(width)] for d in range(width)
    ]
    return (
        sum((1 - table[d][d]) ** 2 for d in range(width)),
        sum(table[d][e] ** 2 for d in range(width) for e in range(width) if d != e),
    )


def test_it_is_what_its_formula_says():
    first, second = outputs()
    invariance, redundancy = barlow_twins(cross_correlation(first, second))
    assert (invariance.item(), redundancy.item()) == pytest.approx(by_loops(first, second), rel=1e-6)


def test_equal_uncorrelated_units_cost_nothing_and_collapse_costs_their_number():
    rows = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    assert sum(barlow_twins(cross_correlation(rows, rows))).item() == pytest.approx(0, abs=1e-6)
    assert sum(barlow_twins(cross_correlation(rows * 0 + 3, rows * 0 + 3))).item() == pytest.approx(2)


def test_the_method_weighs_the_two_sums():
    first, second = outputs()
    method = build_method(pretraining("barlow_twins"))
    total, parts = method.loss({"y_a": first, "y_b": second})
    assert total.item() == pytest.approx(0.1 * (parts["invariance"] + 0.0051 * parts["redundancy"]).item())


def test_the_expander_has_batchnorm_after_its_hidden_layers_and_no_last_bias():
    method = build_method(pretraining("barlow_twins")).eval()
    layers = method.expander
    assert [type(layer) for layer in layers] == 2 * [nn.Linear, nn.BatchNorm1d, nn.ReLU] + [nn.Linear]
    assert [layer.weight.shape for layer in layers[::3]] == [(2048, 512), (2048, 2048), (2048, 2048)]
    assert [layer.bias is not None for layer in layers[::3]] == [True, True, False]
    assert [layer.num_features for layer in layers[1::3]] == [2048, 2048]
    h = torch.randn(4, 512, generator=torch.Generator().manual_seed(0))
    assert torch.equal(method.project({"h": h})["y"], layers(h))  # raw


def test_it_is_another_implementations():
    first, second = (rows.float() for rows in outputs(16, 8))
    invariance, redundancy = barlow_twins(cross_correlation(first, second))
    theirs = BarlowTwinsLoss(0.0051)(first, second)
    torch.testing.assert_close(invariance + 0.0051 * redundancy, theirs, rtol=1e-5, atol=1e-5)


def test_gradients():
    assert torch.autograd.gradcheck(
        lambda a, b: barlow_twins(cross_correlation(a, b)), [rows.requires_grad_() for rows in outputs()]
    )
