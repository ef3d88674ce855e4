"""Filters learned from overlapping patches, layer by layer (docs/methods.md, 13), as shallow-conv does.

One small square is cut from each image, and all 7x7 patches in it, which overlap nearly whole, are to be near
one another and far from the patches of other images. Only the first layer of filters is learned; what it
is worth shows when a classifier starts from it (`lib.evaluate.transfer`).
"""

from dataclasses import dataclass

from torch import Tensor

from lib.encoders.shallow import Shallow
from lib.errors import UserError
from lib.losses.patch_triplets import patch_triplets
from lib.methods.base import Method, Named, pool
from lib.params.pretraining import Pretraining
from lib.params.spec import param

PATCH = 7
LARGEST = 10  # pixels of the square: 16 patches, whose pairs grow with the fourth power


@dataclass(frozen=True)
class Options:
    """``margin`` of the triplets in squared distance; ``max_pool``: the largest of a patch's 2x2 responses."""

    margin: float = param(2.0, above=0)
    max_pool: bool = param(True)


class PatchFilters(Method):
    """The layer's responses to a patch are its embedding; ``h`` is their mean over the whole image."""

    Options = Options
    losses = ("patch_triplets",)
    part = "encoders/shallow"
    own_encoder = "shallow"
    views = 1

    def __init__(self, options: Options, params: Pretraining) -> None:
        super().__init__(options, params)
        if not PATCH < params.augment.crop_pixels <= LARGEST:
            raise UserError(f"params.yaml: augment.crop_pixels of {params.variant} is {params.augment.crop_pixels}; "
                            f"allowed for the method {params.method}: {PATCH + 1} to {LARGEST}, of which it takes "
                            f"patches of {PATCH}")

    def network(self, params: Pretraining) -> Shallow:
        return Shallow(self.options.max_pool)

    def embed(self, views: list[Tensor]) -> Named:
        """All patches of the squares [B, 3, s, s]: {"e": [B, P D]}."""
        patches = views[0].unfold(2, PATCH, 1).unfold(3, PATCH, 1)  # [B, 3, s - 6, s - 6, 7, 7]
        patches = patches.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
        return {"e": self.encoder(patches).flatten(1).view(len(views[0]), -1)}

    def loss(self, embeddings: Named) -> tuple[Tensor, Named]:
        rows = embeddings["e"]
        width = self.encoder.width * (1 if self.options.max_pool else 4)
        loss, share = patch_triplets(rows.view(len(rows), -1, width), self.options.margin)
        return loss, {"triplets": loss, "pairs_with_negative": share}

    def latents(self, images: Tensor) -> Named:
        return {"h": pool(self.encoder(images))}

    def project(self, latents: Named) -> Named:
        return {}


METHOD = PatchFilters
