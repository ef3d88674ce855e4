"""Color operations on batches of RGB images float32 [B, 3, H, W] in 0..1, one amount per image.

Definitions are those of torchvision.transforms.functional on float tensors.
"""

import torch
from torch import Tensor

LUMA = (0.2989, 0.587, 0.114)
SMALLEST = torch.finfo(torch.float32).tiny


def gray(images: Tensor) -> Tensor:
    """[B, H, W]: the gray value of each pixel."""
    red, green, blue = images.unbind(1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def solarize(images: Tensor, thresholds: Tensor) -> Tensor:
    """Invert what is at least ``thresholds`` [B]; above 1 nothing is."""
    return torch.where(images >= thresholds[:, None, None, None], 1 - images, images)


def blend_(images: Tensor, weights: Tensor) -> Tensor:
    """Brightness, contrast or saturation, chosen image by image, in place.

    Each of the three mixes the image with something gray: with black, with the mean of its gray values,
    with its gray values. So one pass serves a batch in which they differ.

    Args:
        weights: [B, 3], of the image, of its gray values and of their mean.
    """
    own, values, mean = weights[:, :, None, None].unbind(1)  # each [B, 1, 1]
    level = gray(images)
    average = level.mean((1, 2), keepdim=True)
    level.mul_(values).add_(average * mean)
    return torch.addcmul(level[:, None], images, own[:, None], out=images).clamp_(0, 1)


def turn_hue_(images: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue by ``turns`` [B] (1 is the whole circle), keeping HSV's saturation and value; in place.

    With the darkest channel at 0 and the brightest at 1, a color's distance from red on the circle is
    (1 + green + blue - red) / 6, on green's side if green exceeds blue: the six sectors need no case
    distinction. Backwards, a channel is full within 1/6 of its own hue and falls to 0 at 2/6.
    """
    red, green, blue = images.unbind(1)
    highest, lowest = images.amax(1), images.amin(1)
    sixfold = (highest - lowest).mul_(6)  # chroma, times 6
    hue = (green - red).add_(blue).sub_(lowest).div_(sixfold.clamp(min=SMALLEST)).add_(1 / 6)
    hue.copysign_(green - blue).add_(turns[:, None, None])
    hue.sub_(hue.floor())  # 0..1
    distance = torch.empty_like(hue)
    torch.sub(hue, 0.5, out=distance).abs_().clamp_(1 / 6, 2 / 6)  # red: measured from the opposite side
    torch.addcmul(lowest.sub_(sixfold, alpha=1 / 6), sixfold, distance, out=red)
    highest.add_(sixfold, alpha=1 / 6)
    for channel, center in ((green, 1 / 3), (blue, 2 / 3)):
        torch.sub(hue, center, out=distance).abs_().clamp_(1 / 6, 2 / 6)
        torch.addcmul(highest, sixfold, distance, value=-1, out=channel)
    return images
