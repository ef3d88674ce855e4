"""From uint8 images and their augmentation parameters to views: crop, flip, color jitter, grayscale, blur, solarize,
normalize, in this order.

B images of H x W pixels, views of h x w. Every view is computed from its own row of parameters, and all images go
through the same operations: the parameters say which change nothing. So the shapes are those of every batch, a CUDA
graph can hold them, and nothing is selected by a mask whose size the host would have to ask for.
"""

import math

import torch
from torch import Tensor

from lib.runtime.chunks import chunks
from lib.views.blur import blur
from lib.views.color import blend_, gray, solarize, turn_hue_
from lib.views.crop import resample
from lib.views.parameters import AugmentationParams, PackedParams, draw

__all__ = ["AugmentationParams", "PackedParams", "augment", "draw", "normalize"]

CPU_PIXELS = 256 * 32 * 32  # at a time: 3 MiB of a view, which stay in a CPU's cache through all operations


def augment(images: Tensor, params: AugmentationParams | PackedParams, mean: Tensor, std: Tensor) -> Tensor:
    """The views of ``images``, computed where the images are; the host waits for nothing.

    Args:
        images: uint8 [B, 3, H, W].
        params: what `draw` returned for B images of H x W, or its ``.to(device)``.
        mean, std: [3], of pixels in 0..1, on the images' device (from elsewhere they are copied each time).

    Returns:
        float32 [B, 3, h, w], normalized; of the images' size, unless squares are cut (``crop_pixels``).

    Raises:
        ValueError: the parameters are for another number or size of images.
    """
    expected = (len(params), 3, *params.source)
    if images.shape != expected:
        raise ValueError(f"images of shape {tuple(images.shape)}, augmentation parameters for {expected}")
    packed = params.to(images.device) if isinstance(params, AugmentationParams) else params
    scale, shift = _scale_and_shift(images, mean, std)
    pixels = math.prod(packed.source)
    at_once = CPU_PIXELS if images.device.type == "cpu" else max(1, len(images)) * pixels
    views = torch.empty(len(images), 3, *packed.size, device=images.device)
    with torch.autocast(images.device.type, enabled=False):
        for rows in chunks(len(images), pixels, at_once):
            torch.add(_view(images[rows], packed.rows(rows)).mul_(scale), shift, out=views[rows])
    return views


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] to float32: the transform of images that are not augmented."""
    scale, shift = _scale_and_shift(images, mean, std)
    return (images * (scale / 255)).add_(shift)


def _scale_and_shift(images: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    mean, std = (value.to(images.device, torch.float32)[:, None, None] for value in (mean, std))
    return 1 / std, -mean / std


def _view(images: Tensor, packed: PackedParams) -> Tensor:
    """Views in 0..1: float32 [B, 3, h, w]."""
    down, across, blend, hue, grays, *late = packed.parts()
    view, config = resample(images, down, across), packed.config
    # An image's three blends come before the turn of its hue or after it; where it is not their turn they do nothing.
    for half in range(2 if config.jitter else 0):
        if half and config.hue:
            turn_hue_(view, hue)
        for number in range(3):
            blend_(view, blend[:, half, number])
    if config.grayscale:
        view = torch.where(grays[:, None, None, None] > 0, gray(view)[:, None], view)
    if config.blur:
        view = blur(view, late[0])
    if config.solarize:
        view = solarize(view, late[1])
    return view
