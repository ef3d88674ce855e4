"""Latents and projections of images, computed once by a frozen network."""

from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lib.errors import UserError
from lib.machine import Machine, computing
from lib.views.augment import normalize

COMBINATIONS = ("both", "mean")


@contextmanager
def evaluating(network: nn.Module):
    """Eval mode and no gradient inside; afterwards every module is in the mode it was in."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def extract(method: nn.Module, images: Tensor, mean: Tensor, std: Tensor, machine: Machine,
            what: str = "latents", batch: int = 512) -> dict[str, Tensor]:
    """What ``method`` makes of ``images`` under the test transform, by name, as float32 on the CPU.

    Parameters and buffers stay as they are. ``what`` is "latents" or "projections".

    Shape:
        images uint8 [N, 3, S, S] -> {name: [N, D]}

    Raises:
        UserError: a value that is not finite, the mark of a pretraining that diverged.
    """
    method.to(machine.device)
    mean, std = mean.to(machine.device), std.to(machine.device)
    parts: dict[str, list[Tensor]] = {}
    with evaluating(method):
        for rows in images.split(batch):
            inputs = normalize(rows.to(machine.device), mean, std).contiguous(memory_format=torch.channels_last)
            with computing(machine):
                outputs = getattr(method, what)(inputs)
            for name, values in outputs.items():
                parts.setdefault(name, []).append(values.float().cpu())
    found = {name: torch.cat(values) for name, values in parts.items()}
    for name, values in found.items():
        if not values.isfinite().all():
            raise UserError(f"{what} {name!r} of the trained network are not finite: pretraining diverged; "
                            "lower optimizer.lr in params.yaml and run dvc repro")
    return found


def latent_names(latents: dict[str, Tensor]) -> tuple[str, ...]:
    """The latents that are scored: those given, and when there are several also `COMBINATIONS`."""
    return (*latents, *(COMBINATIONS if len(latents) > 1 else ()))


def one_latent(latents: dict[str, Tensor], name: str) -> Tensor:
    """One of `latent_names` [N, D], combinations built when they are asked for: at once they may not fit into memory.

    "both" is the concatenation of all latents in order. "mean" is their mean, the control of the same width
    as one of them: for two halves of a map it is the global average.
    """
    if name in latents:
        return latents[name]
    values = list(latents.values())
    return {"both": lambda: torch.cat(values, dim=1), "mean": lambda: torch.stack(values).mean(0)}[name]()
