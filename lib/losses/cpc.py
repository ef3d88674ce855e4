"""Scores of predicted codes of patches, the patches that they are held against, and InfoNCE (docs/methods.md, 9).

The score of a prediction for a patch is their plain product, neither normalised nor divided by a temperature.

B images, P places in each, D features, n negatives of each prediction.
"""

import torch
from torch import Tensor


def true_scores(predicted: Tensor, codes: Tensor) -> Tensor:
    """Of each prediction for the patch that it is about: [B, P, D] each -> [B, P]."""
    return (_wide(predicted) * _wide(codes)).sum(2)


def false_scores(predicted: Tensor, codes: Tensor, draws: Tensor) -> Tensor:
    """Of each prediction for the n patches ``draws`` [B, P, n], numbered as in codes [B * P, D]: -> [B, P, n].

    The n codes of every prediction are laid out for it: B * P * n * D numbers, once more in the gradient.
    """
    drawn = _wide(codes).flatten(0, 1)[draws]  # [B, P, n, D]
    return (drawn @ _wide(predicted)[:, :, :, None])[:, :, :, 0]


def any_place(codes: Tensor, count: int) -> Tensor:
    """``count`` patches for each of [B, P, D], int64 [B, P, count]: at any place of any other image, each as likely.

    Drawn with replacement, on the CPU from torch's global generator, so that every device sees the same. The image
    itself is left out, and with it the true patch.
    """
    images, places = codes.shape[:2]
    other = _others(images, (images, places, count))
    return send(other * places + torch.randint(places, other.shape), codes.device)


def same_place(codes: Tensor, count: int) -> Tensor:
    """As `any_place`, but of ``count`` other images, the same for all places, the patch at the very place."""
    images, places = codes.shape[:2]
    other = _others(images, (images, 1, count))
    return send(other * places + torch.arange(places)[None, :, None], codes.device)


def info_nce(true: Tensor, false: Tensor) -> Tensor:
    """Mean of -log softmax at the true patch, in nats; all scores equal: log(1 + n).

    Args:
        true: scores [B, P] of the true patches.
        false: scores [B, P, n] of the others; the true one is in the denominator beside them.
    """
    return (torch.cat([true[:, :, None], false], 2).logsumexp(2) - true).mean()


def send(draws: Tensor, device: torch.device) -> Tensor:
    """To a device, without waiting for it."""
    return draws.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else draws.to(device)


def _others(images: int, shape: tuple[int, ...]) -> Tensor:
    """For each row b of ``shape`` [B, ...] numbers of images other than b, each as likely."""
    own = torch.arange(images).view(-1, *[1] * (len(shape) - 1))
    return (own + torch.randint(1, images, shape)) % images


def _wide(rows: Tensor) -> Tensor:
    """In fp32 at least."""
    return rows if rows.dtype == torch.float64 else rows.float()
