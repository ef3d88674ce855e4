"""VICReg (Bardes, Ponce and LeCun 2022; docs/methods.md, 5), with the scale of its official code.

The views' embeddings agree, every unit keeps its standard deviation, and no two units carry the same: no negatives,
no momentum, nothing normalized. Official code averages the variance terms of the two views and adds their covariance
terms; collapse costs 24.75 with the default weights.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lib.methods.base import WIDEST, ExpanderMethod, Named, full_precision
from lib.params.spec import param

EPSILON = 1e-4  # added to the variance, so that the root has a gradient where all embeddings are equal


@full_precision
def invariance(first: Tensor, second: Tensor) -> Tensor:
    """Mean squared difference of the two views' embeddings, [N, D] each."""
    return (first - second).square().mean()


@full_precision
def variance(embeddings: Tensor) -> Tensor:
    """Mean over the units of how far the standard deviation falls short of one; embeddings [N, D].

    The variance is the unbiased one. All embeddings equal: 1 minus the root of `EPSILON`, 0.99.
    """
    return torch.relu(1 - (embeddings.var(0) + EPSILON).sqrt()).mean()


@full_precision
def covariance(embeddings: Tensor) -> Tensor:
    """Sum of the squared covariances of two different units, over D (not D (D - 1)); embeddings [N, D]."""
    count, width = embeddings.shape
    centered = embeddings - embeddings.mean(0)
    # the N x N matrix of the images holds the same sum of squares as the D x D matrix of the units: take the smaller
    small = centered @ centered.T if count < width else centered.T @ centered
    alone = centered.square().sum(0).square().sum()  # the squared variances, which do not count
    return (small.square().sum() - alone) / ((count - 1) ** 2 * width)


@dataclass(frozen=True)
class VICRegOptions:
    """Weights of the three terms, and the expander's width in units (three layers of it)."""

    invariance: float = param(25.0, low=0)
    variance: float = param(25.0, low=0)
    covariance: float = param(1.0, low=0)
    expander: int = param(2048, low=2, high=WIDEST)


class VICReg(ExpanderMethod):
    Options = VICRegOptions

    def loss(self, embeddings: Named) -> tuple[Tensor, Named]:
        first, second = embeddings["y_a"], embeddings["y_b"]
        parts = {
            "invariance": invariance(first, second),
            "variance": (variance(first) + variance(second)) / 2,
            "covariance": covariance(first) + covariance(second),
        }
        weighted = [getattr(self.options, name) * part for name, part in parts.items()]
        return torch.stack(weighted).sum(), parts


METHOD = VICReg
