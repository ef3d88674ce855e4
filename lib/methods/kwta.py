"""Sparse binary codes by k winners take all, after EmbedderSDR (docs/methods.md, 12).

Codes that belong together should be similar: those of the two views of an image or, as in the source, those of a
class. The latter is not self-supervised, and trains without the validation images.

The drive of a unit, which decides whether it wins, has zero mean and unit variance over the batch (in evaluation, by
running statistics). Hardness and scaling are in units of that deviation; the source's drive is as large as its layer
happens to make it, so that soft codes of all images begin alike and scaling does nothing. Standardization evens out
the units' means, though not their use: a unit may win rarely and by far, or all units may share one direction.

B images, D units, k of them active; R codes of a batch, in groups that belong together.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lib.methods.base import WIDEST, Method, Named, at_least_fp32, full_precision, pool
from lib.params.pretraining import Pretraining
from lib.params.spec import param

SAME_MARGIN = 0.1  # of `contrast`: codes of one group may be as far apart for nothing


def triplet(codes: Tensor, groups: Tensor, margin: float, mining: str) -> Tensor:
    """Mean of max(0, cos(a, n) - cos(a, p) + margin) over the rows a that have a triplet, 0 where none has.

    Of codes [R, D], none all zero, with int64 groups [R], every one is an anchor once; p is drawn among the others of
    its group, from torch's global generator. ``mining`` chooses n among the rows of other groups: ``random``, or
    ``semi_hard``, the most similar of those that are less similar than the positive, by less than the margin.
    """
    similarity = cosines(codes)
    partners, others = _pairs(groups)
    drawn = torch.rand(partners.shape, device=codes.device).where(partners, -1.0).argmax(1)
    positive = similarity.gather(1, drawn[:, None])  # [R, 1]
    if mining == "random":
        preference = torch.rand_like(similarity)
    else:
        preference = similarity.detach()
        others = others & (similarity < positive) & (similarity > positive - margin)
    negative = similarity.gather(1, preference.where(others, -torch.inf).argmax(1, keepdim=True))
    valid = partners.any(1) & others.any(1)
    return _mean((negative - positive + margin).relu()[:, 0], valid)


def contrast(codes: Tensor, groups: Tensor, margin: float) -> Tensor:
    """Mean of max(0, d - `SAME_MARGIN`) over the pairs of a group, plus mean of max(0, margin - d) over the others.

    Distances d are 1 minus the cosine, of codes [R, D]; ``margin`` is the one from which on others are far enough.
    """
    distance = 1 - cosines(codes)
    same, other = _pairs(groups)
    return _mean((distance - SAME_MARGIN).relu(), same) + _mean((margin - distance).relu(), other)


def agreement(codes: Tensor, groups: Tensor) -> Tensor:
    """Mean distance of the pairs of one group, and nothing that keeps others apart: a constant code is an optimum."""
    return _mean(1 - cosines(codes), _pairs(groups)[0])


@full_precision
def cosines(codes: Tensor) -> Tensor:
    """Cosines of all pairs of rows: [R, D] -> [R, R]."""
    rows = functional.normalize(codes, dim=1)
    return rows @ rows.T


def _pairs(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Ordered pairs of two rows of one group, and of two groups: bool [R, R] each."""
    same = groups[:, None] == groups
    return same & ~torch.eye(len(groups), dtype=torch.bool, device=groups.device), ~same


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """Of the values at ``where``; 0 if there are none."""
    return (values * where).sum() / where.sum().clamp(min=1)


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
    order = rows.argsort(dim=1, descending=True, stable=True)
    wins = (torch.arange(rows.shape[1], device=rows.device) < count).to(rows.dtype)
    code = torch.zeros_like(rows).scatter_(1, order, wins.expand_as(rows))
    return code + (rows - rows.detach())  # straight through: adds exactly 0, and a gradient of 1


def soft_code(rows: Tensor, count: Tensor, hardness: Tensor, form: str) -> Tensor:
    """How far each entry is above the threshold, squashed into 0..1: [B, D] -> [B, D].

    ``form`` is sigmoid, or hard_sigmoid, clip(x / 6 + 1/2, 0, 1). As in the source, the gradient passes through the
    threshold too: what pushes all entries alike, which no code can follow, adds up to nothing.
    """
    distance = hardness * (rows - threshold(rows, count))
    return distance.sigmoid() if form == "sigmoid" else functional.hardsigmoid(distance)


def scaled(rows: Tensor, usage: Tensor, target: Tensor, form: str, strength: float) -> Tensor:
    """Synaptic scaling: units [D] that were active more often than ``target`` are held back, the others favored.

    ``additive`` shifts rows [B, D] by strength times (1 - usage / target): a silent unit gains ``strength``, one of
    twice the target loses as much. Where rows are normal with deviation 1 and threshold t, differences of use shrink
    by the factor 1 + strength * density(t) / target: threefold with strength 1 and target 0.05. ``multiplicative`` is
    the source's factor, exp of strength times (target - usage), which drives a negative entry of a rarely used unit
    further down and hardly moves the others: use of 0.05 too little is a factor of 1.05.
    """
    if form == "off":
        return rows
    if form == "additive":
        return rows + strength * (1 - usage / target)
    return rows * (strength * (target - usage)).exp()


def ramped(progress: float, start: float, end: float, share: float) -> float:
    """From ``start`` to ``end`` by equal factors while ``progress`` goes from 0 to ``share``, then ``end``."""
    return end if progress >= share else start * (end / start) ** (progress / share)


def winning(codes: Tensor) -> Tensor:
    """1 where a code, hard or soft, is above its threshold, without gradient: [B, D] -> [B, D]."""
    return (codes.detach() > 0.5).float()


