"""The pretraining loop, the same for every method: epochs, checkpoints, the curve and what is said meanwhile."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import torch

from lib.core import processes
from lib.core.checkpoint import CheckpointStore
from lib.core.health import COLLAPSED, forget_peak, peak_memory
from lib.core.trainer import Position, Pretrainer
from lib.runtime.errors import UserError
from lib.runtime.files import write_table
from lib.runtime.progress import StepProgress, duration

DAY = 86400.0
SAVING = 0.1  # of the time at most goes into checkpoints at the ends of short epochs


class _Saves:
    """When to keep the next checkpoint: after so many minutes, and at an epoch's end unless the last cost too much."""

    def __init__(self, store: CheckpointStore, minutes: float, lead: bool) -> None:
        self.store, self.minutes, self.lead = store, minutes, lead
        self.last, self.cost = time.monotonic(), 0.0

    def due(self) -> bool:
        return time.monotonic() - self.last > 60 * self.minutes

    def worth_it(self) -> bool:
        return self.due() or SAVING * (time.monotonic() - self.last) > self.cost

    def save(self, trainer: Pretrainer) -> None:
        """Rank 0 alone writes; all count the time."""
        started = time.monotonic()
        if self.lead:
            self.store.save(trainer.state())
        self.last = time.monotonic()
        self.cost = self.last - started


def pretrain(
    trainer: Pretrainer,
    store: CheckpointStore,
    curve: Path,
    monitor: Callable[[torch.nn.Module], float],
    variants: int = 1,
) -> None:
    """Train to the last epoch, from the newest checkpoint if there is one.

    Args:
        trainer: a fresh trainer; its method ends up trained.
        store: held by the caller; receives a state every few minutes and at epochs' ends (`_Saves`).
        curve: CSV with one row per epoch, rewritten whole after each.
        monitor: method -> validation kNN accuracy in percent.
        variants: how many trainings like this one the pipeline has, for the estimate of the whole.

    Raises:
        UserError: the loss is no longer finite; the last checkpoint stays good.
    """
    lead = processes.rank() == 0
    processes.require_same(store.folder.name)  # its name holds the fingerprint of parameters, code and data
    saved = processes.broadcast(store.load)
    if saved:
        trainer.restore(saved)
    position, params = trainer.position, trainer.params
    _write_curve(curve, position, lead)
    if not params.epochs and not position.history:
        position.history.append(_untrained(trainer, monitor))
        _write_curve(curve, position, lead)
    elif position.epoch < params.epochs:
        _announce(trainer, saved is not None, variants)
    elif lead:
        print(
            f"{params.variant}: trained before with the same parameters, code and data; taken from {store.folder} "
            "(make prune forgets it)",
            flush=True,
        )
    done = position.epoch * trainer.steps_per_epoch + position.step
    saves = _Saves(store, trainer.machine.checkpoint_minutes, lead)
    with StepProgress(f"pretrain {params.variant}", trainer.steps, done, silent=not lead) as progress:
        while position.epoch < params.epochs:
            _epoch(trainer, store, progress, saves)
            _close_epoch(trainer, monitor, progress)
            _write_curve(curve, position, lead)
            if position.epoch < params.epochs and saves.worth_it():
                saves.save(trainer)
    if lead:
        store.finish(trainer.state())


def _untrained(trainer: Pretrainer, monitor: Callable[[torch.nn.Module], float]) -> dict[str, Any]:
    """The only row of a curve of 0 epochs: the random encoder."""
    if processes.rank() == 0:
        print(f"{trainer.params.variant}: 0 epochs, the encoder stays as it was drawn", flush=True)
    return {
        "epoch": 0,
        "loss": None,
        "spread": None,
        "knn": monitor(trainer.method),
        "lr": 0.0,
        "images_per_second": None,
        "seconds": None,
        "memory_gb": None,
        "device": str(trainer.machine),
    }


