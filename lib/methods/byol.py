"""BYOL (Grill et al. 2020; docs/methods.md, 7): predict what a slow copy of the network makes of the other view.

No negatives. What keeps the outputs from collapsing is that the copy is a constant to the loss, that it
follows slowly, and that the learning side alone has a predictor.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from lib.losses.byol import direction_distance
from lib.methods.base import WIDEST, Named, projector
from lib.methods.parts.momentum import MomentumMethod
from lib.params.pretraining import Pretraining
from lib.params.spec import param


@dataclass(frozen=True)
class Options:
    """``momentum``: of the copy at the first step, from where it rises to 1. Widths in units."""

    momentum: float = param(0.99, low=0, high=1)
    projector_hidden: int = param(1024, low=1, high=WIDEST)
    projector_out: int = param(256, low=2, high=WIDEST)
    predictor_hidden: int = param(1024, low=1, high=WIDEST)


class BYOL(MomentumMethod):
    """Predictions ``p`` of the learning side, targets ``t`` of the copy, which has no predictor."""

    Options = Options
    losses = ("byol",)

    def __init__(self, options: Options, params: Pretraining) -> None:
        hidden, outputs = options.projector_hidden, options.projector_out
        super().__init__(options, params, lambda width: projector(width, hidden, outputs))
        self.predictor = projector(outputs, options.predictor_hidden, outputs)

    def embed_view(self, view: Tensor) -> Named:
        """p and t, raw: the loss compares their directions."""
        prediction = self.predictor(self.projector(self.latents(view)["h"])).float()
        return {"p": prediction, "t": self.momentum_projection(view)}

    def loss(self, embeddings: Named) -> tuple[Tensor, Named]:
        parts = {
            "distance_ab": direction_distance(embeddings["p_a"], embeddings["t_b"]),
            "distance_ba": direction_distance(embeddings["p_b"], embeddings["t_a"]),
        }
        return sum(parts.values()), parts

    def after_step(self, step: int, steps: int) -> None:
        self.update_momentum(momentum(step, steps, self.options.momentum))


def momentum(step: int, steps: int, start: float) -> float:
    """From ``start`` at step 0 along half a cosine to 1 at step ``steps``, one after the last."""
    return 1 - (1 - start) * (math.cos(math.pi * step / steps) + 1) / 2


METHOD = BYOL
