"""The supervised ceiling: the same encoder and the same views, trained with labels (docs/methods.md, 6).

Not self-supervised, and the only row of a table that saw labels while its encoder learned: it shows what the
encoder, the augmentation and the number of epochs can give. It trains without the validation images.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from lib.errors import UserError
from lib.losses.cross_entropy import cross_entropy
from lib.methods.base import WIDEST, Method, Named, pool
from lib.params.pretraining import Pretraining
from lib.params.spec import param


@dataclass(frozen=True)
class Options:
    """``classes``: at least as many as the data has; more cost nothing but unused scores."""

    classes: int = param(10, low=2, high=WIDEST)


class Supervised(Method):
    """One view of each image, an encoder, one pooled latent ``h`` and a linear layer with the scores ``y``."""

    Options = Options
    losses = ("cross_entropy",)
    views = 1
    needs = ("labels",)

    def __init__(self, options: Options, params: Pretraining) -> None:
        super().__init__(options, params)
        self.variant = params.variant
        self.classifier = nn.Linear(self.encoder.width, options.classes)

    def see_data(self, mean: Tensor, std: Tensor, count: int, classes: int) -> None:
        if classes > self.options.classes:
            raise UserError(f"params.yaml: variants.{self.variant}.classes is {self.options.classes}; allowed: at "
                            f"least the number of classes of the data, {classes}")

    def latents(self, images: Tensor) -> Named:
        return {"h": pool(self.encoder(images))}

    def project(self, latents: Named) -> Named:
        return {"y": self.classifier(latents["h"]).float()}

    def loss(self, embeddings: Named) -> tuple[Tensor, Named]:
        error = cross_entropy(embeddings["y_a"], embeddings["labels"])
        return error, {"cross_entropy": error}


METHOD = Supervised
