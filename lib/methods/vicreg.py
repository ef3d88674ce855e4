"""VICReg (Bardes, Ponce and LeCun 2022; docs/methods.md, 5), with the scale of its official code.

The views' outputs agree, every unit keeps its spread, and no two units carry the same: no negatives, no
momentum, nothing normalized. Official code averages the variance terms of the two views and adds their
covariance terms; collapse costs 24.75 with the default weights.
"""

from dataclasses import dataclass

from torch import Tensor

from lib.losses.vicreg import covariance, invariance, variance
from lib.methods.base import WIDEST, Method, Named, expander, pool
from lib.params.pretraining import Pretraining
from lib.params.spec import param


@dataclass(frozen=True)
class Options:
    """Weights of the three terms, and the expander's width in units (three layers of it)."""

    invariance: float = param(25.0, low=0)
    variance: float = param(25.0, low=0)
    covariance: float = param(1.0, low=0)
    expander: int = param(2048, low=2, high=WIDEST)


class VICReg(Method):
    """An encoder, one pooled latent ``h`` and the expander's output ``y``."""

    Options = Options
    losses = ("vicreg",)

    def __init__(self, options: Options, params: Pretraining) -> None:
        super().__init__(options, params)
        self.expander = expander(self.encoder.width, options.expander)

    def latents(self, images: Tensor) -> Named:
        return {"h": pool(self.encoder(images))}

    def project(self, latents: Named) -> Named:
        return {"y": self.expander(latents["h"]).float()}

    def loss(self, embeddings: Named) -> tuple[Tensor, Named]:
        first, second = embeddings["y_a"], embeddings["y_b"]
        parts = {
            "invariance": invariance(first, second),
            "variance": (variance(first) + variance(second)) / 2,
            "covariance": covariance(first) + covariance(second),
        }
        return sum(getattr(self.options, name) * part for name, part in parts.items()), parts


METHOD = VICReg
