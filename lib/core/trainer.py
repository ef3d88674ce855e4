"""One variant's training: a step, its gradient, and the state that a checkpoint keeps.

Images stay on the device as uint8. Every random draw is a function of (seed, epoch, step, view) and of
the row's position in the global batch, so neither a resume nor another number of processes changes it.
"""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from lib.core import processes
from lib.core.cuda_graphs import Recorded, Unrecordable
from lib.core.health import Guard, spread
from lib.core.optimizers import build_optimizer
from lib.core.schedule import learning_rate
from lib.data.store import ImageData
from lib.params.pretraining import Pretraining
from lib.runtime.errors import UserError
from lib.runtime.machine import Machine, autocast
from lib.runtime.seeds import generator
from lib.views.augment import Draws, Plan, Table, augment, draw

ESTIMATE_IMAGES = 64
Named = dict[str, Tensor]


@dataclass
class Position:
    """Where a training is: the next step, what the current epoch has summed, and the epochs done."""

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    sums: list[float] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)


def check_batch(params: Pretraining, images: int, processes_wanted: int) -> None:
    """Raise UserError if the batch is larger than the data or cannot be shared evenly."""
    size, part, of = params.batch_size, params.micro_batch_size, f"of {params.variant}"
    if size > images:
        raise UserError(
            f"params.yaml: batch_size {of} is {size}; allowed: at most the number of training images, {images}"
        )
    if size % processes_wanted:
        raise UserError(
            f"params.yaml: batch_size {of} is {size}; allowed with the machine setting "
            f"processes {processes_wanted}: a multiple of {processes_wanted}"
        )
    share = size // processes_wanted
    if part and (share % part or part == share):
        raise UserError(
            f"params.yaml: micro_batch_size {of} is {part}; allowed: 0 (the whole batch at once), or a "
            f"smaller number that divides each process's share of the batch, {share}"
        )


def micro_batches(rows: slice, size: int) -> list[slice]:
    """The rows in consecutive parts of ``size``; in one part if ``size`` is 0."""
    size = size or rows.stop - rows.start
    return [slice(start, min(start + size, rows.stop)) for start in range(rows.start, rows.stop, size)]


