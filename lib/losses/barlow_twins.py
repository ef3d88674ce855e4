"""Barlow Twins (docs/methods.md, 14): two views' units correlate with themselves and with no other.

Legend: N images, D units of the expander.
"""

import torch
from torch import Tensor

EPSILON = 1e-5  # added to the variance, as BatchNorm does


def cross_correlation(first: Tensor, second: Tensor) -> Tensor:
    """[D, D]: correlation over the batch of every unit of one view with every unit of the other, [N, D] each."""
    with torch.autocast(first.device.type, enabled=False):
        return _standardised(first).T @ _standardised(second) / len(first)


def barlow_twins(correlation: Tensor) -> tuple[Tensor, Tensor]:
    """Invariance, sum of (1 - C_dd)^2, and redundancy, sum over d != e of C_de^2, of a matrix C [D, D]."""
    itself = correlation.diagonal()
    return (1 - itself).square().sum(), correlation.square().sum() - itself.square().sum()


def _standardised(rows: Tensor) -> Tensor:
    """Units with mean 0 and biased variance 1 over the batch, in fp32 at least."""
    rows = rows if rows.dtype == torch.float64 else rows.float()
    return (rows - rows.mean(0)) / (rows.var(0, correction=0) + EPSILON).sqrt()
