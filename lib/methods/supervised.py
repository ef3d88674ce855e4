"""The supervised ceiling: the same encoder and the same views, trained with labels (docs/methods.md, 6).

Not self-supervised, and the only row of a table that saw labels while its encoder learned: it shows what the
encoder, the augmentation and the number of epochs can give. It trains without the validation images.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lib.methods.base import DataFacts, Method, Named, full_precision
from lib.params.pretraining import Pretraining


@full_precision
def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean of -log softmax at the label, in nats: logits [N, K] (no softmax before them), int64 labels [N]."""
    return functional.cross_entropy(logits, labels)


@dataclass(frozen=True)
class SupervisedOptions:
    """None."""


class Supervised(Method):
    """One view of each image, one latent ``h`` and a linear layer with the logits ``y``."""

    Options = SupervisedOptions
    views = 1
    needs = ("labels",)

    def __init__(self, options: SupervisedOptions, params: Pretraining) -> None:
        super().__init__(options, params)
        with torch.random.fork_rng(devices=[]):  # a stand-in until the number of classes is known
            self.classifier = nn.Linear(self.encoder.width, 1)

    def setup(self, facts: DataFacts) -> None:
        self._set_classes(facts.classes)

    def _set_classes(self, classes: int) -> None:
        self.classifier = nn.Linear(self.encoder.width, classes).to(self.classifier.weight)

    def project(self, latents: Named) -> Named:
        return {"y": self.classifier(latents["h"]).float()}

    def loss(self, embeddings: Named) -> tuple[Tensor, Named]:
        error = cross_entropy(embeddings["y_a"], embeddings["labels"])
        return error, {"cross_entropy": error}

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        """The data had as many classes as the saved layer has outputs, which the options do not tell."""
        if (bias := state.get(f"{prefix}classifier.bias")) is not None and len(bias) != self.classifier.out_features:
            self._set_classes(len(bias))
        super()._load_from_state_dict(state, prefix, *rest)


METHOD = Supervised
