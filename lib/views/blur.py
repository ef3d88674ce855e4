"""Gaussian blur by matrix products, each image with a width of its own."""

import torch
from torch import Tensor

# The recipes' range, which solo-learn and others hand to PIL as a radius: a Gaussian that is cut off nowhere. A kernel
# of 13 pixels reaches three deviations of the widest. A tenth of the image, as SimCLR has for 224 pixels, would be 3 of
# 32 pixels, and hardly a blur.
SIGMA = (0.1, 2.0)
KERNEL = 13


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """torchvision's gaussian_blur with a kernel of `KERNEL` pixels, which mirrors images at their edges.

    Args:
        images: float32 [B, 3, H, W].
        sigma: float32 [B], in pixels; 0 leaves an image as it is.
    """
    batch, _, height, width = images.shape
    down = _weights(sigma, height)
    across = down if width == height else _weights(sigma, width)
    wide = torch.bmm(images.reshape(batch, 3 * height, width), across.transpose(1, 2))
    blurred = torch.matmul(down[:, None], wide.view(batch, 3, height, width))
    return torch.where(sigma[:, None, None, None] > 0, blurred, images)


def _weights(sigma: Tensor, size: int) -> Tensor:
    """[B, size, size]: of each source pixel, itself and its mirror images beyond both edges, at each pixel."""
    place = torch.arange(size, device=sigma.device, dtype=sigma.dtype)
    target, last = place[:, None], size - 1
    steepness = 0.5 / sigma.clamp(min=SIGMA[0]).square()[:, None, None]

    def kernel(distance: Tensor) -> Tensor:
        return (distance.square() * -steepness).exp() * (distance.abs() <= KERNEL // 2)

    weights = kernel(target - place)
    weights += kernel(target + place) * (place > 0)  # an edge is not mirrored onto itself
    weights += kernel(2 * last - target - place) * (place < last)
    return weights / weights.sum(2, keepdim=True)
