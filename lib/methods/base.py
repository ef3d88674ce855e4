"""What a method is: embeddings of views, a loss on embeddings, latents of images.

Embedding and loss are apart, so that the training core can gather embeddings across processes, and so
that a loss can be tested without a network. Whatever a method remembers between steps is in buffers,
so that a checkpoint holds it without knowing it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional

from lib.encoders import build_encoder
from lib.params.pretraining import Pretraining
from lib.params.spec import param
from lib.runtime.errors import UserError

WIDEST = 16_384  # units of a layer: two such layers in a row are a gigabyte

GIVEN = ("indices", "labels")  # int64 [B]: rows of the training images; classes, for supervised methods alone

Named = dict[str, Tensor]


@dataclass(frozen=True)
class ContrastiveOptions:
    """Options of a method with NT-Xent and SimCLR's projector; widths are in units."""

    temperature: float = param(0.5, above=0)
    projector_hidden: int = param(512, low=1, high=WIDEST)
    projector_out: int = param(128, low=2, high=WIDEST)


class Method(nn.Module):
    """Base of every method. A subclass sets the class attributes, ``loss``, ``latents`` and ``project``."""

    Options: ClassVar[type]
    losses: ClassVar[tuple[str, ...]]  # the files of lib/losses that it imports
    part: ClassVar[str] = "methods/base"  # one more file of lib that it imports, without .py
    reads_gamma: ClassVar[bool] = False
    views: ClassVar[int] = 2  # augmented views of each image in a step
    own_encoder: ClassVar[str] = ""  # the file of lib/encoders of a method that does not take the shared encoder
    halves: ClassVar[bool] = False  # its latents are parts of one pooling, so that their mean is the whole one
    needs: ClassVar[tuple[str, ...]] = ()  # of `GIVEN`: what ``loss`` finds among the embeddings beside them

    def __init__(self, options: Any, params: Pretraining) -> None:
        super().__init__()
        self.options = options
        self.encoder_name = self.own_encoder or params.encoder
        self.encoder = self.network(params)

    def network(self, params: Pretraining) -> nn.Module:
        """What images go through first; ``self.options`` is set. A method with another network overrides this."""
        return build_encoder(params.encoder)

    def embed(self, views: list[Tensor]) -> Named:
        """Per-image outputs that the loss compares: views [B, 3, S, S] each -> {name: [B, D]}.

        As it stands, `embed_view` of each. Each view has a forward pass, and so BatchNorm statistics, of its own, as
        in the study's code; SimCLR's official implementation shares them.
        """
        return self.named_by_view([self.embed_view(view) for view in views])

    def embed_view(self, view: Tensor) -> Named:
        """The part of `embed` that one view [B, 3, S, S] has in it, {name: [B, D]}; of what the
        method remembers it changes BatchNorm's statistics alone."""
        return self.project(self.latents(view))

    def named_by_view(self, views: list[Named]) -> Named:
        """What `embed_view` made of each view, in one: ``z`` of the two is ``z_a`` and ``z_b``."""
        return {f"{name}_{side}": rows for side, view in zip("ab", views) for name, rows in view.items()}

    def loss(self, embeddings: Named) -> tuple[Tensor, Named]:
        """The total to minimise and its named parts for the curve, from the embeddings of the whole batch."""
        raise TypeError(f"{type(self).__name__} does not define loss")

    def watched(self, embeddings: Named) -> Named:
        """What must not become the same for all images, [B, D] each; a training says so where it does."""
        return embeddings

    def setup(self, mean: Tensor, std: Tensor, count: int, classes: int) -> None:
        """Called once before training: mean and deviation [3] that the views are normalized with, how many
        images there are to train on, and how many classes they have.

        Raises:
            UserError: options that do not fit the data.
        """

    def check_local_batch(self, share: int) -> None:
        """Called once before training with the number of images that each process takes of a batch.

        Raises:
            UserError: options that do not fit it.
        """

    def after_step(self, step: int, steps: int) -> None:
        """Called after the optimizer's step number ``step``, from 0, of ``steps``: momentum copies, queues, rates."""

    def allow_end_to_end_gradient(self) -> None:
        """Called before fine-tuning: a method that holds gradients back inside its encoder lets them pass."""

    def latents(self, images: Tensor) -> Named:
        """What evaluation sees: images [B, 3, S, S] -> {name: [B, D]}; the main latent first."""
        raise TypeError(f"{type(self).__name__} does not define latents")

    def project(self, latents: Named) -> Named:
        """From the latents to the space that the loss acts on: {name: [B, D]} -> {name: [B, P]}.

        Rows are of length one where the loss compares directions alone.
        """
        raise TypeError(f"{type(self).__name__} does not define project")


class OneLatent(Method):
    """An encoder, one pooled latent ``h`` and SimCLR's projector with the output ``z``."""

    Options = ContrastiveOptions

    def __init__(self, options: ContrastiveOptions, params: Pretraining) -> None:
        super().__init__(options, params)
        self.projector = projector(self.encoder.width, options.projector_hidden, options.projector_out)

    def latents(self, images: Tensor) -> Named:
        return {"h": pool(self.encoder(images))}

    def project(self, latents: Named) -> Named:
        return {"z": l2_normalize(self.projector(latents["h"]))}


def projector(width: int, hidden: int, outputs: int) -> nn.Sequential:
    """SimCLR's head as the study had it: linear, BatchNorm, ReLU, linear (docs/methods.md, 1)."""
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
    """Mean over the places of a map, in fp32: [B, C, H, W] -> [B, C]."""
    return features.float().mean(dim=(2, 3))


def l2_normalize(rows: Tensor) -> Tensor:
    """Rows of length one, in fp32: [B, D] -> [B, D]."""
    return functional.normalize(rows.float(), dim=1)


def require_effect(options: Any, variant: str, names: Iterable[str], with_what: str, remedy: str) -> None:
    """Raise UserError if an option of ``names`` that changes nothing has another value than its default."""
    usual = {field.name: field.default for field in fields(options)}
    for name in names:
        given = getattr(options, name)
        if given != usual[name]:
            raise UserError(
                f"params.yaml: variants.{variant}.{name} is {given}, which has no effect with {with_what}; "
                f"{remedy}, or {name} to {usual[name]}"
            )


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def without_gradient(module: nn.Module) -> nn.Module:
    """The module in eval mode with parameters that do not learn."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module.eval()
