"""The pretraining loop, the same for every method: epochs, checkpoints, the curve and what is said meanwhile."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pandas
import torch

from lib.core import processes
from lib.core.calibration import calibrate_batchnorm
from lib.core.checkpoint import CheckpointStore
from lib.core.health import COLLAPSED, Watchdog, forget_peak, peak_memory
from lib.core.trainer import Pretrainer
from lib.methods.base import Method
from lib.runtime.errors import UserError
from lib.runtime.files import write_table
from lib.runtime.progress import StepProgress
from lib.runtime.stage import times_folder

TIMES = ("images_per_second", "seconds", "memory_gb", "device")  # of an epoch; no two runs share them


class Monitor(NamedTuple):
    """Columns of the curve, each with how a line says it, and a function method -> their values by name."""

    columns: dict[str, str]
    measure: Callable[[Method], dict[str, float]]


def pretrain(trainer: Pretrainer, store: CheckpointStore, curve: Path, monitor: Monitor) -> None:
    """Train to the last epoch, from the newest checkpoint if there is one.

    Args:
        trainer: a fresh trainer; its method ends up trained.
        store: held by the caller; receives a state every few minutes and at epochs' ends.
        curve: CSV with one row per epoch, rewritten whole after each; speed and memory go to .times/ instead.
        monitor: what is measured of the method at some epochs' ends.

    Raises:
        UserError: the loss is no longer finite; the last checkpoint stays good.
    """
    main = processes.rank() == 0
    processes.require_same(store.folder.name)  # its name holds the fingerprint of parameters, code and data
    saved = processes.broadcast(store.load)
    if saved:
        trainer.restore(saved)
    position, epochs = trainer.position, trainer.params.epochs
    if not epochs and not position.history:
        position.history.append(_untrained(trainer, monitor))
    if main:
        _write_curve(curve, position.history)  # DVC has removed it, and a resumed training has its beginning
        print(f"{trainer.params.variant}: {_what_follows(trainer, store, saved is not None)}", flush=True)
    done = position.epoch * trainer.steps_per_epoch + position.step
    with (
        StepProgress(f"pretrain {trainer.params.variant}", trainer.steps, done, silent=not main) as progress,
        # a process among several has a limit of its own on waiting for the others
        Watchdog(on=processes.world_size() == 1) as watchdog,
    ):
        while position.epoch < epochs:
            _epoch(trainer, store, progress, watchdog, main)
            _close_epoch(trainer, monitor, progress)
            if main:
                _write_curve(curve, position.history)
                if position.epoch < epochs and store.due(trainer.machine.checkpoint_minutes, epoch_ends=True):
                    store.save(trainer.state())
    if main:
        store.finish(trainer.state())


def _what_follows(trainer: Pretrainer, store: CheckpointStore, resumed: bool) -> str:
    """What a training says at its start."""
    params, position = trainer.params, trainer.position
    if not params.epochs:
        return "0 epochs, the encoder stays as it was drawn"
    if position.epoch == params.epochs:
        return f"trained before with the same parameters, code and data; taken from {store.folder} (see make prune)"
    steps = f"{params.epochs} epochs of {trainer.steps_per_epoch} steps of {params.batch_size} images"
    plan = f"{trainer.method.encoder.name}, {steps} on {trainer.setting}"
    where = f"epoch {position.epoch + 1}, step {position.step + 1} of {trainer.steps_per_epoch}"
    return f"going on from the checkpoint at {where}; {plan}" if resumed else plan


def _untrained(trainer: Pretrainer, monitor: Monitor) -> dict[str, Any]:
    """The only row of 0 epochs."""
    _calibrate(trainer)
    row = {"epoch": 0, "loss": None, "embedding_std": None, **monitor.measure(trainer.method), "lr": 0.0}
    return {**row, **dict.fromkeys(TIMES), "device": trainer.setting}


def _calibrate(trainer: Pretrainer) -> None:
    if trainer.params.calibrate_batchnorm:
        seen = trainer.images, trainer.mean, trainer.std
        calibrate_batchnorm(trainer.method, *seen, trainer.params, trainer.machine)


def _epoch(trainer: Pretrainer, store: CheckpointStore, progress: StepProgress, watchdog: Watchdog, main: bool) -> None:
    """The rest of the current epoch, with a checkpoint whenever the last one is old."""
    position, device = trainer.position, trainer.machine.device
    order = trainer.order(position.epoch)
    sums = torch.tensor(position.sums, dtype=torch.float64, device=device) if position.sums else None
    started, before = time.monotonic(), position.seconds
    while position.step < trainer.steps_per_epoch:
        values = trainer.step(position.epoch, position.step, order[position.step])
        sums = values if sums is None else sums + values
        position.step += 1
        ended = position.step == trainer.steps_per_epoch
        at_rest = ended or store.due(trainer.machine.checkpoint_minutes, epoch_ends=False)
        # To look at a number makes the host wait for a GPU: only at rests, and for the estimate of the time left.
        if at_rest or progress.estimates_next or torch.device(device).type == "cpu":
            _require_finite(trainer, store)
        progress.advance()
        watchdog.rest() if at_rest else watchdog.stepped()
        if at_rest:
            position.sums = sums.tolist()
            position.seconds = before + time.monotonic() - started
            if main and not ended:
                store.save(trainer.state())


def _close_epoch(trainer: Pretrainer, monitor: Monitor, progress: StepProgress) -> None:
    """Turn the epoch's sums into a row of the history and move to the next epoch."""
    position, params, device = trainer.position, trainer.params, trainer.machine.device
    done, steps = position.epoch + 1, trainer.steps_per_epoch
    row: dict[str, Any] = {"epoch": done}
    row |= {name: value / steps for name, value in zip(trainer.value_names, position.sums)}
    memory = peak_memory(device)  # before the monitor takes its own
    if done == params.epochs:
        _calibrate(trainer)
    due = done % params.monitor.every == 0 or done == params.epochs
    row |= monitor.measure(trainer.method) if due else dict.fromkeys(monitor.columns)
    trainer.method.train()
    forget_peak(device)
    row["lr"] = trainer.learning_rate(done * steps - 1)
    speed, gigabytes = round(steps * params.batch_size / position.seconds, 1), round(memory / 1e9, 2)
    row |= dict(zip(TIMES, (speed, round(position.seconds, 2), gigabytes, trainer.setting)))
    position.history.append(row)
    position.epoch, position.step, position.seconds, position.sums = done, 0, 0.0, []
    said = "".join(f", {text.format(row[name])}" for name, text in monitor.columns.items() if due)
    progress.note(f"epoch {done} of {params.epochs}: loss {row['loss']:.4f}{said}, {speed:.0f} images/s")
    begins = done == 1 or position.history[-2]["embedding_std"] >= COLLAPSED
    if row["embedding_std"] < COLLAPSED and (begins or done == params.epochs):
        closest = min(trainer.embedding_stds, key=lambda name: trainer.embedding_stds[name].item())
        progress.note(
            f"collapse: the embeddings {closest} of all images are nearly the same "
            f"(embedding_std {row['embedding_std']:.3f}, below {COLLAPSED:g})"
        )


def _require_finite(trainer: Pretrainer, store: CheckpointStore) -> None:
    broken = trainer.guard.broken_step()
    if broken is None:
        return
    epoch, step = divmod(broken, trainer.steps_per_epoch)
    # before the first update no learning rate has done anything
    advice = "lower optimizer.lr" if broken else "raise the variant's temperature or lower its weights"
    advice += " or set the machine setting precision to fp32"
    kept = f"the checkpoint before it is {store.latest}" if store.latest.exists() else "there is no checkpoint yet"
    raise UserError(
        f"{trainer.params.variant}: loss or gradient is no longer finite in epoch {epoch + 1}, step "
        f"{step + 1} of {trainer.steps_per_epoch}, at learning rate {trainer.learning_rate(broken):g}; "
        f"the step was not made, {kept}; {advice}"
    )


def _write_curve(path: Path, history: list[dict[str, Any]]) -> None:
    """What the training gave, the same for the same inputs; and apart from it what no two runs share."""
    frame = pandas.DataFrame(history)
    write_table(path, frame.drop(columns=list(TIMES), errors="ignore"))
    write_table(times_folder() / path.name, frame[[name for name in ("epoch", *TIMES) if name in frame]])
