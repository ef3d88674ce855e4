"""Barlow Twins (Zbontar et al. 2021; docs/methods.md, 14): no negatives, no momentum, redundancy reduced."""

from dataclasses import dataclass

from torch import Tensor

from lib.methods.base import WIDEST, ExpanderMethod, Named, full_precision
from lib.params.spec import param

EPSILON = 1e-5  # added to the variance, as BatchNorm does


@full_precision
def barlow_twins(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two views' units should correlate with themselves and with no other: embeddings [N, D] each.

    Returns invariance, the sum of (1 - C_dd)^2, and redundancy, the sum over d != e of C_de^2, where C_de is the
    correlation over the batch of unit d of one view with unit e of the other.
    """
    correlation = _standardize(first).T @ _standardize(second) / len(first)  # [D, D]
    itself = correlation.diagonal()
    return (1 - itself).square().sum(), correlation.square().sum() - itself.square().sum()


def _standardize(embeddings: Tensor) -> Tensor:
    """Units with mean 0 and biased variance 1 over the batch."""
    return (embeddings - embeddings.mean(0)) / (embeddings.var(0, correction=0) + EPSILON).sqrt()


@dataclass(frozen=True)
class BarlowTwinsOptions:
    """``redundancy``: weight of the off-diagonal sum; ``scale``: of the whole; ``expander``: width in units."""

    redundancy: float = param(0.0051, low=0)
    scale: float = param(0.1, above=0)
    expander: int = param(2048, low=2, high=WIDEST)


class BarlowTwins(ExpanderMethod):
    Options = BarlowTwinsOptions

    def loss(self, embeddings: Named) -> tuple[Tensor, Named]:
        invariance, redundancy = barlow_twins(embeddings["y_a"], embeddings["y_b"])
        total = self.options.scale * (invariance + self.options.redundancy * redundancy)
        return total, {"invariance": invariance, "redundancy": redundancy}


METHOD = BarlowTwins
