"""A training step of every system, each by itself, so that their times can be held side by side."""

import itertools
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

from bench.images import image_data
from bench.ours import new_trainer, positions
from bench.parts import torchs_convolutions
from bench.timing import steady
from lib.core.trainer import Pretrainer
from lib.params.pretraining import Pretraining, load_params, pretraining_params
from lib.params.spec import PARAMS_FILE
from lib.preset import apply_preset
from lib.runtime.machine import Machine

PRESET = "all"


@cache
def system_params() -> dict[str, Pretraining]:
    """Of every variant that trains, by name: those of params.yaml, with preset ``all`` laid over it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "params.yaml"
        shutil.copyfile(PARAMS_FILE, path)
        apply_preset(PRESET, [], path)
        raw = load_params(path)
    every = {variant: pretraining_params(raw, variant) for variant in raw["variants"]}
    return {variant: params for variant, params in every.items() if params.epochs}


def system(settings: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """Steps of the first epoch and of the last, which may differ: layers that learn in turn, codes that get sparse.

    ``options`` in the settings take the place of the preset's.
    """
    return _system(settings, machine)


def plain_convolutions(settings: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """The same with nn.Conv2d everywhere."""
    return _system(settings, machine, torchs_convolutions)


def _system(
    settings: dict[str, Any], machine: Machine, change: Callable[[Pretrainer], None] = lambda trainer: None
) -> dict[str, Any]:
    params = system_params()[settings["variant"]]
    options = {**params.options, **settings.get("options", {})}
    params = replace(params, batch_size=settings["batch"], options=options)
    trainer = new_trainer(params, image_data(settings["train"], settings["test"]), machine)
    change(trainer)
    first = _steady(trainer, 0, settings)
    trainer.method.after_step(trainer.steps // 2 - 1, trainer.steps)  # a method may turn to other layers there
    last = _steady(trainer, params.epochs - 1, settings)
    return {
        "seconds": (first["seconds"] + last["seconds"]) / 2,
        "first": first["seconds"],
        "last": last["seconds"],
        "calls": first["calls"] + last["calls"],
        "workers_memory": last["workers_memory"],
        "steps": trainer.steps_per_epoch,
        "precision": machine.precision,
        "params": asdict(params),
    }


def _steady(trainer: Pretrainer, epoch: int, settings: dict[str, Any]) -> dict[str, Any]:
    place = positions(trainer, itertools.repeat(epoch))
    return steady(lambda: trainer.step(*next(place)), settings)
