"""VGG-6 on the patches of an image, for methods that contrast patches (docs/methods.md, 9 and 10).

Patches are cut out first and go through the network one by one: no code sees a pixel outside its patch, not even by
padding. There is no BatchNorm, which would tell one patch about the others.

B images of S x S pixels in a grid of G x G patches; D channels.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lib.runtime.errors import UserError

GRID = 7  # G, whatever S is: patches of S / 4 pixels every S / 8
CHANNELS = (1, 2, 2, 4, 8, 8)  # of the six layers, as multiples of the first's
POOLED = (False, True, False, True, True, True)
LUMA = (0.2989, 0.587, 0.114)


class VGG6(nn.Module):
    """Six convolutions with ReLU, pooled where a patch still has more than one pixel.

    Images [B, 3, S, S], S a multiple of 8 from 16 on -> codes [B, 7, 7, D] of each layer, fp32: the means of its maps
    over the patch, after pooling. ``channels`` is D of the first layer (see `CHANNELS`); ``gray``: it sees the luma of
    the normalized channels alone; ``local``: no gradient passes from a layer to those below it.
    """

    name = "vgg6"
    images_at_once = 128  # a patch's first maps are larger than its pixels: thousands of images would need gigabytes
    luma: Tensor

    def __init__(self, channels: int, gray: bool, local: bool) -> None:
        super().__init__()
        self.widths = [channels * factor for factor in CHANNELS]
        self.width = self.widths[-1]
        self.gray, self.local = gray, local
        inputs = [1 if gray else 3, *self.widths[:-1]]
        layers = [nn.Conv2d(*sizes, kernel_size=3, padding=1) for sizes in zip(inputs, self.widths)]
        self.layers = nn.ModuleList(layers)
        self.register_buffer("luma", torch.tensor(LUMA).view(3, 1, 1), persistent=False)
        for layer in layers:
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
            nn.init.zeros_(layer.get_parameter("bias"))

    def forward(self, images: Tensor) -> list[Tensor]:
        parts = [self._codes(part) for part in images.split(self.images_at_once)]
        return [torch.cat(layer) for layer in zip(*parts)]

    def _codes(self, images: Tensor) -> list[Tensor]:
        if self.gray:
            images = (images * self.luma).sum(1, keepdim=True)
        values, codes = patches(images), []
        for layer, pooled in zip(self.layers, POOLED):
            values = functional.relu(layer(values.detach() if self.local else values), inplace=True)
            if pooled and values.shape[2] > 1:
                values = functional.max_pool2d(values, 2)
            codes.append(values.float().mean((2, 3)).unflatten(0, (-1, GRID, GRID)))
        return codes

    def about(self) -> dict[str, Any]:
        return {"widths": self.widths, "kernel": 3, "padding": 1, "grid": GRID, "gray": self.gray, "local": self.local}


def patches(images: Tensor) -> Tensor:
    """Overlapping patches of S / 4 pixels every S / 8: [B, C, S, S] -> [B * 49, C, S / 4, S / 4], channels last."""
    size = images.shape[2]
    if size % 8 or size < 16:
        raise UserError(
            f"params.yaml: image_size is {size}, which has no grid of {GRID}x{GRID} patches; allowed for "
            "methods that contrast patches: a multiple of 8, at least 16"
        )
    stride = size // 8
    cut = images.unfold(2, 2 * stride, stride).unfold(3, 2 * stride, stride)  # [B, C, G, G, S / 4, S / 4]
    return cut.permute(0, 2, 3, 1, 4, 5).flatten(0, 2).contiguous(memory_format=torch.channels_last)
