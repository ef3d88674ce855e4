"""Sparse binary codes by k winners take all (docs/methods.md, 12): the kernel, and what its methods share.

Legend: B rows, D units, k of them active.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from lib.losses.code_contrast import agreement, contrast
from lib.losses.triplet import triplet
from lib.methods.base import WIDEST, Method, Named, pool, require_effect
from lib.params.pretraining import Pretraining
from lib.params.spec import param
from lib.runtime.errors import UserError


@dataclass(frozen=True)
class Options:
    """``sparsity`` and ``hardness`` are reached after the share ``ramp`` of the steps, from their starts.

    ``training_code``: what the loss sees. ``triplets`` belong to the triplet loss, ``margin`` to it and to contrast.
    ``scaling_strength`` is beta, ``usage_rate`` the share of a batch in the running mean of each unit's use.
    ``flatten``: ``h`` is the encoder's whole map, every place of it, and not the mean over its places.
    """

    units: int = param(512, low=2, high=WIDEST)
    sparsity: float = param(0.05, above=0, high=1)
    sparsity_start: float = param(0.3, above=0, high=1)
    hardness: float = param(10.0, above=0, high=1e4)
    hardness_start: float = param(1.0, above=0, high=1e4)
    ramp: float = param(0.5, low=0, high=1)
    training_code: str = param("sigmoid", choices=("sigmoid", "hard_sigmoid", "hard"))
    loss: str = param("triplet", choices=("triplet", "contrast", "positives"))
    triplets: str = param("semi_hard", choices=("semi_hard", "random"))
    margin: float = param(0.5, above=0, high=2)
    scaling: str = param("additive", choices=("off", "additive", "multiplicative"))
    scaling_strength: float = param(1.0, above=0)
    usage_rate: float = param(0.05, above=0, high=1)
    flatten: bool = param(False)


def active_units(sparsity: float, units: int) -> int:
    """k, the smallest whole number that is at least ``sparsity`` of ``units``; what rounding adds does not count."""
    return max(1, math.ceil(round(sparsity * units, 6)))


def threshold(rows: Tensor, count: Tensor) -> Tensor:
    """The middle between the k-th and the next largest entry of each row: [B, D] -> [B, 1]; 0 < k < D."""
    ordered = rows.sort(dim=1, descending=True).values
    return ordered.index_select(1, torch.stack([count - 1, count])).mean(1, keepdim=True)


def hard_code(rows: Tensor, count: Tensor) -> Tensor:
    """1 at the k largest entries of each row and 0 elsewhere: [B, D] -> [B, D]. The gradient passes as it comes.

    Exactly k are active: of entries that tie for the last places the first ones win.
    """
    return _Winners.apply(rows, count)


class _Winners(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, rows: Tensor, count: Tensor) -> Tensor:
        order = rows.argsort(dim=1, descending=True, stable=True)
        wins = (torch.arange(rows.shape[1], device=rows.device) < count).to(rows.dtype)
        return torch.zeros_like(rows).scatter_(1, order, wins.expand_as(rows))

    @staticmethod
    @once_differentiable
    def backward(context: Any, slope: Tensor) -> tuple[Tensor, None]:
        return slope, None


def soft_code(rows: Tensor, count: Tensor, hardness: Tensor, form: str) -> Tensor:
    """How far each entry is above the threshold, squashed into 0..1: [B, D] -> [B, D].

    ``form`` is sigmoid, or hard_sigmoid, clip(x / 6 + 1/2, 0, 1). The threshold is held fixed in the gradient, which
    would otherwise gather all units' slopes in the two that it is the middle of.
    """
    distance = hardness * (rows - threshold(rows.detach(), count))
    return distance.sigmoid() if form == "sigmoid" else functional.hardsigmoid(distance)


def scaled(rows: Tensor, usage: Tensor, target: Tensor, form: str, strength: float) -> Tensor:
    """Synaptic scaling: units [D] that were active more often than ``target`` are held back, the others favoured.

    ``additive`` shifts rows [B, D] by strength times (target - usage). ``multiplicative`` is the source's factor,
    exp of the same, which drives a negative entry of a rarely used unit further down.
    """
    if form == "off":
        return rows
    push = strength * (target - usage)
    return rows + push if form == "additive" else rows * push.exp()


def _winning(codes: Tensor) -> Tensor:
    """1 where a code, hard or soft, is above its threshold, without gradient: [B, D] -> [B, D]."""
    return (codes.detach() > 0.5).float()


def ramped(progress: float, start: float, end: float, share: float) -> float:
    """From ``start`` to ``end`` by equal factors while ``progress`` goes from 0 to ``share``, then ``end``."""
    return end if progress >= share else start * (end / start) ** (progress / share)


class SparseCode(Method):
    """Encoder, ``h``, a linear layer without bias, scaling, k winners. The main latent is the binary code.

    A subclass says which rows of a batch belong together, in ``grouped``.
    """

    Options = Options
    losses = ("triplet", "code_contrast")
    part = "methods/parts/kwta"

    def __init__(self, options: Options, params: Pretraining) -> None:
        super().__init__(options, params)
        _check(options, params.variant)
        width = _places(self.encoder, params.image_size) * self.encoder.width if options.flatten else self.encoder.width
        self.layer = nn.Linear(width, options.units, bias=False)
        final, first = (active_units(share, options.units) for share in (options.sparsity, options.sparsity_start))
        self.register_buffer("usage", torch.full((options.units,), first / options.units))
        self.register_buffer("final_count", torch.tensor(final))
        self.register_buffer("count", torch.tensor(first))  # k of the training code
        self.register_buffer("training_hardness", torch.tensor(options.hardness_start))
        self.latest: Tensor | None = None  # each unit's use in the step's batch, [D]

    def latents(self, images: Tensor) -> Named:
        features = self.encoder(images)
        h = features.float().flatten(1) if self.options.flatten else pool(features)
        return {"code": hard_code(self.drive(h), self.final_count), "h": h}

    def project(self, latents: Named) -> Named:
        """What the loss compares while training: the soft code, with the sparsity and hardness of the step."""
        drive, options = self.drive(latents["h"]), self.options
        if options.training_code == "hard":
            return {"training_code": hard_code(drive, self.count)}
        return {"training_code": soft_code(drive, self.count, self.training_hardness, options.training_code)}

    def drive(self, h: Tensor) -> Tensor:
        """What decides who wins, in fp32, where few entries tie: [B, C] -> [B, D]."""
        options = self.options
        with torch.autocast("cuda" if h.is_cuda else "cpu", enabled=False):
            rows = self.layer(h.float())
        return scaled(rows, self.usage, self.count / options.units, options.scaling, options.scaling_strength)

    def watched(self, embeddings: Named) -> Named:
        """The winners: soft codes may differ between images that all have the same ones."""
        return {name: _winning(rows) for name, rows in embeddings.items()}

    def grouped(self, embeddings: Named) -> tuple[Tensor, Tensor]:
        """The batch's codes [R, D] and the group of each [R]."""
        raise TypeError(f"{type(self).__name__} does not define grouped")

    def loss(self, embeddings: Named) -> tuple[Tensor, Named]:
        options = self.options
        codes, groups = self.grouped(embeddings)
        self.latest = _winning(codes).mean(0)
        if options.loss == "triplet":
            error = triplet(codes, groups, options.margin, options.triplets)
        else:
            error = contrast(codes, groups, options.margin) if options.loss == "contrast" else agreement(codes, groups)
        return error, {options.loss: error}

    @torch.no_grad()
    def after_step(self, step: int, steps: int) -> None:
        """The running mean of use, over about 1 / ``usage_rate`` steps, and the next step's k and hardness."""
        options, progress = self.options, (step + 1) / steps
        if self.latest is not None:
            self.usage += options.usage_rate * (self.latest - self.usage)
            self.latest = None
        sparsity = ramped(progress, options.sparsity_start, options.sparsity, options.ramp)
        self.count.fill_(active_units(sparsity, options.units))
        self.training_hardness.fill_(ramped(progress, options.hardness_start, options.hardness, options.ramp))


def _places(encoder: nn.Module, pixels: int) -> int:
    """Of the encoder's map of a square image."""
    training = encoder.training
    with torch.no_grad():
        features = encoder.eval()(torch.zeros(1, 3, pixels, pixels))
    encoder.train(training)
    return features.shape[2:].numel()


def _check(options: Options, variant: str) -> None:
    """Refuse numbers of winners that leave no loser, and settings without effect."""
    for name in ("sparsity", "sparsity_start"):
        share, units = getattr(options, name), options.units
        if active_units(share, units) >= units:
            raise UserError(
                f"params.yaml: variants.{variant}.{name} is {share}, which makes all {units} units "
                "active; allowed: a share that leaves at least one inactive"
            )
    if options.loss != "triplet":
        require_effect(options, variant, ("triplets",), f"loss {options.loss}", "set loss to triplet")
    if options.loss == "positives":
        require_effect(options, variant, ("margin",), "loss positives", "set loss to triplet or contrast")
    if options.scaling == "off":
        require_effect(options, variant, ("scaling_strength", "usage_rate"), "scaling off", "set scaling to additive")
    if options.training_code == "hard":
        require_effect(
            options, variant, ("hardness", "hardness_start"), "training_code hard", "set training_code to sigmoid"
        )