def _epoch(trainer: Pretrainer, store: CheckpointStore, progress: StepProgress, saves: _Saves) -> None:
    """The rest of the current epoch, with a checkpoint whenever the last one is old."""
    position = trainer.position
    order = trainer.order(position.epoch)
    sums = torch.tensor(position.sums, dtype=torch.float64, device=trainer.machine.device) if position.sums else None
    started, before = time.monotonic(), position.seconds
    while position.step < trainer.steps_per_epoch:
        values = trainer.step(position.epoch, position.step, order[position.step])
        sums = values if sums is None else sums + values
        position.step += 1
        progress.advance()
        at_rest = saves.due() or position.step == trainer.steps_per_epoch
        if at_rest or torch.device(trainer.machine.device).type == "cpu":
            _require_finite(trainer, store)
        if at_rest:
            position.sums = sums.tolist()
            position.seconds = before + time.monotonic() - started
            if position.step < trainer.steps_per_epoch:
                saves.save(trainer)


def _close_epoch(trainer: Pretrainer, monitor: Callable[[torch.nn.Module], float], progress: StepProgress) -> None:
    """Turn the epoch's sums into a row of the curve and move to the next epoch."""
    position, params = trainer.position, trainer.params
    done = position.epoch + 1
    means = [value / trainer.steps_per_epoch for value in position.sums]
    images = trainer.steps_per_epoch * params.batch_size
    row = {"epoch": done, **dict(zip(trainer.value_names, means))}
    memory = peak_memory(trainer.machine.device)
    row["knn"] = monitor(trainer.method) if done % params.monitor.every == 0 or done == params.epochs else None
    trainer.method.train()
    forget_peak(trainer.machine.device)
    row["lr"] = trainer.learning_rate(done * trainer.steps_per_epoch - 1)
    row["images_per_second"] = round(images / position.seconds, 1)
    row["seconds"] = round(position.seconds, 2)
    row["memory_gb"] = round(memory / 1e9, 2)
    row["device"] = str(trainer.machine)
    position.history.append(row)
    position.epoch, position.step, position.seconds, position.sums = done, 0, 0.0, []
    knn = "" if row["knn"] is None else f", validation kNN {row['knn']:.2f} %"
    speed = f"{row['images_per_second']:.0f} images/s"
    progress.note(f"epoch {done} of {params.epochs}: loss {row['loss']:.4f}{knn}, {speed}")
    if row["spread"] < COLLAPSED:
        closest = min(trainer.spreads, key=lambda name: trainer.spreads[name].item())
        progress.note(
            f"collapse: the embeddings {closest} of all images are nearly the same "
            f"(spread {row['spread']:.3f}, below {COLLAPSED:g})"
        )


def _require_finite(trainer: Pretrainer, store: CheckpointStore) -> None:
    broken = trainer.guard.broken_step()
    if broken is None:
        return
    epoch, step = divmod(broken, trainer.steps_per_epoch)
    kept = f"the checkpoint before it is {store.latest}" if store.latest.exists() else "there is no checkpoint yet"
    raise UserError(
        f"{trainer.params.variant}: loss or gradient is no longer finite in epoch {epoch + 1}, step "
        f"{step + 1} of {trainer.steps_per_epoch}, at learning rate {trainer.learning_rate(broken):g}; "
        f"the step was not made, {kept}; lower optimizer.lr or set the machine setting precision to fp32"
    )


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
    print(
        f"{params.variant}: {trainer.method.encoder_name}, {params.epochs} epochs of {trainer.steps_per_epoch} steps "
        f"of {params.batch_size} images on {trainer.machine}: about {duration(whole * (1 - done / trainer.steps))}"
        f"{others}",
        flush=True,
    )
    if whole * variants > DAY:
        print(
            "that is more than a day: `python -m lib.preset cpu` is sized for a CPU, `python -m lib.preset demo` "
            "for a first look",
            flush=True,
        )


def _write_curve(path: Path, position: Position, lead: bool) -> None:
    if lead:
        write_table(path, pandas.DataFrame(position.history))
