"""Measures of binary codes: how evenly their units are used, and whether they are codes at all.

Legend: M codes of D units, k of them active. Entropies are in bits.
"""

import math

import torch
from torch import Tensor


def is_binary(rows: Tensor) -> bool:
    """Whether every entry of rows [M, D] is 0 or 1 and every row has as many ones, at least one and not D."""
    active = rows.sum(1)
    return bool(((rows == 0) | (rows == 1)).all() and (active == active[0]).all() and 0 < active[0] < rows.shape[1])


def usage_entropy(codes: Tensor) -> float:
    """Mean over the units of the entropy of being active, as a share of its largest value: codes [M, D] -> 0..1.

    0 where all codes are the same, which is collapse; 1 where each unit is active in k / D of them. Between,
    it tells nothing about how units depend on each other.
    """
    usage = codes.double().mean(0)
    even = usage.mean().item()
    return (_entropy(usage).mean() / _entropy(torch.tensor(even, dtype=torch.float64))).item()


def pattern_entropy(codes: Tensor) -> float:
    """Entropy of the codes as whole patterns, in bits; log2 M where all M differ, 0 where all are the same."""
    counts = torch.unique(codes, dim=0, return_counts=True)[1].double()
    shares = counts / counts.sum()
    return -(shares * shares.log2()).sum().item() + 0.0


def unused(codes: Tensor) -> float:
    """Share of the units that no code uses."""
    return (codes.sum(0) == 0).double().mean().item()


def k_winners(rows: Tensor, count: int) -> Tensor:
    """float32 [M, D]: 1 at the ``count`` largest entries of each row; of those that tie the first ones win."""
    order = rows.argsort(dim=1, descending=True, stable=True)[:, :count]
    return torch.zeros(rows.shape, device=rows.device).scatter_(1, order, 1.0)


def _entropy(share: Tensor) -> Tensor:
    """Of a coin, in bits."""
    return (torch.special.entr(share) + torch.special.entr(1 - share)) / math.log(2)
