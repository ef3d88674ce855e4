"""From RGB to CIE Lab (sRGB primaries, white point D65), as CMC reads an image (docs/methods.md, 11).

Written as sums and products of channels, which no autocast touches: the conversion stays in fp32.
"""

import torch
from torch import Tensor

KNEE = 0.04045  # below it sRGB is linear
XYZ = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))
DELTA = 6 / 29  # CIE's lightness is linear below DELTA ** 3
# CMC's: middle and half width of each channel's range over all colors of sRGB
CENTERS, SCALES = (50.0, 6.025, -6.6895), (50.0, 92.208, 101.1675)


def rgb_to_lab(images: Tensor) -> Tensor:
    """float32 [B, 3, H, W] of sRGB in 0..1 (what lies outside is cut off) to L in 0..100, a and b.

    The white point is the sum of the primaries, so that a and b of every gray are 0.
    """
    images = images.float().clamp(0, 1)
    red, green, blue = torch.where(images > KNEE, ((images + 0.055) / 1.055).pow(2.4), images / 12.92).unbind(1)
    shares = [[weight / sum(row) for weight in row] for row in XYZ]
    x, y, z = (_lightness(r * red + g * green + b * blue) for r, g, b in shares)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def normalized_lab(views: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Views [B, 3, H, W] normalized by the data's mean and std [3], as Lab in about -1..1."""
    lab = rgb_to_lab(views.float() * std[:, None, None] + mean[:, None, None])
    channels = zip(lab.unbind(1), CENTERS, SCALES)
    return torch.stack([(channel - center) / scale for channel, center, scale in channels], 1)


def _lightness(share: Tensor) -> Tensor:
    """CIE's function of a share of white in 0..1."""
    return torch.where(share > DELTA**3, share.clamp(min=DELTA**3).pow(1 / 3), share / (3 * DELTA**2) + 4 / 29)
