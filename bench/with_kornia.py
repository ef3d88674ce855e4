"""kornia's batched augmentation alone: the same recipe on the same batches, every image with draws of its own."""

import itertools
from typing import Any

import torch
from kornia import augmentation

from bench.images import SIZE, pixels
from bench.leftthomas import MEAN, STD
from bench.timing import steady
from lib.runtime.machine import Machine


def data(settings: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """Two views of a batch, from uint8 on; without gradients, which an augmentation of data does not need."""
    images = torch.from_numpy(pixels(settings["train"], channels_last=False))
    recipe = augmentation.AugmentationSequential(
        augmentation.RandomResizedCrop((SIZE, SIZE), scale=(0.08, 1.0)),
        augmentation.RandomHorizontalFlip(p=0.5),
        augmentation.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        augmentation.RandomGrayscale(p=0.2),
        augmentation.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
        data_keys=["input"],
        same_on_batch=False,
    )
    orders = (torch.randperm(len(images)).split(settings["batch"]) for _ in itertools.count())
    rows = (part for order in orders for part in order if len(part) == settings["batch"])

    def work() -> None:
        batch = images[next(rows)].float() / 255
        recipe(batch), recipe(batch)

    with torch.no_grad():
        return steady(work, settings)