class Pretrainer:
    """One variant's training: the method, its optimizer and its position."""

    def __init__(self, method: nn.Module, data: ImageData, params: Pretraining, machine: Machine) -> None:
        images, self.given = _training_images(method, data, machine)
        check_batch(params, len(images), processes.world_size())
        self.params = params
        self.rows = processes.local_slice(params.batch_size)
        method.check_local_batch(self.rows.stop - self.rows.start)
        self.micro_batches = micro_batches(self.rows, params.micro_batch_size)
        if machine.compile == "graphs" and len(self.micro_batches) > 1:
            machine = replace(machine, compile="off")  # what BatchNorm counts differs between the two passes
        self.machine = machine
        self.recorded = Recorded() if machine.compile == "graphs" else None
        self.images = images.to(machine.device)
        self.mean, self.std = data.mean.to(machine.device), data.std.to(machine.device)
        method.setup(data.mean, data.std, len(images), len(data.classes))
        method = method.to(machine.device, memory_format=torch.channels_last).train()
        self.method = processes.share_statistics(method, machine)
        if machine.compile == "on":
            self.method.encoder.compile()
        self.optimizer = build_optimizer(self.method, params.optimizer)
        self.steps_per_epoch = len(images) // params.batch_size
        self.guard = Guard(machine.device)
        self.position = Position()

    @property
    def steps(self) -> int:
        return self.steps_per_epoch * self.params.epochs

    def order(self, epoch: int) -> Tensor:
        """The epoch's order of the images, cut into whole batches: [steps, B]."""
        shuffled = torch.randperm(len(self.images), generator=generator(self.params.seed, "order", epoch))
        count = self.steps_per_epoch * self.params.batch_size
        return shuffled[:count].view(self.steps_per_epoch, self.params.batch_size).to(self.machine.device)

    def draws(self, epoch: int, step: int) -> list[Draws]:
        """What is random in each view of a whole global batch."""
        streams = [generator(self.params.seed, "view", epoch, step, view) for view in range(self.method.views)]
        return [
            draw(self.params.augment, stream, self.params.batch_size, *self.images.shape[-2:]) for stream in streams
        ]

    def views(self, draws: list[Draws], indices: Tensor, rows: slice) -> list[Tensor]:
        """The augmented views of some rows of the batch at ``indices`` [B]: [rows, 3, S, S] each."""
        return self._augmented(indices[rows], [drawn.rows(rows).to(self.machine.device) for drawn in draws])

    def _augmented(self, indices: Tensor, ready: list[Plan | Table]) -> list[Tensor]:
        images = self.images[indices]
        return [
            augment(images, drawn, self.mean, self.std).contiguous(memory_format=torch.channels_last) for drawn in ready
        ]

    def _embed(self, views: list[Tensor]) -> Named:
        return self._computed(self.method.embed, views)

    def _computed(self, embed: Callable[[Any], Named], given: Any) -> Named:
        with autocast(self.machine):
            embeddings = embed(given)
        return {name: values.float() for name, values in embeddings.items()}

    def _recorded_or_none(self, draws: list[Draws], indices: Tensor) -> Named | None:
        """The embeddings of the whole batch from a CUDA graph, as leaves; None where none is to be had."""
        if not self.recorded:
            return None
        tables = [drawn.rows(self.rows).to(self.machine.device) for drawn in draws]

        def embed(inputs: list[Tensor]) -> Named:
            rows, *numbers = inputs
            ready = [replace(table, numbers=own) for table, own in zip(tables, numbers, strict=True)]
            return self._embed(self._augmented(rows, ready))

        try:
            return self.recorded.forward(self.method, embed, [indices[self.rows], *(one.numbers for one in tables)])
        except Unrecordable as reason:
            self._record_no_more(reason)
            return None

    def _record_no_more(self, reason: Unrecordable) -> None:
        print(
            f"{self.params.variant}: its forward pass {reason}; without CUDA graphs, its kernels are started one by "
            "one (machine setting compile: off)",
            flush=True,
        )
        self.recorded, self.machine = None, replace(self.machine, compile="off")

    def gradient(self, epoch: int, step: int, indices: Tensor) -> Tensor:
        """Leave the gradient of the batch at ``indices`` [B] in the parameters.

        In several micro-batches, the embeddings of all come first, without what their gradient needs;
        the loss of the whole batch then gives its slope at each embedding, and every micro-batch is
        embedded again to carry its slopes to the parameters. Loss and gradient are those of the whole
        batch, except that BatchNorm normalizes within a micro-batch.

        Returns:
            float64 [total, parts..., spread], without gradient; ``value_names`` keeps their names. The spread
            is the smallest of the batch's embeddings, of which ``spreads`` keeps each.
        """
        draws = self.draws(epoch, step)

        def embed(rows: slice) -> Named:
            torch.manual_seed(generator(self.params.seed, "embed", epoch, step, rows.start).initial_seed())
            return self._embed(self.views(draws, indices, rows))

        several = len(self.micro_batches) > 1
        embeddings = self._recorded_or_none(draws, indices)
        if embeddings is None:
            embeddings = _detached(embed, self.micro_batches) if several else embed(self.micro_batches[0])
        torch.manual_seed(generator(self.params.seed, "loss", epoch, step).initial_seed())
        whole = {name: processes.gather(rows) for name, rows in embeddings.items()}
        given = {name: processes.gather(values[indices[self.rows]]) for name, values in self.given.items()}
        total, parts = self.method.loss({**whole, **given})
        total.backward()
        if self.recorded:
            try:
                self.recorded.backward(embeddings)
            except Unrecordable as reason:
                self._record_no_more(reason)
                self.optimizer.zero_grad(set_to_none=True)
                with _statistics_kept(self.method):
                    return self.gradient(epoch, step, indices)
        if several:
            with _statistics_kept(self.method):
                for rows in self.micro_batches:
                    _carry(embeddings, embed(rows), slice(rows.start - self.rows.start, rows.stop - self.rows.start))
        processes.sum_gradients(self.method)
        self.value_names = ["loss", *parts, "spread"]
        self.spreads = {name: spread(rows.detach()) for name, rows in self.method.watched(whole).items()}
        smallest = torch.stack(list(self.spreads.values())).min()
        return torch.stack([total, *parts.values(), smallest]).detach().double()

    def step(self, epoch: int, step: int, indices: Tensor) -> Tensor:
        """One optimized step on the images at ``indices`` [B]; returns what `gradient` does.

        A loss or gradient that is not finite changes no parameter, in this step or a later one.
        """
        number = epoch * self.steps_per_epoch + step
        values = self.gradient(epoch, step, indices)
        slopes = [weight.grad for weight in self.method.parameters() if weight.grad is not None]
        self.optimizer.found_inf = self.guard.watch(number, values[0], slopes)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(number)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.method.after_step(number, self.steps)
        return values

    def learning_rate(self, number: int) -> float:
        rule = self.params.optimizer
        warmup = round(rule.warmup_epochs * self.steps_per_epoch)
        return learning_rate(number, self.steps, warmup, rule.lr, rule.schedule)

    def estimate(self) -> float:
        """Seconds that the whole training will take, from two timed steps of a copy: a few images on a CPU.

        One is as the training stands, one as in its second half, which a method may spend on other layers.
        """
        trial = copy.copy(self)
        trial.method = copy.deepcopy(self.method)
        trial.recorded = Recorded() if self.recorded else None
        if torch.device(self.machine.device).type == "cpu":
            count = min(ESTIMATE_IMAGES, self.rows.stop - self.rows.start)
            trial.rows = slice(self.rows.start, self.rows.start + count)
            trial.micro_batches = micro_batches(trial.rows, max(1, count // 2) if len(self.micro_batches) > 1 else 0)
        indices = torch.arange(self.params.batch_size, device=self.machine.device)
        seconds = 0.0
        for _ in range(2):  # halves of the training
            for _ in range(2):  # the first call warms up
                started = time.monotonic()
                trial.gradient(0, 0, indices).tolist()  # waits for the device
            seconds += (time.monotonic() - started) / 2
            trial.method.after_step(max(0, self.steps // 2 - 1), self.steps)
        if self.recorded and not trial.recorded:  # it has said why
            self.recorded, self.machine = None, trial.machine
        share = (self.rows.stop - self.rows.start) / (trial.rows.stop - trial.rows.start)
        return seconds * share * self.steps

    def state(self) -> dict[str, Any]:
        return {
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "position": vars(self.position),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.method.load_state_dict(state["method"])
        if "optimizer" in state:  # a finished training keeps none
            self.optimizer.load_state_dict(state["optimizer"])
        self.position = Position(**state["position"])


def _training_images(method: nn.Module, data: ImageData, machine: Machine) -> tuple[Tensor, Named]:
    """The images, and what else the loss needs of each, by name.

    Labels are given to a method that asks for them and to no other; it then trains without the validation
    images, on which choices are made.
    """
    rows = data.fitting if "labels" in method.needs else torch.arange(len(data.train_images))
    known = {"indices": torch.arange(len(rows)), "labels": data.train_labels[rows]}
    images = data.train_images if len(rows) == len(data.train_images) else data.train_images[rows]
    return images, {name: known[name].to(machine.device) for name in method.needs}


def _detached(embed: Any, parts: list[slice]) -> Named:
    """The embeddings of all parts as leaves that will hold the slope of the loss."""
    with torch.no_grad():
        done = [embed(rows) for rows in parts]
    return {name: torch.cat([part[name] for part in done]).requires_grad_() for name in done[0]}


def _carry(whole: Named, part: Named, rows: slice) -> None:
    """Add to the parameters what ``part``, the embeddings of ``rows``, passes on of the slopes of ``whole``."""
    names = [name for name, values in part.items() if values.requires_grad and whole[name].grad is not None]
    torch.autograd.backward([part[name] for name in names], [whole[name].grad[rows] for name in names])


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """BatchNorm normalizes by its batch as before, but does not count the batch into its running rates again."""
    norms = [
        child
        for child in module.modules()
        if isinstance(child, nn.modules.batchnorm._BatchNorm) and child.track_running_stats
    ]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
