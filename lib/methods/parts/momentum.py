"""Encoder, projector and a slow copy of both, for BYOL and MoCo (docs/methods.md, 7 and 8).

The copy starts equal, has no gradient, and follows the learning parameters by a moving average after each
step of the optimizer. Parameters only: in training, BatchNorm normalizes what passes through the copy by
that batch's own statistics, and the copy's running statistics come from its own forward passes.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from lib.methods.base import Method, Named, l2_normalize, pool
from lib.params.pretraining import Pretraining


class MomentumMethod(Method):
    """One pooled latent ``h``, of the learning encoder, and its projection ``z``; a slow copy beside them."""

    part = "methods/parts/momentum"

    def __init__(self, options: Any, params: Pretraining, head: Callable[[int], nn.Module]) -> None:
        """``head`` builds the projector from the encoder's width."""
        super().__init__(options, params)
        self.projector = head(self.encoder.width)
        self.momentum_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.momentum_projector = copy.deepcopy(self.projector).requires_grad_(False)

    def latents(self, images: Tensor) -> Named:
        return {"h": pool(self.encoder(images))}

    def project(self, latents: Named) -> Named:
        return {"z": l2_normalize(self.projector(latents["h"]))}

    @torch.no_grad()
    def momentum_projection(self, images: Tensor) -> Tensor:
        """What the copy makes of images [B, 3, S, S]: [B, P] in fp32, a constant to the loss."""
        return self.momentum_projector(pool(self.momentum_encoder(images))).float()

    def update_momentum(self, momentum: float) -> None:
        """One step of the copy towards the learning encoder and projector."""
        update_ema(self.momentum_encoder, self.encoder, momentum)
        update_ema(self.momentum_projector, self.projector, momentum)


@torch.no_grad()
def update_ema(slow: nn.Module, fast: nn.Module, momentum: float) -> None:
    """slow <- momentum * slow + (1 - momentum) * fast, parameter by parameter; buffers stay.

    With momentum 1 nothing moves, with 0 the parameters become equal, both exactly. From slow_0, and with
    ``fast`` at rest, n steps lead to fast + momentum^n (slow_0 - fast).
    """
    followers, leaders = list(slow.parameters()), list(fast.parameters())
    get_ema_multi_avg_fn(momentum)(followers, leaders, None)
