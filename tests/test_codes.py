"""Measures of binary codes (docs/methods.md, 12)."""

import math

import pytest
import torch

from lib.evaluate.centroid import code_numbers
from lib.evaluate.codes import is_binary, pattern_entropy, unused, usage_entropy


def test_measures_of_codes_at_their_corners():
    even, same = torch.eye(8), torch.eye(8)[:1].expand(8, -1)
    assert usage_entropy(even) == pytest.approx(1) and usage_entropy(same) == 0
    assert pattern_entropy(even) == pytest.approx(3) and pattern_entropy(same) == 0
    assert unused(even) == 0 and unused(same) == 7 / 8
    assert is_binary(even) and not is_binary(even / 2) and not is_binary(torch.ones(2, 3))
    assert not is_binary(torch.tensor([[1.0, 0, 0], [1, 1, 0]]))


def rows_of(*active: tuple[int, int]) -> torch.Tensor:
    """Codes of six units, of which these are active."""
    return torch.stack([torch.eye(6)[list(units)].sum(0) for units in active])


def test_numbers_of_codes_against_numbers_by_hand():
    """Centroids (1, .4, 0, .2, .2, .2) and (0, 0, .5, .75, .75, 0), made codes of units 0, 1 and of 3, 4.

    The third code, {1, 2}, of the first class, has cosines with the centroids that are as .4 / 1.28^(1/2) = .354 to
    .5 / 1.375^(1/2) = .426, but shares a unit with the first one's code alone.
    """
    bank = rows_of((0, 1), (0, 1), (0, 3), (0, 4), (0, 5), (3, 4), (3, 4), (2, 3), (2, 4))
    labels = torch.tensor([0] * 5 + [1] * 4)
    codes, own = rows_of((0, 1), (0, 1), (1, 2), (3, 4)), torch.tensor([0, 1, 0, 1])
    quarter, third = 2 - 0.75 * math.log2(3), math.log2(3) - 2 / 3  # bits of a coin of 1/4 or 3/4, and of 1/3
    use = (1 + 4 * quarter) / 6 / third  # units 0 to 4 in 2, 3, 1, 1, 1 of 4 codes
    expected = {"centroid": 50, "centroid_code": 75, "active": 2}
    expected |= {"usage_entropy": use, "pattern_entropy": 1.5, "unused": 100 / 6}
    assert code_numbers(bank, labels, codes, own, 2) == pytest.approx(expected)
    same = code_numbers(bank, labels, codes[:1].expand(4, -1), own, 2)
    assert (same["usage_entropy"], same["pattern_entropy"], same["centroid"]) == (0, 0, 50)
