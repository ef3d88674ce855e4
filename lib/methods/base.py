"""What a method is: embeddings of views, a loss on embeddings, latents of images.

Embedding and loss are apart: the training core gathers embeddings across processes, takes exact large batches in
micro-batches, and a loss is tested without a network. What a method remembers between steps is in buffers, so that a
checkpoint holds it.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, ClassVar, NoReturn, ParamSpec, TypeVar

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
    """Base of every method. A subclass sets ``Options`` and defines ``loss``, and ``project`` where there is one.

    As it stands it has one latent, ``h``: the encoder's map, pooled.
    """

    Options: ClassVar[type]  # a frozen dataclass of `lib.params.spec.param`s
    views: int = 2  # augmented views of each image in a step
    needs: tuple[str, ...] = ()  # of indices, labels: what ``loss`` finds among the embeddings beside them
    halves: bool = False  # its latents are parts of one pooling, so that their mean is the whole one
    # (option, value, others, what to set it to): with that value of the option the others have no effect
    without_effect: tuple[tuple[str, Any, tuple[str, ...], str], ...] = ()

    @classmethod
    def reads(cls, options: Any) -> frozenset[str]:
        """Which shared numbers, of encoder and gamma, a variant reads with these options; all read the others."""
        return frozenset({"encoder"})

    def __init__(self, options: Any, params: Pretraining) -> None:
        super().__init__()
        self.options, self.params = options, params
        self._check_effects()
        self.encoder: Any = self.network(params)

    def network(self, params: Pretraining) -> nn.Module:
        """What images go through first, with ``name``, ``width`` and ``about()``; ``self.options`` is set."""
        assert params.encoder, "a method that does not read the shared encoder brings a network of its own"
        return build_encoder(params.encoder)

    def _check_effects(self) -> None:
        """Refuse an option that changes nothing, by ``without_effect``, unless it has its default."""
        for option, value, names, remedy in self.without_effect:
            for name in names if getattr(self.options, option) == value else ():
                usual, now = getattr(self.Options, name), getattr(self.options, name)
                why = f"which has no effect with {option} {value}; set {option} to {remedy}, or {name} to {usual}"
                if now != usual:
                    self.refuse(name, now, f", {why}")

    def refuse(self, name: str, value: object, why: str) -> NoReturn:
        """Raise UserError: the variant's option ``name`` is ``value``, then why that will not do, and what will."""
        raise UserError(f"params.yaml: variants.{self.params.variant}.{name} is {value}{why}")

    def embed(self, views: list[Tensor]) -> Named:
        """Per-image outputs that the loss compares: views [B, 3, S, S] each -> {name: [B, D]}, ``z`` as z_a and z_b.

        Each view has a forward pass, and so BatchNorm statistics, of its own, as in the study's code; SimCLR's
        official implementation shares them.
        """
        by_view = zip("ab", map(self.embed_view, views))
        return {f"{name}_{side}": values for side, view in by_view for name, values in view.items()}

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
        """Where the loss acts: {name: [B, D]} -> {name: [B, P]}, L2-normalized if it compares directions alone.

        Nothing where the loss does not act on what the latents become.
        """
        return {}

    def watched(self, embeddings: Named) -> Named:
        """What must not become the same for all images, [B, D] each; a training says so where it does."""
        return embeddings

    def setup(self, facts: DataFacts) -> None:
        """Called once before training; a UserError where options do not fit the data, or a process's images."""

    def after_step(self, step: int, steps: int) -> None:
        """Called after the optimizer's step number ``step``, from 0, of ``steps``: EMA, queues, running rates."""

    def rate_factors(self) -> dict[str, float]:
        """By the name of one of its modules: what the learning rate of that module's parameters is multiplied by."""
        return {}

    def allow_end_to_end_gradient(self) -> None:
        """Called before fine-tuning: a method that stops gradients inside its encoder lets them pass."""


class PixelMethod(Method):
    """One view, seen as pixels in 0..1: what views are normalized with is kept, for evaluation too."""

    views = 1
    mean: Tensor  # [3], as std
    std: Tensor

    def __init__(self, options: Any, params: Pretraining) -> None:
        super().__init__(options, params)
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("std", torch.ones(3))

    def setup(self, facts: DataFacts) -> None:
        self.mean.copy_(facts.mean)
        self.std.copy_(facts.std)


class ExpanderMethod(Method):
    """One latent ``h`` and the output ``y`` of an expander, as it is: for losses without negatives.

    It is linear, BatchNorm, ReLU, twice, then linear without bias.
    """

    def __init__(self, options: Any, params: Pretraining) -> None:
        super().__init__(options, params)
        units, layers = options.expander, list[nn.Module]()
        for inputs in (self.encoder.width, units):
            layers += [nn.Linear(inputs, units), nn.BatchNorm1d(units), nn.ReLU(inplace=True)]
        self.expander = nn.Sequential(*layers, nn.Linear(units, units, bias=False))

    def project(self, latents: Named) -> Named:
        return {"y": self.expander(latents["h"]).float()}


class MomentumMethod(Method):
    """A projection ``z`` of the latent by ``head(width)``, and a momentum (EMA) encoder and projector.

    They start as the online ones, have no gradient, and follow the online parameters by a moving average after each
    step. Parameters only: in training, BatchNorm in them normalizes a batch by that batch's own statistics, and its
    running statistics come from its own forward passes. Evaluation sees the online encoder.
    """

    def __init__(self, options: Any, params: Pretraining, head: Callable[[int], nn.Module]) -> None:
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
        update_ema(self.momentum_encoder, self.encoder, momentum)
        update_ema(self.momentum_projector, self.projector, momentum)


@torch.no_grad()
def update_ema(average: nn.Module, online: nn.Module, momentum: float) -> None:
    """average <- momentum * average + (1 - momentum) * online, parameter by parameter; buffers stay."""
    get_ema_multi_avg_fn(momentum)(list(average.parameters()), list(online.parameters()), None)


def projector(width: int, hidden: int, outputs: int) -> nn.Sequential:
    """SimCLR's head as the study had it: linear, BatchNorm, ReLU, linear."""
    return nn.Sequential(
        nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, outputs)
    )


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


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def without_gradient(module: nn.Module) -> nn.Module:
    """The module in eval mode with parameters that do not learn."""
    return module.requires_grad_(False).eval()
