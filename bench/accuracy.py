"""The wall time in which a training first reaches an accuracy, evaluation not counted.

Both arms are judged by the pipeline's own kNN on the validation split, at the same share of an epoch.
While an evaluation runs, the peer's workers make a few batches in advance, to the peer's advantage.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from bench import leftthomas as recipe
from bench.ours import new_trainer, positions, preset_params
from bench.timing import as_it_comes, wait_for_device
from lib.data.store import ImageData, load_data
from lib.evaluate.monitor import knn_monitor
from lib.runtime.machine import Machine


def ours(settings: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """The ``cpu`` preset with changes, trained along its own schedule."""
    params = replace(preset_params("cpu", settings["changes"]), seed=settings["seed"])
    data = load_data(Path(settings["images"]))
    trainer = new_trainer(params, data, machine)
    place, monitor = positions(trainer), knn_monitor(data, params, machine)
    found = _race(
        "ours",
        lambda: trainer.step(*next(place)),
        lambda: monitor(trainer.method),
        trainer.steps_per_epoch,
        trainer.steps,
        settings,
    )
    return {**found, "trained_with": {**asdict(params), "machine": str(machine)}}


def leftthomas(settings: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """The recipe as it is, with the same small encoder; its rate is constant, so it has no last step."""
    data = as_the_recipe(load_data(Path(settings["images"])))
    torch.manual_seed(settings["seed"])
    images = data.train_images.permute(0, 2, 3, 1).contiguous().numpy()
    training = recipe.Training(
        images, data.train_labels.numpy(), "small", settings["batch"], settings["workers"], machine.device
    )
    monitor = knn_monitor(data, preset_params("cpu", []), replace(machine, precision="fp32"))
    found = _race("leftthomas", training.step, lambda: monitor(training.model), len(training.loader), None, settings)
    used = {
        "encoder": "small",
        "batch_size": settings["batch"],
        "workers": settings["workers"],
        "optimizer": f"Adam, rate {recipe.RATE:g}, constant, weight decay {recipe.WEIGHT_DECAY:g}",
        "temperature": recipe.TEMPERATURE,
        "seed": settings["seed"],
        "augment": "crops from 0.08 of the area, flip 0.5, jitter 0.4/0.4/0.4/0.1 in 0.8, gray 0.2",
        "machine": str(replace(machine, precision=as_it_comes(machine), compile="off")),
    }
    return {**found, "trained_with": used}


def as_the_recipe(data: ImageData) -> ImageData:
    """The same images, to be normalized by the recipe's constants, with which its network is trained."""
    return replace(data, about={**data.about, "mean": list(recipe.MEAN), "std": list(recipe.STD)})


def _race(
    name: str,
    step: Callable[[], Any],
    evaluate: Callable[[], float],
    steps_per_epoch: int,
    last: int | None,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Train until the goal, the limit or the last step; every ``share`` of an epoch kNN is measured, off the clock.

    Returns ``seconds`` to the goal, or None; ``trained``, the seconds trained in all; ``curve``, rows of
    epochs, seconds and kNN accuracy in percent.
    """
    every, done, trained, curve = max(1, round(settings["share"] * steps_per_epoch)), 0, 0.0, []
    while last is None or done < last:
        count = every if last is None else min(every, last - done)
        started = time.perf_counter()
        for _ in range(count):
            step()
        wait_for_device()
        trained += time.perf_counter() - started
        done += count
        knn = evaluate()
        curve.append({"epochs": done / steps_per_epoch, "seconds": trained, "knn": knn})
        print(
            f"accuracy, {name}: {done / steps_per_epoch:.2f} epochs, {trained:.0f} s of training, kNN {knn:.2f} %",
            file=sys.stderr,
            flush=True,
        )
        if knn >= settings["goal"] or trained >= settings["limit"]:
            break
    reached = curve[-1]["knn"] >= settings["goal"]
    return {"seconds": trained if reached else None, "trained": trained, "curve": curve}
