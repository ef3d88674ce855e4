"""Losses on all pairs of codes in a batch (docs/methods.md, 12). Distances are 1 minus the cosine.

Legend: R rows of D units; rows of one group (two views of an image, or one class) belong together.
"""

import torch
from torch import Tensor
from torch.nn import functional

SAME_MARGIN = 0.1  # codes of one group may be as far apart for nothing


def contrast(codes: Tensor, groups: Tensor, margin: float) -> Tensor:
    """Mean of max(0, d - `SAME_MARGIN`) over the pairs of one group, plus mean of max(0, margin - d) over the others.

    Args:
        codes: [R, D], not all zero in any row.
        groups: int64 [R].
        margin: the distance from which on other groups are far enough.
    """
    distance = 1 - cosines(codes)  # [R, R]
    same, other = _pairs(groups)
    return _mean((distance - SAME_MARGIN).relu(), same) + _mean((margin - distance).relu(), other)


def agreement(codes: Tensor, groups: Tensor) -> Tensor:
    """Mean distance of the pairs of one group, and nothing that keeps others apart: a constant code is an optimum."""
    return _mean(1 - cosines(codes), _pairs(groups)[0])


def cosines(codes: Tensor) -> Tensor:
    """Cosines of all pairs of rows, in fp32 at least: [R, D] -> [R, R]."""
    rows = functional.normalize(codes if codes.dtype == torch.float64 else codes.float(), dim=1)
    with torch.autocast(rows.device.type, enabled=False):
        return rows @ rows.T


def _pairs(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Ordered pairs of two rows of one group, and of two groups: bool [R, R] each."""
    same = groups[:, None] == groups
    return same & ~torch.eye(len(groups), dtype=torch.bool, device=groups.device), ~same


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """0 where there is nothing to take the mean of."""
    return (values * where).sum() / where.sum().clamp(min=1)
