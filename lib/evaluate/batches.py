"""Augmented minibatches for the protocols that train on images."""

from collections.abc import Iterator

import torch
from torch import Tensor

from lib.params.pretraining import Augment
from lib.runtime.seeds import generator
from lib.views.augment import augment, draw


def augmented_batches(
    images: Tensor,
    labels: Tensor,
    mean: Tensor,
    std: Tensor,
    recipe: Augment,
    *,
    batch_size: int,
    seed: int,
    purpose: str,
    epoch: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch in an order of its own: float32 [B, 3, S, S], channels last, and labels [B].

    The last, smaller batch is kept, unless it is one single image, which batch norm cannot take.
    Everything is drawn from (seed, purpose, epoch, step). All tensors are on one device.

    Shape:
        images uint8 [N, 3, S, S], labels [N], mean [3], std [3]
    """
    order = torch.randperm(len(images), generator=generator(seed, f"{purpose} order", epoch)).to(images.device)
    for step, rows in enumerate(order.split(batch_size)):
        if len(rows) == 1 and step > 0:
            return
        draws = draw(recipe, generator(seed, purpose, epoch, step), len(rows), *images.shape[2:])
        inputs = augment(images[rows], draws, mean, std)
        yield inputs.contiguous(memory_format=torch.channels_last), labels[rows]
