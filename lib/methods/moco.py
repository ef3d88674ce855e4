"""MoCo, version 1 and 2 (He et al. 2020, Chen et al. 2020; docs/methods.md, 8), as its authors' CIFAR demo has it.

A query finds its key, which a momentum encoder makes of the other view, among the keys of earlier steps. They wait in
a queue, so that there are many negatives whatever the batch size.

``norm_rows`` and ``shuffle`` are about what BatchNorm tells: it normalizes a batch as one, and a network can read from
it which query and key were in one batch. In groups of ``norm_rows`` images, and the keys in other groups than their
queries, it tells nothing.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from lib.methods.base import WIDEST, DataFacts, MomentumMethod, Named, full_precision, l2_normalize, require_effect
from lib.params.pretraining import Pretraining
from lib.params.spec import param
from lib.runtime.errors import UserError


@full_precision
def queue_contrast(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Each query must find its key among the keys of the queue; the rest of the batch does not count.

    Args:
        queries, keys: L2-normalized, [N, D]; key i is the positive of query i and a constant: it gets no gradient.
        queue: L2-normalized keys of earlier steps [Q, D], none of this one; constants.
        temperature: divides the cosines.

    Returns:
        The mean of -log softmax at the positive, which is in the denominator, in nats.
    """
    positives = (queries * keys.detach()).sum(1) / temperature  # [N]
    negatives = ((queries / temperature) @ queue.detach().T).logsumexp(1)  # [N, Q] -> [N]
    # log(1 + exp(negatives - positives)): no difference of near-equals where a query has found its key
    return -functional.logsigmoid(positives - negatives).mean()


@dataclass(frozen=True)
class MoCoOptions:
    """``queue``: keys. ``head``: of version 1 (linear) or 2 (mlp). ``momentum``: of the momentum encoder.

    ``symmetric``: each view is the query once; otherwise the first view alone. ``norm_rows``: images that BatchNorm
    normalizes together in training, 0 for all; ``shuffle``: keys in other groups than queries.
    """

    queue: int = param(4096, low=2, high=2**20)
    momentum: float = param(0.99, low=0, high=1)
    temperature: float = param(0.1, above=0)
    head: str = param("mlp", choices=("linear", "mlp"))
    projector_out: int = param(128, low=2, high=WIDEST)
    symmetric: bool = param(True)
    norm_rows: int = param(0, low=0)
    shuffle: bool = param(False)

    @property
    def ways(self) -> tuple[tuple[str, str], ...]:
        """The views that are query and key, of both ways or one."""
        return (("a", "b"), ("b", "a")) if self.symmetric else (("a", "b"),)


