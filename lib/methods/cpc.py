"""Contrastive predictive coding on patches of an image (van den Oord et al. 2018; docs/methods.md, 9).

From the code of a patch, linear maps predict the codes of patches in the rows below it, and each prediction must
find its patch among patches of other images. A code is its own context, as in Greedy InfoMax, so there is no
recurrent network over the patches.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from lib.encoders.vgg6 import FURTHEST, VGG6, Ahead, pairs, places_ahead
from lib.losses.cpc import any_place, false_scores, info_nce, true_scores
from lib.methods.base import Method, Named
from lib.params.pretraining import Pretraining
from lib.params.spec import param


@dataclass(frozen=True)
class Options:
    """``channels`` of the first layer, the last has 8 times as many; ``furthest``, rows ahead of the last prediction;
    ``negatives`` of each prediction; ``gray``, whether only brightness is seen.
    """

    channels: int = param(128, low=4, high=512)
    furthest: int = param(FURTHEST, low=1, high=FURTHEST)
    negatives: int = param(16, low=1, high=4096)
    gray: bool = param(True)


class CPC(Method):
    """An encoder of patches, one latent ``h``, the mean of their codes, and the maps that predict."""

    Options = Options
    losses = ("cpc",)
    part = "encoders/vgg6"
    own_encoder = "vgg6"
    views = 1

    def __init__(self, options: Options, params: Pretraining) -> None:
        super().__init__(options, params)
        self.ahead = Ahead(self.encoder.width, options.furthest)

    def network(self, params: Pretraining) -> nn.Module:
        return VGG6(self.options.channels, self.options.gray, local=False)

    def embed(self, views: list[Tensor]) -> Named:
        """The codes of an image's patches and all predictions made from them, each in one row."""
        codes = self.encoder(views[0])[-1]  # [B, 7, 7, D]
        return {"codes": codes.flatten(1), "ahead": self.ahead(codes)}

    def loss(self, embeddings: Named) -> tuple[Tensor, Named]:
        """The mean over the distances, which are the parts."""
        places = places_ahead(self.options.furthest)
        predicted, codes = pairs(embeddings["ahead"], embeddings["codes"], self.options.furthest)
        false = false_scores(predicted, codes, any_place(codes, self.options.negatives, places))
        errors = info_nce(true_scores(predicted, codes), false, places)
        return errors.mean(), {f"ahead{distance}": error for distance, error in enumerate(errors, 1)}

    def latents(self, images: Tensor) -> Named:
        return {"h": self.encoder(images)[-1].mean((1, 2))}

    def project(self, latents: Named) -> Named:
        """None: the loss acts on patches, not on an image's latent."""
        return {}


METHOD = CPC
