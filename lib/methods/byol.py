"""BYOL (Grill et al. 2020; docs/methods.md, 7): predict what a momentum encoder makes of the other view.

No negatives. What keeps the embeddings from collapsing is that the targets are constants to the loss, that the
momentum encoder follows slowly, and that the online side alone has a predictor.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from lib.methods.base import WIDEST, MomentumMethod, Named, full_precision, l2_normalize, projector
from lib.params.pretraining import Pretraining
from lib.params.spec import param


@full_precision
def direction_distance(predictions: Tensor, targets: Tensor) -> Tensor:
    """Mean squared distance of L2-normalized embeddings, 2 - 2 cos: 0 if parallel, 2 if orthogonal, 4 if opposed.

    Both are [N, D] of any length; targets get no gradient.
    """
    return (l2_normalize(predictions) - l2_normalize(targets.detach())).square().sum(1).mean()


@dataclass(frozen=True)
class BYOLOptions:
    """``momentum``: of the momentum encoder at the first step, from where it goes to ``momentum_end``; equal: constant.
    ``predictor_lr``: the predictor's learning rate, in multiples of the shared one. Widths in units."""

    momentum: float = param(0.99, low=0, high=1)
    momentum_end: float = param(1.0, low=0, high=1)
    predictor_lr: float = param(1.0, above=0, high=1000)
    projector_hidden: int = param(1024, low=1, high=WIDEST)
    projector_out: int = param(256, low=2, high=WIDEST)
    predictor_hidden: int = param(1024, low=1, high=WIDEST)


class BYOL(MomentumMethod):
    """Predictions ``p`` of the online side, targets ``t`` of the momentum side, which has no predictor."""

    Options = BYOLOptions

    def __init__(self, options: BYOLOptions, params: Pretraining) -> None:
        hidden, outputs = options.projector_hidden, options.projector_out
        super().__init__(options, params, lambda width: projector(width, hidden, outputs))
        self.predictor = projector(outputs, options.predictor_hidden, outputs)

    def embed_view(self, view: Tensor) -> Named:
        """p and t [B, P] as they are: the loss compares their directions."""
        prediction = self.predictor(self.projector(self.latents(view)["h"])).float()
        return {"p": prediction, "t": self.momentum_projection(view)}

    def loss(self, embeddings: Named) -> tuple[Tensor, Named]:
        one_way = direction_distance(embeddings["p_a"], embeddings["t_b"])
        other_way = direction_distance(embeddings["p_b"], embeddings["t_a"])
        return one_way + other_way, {"distance_ab": one_way, "distance_ba": other_way}

    def after_step(self, step: int, steps: int) -> None:
        self.update_momentum(momentum_at(step, steps, self.options.momentum, self.options.momentum_end))

    def rate_factors(self) -> dict[str, float]:
        return {"predictor": self.options.predictor_lr}


def momentum_at(step: int, steps: int, start: float, end: float = 1.0) -> float:
    """From ``start`` at step 0 along half a cosine to ``end`` at step ``steps``, one after the last."""
    return end - (end - start) * (math.cos(math.pi * step / steps) + 1) / 2


METHOD = BYOL
