"""The pretraining loop, the same for every method.

Images stay on the device as uint8. Every random draw is a function of (seed, epoch, step, view) and of
the row's position in the global batch, so neither a resume nor another number of processes changes it.
"""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas
import torch
from torch import Tensor

from lib.core import processes
from lib.core.checkpoint import CheckpointStore
from lib.core.optimizers import build_optimizer
from lib.core.progress import StepProgress, duration
from lib.core.schedule import learning_rate
from lib.data.store import ImageData
from lib.errors import UserError
from lib.files import write_table
from lib.machine import Machine, computing
from lib.params.pretraining import Pretraining
from lib.seeds import generator
from lib.views.augment import augment, draw

ESTIMATE_IMAGES = 64
DAY = 86400.0


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
    if params.batch_size > images:
        raise UserError(f"params.yaml: batch_size is {params.batch_size}; "
                        f"allowed: at most the number of training images, {images}")
    if params.batch_size % processes_wanted:
        raise UserError(f"params.yaml: batch_size is {params.batch_size}; allowed with the machine setting "
                        f"processes {processes_wanted}: a multiple of {processes_wanted}")


class Pretrainer:
    """One variant's training: the method, its optimiser and its position."""

    def __init__(self, method: torch.nn.Module, data: ImageData, params: Pretraining, machine: Machine) -> None:
        images = data.train_images
        check_batch(params, len(images), processes.world())
        self.params, self.machine = params, machine
        self.rows = processes.own_rows(params.batch_size)
        self.images = images.to(machine.device)
        self.mean, self.std = data.mean.to(machine.device), data.std.to(machine.device)
        method = method.to(machine.device, memory_format=torch.channels_last).train()
        self.method = processes.share_statistics(method, machine)
        self.optimizer = build_optimizer(self.method, params.optimizer)
        self.steps_per_epoch = len(images) // params.batch_size
        self.position = Position()

    @property
    def steps(self) -> int:
        return self.steps_per_epoch * self.params.epochs

    def views(self, epoch: int, step: int, indices: Tensor) -> list[Tensor]:
        """This process's augmented views of one global batch, [B, 3, S, S] each."""
        images = self.images[indices[self.rows]]
        height, width = images.shape[-2:]
        views = []
        for view in range(self.method.views):
            stream = generator(self.params.seed, "view", epoch, step, view)
            draws = draw(self.params.augment, stream, len(indices), height, width)
            batch = augment(images, draws.rows(self.rows), self.mean, self.std)
            views.append(batch.contiguous(memory_format=torch.channels_last))
        return views

    def gradient(self, views: list[Tensor]) -> Tensor:
        """Leave the whole batch's gradient in the parameters; returns [total, parts...] and keeps their names."""
        with computing(self.machine):
            embeddings = self.method.embed(views)
        whole = {name: processes.gather(rows.float()) for name, rows in embeddings.items()}
        total, parts = self.method.loss(whole)
        total.backward()
        processes.sum_gradients(self.method)
        self.part_names = list(parts)
        return torch.stack([total, *parts.values()]).detach().double()

    def step(self, epoch: int, step: int, indices: Tensor) -> Tensor:
        """One optimised step on the images at ``indices`` [B]; returns [total, parts...]."""
        number = epoch * self.steps_per_epoch + step
        torch.manual_seed(generator(self.params.seed, "step", epoch, step).initial_seed())
        values = self.gradient(self.views(epoch, step, indices))
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(number)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.method.after_step(number)
        return values

    def learning_rate(self, number: int) -> float:
        rule = self.params.optimizer
        warmup = round(rule.warmup_epochs * self.steps_per_epoch)
        return learning_rate(number, self.steps, warmup, rule.lr, rule.schedule)

    def order(self, epoch: int) -> Tensor:
        """The epoch's order of the images, cut into whole batches: [steps, B]."""
        shuffled = torch.randperm(len(self.images), generator=generator(self.params.seed, "order", epoch))
        count = self.steps_per_epoch * self.params.batch_size
        return shuffled[:count].view(self.steps_per_epoch, self.params.batch_size).to(self.machine.device)

    def estimate(self) -> float:
        """Seconds that the whole training will take, from one timed step of a copy: a few images on a CPU."""
        trial = copy.copy(self)
        trial.method = copy.deepcopy(self.method)
        if torch.device(self.machine.device).type == "cpu":
            trial.rows = slice(0, min(ESTIMATE_IMAGES, self.rows.stop - self.rows.start))
        indices = torch.arange(self.params.batch_size, device=self.machine.device)
        for _ in range(2):  # the first call warms up
            started = time.monotonic()
            trial.gradient(trial.views(0, 0, indices)).tolist()  # waits for the device
        share = (self.rows.stop - self.rows.start) / (trial.rows.stop - trial.rows.start)
        return (time.monotonic() - started) * share * self.steps

    def state(self) -> dict[str, Any]:
        return {"method": self.method.state_dict(), "optimizer": self.optimizer.state_dict(),
                "position": vars(self.position)}

    def restore(self, state: dict[str, Any]) -> None:
        self.method.load_state_dict(state["method"])
        if "optimizer" in state:  # a finished training keeps none
            self.optimizer.load_state_dict(state["optimizer"])
        self.position = Position(**state["position"])


