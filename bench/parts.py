"""This project's training step with one thing done otherwise, to see what each part gives."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from lib.encoders.small_maps import SmallMapConv2d
from lib.shares import Share
from torch import Tensor, nn
from torch.nn import functional

from bench.images import image_data
from bench.ours import new_trainer, pairs_of_rows, positions, study_params
from bench.timing import steady
from lib.core.trainer import Pretrainer
from lib.methods.base import Method, Named
from lib.runtime.errors import UserError
from lib.runtime.machine import Machine, autocast


class _PlainAdam(torch.optim.Adam):
    """Adam that does not know of ``found_inf``, which only the fused one reads."""

    def step(self, closure: Callable | None = None) -> None:
        self.found_inf = None
        super().step(closure)


def fp32(settings: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """Without bf16."""
    return _step(settings, replace(machine, precision="fp32"))


def contiguous(settings: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """Without channels last: images and weights in torch's usual layout, colors before rows."""

    def change(trainer: Pretrainer) -> None:
        views = trainer.views
        trainer.method.to(memory_format=torch.contiguous_format)
        trainer.views = lambda *given: [view.contiguous() for view in views(*given)]

    return _step(settings, machine, change)


def one_by_one(settings: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """Without batched augmentation: the same operations, image by image."""

    def change(trainer: Pretrainer) -> None:
        views = trainer.views

        def one_at_a_time(draws: list, indices: Tensor, rows: slice) -> list[Tensor]:
            each = [views(draws, indices, slice(place, place + 1)) for place in range(rows.start, rows.stop)]
            return [torch.cat(view).contiguous(memory_format=torch.channels_last) for view in zip(*each)]

        trainer.views = one_at_a_time

    return _step(settings, machine, change)


def plain_adam(settings: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """Without the fused optimizer: Adam as torch computes it on a CPU unasked."""

    def change(trainer: Pretrainer) -> None:
        rule = trainer.params.optimizer
        trainer.optimizer = _PlainAdam(trainer.method.parameters(), lr=rule.lr, weight_decay=rule.weight_decay)

    return _step(settings, machine, change)


def plain_convolutions(settings: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """With nn.Conv2d everywhere."""
    return _step(settings, machine, torchs_convolutions)


def torchs_convolutions(trainer: Pretrainer) -> None:
    """Turn every convolution of small maps back into torch's own."""
    for module in trainer.method.modules():
        if type(module) is SmallMapConv2d:
            module.__class__ = nn.Conv2d


def in_turn(settings: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """The views one after the other, each with all threads."""
    return _step(settings, machine, _in_turn)


def memory_given_back(settings: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """Without keeping freed memory, which `bench.arm` leaves out for this one."""
    return _step(settings, machine)


def one_forward(settings: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """Both views in one forward pass, and so with shared BatchNorm statistics: another training, timed alone."""

    def change(trainer: Pretrainer) -> None:
        _in_turn(trainer)
        trainer.method.embed = lambda views: _joined(trainer.method, views)

    return _step(settings, machine, change)


def started_singly(settings: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """Without CUDA graphs: the host starts every kernel."""
    return _step(settings, replace(machine, compile="off"))


def compiled(settings: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """With torch.compile of the encoder."""
    return _step(settings, replace(machine, compile="on"))


def convolutions(settings: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """A step's convolutions and nothing between them: all forward, then all backward in reverse, a view by each thread
    as in the step."""
    trainer = new_trainer(study_params(settings), image_data(settings["train"], settings["test"]), machine)
    together = trainer.view_threads
    _in_turn(trainer)
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def keep(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        calls.append((module, inputs[0].detach().requires_grad_(inputs[0].requires_grad), output.detach()))

    hooks = [module.register_forward_hook(keep) for module in trainer.method.modules() if isinstance(module, nn.Conv2d)]
    trainer.gradient(*next(positions(trainer)))
    for hook in hooks:
        hook.remove()

    def both_ways(some: list[tuple[nn.Module, Tensor, Tensor]]) -> None:
        with autocast(machine):
            outputs = [module(given) for module, given, _ in some]
        for module, given, slope in reversed(some):
            outputs.pop().backward(slope)
            given.grad = None

    half = len(calls) // 2
    views = [calls[:half], calls[half:]]

    def work() -> None:
        if together:
            together.both(lambda view: both_ways(views[view]))
        else:
            both_ways(calls)
        for module, *_ in calls:
            module.weight.grad = None

    return {**steady(work, settings), "precision": machine.precision}


def _in_turn(trainer: Pretrainer) -> None:
    trainer.view_threads = None


def _step(
    settings: dict[str, Any], machine: Machine, change: Callable[[Pretrainer], None] = lambda trainer: None
) -> dict[str, Any]:
    trainer = new_trainer(study_params(settings), image_data(settings["train"], settings["test"]), machine)
    change(trainer)
    place = positions(trainer)
    return {**steady(lambda: trainer.step(*next(place)), settings), "precision": machine.precision}


def _joined(method: Method, views: list[Tensor]) -> Named:
    together = method.project(method.latents(torch.cat(views)))["z"]
    return dict(zip(("z_a", "z_b"), together.chunk(2), strict=True))


def whole_matrix(settings: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """NT-Xent and its gradient from the matrix of all pairs, as it is usually written."""
    first, second = pairs_of_rows(settings["rows"])
    count = len(first)
    partner = torch.arange(2 * count).roll(count)

    def work() -> None:
        rows = torch.cat([first, second])
        similarity = rows @ rows.T / 0.5
        similarity.fill_diagonal_(-torch.inf)
        functional.cross_entropy(similarity, partner).backward()

    return steady(work, settings)


def side_by_side(settings: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """As many trainings as threads, each on a processor of its own: the time in which one step of one is done."""
    processors = sorted(os.sched_getaffinity(0))[: machine.threads]
    command = [sys.executable, "-m", "bench.arm", "ours.step", json.dumps(settings)]
    environment = {**os.environ, "ENGRAM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    trainings = []
    for processor in processors:
        with Share((processor,), ()).held():
            trainings.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
    printed = [training.communicate()[0] for training in trainings]
    if any(training.returncode for training in trainings):
        raise UserError("a training beside others failed; what went wrong is above")
    found = [json.loads(text.splitlines()[-1]) for text in printed]
    together = sum(1 / run["seconds"] for run in found)  # steps in a second
    return {
        "seconds": 1 / together,
        "calls": sum(run["calls"] for run in found),
        "precision": machine.precision,
        "workers_memory": sum(run["memory"] for run in found),
    }
