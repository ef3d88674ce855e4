"""Filters learned from overlapping patches, layer by layer (docs/methods.md, 13), as shallow-conv does.

One small square is cut from each image, and all 7x7 patches in it, which overlap nearly whole, are to be near one
another and far from the patches of other images. With a second layer, the first half of the steps trains the first,
each pair against a semi-hard negative; then it stays, and patches of its map train the second, each pair against the
hardest one. The margin is a squared distance of responses to pixels in 0..1, so filters see these, not normalized ones.

B images with P patches each, embeddings of D numbers; A = B P (P - 1) / 2 pairs (anchor, positive), each unordered
pair once, its first patch the anchor.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding

from lib.encoders.shallow import Shallow, map_side
from lib.methods.base import Named, PixelMethod, full_precision, pool
from lib.params.pretraining import Pretraining
from lib.params.spec import param
from lib.runtime.chunks import chunks
from lib.runtime.errors import UserError

PATCH = {1: 7, 2: 4}  # by layer: rows of a patch, in pixels and in places of the first layer's map
MOST = 4  # patches in a row of the square: pairs of patches grow with the fourth power
SQUARE = 8  # pixels, for the first layer where a second asks for larger squares

Mining = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]


@full_precision
def patch_triplets(patches: Tensor, margin: float, mining: Mining) -> tuple[Tensor, Tensor]:
    """Mean over triples of d(a, p) - d(a, n) + margin, of patches [B, P, D]; and the share of pairs that have one.

    Distances d are squared Euclidean. ``mining``, `semi_hard` or `hardest`, finds one negative n among the patches of
    other images for each pair (a, p); a pair without does not count. Where none has one, loss and gradient are 0.
    """
    count, each, _ = patches.shape
    first, second = torch.triu_indices(each, each, 1, device=patches.device)
    distances = squared_distances(patches.flatten(0, 1))  # [B P, B P]
    starts = torch.arange(count, device=patches.device)[:, None] * each
    owner = torch.arange(len(distances), device=patches.device) // each  # the image of each patch
    anchors, positives = (starts + first).flatten(), (starts + second).flatten()
    near = _picked(distances, anchors, positives)  # [A]
    # a few pairs at a time: A x B P numbers are never held at once
    parts = [
        mining(distances.detach()[rows], near.detach()[part], owner[rows, None] != owner, margin)
        for part in chunks(len(anchors), len(distances))
        for rows in [anchors[part]]
    ]
    chosen, exists = map(torch.cat, zip(*parts))
    losses = (near - _picked(distances, anchors, chosen) + margin).relu()
    return (losses * exists).sum() / exists.sum().clamp(min=1), exists.float().mean()


@full_precision
def squared_distances(rows: Tensor) -> Tensor:
    """[N, N] of rows [N, D], not below 0."""
    length = rows.square().sum(1)
    return (length[:, None] + length - 2 * rows @ rows.T).clamp(min=0)


def semi_hard(distances: Tensor, near: Tensor, other: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """A random negative with d(a, p) < d(a, n) < d(a, p) + margin: of each pair [A]; whether it has one, bool [A].

    ``distances`` [A, B P] are the anchors' to all patches, ``near`` [A] those to their positives; ``other``, bool
    [A, B P], tells the patches of other images. Draws come from torch's global generator.
    """
    allowed = other & (distances > near[:, None]) & (distances < near[:, None] + margin)
    ticket = torch.rand(distances.shape, device=distances.device).masked_fill_(~allowed, -1)
    best, chosen = ticket.max(1)
    return chosen, best >= 0


def hardest(distances: Tensor, near: Tensor, other: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """The nearest negative, which may be nearer than the positive, if d(a, n) < d(a, p) + margin. As `semi_hard`."""
    far, chosen = distances.where(other, torch.inf).min(1)
    return chosen, far < near + margin


def _picked(values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``values[rows, columns]``, whose gradients add up in one order whatever the number of threads."""
    return embedding(rows * values.shape[1] + columns, values.view(-1, 1))[:, 0]


@dataclass(frozen=True)
class FilterOptions:
    """``margin`` of the triplets in squared distance of responses to pixels in 0..1; ``max_pool``: the largest of a
    patch's 2x2 responses; ``layers`` of filters."""

    margin: float = param(2.0, above=0)
    max_pool: bool = param(True)
    layers: int = param(1, low=1, high=2)


class PatchFilters(PixelMethod):
    """A layer's responses to a patch are its embedding; ``h`` is the mean of the last layer's over the whole image.

    With two layers there is also ``first``, the mean of the first one's.
    """

    Options = FilterOptions
    encoder: Shallow
    learning: Tensor  # [], the layer that learns, from 1

    @classmethod
    def reads(cls, options: FilterOptions) -> frozenset[str]:
        return frozenset()

    def __init__(self, options: FilterOptions, params: Pretraining) -> None:
        super().__init__(options, params)
        places = {pixels: map_side(pixels, options.layers - 1, options.max_pool) for pixels in range(PATCH[1], 64)}
        allowed = [pixels for pixels, side in places.items() if 1 < side - PATCH[options.layers] + 1 <= MOST]
        if params.augment.crop_pixels not in allowed:
            raise UserError(
                f"params.yaml: augment.crop_pixels of {params.variant} is {params.augment.crop_pixels}; allowed for "
                f"the method {params.method} with layers {options.layers}: {allowed[0]} to {allowed[-1]}"
            )
        self.register_buffer("learning", torch.ones((), dtype=torch.int64))
        self.now = 1  # the same, known without asking the device
        self.register_load_state_dict_post_hook(_resume)

    def network(self, params: Pretraining) -> Shallow:
        return Shallow(self.options.max_pool, layers=self.options.layers)

    def pixels(self, images: Tensor) -> Tensor:
        return images * self.std[:, None, None] + self.mean[:, None, None]

    def embed(self, views: list[Tensor]) -> Named:
        """All patches of the squares [B, 3, s, s], by the layer that learns: {"e": [B, P D]}."""
        inputs = self.pixels(views[0])
        if self.now == 2:
            with torch.no_grad():
                inputs = self.encoder(inputs, layer=1)
        elif self.options.layers == 2:
            start = (inputs.shape[-1] - SQUARE) // 2  # the first layer has the middle of the larger square
            inputs = inputs[..., start : start + SQUARE, start : start + SQUARE]
        size = PATCH[self.now]
        patches = inputs.unfold(2, size, 1).unfold(3, size, 1)  # [B, C, P', P', size, size], P = P' P'
        patches = patches.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
        return {"e": self.encoder(patches, layer=self.now).flatten(1).view(len(inputs), -1)}

    def loss(self, embeddings: Named) -> tuple[Tensor, Named]:
        rows = embeddings["e"]
        width = self.encoder.widths[self.now - 1] * (1 if self.options.max_pool else 4)
        mining = semi_hard if self.now == 1 else hardest
        loss, share = patch_triplets(rows.view(len(rows), -1, width), self.options.margin, mining)
        return loss, {"triplets": loss, "pairs_with_negative": share}

    def after_step(self, step: int, steps: int) -> None:
        if self.options.layers == 2 and step + 1 == steps // 2:
            self.now = 2
            self.learning.fill_(2)

    def latents(self, images: Tensor) -> Named:
        first = self.encoder(self.pixels(images), layer=1)
        if self.options.layers == 1:
            return {"h": pool(first)}
        return {"h": pool(self.encoder(first, layer=2)), "first": pool(first)}


def _resume(method: PatchFilters, _: Any) -> None:
    method.now = int(method.learning)


METHOD = PatchFilters
