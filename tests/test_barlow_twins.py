"""Barlow Twins (docs/methods.md, 14): closed-form values, a slow twin, another implementation."""

import math

import pytest
import torch
from lightly.loss import BarlowTwinsLoss

from lib.methods.barlow_twins import barlow_twins
from tests.examples import built, normal


def outputs(count: int = 10, width: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    first = normal(count, width, dtype=torch.float64)
    return first, first + normal(count, width, seed=1, dtype=torch.float64)


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


def test_it_is_what_its_formula_and_another_implementation_say_and_the_method_weighs_the_two_sums():
    first, second = outputs()
    expected = by_loops(first, second)
    assert [part.item() for part in barlow_twins(first, second)] == pytest.approx(expected, rel=1e-6)
    total, parts = built("barlow_twins", expander=2).loss({"y_a": first, "y_b": second})
    assert total.item() == pytest.approx(0.1 * (expected[0] + 0.0051 * expected[1]))
    assert list(parts) == ["invariance", "redundancy"]
    theirs = BarlowTwinsLoss(0.0051)(first.float(), second.float())
    torch.testing.assert_close(total.float() / 0.1, theirs, rtol=1e-5, atol=1e-5)


def test_equal_uncorrelated_units_cost_nothing_and_collapse_costs_their_number():
    rows = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    assert sum(barlow_twins(rows, rows)).item() == pytest.approx(0, abs=1e-6)
    assert sum(barlow_twins(rows * 0 + 3, rows * 0 + 3)).item() == pytest.approx(2)
