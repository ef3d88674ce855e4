"""Barlow Twins (Zbontar et al. 2021; docs/methods.md, 14): no negatives, no momentum, redundancy reduced."""

from dataclasses import dataclass

from torch import Tensor

from lib.losses.barlow_twins import barlow_twins, cross_correlation
from lib.methods.base import WIDEST, Method, Named, expander, pool
from lib.params.pretraining import Pretraining
from lib.params.spec import param


@dataclass(frozen=True)
class Options:
    """``redundancy``: weight of the off-diagonal sum; ``scale``: of the whole; ``expander``: width in units."""

    redundancy: float = param(0.0051, low=0)
    scale: float = param(0.1, above=0)
    expander: int = param(2048, low=2, high=WIDEST)


class BarlowTwins(Method):
    """An encoder, one pooled latent ``h`` and the expander's output ``y``."""

    Options = Options
    losses = ("barlow_twins",)

    def __init__(self, options: Options, params: Pretraining) -> None:
        super().__init__(options, params)
        self.expander = expander(self.encoder.width, options.expander)

    def latents(self, images: Tensor) -> Named:
        return {"h": pool(self.encoder(images))}

    def project(self, latents: Named) -> Named:
        return {"y": self.expander(latents["h"]).float()}

    def loss(self, embeddings: Named) -> tuple[Tensor, Named]:
        invariance, redundancy = barlow_twins(cross_correlation(embeddings["y_a"], embeddings["y_b"]))
        total = self.options.scale * (invariance + self.options.redundancy * redundancy)
        return total, {"invariance": invariance, "redundancy": redundancy}


METHOD = BarlowTwins
