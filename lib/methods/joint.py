"""Model 2 as the study ran it: SimCLR plus gamma times the distance of the two views (docs/methods.md, 2).

The sign is plus: the term pulls the views together, so this is SimCLR with a little more alignment.
With gamma 0 it is model 1, bit for bit.
"""

from torch import Tensor

from lib.losses.ntxent import nt_xent
from lib.losses.view_distance import frobenius_distance
from lib.methods.base import ContrastiveOptions, Named, OneLatent
from lib.params.pretraining import Pretraining


class Joint(OneLatent):
    """NT-Xent and the distance term on the projections of the same latent."""

    losses = ("ntxent", "view_distance")
    reads_gamma = True

    def __init__(self, options: ContrastiveOptions, params: Pretraining) -> None:
        super().__init__(options, params)
        self.gamma = params.gamma

    def loss(self, embeddings: Named) -> tuple[Tensor, Named]:
        contrast = nt_xent(embeddings["z_a"], embeddings["z_b"], self.options.temperature)
        distance = frobenius_distance(embeddings["z_a"], embeddings["z_b"])
        return contrast + self.gamma * distance, {"nt_xent": contrast, "distance": distance}


METHOD = Joint
