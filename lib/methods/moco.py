"""MoCo, version 1 and 2 (He et al. 2020, Chen et al. 2020; docs/methods.md, 8), as its authors' CIFAR demo has it.

A query finds its key, which a momentum encoder makes of the other view, among the keys of earlier steps. They wait in
a queue, so that there are many negatives whatever the batch size.

BatchNorm normalizes a batch as one, and a network can read from it which query and key were in one batch. In groups
of ``norm_rows`` images, and with ``shuffle``, the keys in other groups than their queries, it tells nothing.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from lib.methods.base import WIDEST, DataFacts, MomentumMethod, Named, full_precision, l2_normalize
from lib.params.pretraining import Pretraining
from lib.params.spec import param


@full_precision
def queue_contrast(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Each query must find its key among the keys of the queue: mean of -log softmax at the key, in nats.

    Queries and keys are L2-normalized [N, D], key i the positive of query i; the queue, [Q, D], holds L2-normalized
    keys of earlier steps. Keys and queue get no gradient. The rest of the batch does not count.
    """
    keys, queue = (rows.detach().to(queries.dtype) for rows in (keys, queue))
    positives = (queries * keys).sum(1) / temperature  # [N]
    negatives = ((queries / temperature) @ queue.T).logsumexp(1)  # [N, Q] -> [N]
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
        """The views that are query and key."""
        return (("a", "b"), ("b", "a")) if self.symmetric else (("a", "b"),)


class MoCo(MomentumMethod):
    """Queries ``q`` of the online side, keys ``k`` of the momentum side, a queue of older keys: L2-normalized all."""

    Options = MoCoOptions
    without_effect = (("norm_rows", 0, ("shuffle",), "at least 2"),)
    queue: Tensor
    oldest: Tensor

    def __init__(self, options: MoCoOptions, params: Pretraining) -> None:
        super().__init__(options, params, lambda width: _head(options.head, width, options.projector_out))
        added = len(options.ways) * params.batch_size
        if params.epochs and options.queue % added:
            keys = "keys that join it in a step (batch_size, twice that if symmetric)"
            self.refuse("queue", options.queue, f"; allowed: a multiple of {added}, the {keys}")
        together = "micro_batch_size" if params.micro_batch_size else "batch_size"
        self._check_groups(getattr(params, together), together, 2)
        self.register_buffer("queue", l2_normalize(torch.randn(options.queue, options.projector_out)))
        self.register_buffer("oldest", torch.zeros((), dtype=torch.int64))  # the row that is replaced next
        self.arrived = torch.empty(0, options.projector_out)  # the step's keys, which join the queue after it

    def setup(self, facts: DataFacts) -> None:
        images = self.options.queue // len(self.options.ways)
        if self.params.epochs and images > facts.count:
            most = f"keys of at most the number of training images, {facts.count}"
            why = f"keys of {images} images; allowed: {most}, because an image must not meet itself among its negatives"
            self.refuse("queue", self.options.queue, f", {why}")
        # one group in a process would do, but not where keys are to change groups
        least = 2 if self.options.shuffle else 1
        self._check_groups(facts.local_batch, "the images of a batch in each process", least)

    def _check_groups(self, images: int, where: str, least: int) -> None:
        """Refuse if so many images, of ``where``, are not ``least`` whole groups for BatchNorm; 0 epochs have none."""
        size = self.options.norm_rows
        if self.params.epochs and size and (size == 1 or images % size or images // size < least):
            divisor = f"a number from 2 on that divides {where}, {images}, into {least} groups or more"
            self.refuse("norm_rows", size, f"; allowed: 0 (all images at once), or {divisor}")

    def embed(self, views: list[Tensor]) -> Named:
        """q_a and k_b; with both ways also q_b and k_a."""
        by_name = dict(zip("ab", views))
        embeddings: Named = {}
        for query, key in self.options.ways:
            embeddings |= {f"q_{query}": self.queries(by_name[query]), f"k_{key}": self.keys(by_name[key])}
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
        parts, arrived = {}, []
        for query, key in self.options.ways:
            queries, keys = embeddings[f"q_{query}"], embeddings[f"k_{key}"]
            parts[f"contrast_{query}{key}"] = queue_contrast(queries, keys, self.queue, self.options.temperature)
            arrived.append(keys.detach().float())
        self.arrived = torch.cat(arrived)
        return torch.stack(list(parts.values())).sum(), parts

    def after_step(self, step: int, steps: int) -> None:
        self.update_momentum(self.options.momentum)
        enqueue(self.queue, self.oldest, self.arrived)


@torch.no_grad()
def enqueue(queue: Tensor, oldest: Tensor, keys: Tensor) -> None:
    """Put ``keys`` [B, D] in the place of the oldest of ``queue`` [Q, D], a ring that starts at row ``oldest`` []."""
    # everything stays on the device: nothing waits for the number in ``oldest``
    rows = (oldest + torch.arange(len(keys), device=queue.device)) % len(queue)
    queue.index_copy_(0, rows, keys.to(queue.dtype))
    oldest.copy_((oldest + len(keys)) % len(queue))


def dealt_out(count: int, size: int, device: torch.device | str = "cpu") -> Tensor:
    """An order [count] that deals consecutive groups of ``size`` out to as many groups as there are, like cards.

    Every new group gets about as many images of one old group as of any other, the same in each step: the images are
    in a random order already.
    """
    place = torch.arange(count, device=device)
    return (place % size * count + place).argsort()


def _head(kind: str, width: int, outputs: int) -> nn.Module:
    """Neither version has BatchNorm in its projector."""
    if kind == "linear":
        return nn.Linear(width, outputs)
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, outputs))


METHOD = MoCo
