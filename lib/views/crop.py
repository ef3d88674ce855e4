"""Cutting boxes out of images and resizing them to the whole image's size, by matrix products.

The result is at least as large as the box, which is only ever enlarged or kept: bilinear interpolation
with and without antialiasing is then the same thing.
"""

import torch
from torch import Tensor


def positions(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Where ``size`` resized pixels look in the source, float64 [B, size], for spans [B] of pixels.

    Pixel i looks at start + (i + 1/2) length / size - 1/2 (pixel centers are whole numbers), held inside
    the span: no pixel outside the box counts, as if it had been cut out first.
    """
    inside = (torch.arange(size, dtype=torch.float64) + 0.5) * (length[:, None] / size) - 0.5
    return start[:, None] + inside.clamp_(min=0).minimum(length[:, None] - 1)


def resample(images: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Images seen at separable positions, linearly interpolated.

    Args:
        images: uint8 [B, 3, H, W].
        down, across: float32 [B, h] and [B, w], positions in source pixels, any order.

    Returns:
        float32 [B, 3, h, w] in 0..1.
    """
    batch, _, height, width = images.shape
    wide = torch.bmm(images.float().view(batch, 3 * height, width), _weights(across, width).transpose(1, 2))
    return torch.matmul(_weights(down, height).mul_(1 / 255)[:, None], wide.view(batch, 3, height, -1))


def _weights(position: Tensor, size: int) -> Tensor:
    """[B, h, size]: of each of ``size`` source pixels at each position [B, h]; its two neighbors share."""
    source = torch.arange(size, device=position.device, dtype=position.dtype)
    return (position[:, :, None] - source).abs_().neg_().add_(1).clamp_(min=0)
