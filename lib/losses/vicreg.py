"""VICReg's three terms (docs/methods.md, 5): invariance, variance, covariance.

Legend: N images, D units of the expander; both views' outputs raw, not scaled to unit length.
"""

import torch
from torch import Tensor

EPSILON = 1e-4  # added to the variance, so that the root has a slope where all rows are equal


def invariance(first: Tensor, second: Tensor) -> Tensor:
    """Mean squared difference of the two views' outputs, [N, D] each."""
    return (_wide(first) - _wide(second)).square().mean()


def variance(rows: Tensor) -> Tensor:
    """Mean over the units of how far the standard deviation falls short of one, rows [N, D].

    The variance is the unbiased one. All rows equal: 1 minus the root of `EPSILON`, 0.99.
    """
    return torch.relu(1 - (_wide(rows).var(0) + EPSILON).sqrt()).mean()


def covariance(rows: Tensor) -> Tensor:
    """Sum of the squared covariances of two different units, over D; rows [N, D].

    Divided by D, not by D (D - 1). Where D > N the squares are summed through the N x N matrix of the rows,
    which holds the same sum and is smaller.
    """
    count, width = rows.shape
    centred = _wide(rows) - _wide(rows).mean(0)
    with torch.autocast(rows.device.type, enabled=False):
        small = centred @ centred.T if count < width else centred.T @ centred
    alone = centred.square().sum(0).square().sum()  # the squared variances, which do not count
    return (small.square().sum() - alone) / ((count - 1) ** 2 * width)


def _wide(rows: Tensor) -> Tensor:
    """In fp32 at least."""
    return rows if rows.dtype == torch.float64 else rows.float()
