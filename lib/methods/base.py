"""What a method is: embeddings of views, a loss on embeddings, latents of images.

Embedding and loss are apart: the training core gathers embeddings across processes, takes exact large batches in
micro-batches, and a loss is tested without a network. Whatever a method remembers between steps is in buffers, so
that a checkpoint holds it without knowing it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from lib.encoders import build_encoder
from lib.params.pretraining import Pretraining
from lib.runtime.errors import UserError

WIDEST = 16_384  # units of a layer: two such layers in a row are a gigabyte

Named = dict[str, Tensor]


@dataclass(frozen=True)
class DataFacts:
    """What a method may know of the data before training: the mean and deviation [3] that views are normalized with,
    how many training images and classes there are, and how many images of a batch one process takes."""

    mean: Tensor
    std: Tensor
    count: int
    classes: int
    local_batch: int


class Method(nn.Module):
    """Base of every method. A subclass sets ``Options`` and defines ``loss``, ``latents`` and ``project``."""

    Options: ClassVar[type]  # a frozen dataclass of `lib.params.spec.param`s
    views: int = 2  # augmented views of each image in a step
    needs: tuple[str, ...] = ()  # of indices, labels: what ``loss`` finds among the embeddings beside them
    halves: bool = False  # its latents are parts of one pooling, so that their mean is the whole one

    @classmethod
    def reads(cls, options: Any) -> frozenset[str]:
        """Which shared numbers a variant with these options reads, beside those of every training: of encoder, gamma."""
        return frozenset({"encoder"})

    def __init__(self, options: Any, params: Pretraining) -> None:
        super().__init__()
        self.options = options
        self.encoder = self.network(params)

    def network(self, params: Pretraining) -> nn.Module:
        """What images go through first; ``self.options`` is set. A method with a network of its own overrides this."""
        return build_encoder(params.encoder)

    def embed(self, views: list[Tensor]) -> Named:
        """Per-image outputs that the loss compares: views [B, 3, S, S] each -> {name: [B, D]}.

        Each view has a forward pass, and so BatchNorm statistics, of its own, as in the study's code; SimCLR's
        official implementation shares them.
        """
        return named_by_view([self.embed_view(view) for view in views])

    def embed_view(self, view: Tensor) -> Named:
        """One view's part of `embed`: [B, 3, S, S] -> {name: [B, D]}."""
        return self.project(self.latents(view))

    def loss(self, embeddings: Named) -> tuple[Tensor, Named]:
        """The total to minimize and its named parts for the curve, from the embeddings of the whole batch."""
        raise TypeError(f"{type(self).__name__} does not define loss")

    def latents(self, images: Tensor) -> Named:
        """What evaluation sees: images [B, 3, S, S] -> {name: [B, D]}; the main latent first."""
        raise TypeError(f"{type(self).__name__} does not define latents")

    def project(self, latents: Named) -> Named:
        """Where the loss acts: {name: [B, D]} -> {name: [B, P]}, L2-normalized if it compares directions alone."""
        raise TypeError(f"{type(self).__name__} does not define project")

    def watched(self, embeddings: Named) -> Named:
        """What must not become the same for all images, [B, D] each; a training says so where it does."""
        return embeddings

    def setup(self, facts: DataFacts) -> None:
        """Called once before training.

        Raises:
            UserError: options that do not fit the data, or a process's part of the batch.
        """

    def after_step(self, step: int, steps: int) -> None:
        """Called after the optimizer's step number ``step``, from 0, of ``steps``: EMA, queues, running rates."""

    def allow_end_to_end_gradient(self) -> None:
        """Called before fine-tuning: a method that stops gradients inside its encoder lets them pass."""


def named_by_view(views: list[Named]) -> Named:
    """What `embed_view` made of each view, in one: ``z`` of the two is ``z_a`` and ``z_b``."""
    return {f"{name}_{side}": rows for side, view in zip("ab", views) for name, rows in view.items()}


def projector(width: int, hidden: int, outputs: int) -> nn.Sequential:
    """SimCLR's head as the study had it: linear, BatchNorm, ReLU, linear."""
    return nn.Sequential(
        nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, outputs)
    )


def expander(width: int, units: int) -> nn.Sequential:
    """The head of methods without negatives: linear, BatchNorm, ReLU, twice, then linear without bias."""
    return nn.Sequential(
        nn.Linear(width, units),
        nn.BatchNorm1d(units),
        nn.ReLU(inplace=True),
        nn.Linear(units, units),
        nn.BatchNorm1d(units),
        nn.ReLU(inplace=True),
        nn.Linear(units, units, bias=False),
    )


def pool(features: Tensor) -> Tensor:
    """Global average pooling in fp32: [B, C, H, W] -> [B, C]."""
    return features.float().mean(dim=(2, 3))


def l2_normalize(rows: Tensor) -> Tensor:
    """Embeddings of length one, in fp32: [B, D] -> [B, D]."""
    return functional.normalize(rows.float(), dim=1)


def at_least_fp32(rows: Tensor) -> Tensor:
    """fp64 stays; everything else becomes fp32, in which every loss computes."""
    return rows if rows.dtype == torch.float64 else rows.float()


def require_effect(options: Any, variant: str, names: Iterable[str], with_what: str, remedy: str) -> None:
    """Raise UserError if an option of ``names`` that changes nothing has another value than its default."""
    usual = {field.name: field.default for field in fields(options)}
    for name in names:
        value = getattr(options, name)
        if value != usual[name]:
            raise UserError(
                f"params.yaml: variants.{variant}.{name} is {value}, which has no effect with {with_what}; "
                f"{remedy}, or {name} to {usual[name]}"
            )


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def without_gradient(module: nn.Module) -> nn.Module:
    """The module in eval mode with parameters that do not learn."""
    return module.requires_grad_(False).eval()
