"""How a batch's gradient is computed: at once, in micro-batches or by CUDA graphs, behind one interface.

Each way is called with a batch and a loss, leaves the loss's gradient in the parameters and returns what the loss
returned. The loss takes the embeddings of this process's images, {name: [b, D]}; it is that of the whole batch.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from lib.core.cuda_graphs import CudaGraphs, Unrecordable
from lib.runtime.seeds import generator
from lib.views.parameters import PackedParams

Named = dict[str, Tensor]
Outcome = tuple[Tensor, Named, Named]  # the loss, its parts, the embeddings of the whole batch


@dataclass(frozen=True)
class Batch:
    """A process's images of a step: int64 [b] that index the training images, and each view's augmentation parameters,
    on the device. ``moment``: seed, epoch, step; ``start``: the place of the first image in the whole batch."""

    moment: tuple[int, int, int]
    start: int
    indices: Tensor
    params: list[PackedParams]

    def rows(self, part: slice) -> "Batch":
        params = [view.rows(part) for view in self.params]
        return replace(self, start=self.start + part.start, indices=self.indices[part], params=params)

    def seed(self) -> None:
        """What a network draws in its forward pass is the same whenever it is asked, and however many were before."""
        seed, epoch, step = self.moment
        torch.manual_seed(generator(seed, "embed", epoch, step, self.start).initial_seed())


Embed = Callable[[Batch], Named]
Loss = Callable[[Named], Outcome]


class Passes(Protocol):
    def __call__(self, batch: Batch, loss: Loss) -> Outcome: ...


class Whole:
    """All images at once."""

    def __init__(self, embed: Embed) -> None:
        self.embed = embed

    def __call__(self, batch: Batch, loss: Loss) -> Outcome:
        batch.seed()
        outcome = loss(self.embed(batch))
        outcome[0].backward()
        return outcome


class MicroBatches:
    """``size`` images at a time, so that the activations of no more are held. Loss and gradient are those of the whole
    batch, except that BatchNorm normalizes within a micro-batch."""

    def __init__(self, embed: Embed, method: nn.Module, size: int) -> None:
        self.embed, self.method, self.size = embed, method, size

    def __call__(self, batch: Batch, loss: Loss) -> Outcome:
        parts = [slice(start, start + self.size) for start in range(0, len(batch.indices), self.size)]
        # The embeddings of all come first, without what their gradient needs: the loss compares each with every other.
        with torch.no_grad():
            pieces = [self._embed_part(batch.rows(part)) for part in parts]
        leaves = {name: torch.cat([piece[name] for piece in pieces]).requires_grad_() for name in pieces[0]}
        outcome = loss(leaves)
        outcome[0].backward()
        # Each micro-batch is embedded again, and carries the loss's gradient at its embeddings to the parameters.
        with statistics_kept(self.method):
            for part in parts:
                embeddings = self._embed_part(batch.rows(part))
                names = [
                    name for name, leaf in leaves.items() if embeddings[name].requires_grad and leaf.grad is not None
                ]
                gradients = [leaves[name].grad[part] for name in names]  # type: ignore[index]
                torch.autograd.backward([embeddings[name] for name in names], gradients)
        return outcome

    def _embed_part(self, batch: Batch) -> Named:
        batch.seed()
        return self.embed(batch)


class Graphed:
    """By CUDA graphs; all images at once without them from the first batch on whose passes they cannot hold."""

    def __init__(self, embed: Embed, method: nn.Module, variant: str) -> None:
        self.embed, self.method, self.variant, self.whole = embed, method, variant, Whole(embed)
        self.graphs: CudaGraphs | None = CudaGraphs()

    def __call__(self, batch: Batch, loss: Loss) -> Outcome:
        if not self.graphs:
            return self.whole(batch, loss)

        def embed(inputs: list[Tensor]) -> Named:
            params = [replace(view, numbers=own) for view, own in zip(batch.params, inputs[1:], strict=True)]
            return self.embed(replace(batch, indices=inputs[0], params=params))

        try:
            leaves = self.graphs.forward(self.method, embed, [batch.indices, *(view.numbers for view in batch.params)])
        except Unrecordable as reason:  # nothing was computed
            self._give_up(reason)
            return self.whole(batch, loss)
        outcome = loss(leaves)
        outcome[0].backward()
        try:
            self.graphs.backward(leaves)
        except Unrecordable as reason:  # but BatchNorm's statistics have counted the batch already
            self._give_up(reason)
            self.method.zero_grad(set_to_none=True)
            with statistics_kept(self.method):
                return self.whole(batch, loss)
        return outcome

    def _give_up(self, reason: Unrecordable) -> None:
        self.graphs = None
        print(
            f"{self.variant}: its forward pass {reason}; without CUDA graphs, its kernels are started one by "
            "one (machine setting compile: off)",
            flush=True,
        )


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """BatchNorm normalizes by its batch as before, but does not count it into its running statistics again."""
    kinds = nn.modules.batchnorm._BatchNorm
    norms = [child for child in module.modules() if isinstance(child, kinds) and child.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
