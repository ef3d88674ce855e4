"""The two views of a batch at the same time on a CPU, each by half of the threads.

Threads that divide every kernel among them wait for each other at every one; halves with a view each wait for each
other twice in a step, after the forward and after the backward pass. Between the two the loss is computed on leaves, as
for micro-batches. The first view goes through the method, the second through a twin made for the step: the same
parameters and buffers, but for the running statistics of BatchNorm, which join the method's as if the second view had
come after the first.
"""

from collections.abc import Callable
from concurrent.futures import wait
from typing import Any

import torch
from torch import Tensor, nn

from lib.core.optimizers import laid_out
from lib.errors import UserError
from lib.machine import Machine
from lib.workers import started_threads

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)  # and no subclass, which may count otherwise
RUNNING = ("running_mean", "running_var")

Named = dict[str, Tensor]
Embed = Callable[[nn.Module, int], Named]


def threads_for_views(method: nn.Module, machine: Machine) -> "ViewThreads | None":
    """None where the views take turns: on a GPU, compiled, with an odd number of threads, with a method that embeds
    views otherwise than each by itself, or with a BatchNorm that keeps the mean of all batches, which have an order."""
    fits = torch.device(machine.device).type == "cpu" and machine.compile == "off" and machine.threads % 2 == 0
    rates = all(module.momentum is not None for module in method.modules() if type(module) in NORMS)
    return ViewThreads(method, machine.threads) if fits and rates and method.views_apart else None


class Unsplittable(Exception):
    """What the method does while it embeds that two threads must not do at once, in words that follow "it"."""


class ViewThreads:
    """One method's forward and backward pass of two views, 0 and 1."""

    def __init__(self, method: nn.Module, threads: int) -> None:
        """``threads``: of the process, an even number. Two new ones wait for work and share them."""
        self.method, self.share, self.tried = method, threads // 2, False
        self.outputs, self.leaves, self.twin = [], [], None
        self.pool = started_threads(2, self.share)

    def forward(self, embed: Embed) -> Named:
        """``embed(method, view)`` of both views, as it names them: embeddings [B, D], leaves by name and side.

        Raises:
            Unsplittable: found in the first call, before anything is changed.
            UserError: found in a later one.
        """
        self.outputs, self.leaves = [], []
        if not self.tried:
            self._try(embed)
            self.tried = True
        self.twin = twin = _twin(self.method, {})
        watch = _Watch(twin)
        self.outputs = self.both(lambda view: embed((self.method, twin)[view], view))
        if found := watch.found():
            raise UserError(f"{type(self.method).__name__} {found} in embed_view, which it did not in the first step; "
                            "allowed: from the first step on, or in loss and after_step")
        self.leaves = [{name: rows.detach().requires_grad_(rows.requires_grad) for name, rows in view.items()}
                       for view in self.outputs]
        return self.method.by_side(self.leaves)

    def backward(self) -> None:
        """Add to the parameters' gradients what the slopes at the leaves pass on, and to the running statistics."""
        weights = [weight for weight in self.method.parameters() if weight.requires_grad]
        found = self.both(lambda view: self._gradients(view, weights))
        while weights:  # from the end, so that what is added up is free at once
            weight = weights.pop()
            for slope in [slopes.pop() for slopes in found]:
                if slope is not None:
                    weight.grad = laid_out(slope if weight.grad is None else weight.grad + slope, weight)
        for norm, other in zip(self.method.modules(), self.twin.modules(), strict=True):
            if _counts(norm):
                _join(norm, other)
        self.outputs, self.leaves, self.twin = [], [], None

    def both(self, work: Callable[[int], Any]) -> list[Any]:
        """``[work(0), work(1)]``, each in a thread of its own that has half of the threads."""
        pending = []
        try:
            pending += [self.pool.submit(work, view) for view in range(2)]
            return [one.result() for one in pending]
        finally:
            wait(pending)

    def _gradients(self, view: int, weights: list[Tensor]) -> list[Tensor | None]:
        slopes = {name: leaf.grad for name, leaf in self.leaves[view].items() if leaf.grad is not None}
        if not slopes:
            return [None] * len(weights)
        outputs = [self.outputs[view][name] for name in slopes]
        return list(torch.autograd.grad(outputs, weights, list(slopes.values()), allow_unused=True))

    def _try(self, embed: Embed) -> None:
        """A pass of one view that leaves no trace, to see what it does beside embedding."""
        twin = _twin(self.method, {})
        watch, kept = _Watch(twin), [(tensor, tensor.clone()) for tensor in _shared(twin)]

        def alone() -> None:
            with torch.no_grad():
                embed(twin, 1)

        self.pool.submit(alone).result()
        if found := watch.found():
            with torch.no_grad():
                for tensor, value in kept:
                    tensor.copy_(value)
            raise Unsplittable(found)


class _Watch:
    """What passes do beside embedding, seen at a twin: to torch's random numbers, attributes, shared tensors."""

    def __init__(self, twin: nn.Module) -> None:
        self.twin, self.random = twin, torch.get_rng_state()
        self.held = _held(twin)  # the objects themselves, so that no new one has the place of an old one
        self.versions = [tensor._version for tensor in _shared(twin)]

    def found(self) -> str:
        if not torch.equal(self.random, torch.get_rng_state()):
            return "draws random numbers"
        now = _held(self.twin)
        if len(now) != len(self.held) or any(one is not other for one, other in zip(now, self.held)):
            return "sets attributes"
        if self.versions != [tensor._version for tensor in _shared(self.twin)]:
            return "changes buffers or parameters"
        return ""


def _twin(module: nn.Module, made: dict[nn.Module, nn.Module]) -> nn.Module:
    """A module that shares everything with ``module`` but the statistics that a pass counts, which begin at 0."""
    if module in made:
        return made[module]
    twin = made[module] = module.__new__(type(module))
    buffers = dict(module._buffers)
    if _counts(module):
        buffers |= {name: torch.zeros_like(buffers[name]) for name in (*RUNNING, "num_batches_tracked")}
    children = {name: None if child is None else _twin(child, made) for name, child in module._modules.items()}
    vars(twin).update({**vars(module), "_buffers": buffers, "_modules": children})
    return twin


def _counts(module: nn.Module) -> bool:
    """Whether a pass changes the module's running statistics."""
    return (type(module) in NORMS and module.training and module.track_running_stats
            and module.running_mean is not None)


def _held(twin: nn.Module) -> list[Any]:
    return [value for module in twin.modules()
            for names in (vars(module), module._buffers, module._parameters) for value in names.values()]


def _shared(twin: nn.Module) -> list[Tensor]:
    """The tensors that the twin has not for itself."""
    buffers = [buffer for module in twin.modules() if not _counts(module) for buffer in module.buffers(recurse=False)]
    return [*twin.parameters(), *buffers]


@torch.no_grad()
def _join(norm: nn.Module, other: nn.Module) -> None:
    """What ``other`` has seen since it began at 0 comes after what ``norm`` has seen."""
    batches = int(other.num_batches_tracked)
    norm.num_batches_tracked += batches
    for name in RUNNING if batches else ():
        getattr(norm, name).mul_((1 - norm.momentum) ** batches).add_(getattr(other, name))
