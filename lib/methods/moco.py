"""MoCo, version 1 and 2 (He et al. 2020, Chen et al. 2020; docs/methods.md, 8), as its authors' CIFAR demo has it.

A query finds its key, which a slow copy of the network makes of the other view, among the keys of earlier
steps. They wait in a queue, so that there are many negatives whatever the batch size.

``norm_rows`` and ``shuffle`` are about what BatchNorm tells: it normalizes a batch as one, and a network can
read from it which query and key were in one batch. In groups of ``norm_rows`` rows, and the keys in other
groups than their queries, it tells nothing.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib.losses.queue import queue_contrast
from lib.methods.base import WIDEST, Named, l2_normalize
from lib.methods.parts.momentum import MomentumMethod
from lib.params.pretraining import Pretraining
from lib.params.spec import param
from lib.runtime.errors import UserError


@dataclass(frozen=True)
class Options:
    """``queue``: keys. ``head``: of version 1 (linear) or 2 (mlp). ``momentum``: of the copy.

    ``symmetric``: each view is the query once; otherwise the first view alone. ``norm_rows``: images that
    BatchNorm normalizes together in training, 0 for all; ``shuffle``: keys in other groups than queries.
    """

    queue: int = param(4096, low=2, high=2**20)
    momentum: float = param(0.99, low=0, high=1)
    temperature: float = param(0.1, above=0)
    head: str = param("mlp", choices=("linear", "mlp"))
    projector_out: int = param(128, low=2, high=WIDEST)
    symmetric: bool = param(True)
    norm_rows: int = param(0, low=0)
    shuffle: bool = param(False)


class MoCo(MomentumMethod):
    """Queries ``q`` of the learning side, keys ``k`` of the copy, a queue of older keys: unit rows all."""

    Options = Options
    losses = ("queue",)

    def __init__(self, options: Options, params: Pretraining) -> None:
        _check(options, params)
        super().__init__(options, params, lambda width: _head(options.head, width, options.projector_out))
        self.variant, self.ways = params.variant, _ways(options)
        self.register_buffer("queue", l2_normalize(torch.randn(options.queue, options.projector_out)))
        self.register_buffer("oldest", torch.zeros((), dtype=torch.int64))  # the row that is replaced next
        self.arrived: Tensor | None = None  # the step's keys, which join the queue after it

    def setup(self, mean: Tensor, std: Tensor, count: int, classes: int) -> None:
        images = self.options.queue // len(self.ways)
        if images > count:
            raise UserError(
                f"params.yaml: variants.{self.variant}.queue is {self.options.queue}, keys of {images} "
                f"images; allowed: keys of at most the number of training images, {count}, because an "
                "image must not meet itself among its negatives"
            )

    def check_local_batch(self, share: int) -> None:
        """A process has whole groups, and with ``shuffle`` at least two to exchange keys between."""
        rows, shuffled = self.options.norm_rows, self.options.shuffle
        if rows and (share % rows or (shuffled and share == rows)):
            raise UserError(
                f"params.yaml: variants.{self.variant}.norm_rows is {rows} where each process takes "
                f"{share} images of a batch; allowed: {'a smaller' if shuffled else '0, or a'} number that "
                f"divides {share}{', because of shuffle' if shuffled else ''}; or use fewer processes"
            )

    def embed(self, views: list[Tensor]) -> Named:
        """q_a and k_b; with both ways also q_b and k_a."""
        sides = dict(zip("ab", views))
        return {
            f"{name}_{side}": of(sides[side])
            for query, key in self.ways
            for name, side, of in (("q", query, self.queries), ("k", key, self.keys))
        }

    def queries(self, images: Tensor) -> Tensor:
        """Unit rows [B, D] of images [B, 3, S, S], BatchNorm in groups."""
        return torch.cat([self.project(self.latents(group))["z"] for group in self.groups(images)])

    def keys(self, images: Tensor) -> Tensor:
        """As `queries`, of the copy; with ``shuffle`` in other groups."""
        if self.options.shuffle:
            order = dealt_out(len(images), self.options.norm_rows, images.device)
            images = images[order]
        keys = torch.cat([l2_normalize(self.momentum_projection(group)) for group in self.groups(images)])
        return keys[order.argsort()] if self.options.shuffle else keys

    def groups(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images that BatchNorm normalizes together; in evaluation it knows no groups."""
        rows = self.options.norm_rows if self.training else 0
        return images.tensor_split(max(1, len(images) // rows)) if rows else (images,)

    def loss(self, embeddings: Named) -> tuple[Tensor, Named]:
        self.arrived = torch.cat([embeddings[f"k_{key}"] for _, key in self.ways]).detach()
        parts = {
            f"contrast_{query}{key}": queue_contrast(
                embeddings[f"q_{query}"], embeddings[f"k_{key}"], self.queue, self.options.temperature
            )
            for query, key in self.ways
        }
        return sum(parts.values()), parts

    def after_step(self, step: int, steps: int) -> None:
        self.update_momentum(self.options.momentum)
        enqueue(self.queue, self.oldest, self.arrived)


@torch.no_grad()
def enqueue(queue: Tensor, oldest: Tensor, keys: Tensor) -> None:
    """Put ``keys`` [B, D] in the place of the oldest of ``queue`` [K, D], a ring that starts at row ``oldest`` [].

    Everything stays on the device: nothing waits for the number in ``oldest``.
    """
    rows = (oldest + torch.arange(len(keys), device=queue.device)) % len(queue)
    queue.index_copy_(0, rows, keys.to(queue.dtype))
    oldest.copy_((oldest + len(keys)) % len(queue))


def dealt_out(count: int, rows: int, device: torch.device | str = "cpu") -> Tensor:
    """An order [count] that deals consecutive groups of ``rows`` out to as many groups as there are, like cards.

    Every new group gets about as many rows of one old group as of any other. It is the same in each step:
    the images in each row are random already.
    """
    place = torch.arange(count, device=device)
    return (place % rows * count + place).argsort()


def _head(kind: str, width: int, outputs: int) -> nn.Module:
    """The projector of version 1 or of version 2, neither with BatchNorm."""
    if kind == "linear":
        return nn.Linear(width, outputs)
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, outputs))


def _ways(options: Options) -> tuple[str, ...]:
    """Which view is the query and which the key: of both ways or one."""
    return ("ab", "ba") if options.symmetric else ("ab",)


def _check(options: Options, params: Pretraining) -> None:
    """Raise UserError for a queue that does not hold whole steps, or a choice without effect."""
    where, added = f"params.yaml: variants.{params.variant}", len(_ways(options)) * params.batch_size
    if options.queue % added:
        raise UserError(
            f"{where}.queue is {options.queue}; allowed: a multiple of {added}, the keys that join it in a "
            "step (batch_size, twice that if symmetric)"
        )
    together = "micro_batch_size" if params.micro_batch_size else "batch_size"
    rows, most = options.norm_rows, getattr(params, together)
    if rows and (rows == 1 or rows >= most or most % rows):
        raise UserError(
            f"{where}.norm_rows is {rows}; allowed: 0 (all rows at once), or at least 2 and a smaller "
            f"number that divides {together}, {most}"
        )
    if options.shuffle and not rows:
        raise UserError(
            f"{where}.shuffle is True, which has no effect with norm_rows 0; allowed: norm_rows of at "
            "least 2, or shuffle: false"
        )


METHOD = MoCo
