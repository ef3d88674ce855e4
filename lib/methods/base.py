"""What a method is: embeddings of views, a loss on embeddings, latents of images.

Embedding and loss are apart: the training core gathers embeddings across processes, takes exact large batches in
micro-batches, and a loss is tested without a network. Whatever a method remembers between steps is in buffers, so
that a checkpoint holds it without knowing it.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from functools import wraps
from typing import Any, ClassVar, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import get_ema_multi_avg_fn

from lib.encoders import build_encoder
from lib.params.pretraining import Pretraining
from lib.runtime.errors import UserError

WIDEST = 16_384  # units of a layer: two such layers in a row are a gigabyte

Named = dict[str, Tensor]
P = ParamSpec("P")
T = TypeVar("T")


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
    """Base of every method. A subclass sets ``Options`` and defines ``project`` and ``loss``.

    As it stands it has one latent, ``h``: the encoder's map, pooled.
    """

    Options: ClassVar[type]  # a frozen dataclass of `lib.params.spec.param`s
    views: int = 2  # augmented views of each image in a step
    needs: tuple[str, ...] = ()  # of indices, labels: what ``loss`` finds among the embeddings beside them
    halves: bool = False  # its latents are parts of one pooling, so that their mean is the whole one

    @classmethod
    def reads(cls, options: Any) -> frozenset[str]:
        """Which shared numbers, of encoder and gamma, a variant reads with these options; all read the others."""
        return frozenset({"encoder"})

    def __init__(self, options: Any, params: Pretraining) -> None:
        super().__init__()
        self.options, self.params = options, params
        self.encoder: Any = self.network(params)

    def network(self, params: Pretraining) -> nn.Module:
        """What images go through first, with ``name``, ``width`` and ``about()``; ``self.options`` is set."""
        assert params.encoder, "a method that does not read the shared encoder brings a network of its own"
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
        return {"h": pool(self.encoder(images))}

    def project(self, latents: Named) -> Named:
        """Where the loss acts: {name: [B, D]} -> {name: [B, P]}, L2-normalized if it compares directions alone."""
        raise TypeError(f"{type(self).__name__} does not define project")

    def watched(self, embeddings: Named) -> Named:
        """What must not become the same for all images, [B, D] each; a training says so where it does."""
        return embeddings

    def setup(self, facts: DataFacts) -> None:
        """Called once before training; a UserError where options do not fit the data, or a process's images."""

    def after_step(self, step: int, steps: int) -> None:
        """Called after the optimizer's step number ``step``, from 0, of ``steps``: EMA, queues, running rates."""

    def allow_end_to_end_gradient(self) -> None:
        """Called before fine-tuning: a method that stops gradients inside its encoder lets them pass."""


class MomentumMethod(Method):
    """A projection ``z`` of the latent, and a momentum (EMA) encoder and projector beside the online ones.

    They start equal, have no gradient, and follow the online parameters by a moving average after each step.
    Parameters only: in training, BatchNorm in them normalizes a batch by that batch's own statistics, and its
    running statistics come from its own forward passes. Evaluation sees the online encoder.
    """

    def __init__(self, options: Any, params: Pretraining, head: Callable[[int], nn.Module]) -> None:
        """``head`` builds the projector from the encoder's width."""
        super().__init__(options, params)
        self.projector = head(self.encoder.width)
        self.momentum_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.momentum_projector = copy.deepcopy(self.projector).requires_grad_(False)

    def project(self, latents: Named) -> Named:
        return {"z": l2_normalize(self.projector(latents["h"]))}

    @torch.no_grad()
    def momentum_projection(self, images: Tensor) -> Tensor:
        """What momentum encoder and projector make of images [B, 3, S, S]: [B, P], a constant to the loss."""
        return at_least_fp32(self.momentum_projector(pool(self.momentum_encoder(images))))

    def update_momentum(self, momentum: float) -> None:
        """One step of the momentum encoder and projector towards the online ones."""
        update_ema(self.momentum_encoder, self.encoder, momentum)
        update_ema(self.momentum_projector, self.projector, momentum)


@torch.no_grad()
def update_ema(average: nn.Module, online: nn.Module, momentum: float) -> None:
    """average <- momentum * average + (1 - momentum) * online, parameter by parameter; buffers stay."""
    get_ema_multi_avg_fn(momentum)(list(average.parameters()), list(online.parameters()), None)


def named_by_view(views: list[Named]) -> Named:
    """What `embed_view` made of each view, in one: ``z`` of the two is ``z_a`` and ``z_b``."""
    return {f"{name}_{side}": values for side, view in zip("ab", views) for name, values in view.items()}


def projector(width: int, hidden: int, outputs: int) -> nn.Sequential:
    """SimCLR's head as the study had it: linear, BatchNorm, ReLU, linear."""
    return nn.Sequential(
        nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, outputs)
    )


def expander(width: int, units: int) -> nn.Sequential:
    """The head of methods without negatives: linear, BatchNorm, ReLU, twice, then linear without bias."""
    layers: list[nn.Module] = []
    for inputs in (width, units):
        layers += [nn.Linear(inputs, units), nn.BatchNorm1d(units), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(units, units, bias=False))


def pool(features: Tensor) -> Tensor:
    """Global average pooling in fp32: [B, C, H, W] -> [B, C]."""
    return at_least_fp32(features).mean(dim=(2, 3))


def l2_normalize(embeddings: Tensor) -> Tensor:
    """Embeddings of length one, in fp32: [B, D] -> [B, D]."""
    return functional.normalize(at_least_fp32(embeddings), dim=1)


def at_least_fp32(values: Tensor) -> Tensor:
    """fp64 stays; every other floating-point type becomes fp32, in which every loss computes."""
    return values.float() if values.is_floating_point() and values.dtype != torch.float64 else values


def full_precision(loss: Callable[P, T]) -> Callable[P, T]:
    """The loss with its tensors `at_least_fp32`, whatever they are in and whatever autocast the caller has on.

    Casting alone would not do: under autocast a matrix product of fp32 is one of bf16 again.
    """

    @wraps(loss)
    def in_fp32(*args: P.args, **options: P.kwargs) -> T:
        wide: Any = [at_least_fp32(value) if isinstance(value, Tensor) else value for value in args]
        device = next(value.device.type for value in wide if isinstance(value, Tensor))
        with torch.autocast(device, enabled=False):
            return loss(*wide, **options)

    return in_fp32


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
