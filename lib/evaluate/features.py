"""Latents and projections of images, computed once by a frozen network."""

from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lib.runtime.errors import UserError
from lib.runtime.machine import Machine, autocast
from lib.views.augment import normalize

BATCH = 512  # images
BOTH, ALL, MEAN = "both", "all", "mean"  # combinations of latents

Named = dict[str, Tensor]


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


def extract(
    method: nn.Module, images: Tensor, mean: Tensor, std: Tensor, machine: Machine, batch: int | None = None
) -> Named:
    """The latents of ``images`` under the test transform, by name, as float32 on the CPU.

    Parameters and buffers stay as they are. ``batch`` images are taken at a time, or `BATCH`.

    Shape:
        images uint8 [N, 3, S, S] -> {name: [N, D]}

    Raises:
        UserError: a value that is not finite, the mark of a pretraining that diverged.
    """
    return _extract(method, images, mean, std, machine, batch, project=False)["latents"]


def extract_with_projections(
    method: nn.Module, images: Tensor, mean: Tensor, std: Tensor, machine: Machine, batch: int | None = None
) -> dict[str, Named]:
    """As `extract`, and the projections of the same forward pass: {"latents": ..., "projections": ...}."""
    return _extract(method, images, mean, std, machine, batch, project=True)


def _extract(
    method: nn.Module, images: Tensor, mean: Tensor, std: Tensor, machine: Machine, batch: int | None, project: bool
) -> dict[str, Named]:
    method.to(machine.device)
    mean, std = mean.to(machine.device), std.to(machine.device)

    def outputs(rows: Tensor) -> dict[str, Named]:
        inputs = normalize(rows.to(machine.device), mean, std).contiguous(memory_format=torch.channels_last)
        with torch.no_grad(), autocast(machine):
            found = {"latents": method.latents(inputs)}
            if project:
                found["projections"] = method.project(found["latents"])
        return {what: {name: values.float().cpu() for name, values in named.items()} for what, named in found.items()}

    with evaluating(method):
        parts = [outputs(rows) for rows in images.split(batch or BATCH)]
    found = {
        what: {name: torch.cat([part[what][name] for part in parts]) for name in named}
        for what, named in parts[0].items()
    }
    for what, named in found.items():
        for name, values in named.items():
            if not values.isfinite().all():
                raise UserError(
                    f"{what} {name!r} of the trained network are not finite: pretraining diverged; "
                    "lower optimizer.lr in params.yaml and run dvc repro"
                )
    return found


def latent_names(latents: dict[str, Tensor], halves: bool = False) -> tuple[str, ...]:
    """The latents that are scored: those given, and of several also a combination.

    Their concatenation is `BOTH` of two and `ALL` of more; it is left out where the main latent joins the others
    already. Their mean comes with ``halves`` of one pooling alone.
    """
    if len(latents) == 1:
        return tuple(latents)
    main, *others = latents.values()
    joined = main.shape[1] == sum(values.shape[1] for values in others) and torch.equal(main, torch.cat(others, 1))
    return (*latents, *([] if joined else [BOTH if len(others) == 1 else ALL]), *([MEAN] if halves else []))


def one_latent(latents: dict[str, Tensor], name: str) -> Tensor:
    """One of `latent_names` [N, D], combinations built when they are asked for: at once they may not fit into memory.

    `BOTH` and `ALL` are the concatenation of all latents in order. `MEAN` is their mean, the control of the same
    width as one of them: for two halves of a map it is the global average.
    """
    if name in latents:
        return latents[name]
    values = list(latents.values())
    joined = {BOTH: torch.cat, ALL: torch.cat, MEAN: lambda values, dim: torch.stack(values).mean(0)}
    return joined[name](values, dim=1)
