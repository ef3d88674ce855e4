"""The time of training in which an accuracy is first reached, evaluation not counted.

Both are judged by the pipeline's own kNN on the validation split, twice an epoch, one seed. While an evaluation runs,
the peer's workers make a few batches in advance, to the peer's advantage.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from bench import ours as engram
from bench import peers
from bench.timing import wait_for_device
from lib.data.store import IMAGES_FILE, ImageData, load_data
from lib.evaluate.monitor import knn_monitor
from lib.runtime.machine import Machine

GOAL = 55.0  # percent
LIMIT = 4 * 3600.0  # seconds of training


def ours(settings: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """Preset `cpu` over 4 epochs with a rate that is high from the start: along its own cosine 4 are not enough."""
    preset = engram.simclr("cpu")
    rule = replace(preset.optimizer, lr=0.002, schedule="constant", warmup_epochs=0.2)
    params, data = replace(preset, epochs=4, optimizer=rule), load_data(IMAGES_FILE)
    trainer = engram.new_trainer(params, data, machine)
    monitor, steps = knn_monitor(data, params, machine), engram.steps(trainer)
    return _race(lambda: next(steps), lambda: monitor(trainer.method), trainer.steps_per_epoch, 4, data)


def leftthomas(settings: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """The recipe as it comes, with the same small encoder; its rate is constant, so it has no last epoch."""
    data = peers.as_the_recipe(load_data(IMAGES_FILE))
    torch.manual_seed(0)
    images = data.train_images.permute(0, 2, 3, 1).contiguous().numpy()
    training = peers.Training(peers.leftthomas(), images, settings, machine.device)
    monitor = knn_monitor(data, engram.simclr("cpu"), replace(machine, precision="fp32"))
    return _race(training.step, lambda: monitor(training.model), len(training.loader), 1000, data)


def _race(
    step: Callable[[], Any], evaluate: Callable[[], float], steps_per_epoch: int, epochs: int, data: ImageData
) -> dict[str, Any]:
    """Train to the goal, the limit or the last epoch; ``seconds`` is None where the goal was not reached."""
    trained, every = 0.0, steps_per_epoch // 2
    for half in range(2 * epochs):
        started = time.perf_counter()
        for _ in range(every):
            step()
        wait_for_device()
        trained += time.perf_counter() - started
        knn = evaluate()
        note = f"{(half + 1) * every / steps_per_epoch:.2f} epochs, {trained:.0f} s of training, kNN {knn:.2f} %"
        print(note, file=sys.stderr, flush=True)
        if knn >= GOAL or trained >= LIMIT:
            break
    return {"seconds": trained if knn >= GOAL else None, "note": f"{note}, images: {data.about['source']}"}