class MoCo(MomentumMethod):
    """Queries ``q`` of the online side, keys ``k`` of the momentum side, a queue of older keys: L2-normalized all."""

    Options = MoCoOptions
    queue: Tensor
    oldest: Tensor

    def __init__(self, options: MoCoOptions, params: Pretraining) -> None:
        _check(options, params)
        super().__init__(options, params, lambda width: _head(options.head, width, options.projector_out))
        self.register_buffer("queue", l2_normalize(torch.randn(options.queue, options.projector_out)))
        self.register_buffer("oldest", torch.zeros((), dtype=torch.int64))  # the row that is replaced next
        self.arrived = torch.empty(0, options.projector_out)  # the step's keys, which join the queue after it

    def setup(self, facts: DataFacts) -> None:
        images = self.options.queue // len(self.options.ways)
        if self.params.epochs and images > facts.count:
            raise UserError(
                f"params.yaml: variants.{self.params.variant}.queue is {self.options.queue}, keys of {images} images; "
                f"allowed: keys of at most the number of training images, {facts.count}, because an image must not "
                "meet itself among its negatives"
            )
        # one group in a process would do, but not where keys are to change groups
        least = 2 if self.options.shuffle else 1
        _check_groups(self.options, self.params, facts.local_batch, "the images of a batch in each process", least)

    def embed(self, views: list[Tensor]) -> Named:
        """q_a and k_b; with both ways also q_b and k_a."""
        by_name = dict(zip("ab", views))
        embeddings: Named = {}
        for query, key in self.options.ways:
            embeddings[f"q_{query}"] = self.queries(by_name[query])
            embeddings[f"k_{key}"] = self.keys(by_name[key])
        return embeddings

    def queries(self, images: Tensor) -> Tensor:
        """[B, D] of images [B, 3, S, S], BatchNorm in groups."""
        return torch.cat([self.project(self.latents(group))["z"] for group in self._groups(images)])

    def keys(self, images: Tensor) -> Tensor:
        """As `queries`, of the momentum side; with ``shuffle`` in other groups."""
        if not self.options.shuffle:
            return self._keys_in_order(images)
        order = dealt_out(len(images), self.options.norm_rows, images.device)
        return self._keys_in_order(images[order])[order.argsort()]

    def _keys_in_order(self, images: Tensor) -> Tensor:
        return torch.cat([l2_normalize(self.momentum_projection(group)) for group in self._groups(images)])

    def _groups(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images that BatchNorm normalizes together; in evaluation it knows no groups."""
        size = self.options.norm_rows if self.training else 0
        return images.tensor_split(max(1, len(images) // size)) if size else (images,)

    def loss(self, embeddings: Named) -> tuple[Tensor, Named]:
        self.arrived = torch.cat([embeddings[f"k_{key}"].detach().float() for _, key in self.options.ways])
        parts = {
            f"contrast_{query}{key}": queue_contrast(
                embeddings[f"q_{query}"], embeddings[f"k_{key}"], self.queue, self.options.temperature
            )
            for query, key in self.options.ways
        }
        return torch.stack(list(parts.values())).sum(), parts

    def after_step(self, step: int, steps: int) -> None:
        self.update_momentum(self.options.momentum)
        enqueue(self.queue, self.oldest, self.arrived)


@torch.no_grad()
def enqueue(queue: Tensor, oldest: Tensor, keys: Tensor) -> None:
    """Put ``keys`` [B, D] in the place of the oldest of ``queue`` [Q, D], a ring that starts at row ``oldest`` [].

    Everything stays on the device: nothing waits for the number in ``oldest``.
    """
    rows = (oldest + torch.arange(len(keys), device=queue.device)) % len(queue)
    queue.index_copy_(0, rows, keys.to(queue.dtype))
    oldest.copy_((oldest + len(keys)) % len(queue))


def dealt_out(count: int, size: int, device: torch.device | str = "cpu") -> Tensor:
    """An order [count] that deals consecutive groups of ``size`` out to as many groups as there are, like cards.

    Every new group gets about as many images of one old group as of any other. It is the same in each step: the
    images in each row are random already.
    """
    place = torch.arange(count, device=device)
    return (place % size * count + place).argsort()


def _head(kind: str, width: int, outputs: int) -> nn.Module:
    """The projector of version 1 or of version 2, neither with BatchNorm."""
    if kind == "linear":
        return nn.Linear(width, outputs)
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, outputs))


def _check(options: MoCoOptions, params: Pretraining) -> None:
    """Raise UserError for a queue that does not hold whole steps, or a choice without effect."""
    added = len(options.ways) * params.batch_size
    if params.epochs and options.queue % added:
        raise UserError(
            f"params.yaml: variants.{params.variant}.queue is {options.queue}; allowed: a multiple of {added}, the "
            "keys that join it in a step (batch_size, twice that if symmetric)"
        )
    if not options.norm_rows:
        require_effect(options, params.variant, ("shuffle",), "norm_rows 0", "set norm_rows to at least 2")
    together = "micro_batch_size" if params.micro_batch_size else "batch_size"
    _check_groups(options, params, getattr(params, together), together, 2)


def _check_groups(options: MoCoOptions, params: Pretraining, images: int, where: str, least: int) -> None:
    """Raise UserError unless so many images, of ``where``, are whole groups for BatchNorm, and at least so many.

    A variant of 0 epochs has no batches.
    """
    size = options.norm_rows
    if params.epochs and size and (size == 1 or images % size or images // size < least):
        raise UserError(
            f"params.yaml: variants.{params.variant}.norm_rows is {size}; allowed: 0 (all images at once), or a number "
            f"from 2 on that divides {where}, {images}, into {least} groups or more"
        )


METHOD = MoCo
