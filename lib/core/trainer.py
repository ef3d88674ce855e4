"""One variant's training: a step, its gradient, and the state that a checkpoint keeps.

Images stay on the device as uint8. Every random draw is a function of (seed, epoch, step, view) and of the image's
position in the global batch, so neither a resume nor another number of processes changes it. B images of the global
batch, b of this process.
"""

from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor

from lib.core import processes
from lib.core.health import Guard, embedding_std
from lib.core.optimizers import build_optimizer, set_rate
from lib.core.passes import Batch, Graphed, MicroBatches, Outcome, Passes, Whole
from lib.core.schedule import learning_rate
from lib.data.store import ImageData
from lib.methods.base import DataFacts, Method
from lib.params.pretraining import Pretraining
from lib.runtime.errors import UserError
from lib.runtime.machine import Machine, autocast
from lib.runtime.seeds import generator
from lib.views.augment import augment, draw

Named = dict[str, Tensor]


@dataclass
class Position:
    """Where a training is: the next step, what the current epoch has summed, and the epochs done."""

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    sums: list[float] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)


def check_batch(params: Pretraining, images: int, world_size: int) -> None:
    """Raise UserError if the batch is larger than the data or cannot be shared evenly. 0 epochs need no batch."""
    size, part, local = params.batch_size, params.micro_batch_size, params.batch_size // world_size
    rules = (
        (size <= images, "batch_size", f"at most the number of training images, {images}"),
        (size % world_size == 0, "batch_size", f"with processes {world_size} (machine setting), a multiple of it"),
        (
            not part or (local % part == 0 and part < local),
            "micro_batch_size",
            f"0 (the whole batch at once), or a smaller number that divides each process's share of the batch, {local}",
        ),
    )
    for kept, key, allowed in rules:
        if params.epochs and not kept:
            raise UserError(f"params.yaml: {key} of {params.variant} is {getattr(params, key)}; allowed: {allowed}")


