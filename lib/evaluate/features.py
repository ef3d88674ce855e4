"""Latents and projections of images, computed once by a frozen network, in fp32 on every machine.

In bf16 or tf32 a latent is off by about a thousandth, as much as the distances that some measures look at.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lib.methods.base import Method, Named
from lib.runtime.errors import UserError
from lib.runtime.machine import Machine
from lib.runtime.progress import StepProgress
from lib.views.augment import normalize

BATCH = 512  # images
BOTH, ALL, MEAN = "both", "all", "mean"  # combinations of latents


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Eval mode, no gradient, fp32; afterwards every module and setting is as it was."""
    modes = {module: module.training for module in network.modules()}
    settings = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = settings
        for module, training in modes.items():
            module.training = training


def extract(method: Method, images: Tensor, mean: Tensor, std: Tensor, machine: Machine) -> Named:
    """The latents of ``images`` under the test transform, by name, float32 on the CPU.

    Images uint8 [N, 3, S, S], mean and std [3] -> {name: [N, D]}. Parameters and buffers stay as they are. A value that
    is not finite, the mark of a pretraining that diverged, is a UserError.
    """
    return extract_with_projections(method, images, mean, std, machine, project=False)["latents"]


def extract_with_projections(
    method: Method, images: Tensor, mean: Tensor, std: Tensor, machine: Machine, project: bool = True, title: str = ""
) -> dict[str, Named]:
    """As `extract`, and the projections of the same forward pass: {"latents": ..., "projections": ...}.

    With a ``title`` progress is shown under it.
    """
    parts = images.split(BATCH)

    def batches(progress: StepProgress) -> Iterator[Tensor]:
        for part in parts:
            yield normalize(part.to(machine.device), mean, std)
            progress.advance()

    with StepProgress(title, len(parts), silent=not title) as progress:
        return embed_views(method, batches(progress), len(images), machine, project)


def embed_views(
    method: Method, views: Iterable[Tensor], count: int, machine: Machine, project: bool = True
) -> dict[str, Named]:
    """Latents and projections of ``count`` views, batches [b, 3, S, S] on the machine's device; see `extract`."""
    method.to(machine.device)
    found: dict[str, Named] = {"latents": {}, "projections": {}}
    start = 0
    with evaluating(method):
        for batch in views:
            latents = method.latents(batch.contiguous(memory_format=torch.channels_last))
            outputs = {"latents": latents, "projections": method.project(latents) if project else {}}
            for kind, tensors in outputs.items():
                for name, values in tensors.items():
                    if name not in found[kind]:
                        found[kind][name] = torch.empty(count, values.shape[1])
                    found[kind][name][start : start + len(batch)] = values.cpu()
            start += len(batch)
    for kind, tensors in found.items():
        for name, values in tensors.items():
            if not values.isfinite().all():
                raise UserError(
                    f"{kind} {name!r} of the trained network are not finite: pretraining diverged; "
                    "lower optimizer.lr in params.yaml and run dvc repro"
                )
    return found


def without_logits(projections: Named, supervised: bool, classes: int) -> Named:
    """A classifier's logits, as wide as there are classes, of a method that saw labels are no representation."""
    return {name: values for name, values in projections.items() if not (supervised and values.shape[1] == classes)}


def latent_names(latents: Named, halves: bool = False) -> tuple[str, ...]:
    """The latents that are scored: those given, and of several also their concatenation, `BOTH` of two, `ALL` of more.

    It is left out where the main latent joins the others already. With ``halves`` of one pooling, their `MEAN` too.
    """
    if len(latents) == 1:
        return tuple(latents)
    main, *others = latents.values()
    joined = main.shape[1] == sum(values.shape[1] for values in others) and torch.equal(main, torch.cat(others, 1))
    concatenation = BOTH if len(others) == 1 else ALL
    return (*latents, *([] if joined else [concatenation]), *([MEAN] if halves else []))


def one_latent(latents: Named, name: str) -> Tensor:
    """One of `latent_names` [N, D]; a combination is built when it is asked for, since all may not fit into memory.

    `MEAN` is the control of the same width as one latent: for two halves of a map it is the global average.
    """
    if name in latents:
        return latents[name]
    values = list(latents.values())
    return torch.stack(values).mean(0) if name == MEAN else torch.cat(values, 1)
