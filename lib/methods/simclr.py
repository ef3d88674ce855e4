"""Model 1: SimCLR (docs/methods.md, 1). The two views of an image find each other among the batch."""

from torch import Tensor

from lib.losses.ntxent import nt_xent
from lib.methods.base import Named, OneLatent


class SimCLR(OneLatent):
    """NT-Xent on the projections of one latent."""

    losses = ("ntxent",)

    def loss(self, embeddings: Named) -> tuple[Tensor, Named]:
        contrast = nt_xent(embeddings["z_a"], embeddings["z_b"], self.options.temperature)
        return contrast, {"nt_xent": contrast}


METHOD = SimCLR