@dataclass(frozen=True)
class KWTAOptions:
    """``positives``: what belongs together, the two views of an image or the images of a class.

    ``sparsity`` and ``hardness`` are reached after the share ``ramp`` of the steps, the source's, from their starts.
    Hardness is per deviation of the drive: from 4 on, unrelated soft codes of 30 % active units have cosines below 0.5,
    so that equal positives meet a margin of 0.5; at 1 they have 0.8. ``training_code``: what the loss sees.
    ``margin`` is a difference of cosines; ``scaling_strength`` is in deviations of the drive (`scaled`);
    ``usage_rate`` is the share of a batch in the running mean of each unit's use.
    ``flatten``: ``h`` is the encoder's whole map, every place of it, and not the mean over its places.
    """

    positives: str = param("views", choices=("views", "class"))
    units: int = param(512, low=2, high=WIDEST)
    sparsity: float = param(0.05, above=0, high=1)
    sparsity_start: float = param(0.3, above=0, high=1)
    hardness: float = param(10.0, above=0, high=1e4)
    hardness_start: float = param(4.0, above=0, high=1e4)
    ramp: float = param(0.12, low=0, high=1)
    training_code: str = param("sigmoid", choices=("sigmoid", "hard_sigmoid", "hard"))
    loss: str = param("triplet", choices=("triplet", "contrast", "positives"))
    triplets: str = param("semi_hard", choices=("semi_hard", "random"))
    margin: float = param(0.5, above=0, high=2)
    scaling: str = param("additive", choices=("off", "additive", "multiplicative"))
    scaling_strength: float = param(1.0, above=0)
    usage_rate: float = param(0.05, above=0, high=1)
    flatten: bool = param(False)


class KWTA(Method):
    """Encoder, ``h``, a linear layer without bias, standardization, scaling, k winners. The main latent is the code."""

    Options = KWTAOptions
    without_effect = (
        ("loss", "contrast", ("triplets",), "triplet"),
        ("loss", "positives", ("triplets",), "triplet"),
        ("loss", "positives", ("margin",), "triplet or contrast"),
        ("scaling", "off", ("scaling_strength", "usage_rate"), "additive"),
        ("training_code", "hard", ("hardness", "hardness_start"), "sigmoid"),
    )
    encoder: Any
    usage: Tensor  # [D], the running mean of each unit's use
    count: Tensor  # [], k of the training code
    final_count: Tensor  # [], k of the latent
    training_hardness: Tensor

    def __init__(self, options: KWTAOptions, params: Pretraining) -> None:
        super().__init__(options, params)
        for name in ("sparsity", "sparsity_start"):
            if active_units(share := getattr(options, name), options.units) >= options.units:
                remedy = "allowed: a share that leaves at least one inactive"
                self.refuse(name, share, f", which makes all {options.units} units active; {remedy}")
        if options.positives == "class":
            self.views, self.needs = 1, ("labels",)
        places = _places(self.encoder, params.image_size) if options.flatten else 1
        self.layer = nn.Linear(places * self.encoder.width, options.units, bias=False)
        self.standardize = nn.BatchNorm1d(options.units, affine=False)  # mean and deviation of each unit's drive
        final, first = (active_units(share, options.units) for share in (options.sparsity, options.sparsity_start))
        self.register_buffer("usage", torch.full((options.units,), first / options.units))
        self.register_buffer("final_count", torch.tensor(final))
        self.register_buffer("count", torch.tensor(first))
        self.register_buffer("training_hardness", torch.tensor(options.hardness_start))
        self.latest: Tensor | None = None  # each unit's use in the step's batch, [D]

    def embed_view(self, view: Tensor) -> Named:
        """Without the latent code, so that BatchNorm counts a batch once."""
        return self.project({"h": self._h(view)})

    def latents(self, images: Tensor) -> Named:
        h = self._h(images)
        return {"code": hard_code(self.drive(h), self.final_count), "h": h}

    def _h(self, images: Tensor) -> Tensor:
        features = self.encoder(images)
        return features.float().flatten(1) if self.options.flatten else pool(features)

    def project(self, latents: Named) -> Named:
        """What the loss compares while training: the soft code, with the sparsity and hardness of the step."""
        drive, options = self.drive(latents["h"]), self.options
        if options.training_code == "hard":
            return {"training_code": hard_code(drive, self.count)}
        return {"training_code": soft_code(drive, self.count, self.training_hardness, options.training_code)}

    def drive(self, h: Tensor) -> Tensor:
        """What decides who wins, standardized and scaled, in fp32, where few entries tie: [B, C] -> [B, D]."""
        options = self.options
        with torch.autocast("cuda" if h.is_cuda else "cpu", enabled=False):  # there is none of the meta device
            rows = self.standardize(self.layer(h.float()))
        return scaled(rows, self.usage, self.count / options.units, options.scaling, options.scaling_strength)

    def watched(self, embeddings: Named) -> Named:
        """The winners: soft codes may differ between images that all have the same ones."""
        return {name: winning(rows) for name, rows in embeddings.items()}

    def loss(self, embeddings: Named) -> tuple[Tensor, Named]:
        codes, options = at_least_fp32(embeddings["training_code_a"]), self.options
        if options.positives == "class":
            groups = embeddings["labels"]
        else:  # the first views of all images, then the second ones
            groups = torch.arange(len(codes), device=codes.device).repeat(2)
            codes = torch.cat([codes, at_least_fp32(embeddings["training_code_b"])])
        self.latest = winning(codes).mean(0)
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
    """Of a fresh encoder's map of a square image; in eval mode, so that BatchNorm counts nothing."""
    with torch.no_grad():
        features = encoder.eval()(torch.zeros(1, 3, pixels, pixels))
    encoder.train()
    return features.shape[2:].numel()


METHOD = KWTA
