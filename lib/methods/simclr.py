"""SimCLR (Chen et al. 2020) and the study's two models on top of it (docs/methods.md, 1 to 3).

    model 1, simclr   NT-Xent
    model 2, joint    NT-Xent + gamma * distance of the two views             term: pull
    model 3, dual     the same, NT-Xent on one latent, the term on another    term: pull, latents: halves

The study meant to separate similar images. What it ran has a plus: the term pulls the two views of an image together,
so that model 2 is SimCLR with more alignment. Its first version, term: push, was - gamma * log of the distance, with
gamma 0.2. Its "two latents" are the means of the upper and of the lower half of the encoder's final map: two halves of
the image rather than two codes of it. Nothing but the term acts on the lower one, and a constant projection minimizes
the pull.

What the study meant is term: lookalikes. A share gamma of NT-Xent gives way to one whose negatives are an image's
nearest neighbors in the batch: the views stay together, and the push goes to the images that are hard to tell apart.
negatives: class is a control with labels: an image is told apart from its own class alone.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from lib.methods.base import WIDEST, Method, Named, at_least_fp32, full_precision, l2_normalize, projector
from lib.params.pretraining import Pretraining
from lib.params.spec import param
from lib.runtime.chunks import chunks
from lib.runtime.errors import UserError

TILE = 2**22  # logits, 16 MiB in fp32: what is at hand at once, a few of these, stays small beside 65,536 embeddings
EPSILON = 1e-12
LATENTS = ("upper", "lower")

# The losses. N images; 2N embeddings (two views of each) of D features, R of them in a tile.


@full_precision
def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Each embedding must find its other view among the 2N - 1 other embeddings of the batch.

    Embeddings are L2-normalized, [N, D] each; row i of both is image i. The loss is the mean over all 2N of -log
    softmax at the positive, in nats; the positive is in the denominator, the embedding itself is not. SimCLR's
    official code returns twice this value.

    The 2N x 2N logits are computed a tile at a time, in the loss and again in its gradient, and never held unless
    one tile holds them all: memory grows with N, not with its square. There is no second derivative.
    """
    return contrast(first, second, temperature)[0]


