"""Filters learned from overlapping patches, layer by layer (docs/methods.md, 13), as shallow-conv does.

One small square is cut from each image, and all 7x7 patches in it, which overlap nearly whole, are to be near
one another and far from the patches of other images. With a second layer, the first half of the steps trains
the first; then it stays, and patches of its map train the second. What the first layer is worth shows when a
classifier starts from it (`lib.evaluate.transfer`), what both are worth in the latents.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lib.encoders.shallow import Shallow, map_side
from lib.losses.patch_triplets import patch_triplets
from lib.methods.base import Method, Named, pool
from lib.params.pretraining import Pretraining
from lib.params.spec import param
from lib.runtime.errors import UserError

PATCH = {1: 7, 2: 4}  # by layer: rows of a patch, in pixels and in places of the first layer's map
MOST = 4  # patches in a row of the square: pairs of patches grow with the fourth power
SQUARE = 8  # pixels, for the first layer where a second asks for larger squares


@dataclass(frozen=True)
class Options:
    """``margin`` of the triplets in squared distance; ``max_pool``: the largest of a patch's 2x2 responses;
    ``layers`` of filters."""

    margin: float = param(2.0, above=0)
    max_pool: bool = param(True)
    layers: int = param(1, low=1, high=2)


class PatchFilters(Method):
    """A layer's responses to a patch are its embedding; ``h`` is the mean of the last layer's over the whole image.

    With two layers there is also ``first``, the mean of the first one's.
    """

    Options = Options
    losses = ("patch_triplets",)
    part = "encoders/shallow"
    own_encoder = "shallow"
    views = 1

    def __init__(self, options: Options, params: Pretraining) -> None:
        super().__init__(options, params)
        allowed = [
            pixels
            for pixels in range(PATCH[1], 64)
            if 1 < map_side(pixels, options.layers - 1, options.max_pool) - PATCH[options.layers] + 1 <= MOST
        ]
        if params.augment.crop_pixels not in allowed:
            raise UserError(
                f"params.yaml: augment.crop_pixels of {params.variant} is {params.augment.crop_pixels}; "
                f"allowed for the method {params.method} with layers {options.layers}: {allowed[0]} to "
                f"{allowed[-1]}"
            )
        self.register_buffer("learning", torch.ones((), dtype=torch.int64))  # the layer that learns, from 1
        self.now = 1  # the same, known without asking the device
        self.register_load_state_dict_post_hook(_resume)

    def network(self, params: Pretraining) -> Shallow:
        return Shallow(self.options.max_pool, layers=self.options.layers)

    def embed(self, views: list[Tensor]) -> Named:
        """All patches of the squares [B, 3, s, s], by the layer that learns: {"e": [B, P D]}."""
        inputs = views[0]
        if self.now == 2:
            with torch.no_grad():
                inputs = self.encoder(inputs, layer=1)
        elif self.options.layers == 2:
            inputs = _middle(inputs, SQUARE)
        size = PATCH[self.now]
        patches = inputs.unfold(2, size, 1).unfold(3, size, 1)  # [B, C, P', P', size, size], P = P' P'
        patches = patches.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
        return {"e": self.encoder(patches, layer=self.now).flatten(1).view(len(inputs), -1)}

    def loss(self, embeddings: Named) -> tuple[Tensor, Named]:
        rows = embeddings["e"]
        width = self.encoder.widths[self.now - 1] * (1 if self.options.max_pool else 4)
        loss, share = patch_triplets(rows.view(len(rows), -1, width), self.options.margin)
        return loss, {"triplets": loss, "pairs_with_negative": share}

    def after_step(self, step: int, steps: int) -> None:
        if self.options.layers == 2 and step + 1 == steps // 2:
            self.now = 2
            self.learning.fill_(2)

    def latents(self, images: Tensor) -> Named:
        first = self.encoder(images, layer=1)
        if self.options.layers == 1:
            return {"h": pool(first)}
        return {"h": pool(self.encoder(first, layer=2)), "first": pool(first)}

    def project(self, latents: Named) -> Named:
        return {}


def _middle(images: Tensor, pixels: int) -> Tensor:
    """The square of so many pixels in the middle of images [B, 3, s, s]."""
    start = (images.shape[-1] - pixels) // 2
    return images[..., start : start + pixels, start : start + pixels]


def _resume(method: PatchFilters, _: Any) -> None:
    method.now = int(method.learning)


METHOD = PatchFilters