class Pretrainer:
    """One variant's training: the method, its optimizer and its position."""

    def __init__(self, method: Method, data: ImageData, params: Pretraining, machine: Machine) -> None:
        images, self.targets = _training_images(method, data, machine)
        check_batch(params, len(images), processes.world_size())
        self.params, self.machine = params, machine
        self.local = processes.local_slice(params.batch_size)  # this process's part of every batch
        self.images = images.to(machine.device)
        self.mean, self.std = data.mean.to(machine.device), data.std.to(machine.device)
        local_batch = self.local.stop - self.local.start
        method.setup(DataFacts(data.mean, data.std, len(images), len(data.classes), local_batch))
        method.to(device=machine.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.method = cast(Method, processes.share_statistics(method, machine))
        if machine.compile == "on":
            self.method.encoder.compile()
        self.passes: Passes = Whole(self.embed)
        if params.micro_batch_size:  # also where graphs are asked for: what BatchNorm counts differs between the passes
            self.passes = MicroBatches(self.embed, self.method, params.micro_batch_size)
        elif machine.compile == "graphs":
            self.passes = Graphed(self.embed, self.method, params.variant)
        self.optimizer = build_optimizer(self.method, params.optimizer, self.method.rate_factors())
        self.steps_per_epoch = len(images) // params.batch_size
        self.steps = self.steps_per_epoch * params.epochs
        self.guard = Guard(machine.device)
        self.position = Position()

    @property
    def setting(self) -> str:
        """The machine as this training uses it, for people."""
        as_asked = self.machine.compile != "graphs" or (isinstance(self.passes, Graphed) and self.passes.graphs)
        return str(self.machine if as_asked else replace(self.machine, compile="off"))

    def order(self, epoch: int) -> Tensor:
        """The epoch's order of the images, cut into whole batches: [steps, B]."""
        shuffled = torch.randperm(len(self.images), generator=generator(self.params.seed, "order", epoch))
        count = self.steps_per_epoch * self.params.batch_size
        return shuffled[:count].view(self.steps_per_epoch, self.params.batch_size).to(self.machine.device)

    def batch(self, epoch: int, step: int, indices: Tensor) -> Batch:
        """This process's images of the batch at ``indices`` [B], with what is random in their views."""
        seed, size = self.params.seed, (self.params.batch_size, *self.images.shape[-2:])
        streams = [generator(seed, "view", epoch, step, view) for view in range(self.method.views)]
        recipes = zip(self.params.recipes, streams)
        drawn = [draw(recipe, stream, *size).rows(self.local) for recipe, stream in recipes]
        params = [view.to(self.machine.device) for view in drawn]
        return Batch((seed, epoch, step), self.local.start, indices[self.local], params)

    def views(self, batch: Batch) -> list[Tensor]:
        """The augmented views of a batch's images: float32 [b, 3, S, S] each."""
        images = self.images[batch.indices]
        views = (augment(images, params, self.mean, self.std) for params in batch.params)
        return [view.contiguous(memory_format=torch.channels_last) for view in views]

    def embed(self, batch: Batch) -> Named:
        """The embeddings of a batch's images, in fp32: {name: [b, D]}."""
        views = self.views(batch)
        with autocast(self.machine):
            embeddings = self.method.embed(views)
        return {name: values.float() for name, values in embeddings.items()}

    def forward_backward(self, epoch: int, step: int, indices: Tensor) -> Tensor:
        """Leave the gradient of the batch at ``indices`` [B] in the parameters.

        Returns:
            float64 [total, parts..., embedding_std], without gradient; ``value_names`` keeps their names. The last is
            the smallest of those that ``embedding_stds`` keeps by name.
        """
        # What is random is drawn for the global batch, from the step's place in the training and from nothing before.
        batch = self.batch(epoch, step, indices)

        def loss(embeddings: Named) -> Outcome:
            # An image is compared with all others: the other processes' embeddings come in, without gradient.
            gathered = {name: processes.gather(rows) for name, rows in embeddings.items()}
            targets = {name: processes.gather(values[batch.indices]) for name, values in self.targets.items()}
            # A loss may draw, for example negatives: the same in every process, however the embeddings were computed.
            torch.manual_seed(generator(self.params.seed, "loss", epoch, step).initial_seed())
            total, parts = self.method.loss({**gathered, **targets})
            return total, parts, gathered

        # Views, embeddings, loss, backward: at once, in micro-batches or by CUDA graphs.
        total, parts, embeddings = self.passes(batch, loss)
        # Each process has the gradient through its own embeddings; their sum is that of the whole batch.
        processes.sum_gradients(self.method)
        # A loss can fall while all images become one point: the embeddings' standard deviation says so.
        watched = self.method.watched({name: rows.detach() for name, rows in embeddings.items()})
        self.embedding_stds = {name: embedding_std(rows) for name, rows in watched.items()}
        smallest = torch.stack(list(self.embedding_stds.values())).min()
        self.value_names = ["loss", *parts, "embedding_std"]
        return torch.stack([total, *parts.values(), smallest]).detach().double()

    def step(self, epoch: int, step: int, indices: Tensor) -> Tensor:
        """One optimized step on the images at ``indices`` [B]; returns what `forward_backward` does.

        A loss or gradient that is not finite changes no parameter, in this step or a later one.
        """
        number = epoch * self.steps_per_epoch + step
        values = self.forward_backward(epoch, step, indices)
        gradients = [weight.grad for weight in self.method.parameters() if weight.grad is not None]
        self.optimizer.found_inf = self.guard.watch(number, values[0], gradients)  # type: ignore[attr-defined]
        set_rate(self.optimizer, self.learning_rate(number))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.method.after_step(number, self.steps)
        return values

    def learning_rate(self, number: int) -> float:
        rule = self.params.optimizer
        warmup = round(rule.warmup_epochs * self.steps_per_epoch)
        return learning_rate(number, self.steps, warmup, rule.lr, rule.schedule)

    def state(self) -> dict[str, Any]:
        parts = {"method": self.method.state_dict(), "optimizer": self.optimizer.state_dict()}
        return {**parts, "position": vars(self.position)}

    def restore(self, state: dict[str, Any]) -> None:
        self.method.load_state_dict(state["method"])
        if "optimizer" in state:  # a finished training keeps none
            self.optimizer.load_state_dict(state["optimizer"])
        self.position = Position(**state["position"])


def _training_images(method: Method, data: ImageData, machine: Machine) -> tuple[Tensor, Named]:
    """The images, and what else the loss needs of each, by name.

    Labels are given to a method that asks for them and to no other; it then trains without the validation
    images, on which choices are made.
    """
    rows = data.fitting if "labels" in method.needs else torch.arange(len(data.train_images))
    known = {"indices": torch.arange(len(rows)), "labels": data.train_labels[rows]}
    images = data.train_images if len(rows) == len(data.train_images) else data.train_images[rows]
    return images, {name: known[name].to(machine.device) for name in method.needs}