@full_precision
def contrast(first: Tensor, second: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """`nt_xent`, and the share of embeddings that are nearer to their other view than to all others, no gradient."""
    return _TiledNTXent.apply(torch.cat([first, second]), temperature)


def nt_xent_floor(count: int, temperature: float) -> float:
    """What `nt_xent` of N = ``count`` images cannot fall below: both views of each are one point of a regular simplex.

    log(1 + (2N - 2) exp(-N / ((N - 1) T))). Fewer than N - 1 dimensions hold no such simplex, and it is not reached.
    """
    return math.log1p((2 * count - 2) * math.exp(-count / (count - 1) / temperature))


@full_precision
def nt_xent_among(first: Tensor, second: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """`nt_xent` in which only some images are negatives: bool [N, N], row i has those of image i (both views of each).

    The diagonal is not read. All images as negatives: `nt_xent` itself; none: 0. The 2N x 2N logits are held at once.
    """
    embeddings = torch.cat([first, second])
    positives = (embeddings * _partners(embeddings)).sum(1) / temperature  # [2N]
    others = negatives & ~torch.eye(len(first), dtype=torch.bool, device=first.device)
    logits = (embeddings @ embeddings.T / temperature).masked_fill(~others.repeat(2, 2), -torch.inf)
    return torch.cat([positives[:, None], logits], 1).logsumexp(1).sub(positives).mean()


@torch.no_grad()
def nearest_images(first: Tensor, second: Tensor, count: int) -> Tensor:
    """bool [N, N]: row i has the ``count`` images nearest to image i, itself not among them, by the mean cosine of
    their views' embeddings [N, D]; no gradient. Ties fall to whichever topk takes; N - 1 is the most there are."""
    images = first + second
    similar = (images @ images.T).fill_diagonal_(-torch.inf)
    nearest = similar.topk(min(count, len(similar) - 1)).indices
    return torch.zeros_like(similar, dtype=torch.bool).scatter_(1, nearest, True)


@full_precision
def frobenius_distance(first: Tensor, second: Tensor) -> Tensor:
    """||first - second||_F, [N, D] each: one root over the sum of squares of the whole batch, not a mean over images.

    It grows with the root of N, and its gradient has the norm 1 for each view however near the views are.
    ``EPSILON`` inside the root keeps the gradient finite where they coincide; it moves the value by at most 1e-6.
    """
    return ((first - second).square().sum() + EPSILON).sqrt()


class _TiledNTXent(torch.autograd.Function):
    """With logits s_ij = z_i . z_j / T and the positive p(i) of row i, the loss is mean_i(lse_i - s_ip(i)).

    Its gradient at z_i is the sum over j of (P_ij + P_ji) z_j / 2NT, where P_ij = exp(s_ij - lse_i), P_ii = 0, and
    one is taken off at the positive: P_ip - 1. s is symmetric, so that one tile holds the terms of its rows as
    well as of its columns. Where all fits into one tile it is kept for the gradient.

    Once the pairs are told apart, P_ip is nearly one, and lse_i nearly s_ip: a difference of the two would be
    rounding. So the positive stays out of the tiles, and both come from n_i, the logsumexp of the negatives:
    lse_i - s_ip = log(1 + exp(n_i - s_ip)), and P_ip - 1 = -sigmoid(n_i - s_ip).
    """

    @staticmethod
    def forward(context: Any, embeddings: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        positives = (embeddings * _partners(embeddings)).sum(1) / temperature  # [2N]
        negatives, hardest = torch.empty_like(positives), torch.empty_like(positives)
        for rows in chunks(len(embeddings), len(embeddings), TILE):
            logits = _negative_logits(embeddings, rows, temperature)
            negatives[rows], hardest[rows] = logits.logsumexp(1), logits.amax(1)
        losses = -functional.logsigmoid(positives - negatives)
        missing = torch.sigmoid(negatives - positives)  # 1 - P_ip
        whole = logits if len(logits) == len(embeddings) else None
        context.save_for_backward(embeddings, positives + losses, missing, whole)
        context.temperature = temperature
        found = (positives > hardest).to(losses).mean()
        context.mark_non_differentiable(found)
        return losses.mean(), found

    @staticmethod
    @once_differentiable
    def backward(context: Any, upstream: Tensor, _: Any) -> tuple[Tensor, None]:
        embeddings, normalizers, missing, whole = context.saved_tensors
        gradient = torch.empty_like(embeddings)
        with torch.autocast(embeddings.device.type, enabled=False):
            if whole is not None:
                shares = (whole - normalizers[:, None]).exp_()
                torch.mm(shares + shares.T, embeddings, out=gradient)
            for rows in chunks(len(embeddings), len(embeddings), TILE) if whole is None else ():
                logits = _negative_logits(embeddings, rows, context.temperature)  # [R, 2N]
                shares = (logits - normalizers[rows, None]).exp_()
                shares += logits.sub_(normalizers).exp_()
                torch.mm(shares, embeddings, out=gradient[rows])  # [R, 2N] x [2N, D]
        # the pair's two views lack the same of each other: as a row and as a column
        gradient.addcmul_((missing + _partners(missing))[:, None], _partners(embeddings), value=-1)
        return gradient.mul_(upstream / (len(embeddings) * context.temperature)), None


def _negative_logits(embeddings: Tensor, rows: slice, temperature: float) -> Tensor:
    """[R, 2N]: of ``rows`` with all embeddings, -inf with themselves and with their positives."""
    logits = (embeddings[rows] / temperature) @ embeddings.T
    count = len(embeddings) // 2
    for offset in (0, count, -count):  # a diagonal that lies outside of the tile is empty
        logits.diagonal(rows.start + offset).fill_(-torch.inf)
    return logits


def _partners(values: Tensor) -> Tensor:
    """Of each of the 2N rows its positive: i -> (i + N) mod 2N."""
    return values.roll(len(values) // 2, 0)


@dataclass(frozen=True)
class SimCLROptions:
    """``term``: what is added, weighted by gamma; lookalikes are a share gamma of the loss. ``neighbors``: how many an
    image has. ``negatives``: all images of the batch or, with labels, those of the same class. ``latents``: one of the
    whole map, or one of each half."""

    temperature: float = param(0.5, above=0)
    projector_hidden: int = param(512, low=1, high=WIDEST)
    projector_out: int = param(128, low=2, high=WIDEST)
    term: str = param("none", choices=("none", "pull", "push", "lookalikes"))
    neighbors: int = param(10, low=1)
    negatives: str = param("all", choices=("all", "class"))
    latents: str = param("pooled", choices=("pooled", "halves"))


class SimCLR(Method):
    """One latent ``h`` and its projection ``z``; with halves ``upper`` and ``lower``, each with a projector of its own.

    NT-Xent acts on the first projection, the term on the last.
    """

    Options = SimCLROptions
    without_effect = tuple(("term", term, ("neighbors",), "lookalikes") for term in ("none", "pull", "push"))

    @classmethod
    def reads(cls, options: SimCLROptions) -> frozenset[str]:
        return frozenset({"encoder"} if options.term == "none" else {"encoder", "gamma"})

    def __init__(self, options: SimCLROptions, params: Pretraining) -> None:
        super().__init__(options, params)
        self.halves = options.latents == "halves"
        self.gamma: Any = params.gamma  # None where no term reads it
        if options.term == "lookalikes":
            if self.gamma is not None and not 0 <= self.gamma <= 1:
                why = f", a share of the loss, with gamma {self.gamma:g}; allowed: a gamma of 0 to 1, or another term"
                self.refuse("term", options.term, why)
            if params.epochs and options.neighbors >= params.batch_size:
                why = f"; allowed: below the batch size, {params.batch_size}"
                self.refuse("neighbors", options.neighbors, why)
            if self.halves and self.gamma == 1:
                self.refuse("gamma", 1, ", which leaves the first of its latents without a loss; allowed: below 1")
        if options.negatives == "class":
            self.needs = ("labels",)
        if self.halves and options.term == "none":
            remedy = "set term to pull or push (with gamma 0 as a control), or latents to pooled"
            self.refuse("term", "'none'", f", which leaves the second of its latents without a loss; {remedy}")
        sizes = (self.encoder.width, options.projector_hidden, options.projector_out)
        self.projector = projector(*sizes)
        if self.halves:
            self.projector_lower = projector(*sizes)

    def latents(self, images: Tensor) -> Named:
        if not self.halves:
            return super().latents(images)
        features = at_least_fp32(self.encoder(images))  # [B, D, H, W]
        if features.shape[2] % 2:
            raise UserError(
                f"params.yaml: image_size is {images.shape[2]}, which gives the encoder's final map "
                f"{features.shape[2]} row(s); allowed with latents: halves: a size that gives an even number"
            )
        halves = functional.adaptive_avg_pool2d(features, (2, 1))  # [B, D, 2, 1]
        return {name: halves[:, :, row, 0] for row, name in enumerate(LATENTS)}

    def project(self, latents: Named) -> Named:
        if not self.halves:
            return {"z": l2_normalize(self.projector(latents["h"]))}
        heads = (self.projector, self.projector_lower)
        return {f"z_{name}": l2_normalize(head(latents[name])) for name, head in zip(LATENTS, heads)}

    def loss(self, embeddings: Named) -> tuple[Tensor, Named]:
        contrasted, other = ("z_upper", "z_lower") if self.halves else ("z", "z")
        pair = embeddings[f"{contrasted}_a"], embeddings[f"{contrasted}_b"]
        first, second = embeddings[f"{other}_a"], embeddings[f"{other}_b"]
        term, temperature = self.options.term, self.options.temperature
        loss, found = contrast(*pair, temperature)
        parts = {"nt_xent": loss, "contrastive_accuracy": found}
        if self.options.negatives == "class":
            labels = embeddings["labels"]
            loss = parts["nt_xent_in_class"] = nt_xent_among(*pair, labels[:, None] == labels, temperature)
        else:
            parts["nt_xent_floor"] = torch.full_like(found, nt_xent_floor(len(first), temperature))
        if term == "none":
            return loss, parts
        distance = frobenius_distance(first, second)
        parts["distance"] = distance.detach() if term == "lookalikes" else distance
        if term == "lookalikes":
            among = nt_xent_among(first, second, nearest_images(*pair, self.options.neighbors), temperature)
            parts["lookalikes"] = among
            return (1 - self.gamma) * loss + self.gamma * among, parts
        return loss + self.gamma * (distance if term == "pull" else -distance.log()), parts


METHOD = SimCLR
