"""The hinge loss of Illing et al. (docs/methods.md, 10): true patches score above 1, others below -1.

B images, P places in each, n negatives of each prediction; ``parts`` of the places have their own means [K], as in
`lib.losses.cpc`.
"""

import torch
from torch import Tensor

from lib.losses.cpc import means
from lib.runtime.seeds import send


def synchronous(true: Tensor, false: Tensor, parts: tuple[int, ...] = ()) -> Tensor:
    """Every prediction meets its true patch and others at once; [] or [K], all scores 0: exactly 2.

    Args:
        true: scores [B, P] of the true patches.
        false: scores [B, P, n] of the others.
    """
    return means(torch.relu(1 - true) + torch.relu(1 + false).mean(2), parts).mean(0)


def asynchronous(true: Tensor, false: Tensor, same: Tensor, parts: tuple[int, ...] = ()) -> Tensor:
    """An image's predictions meet either their true patches or others, as if one came after the other.

    The mean over the images of each kind is taken by itself, and the two are added: with half of the images
    in each, all scores 0 cost 2, as in the synchronous form. A kind without images adds 0. [] or [K].

    Args:
        true: scores [B, P] of the true patches.
        false: scores [B, P, n] of the others.
        same: bool [B], the images that meet their true patches.
    """
    return _mean(means(torch.relu(1 - true), parts), same) + _mean(means(torch.relu(1 + false).mean(2), parts), ~same)


def coins(images: int, device: torch.device) -> Tensor:
    """``same`` for `asynchronous`, each with probability one half, drawn on the CPU from the global generator."""
    return send(torch.rand(images) < 0.5, device)


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    """Over the chosen of values [B] or [B, K]; 0 if there is none, without asking the device."""
    return chosen.to(values.dtype) @ values / chosen.sum().clamp(min=1)