def pretrain(trainer: Pretrainer, store: CheckpointStore, curve: Path,
             monitor: Callable[[torch.nn.Module], float], variants: int = 1) -> None:
    """Train to the last epoch, from the newest checkpoint if there is one.

    Args:
        trainer: a fresh trainer; its method ends up trained.
        store: held by the caller; receives a state at every epoch's end and every few minutes.
        curve: CSV with one row per epoch, rewritten whole after each.
        monitor: method -> validation kNN accuracy in percent.
        variants: how many trainings like this one the pipeline has, for the estimate of the whole.

    Raises:
        UserError: the loss is no longer finite; the last checkpoint stays good.
    """
    lead = processes.rank() == 0
    saved = store.load()
    if saved:
        trainer.restore(saved)
    position, params = trainer.position, trainer.params
    _write_curve(curve, position, lead)
    if position.epoch < params.epochs:
        _announce(trainer, saved is not None, variants)
    elif lead:
        print(f"{params.variant}: trained before with the same parameters, code and data; taken from {store.folder} "
              "(make prune forgets it)", flush=True)
    done = position.epoch * trainer.steps_per_epoch + position.step
    with StepProgress(f"pretrain {params.variant}", trainer.steps, done, silent=not lead) as progress:
        while position.epoch < params.epochs:
            _epoch(trainer, store, progress, lead)
            _close_epoch(trainer, monitor, progress)
            _write_curve(curve, position, lead)
            if lead and position.epoch < params.epochs:
                store.save(trainer.state())
    if lead:
        store.finish(trainer.state())


def _epoch(trainer: Pretrainer, store: CheckpointStore, progress: StepProgress, lead: bool) -> None:
    """The rest of the current epoch, with a checkpoint whenever the last one is old."""
    position = trainer.position
    order = trainer.order(position.epoch)
    sums = torch.tensor(position.sums, dtype=torch.float64, device=trainer.machine.device) if position.sums else None
    started, before, last_save = time.monotonic(), position.seconds, time.monotonic()
    while position.step < trainer.steps_per_epoch:
        values = trainer.step(position.epoch, position.step, order[position.step])
        sums = values if sums is None else sums + values
        position.step += 1
        progress.advance()
        due = time.monotonic() - last_save > 60 * trainer.machine.checkpoint_minutes
        if due or position.step == trainer.steps_per_epoch:
            position.sums = sums.tolist()
            position.seconds = before + time.monotonic() - started
            _require_finite(trainer)
            if lead and position.step < trainer.steps_per_epoch:
                store.save(trainer.state())
                last_save = time.monotonic()


def _close_epoch(trainer: Pretrainer, monitor: Callable[[torch.nn.Module], float], progress: StepProgress) -> None:
    """Turn the epoch's sums into a row of the curve and move to the next epoch."""
    position, params = trainer.position, trainer.params
    done = position.epoch + 1
    means = [value / trainer.steps_per_epoch for value in position.sums]
    images = trainer.steps_per_epoch * params.batch_size
    row = {"epoch": done, "loss": means[0], **dict(zip(trainer.part_names, means[1:]))}
    row["knn"] = monitor(trainer.method) if done % params.monitor.every == 0 or done == params.epochs else None
    trainer.method.train()
    row["lr"] = trainer.learning_rate(done * trainer.steps_per_epoch - 1)
    row["images_per_second"] = round(images / position.seconds, 1)
    row["seconds"] = round(position.seconds, 2)
    row["device"] = str(trainer.machine)
    position.history.append(row)
    position.epoch, position.step, position.seconds, position.sums = done, 0, 0.0, []
    knn = "" if row["knn"] is None else f", validation kNN {row['knn']:.2f} %"
    speed = f"{row['images_per_second']:.0f} images/s"
    progress.note(f"epoch {done} of {params.epochs}: loss {row['loss']:.4f}{knn}, {speed}")


def _require_finite(trainer: Pretrainer) -> None:
    if all(math.isfinite(value) for value in trainer.position.sums):
        return
    position, params = trainer.position, trainer.params
    raise UserError(f"{params.variant}: the loss is no longer finite in epoch {position.epoch + 1} by step "
                    f"{position.step} of {trainer.steps_per_epoch} at learning rate "
                    f"{trainer.optimizer.param_groups[0]['lr']:g}; lower optimizer.lr or set machine precision to fp32")


def _announce(trainer: Pretrainer, resumed: bool, variants: int) -> None:
    params, position = trainer.params, trainer.position
    whole = trainer.estimate()  # all processes take part
    if processes.rank():
        return
    if resumed:
        where = f"epoch {position.epoch + 1}, step {position.step + 1} of {trainer.steps_per_epoch}"
        print(f"{params.variant}: going on from the checkpoint at {where}", flush=True)
    done = position.epoch * trainer.steps_per_epoch + position.step
    others = f", and {duration(whole * variants)} for all {variants} variants from the start" if variants > 1 else ""
    print(f"{params.variant}: {params.encoder}, {params.epochs} epochs of {trainer.steps_per_epoch} steps of "
          f"{params.batch_size} images on {trainer.machine}: about {duration(whole * (1 - done / trainer.steps))}"
          f"{others}", flush=True)
    if whole * variants > DAY:
        print("that is more than a day: `python -m lib.preset cpu` is sized for a CPU, `python -m lib.preset demo` "
              "for a first look", flush=True)


def _write_curve(path: Path, position: Position, lead: bool) -> None:
    if lead:
        write_table(path, pandas.DataFrame(position.history))
