"""The supervised ceiling: the same encoder and the same views, trained with labels (docs/methods.md, 6).

Not self-supervised, and the only row of a table that saw labels while its encoder learned: it shows what the
encoder, the augmentation and the number of epochs can give. It trains without the validation images.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib.losses.cross_entropy import cross_entropy
from lib.methods.base import WIDEST, Method, Named, pool
from lib.params.pretraining import Pretraining
from lib.params.spec import param
from lib.runtime.errors import UserError


@dataclass(frozen=True)
class Options:
    """``classes``: 0 for those of the data, or at least as many; more cost nothing but unused scores."""

    classes: int = param(0, low=0, high=WIDEST)


class Supervised(Method):
    """One view of each image, an encoder, one pooled latent ``h`` and a linear layer with the scores ``y``."""

    Options = Options
    losses = ("cross_entropy",)
    views = 1
    needs = ("labels",)

    def __init__(self, options: Options, params: Pretraining) -> None:
        super().__init__(options, params)
        self.variant = params.variant
        if options.classes == 1:
            raise UserError(
                f"params.yaml: variants.{self.variant}.classes is 1; allowed: 0 (those of the data), or at least 2"
            )
        with torch.random.fork_rng(devices=[], enabled=not options.classes):  # a stand-in until the data is known
            self.classifier = nn.Linear(self.encoder.width, options.classes or 1)

    def _fit(self, classes: int) -> None:
        """A fresh classifier where the old one is and in its precision, unless it has as many rows."""
        if self.classifier.out_features != classes:
            self.classifier = nn.Linear(self.encoder.width, classes).to(self.classifier.weight)

    def setup(self, mean: Tensor, std: Tensor, count: int, classes: int) -> None:
        if 0 < self.options.classes < classes:
            raise UserError(
                f"params.yaml: variants.{self.variant}.classes is {self.options.classes}; allowed: 0 "
                f"(those of the data), or at least the number of classes of the data, {classes}"
            )
        self._fit(self.options.classes or classes)

    def latents(self, images: Tensor) -> Named:
        return {"h": pool(self.encoder(images))}

    def project(self, latents: Named) -> Named:
        return {"y": self.classifier(latents["h"]).float()}

    def loss(self, embeddings: Named) -> tuple[Tensor, Named]:
        error = cross_entropy(embeddings["y_a"], embeddings["labels"])
        return error, {"cross_entropy": error}

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: object) -> None:
        """The data had as many classes as the saved layer has rows, which `Options` need not tell."""
        self._fit(len(state.get(f"{prefix}classifier.bias", self.classifier.bias)))
        super()._load_from_state_dict(state, prefix, *rest)


METHOD = Supervised
