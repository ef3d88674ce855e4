"""The study protocol (best test epoch): linear evaluation as the study ran it, beside the probe and not instead of it.

Encoder parameters are frozen but the network is in train mode, so that the running statistics of its batch norms move;
inputs are augmented; the best epoch is picked on the test images. See docs/methods.md, 4. One departure remains: the
study also picked its pretraining checkpoint by the best kNN on the test images; here it is that of the last epoch.
"""

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lib.data.store import ImageData
from lib.evaluate.batches import augmented_batches, train
from lib.evaluate.features import extract
from lib.evaluate.scores import accuracy
from lib.methods.base import Method
from lib.params.pretraining import Pretraining
from lib.runtime.machine import Machine, autocast
from lib.runtime.progress import EpochLines
from lib.runtime.seeds import generator

BATCH_SIZE = 256
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 1e-6
PURPOSE = "study"


def study_protocol(
    method: Method, data: ImageData, params: Pretraining, epochs: int, machine: Machine
) -> dict[str, Any]:
    """Train a linear layer on the main latent, on all training images; ``method`` itself is not touched.

    ``params`` are those of pretraining, whose augmentation the study used here too. Returns ``latent``, the main one's
    name; ``top1`` and ``top5``, the best of all epochs on the test images, in percent; ``best_epoch``, the first with
    that top-1; ``curve``: epoch (from 1), loss, top1, top5.
    """
    network = copy.deepcopy(method).to(machine.device).to(memory_format=torch.channels_last).requires_grad_(False)
    main, few = next(iter(extract(network, data.test_images[:2], data.mean, data.std, machine).items()))
    layer = _linear(few.shape[1], len(data.classes), params.seed).to(machine.device)

    def logits(inputs: Tensor) -> Tensor:
        with torch.no_grad(), autocast(machine):
            features = network.latents(inputs)[main]
        return layer(features.float())

    optimizer = torch.optim.Adam(layer.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    images = data.train_images, data.train_labels, data.mean, data.std
    config = replace(params.augment, crop_pixels=0)  # small squares are for pretraining alone
    batches = augmented_batches(images, config, machine.device, BATCH_SIZE, params.seed, PURPOSE)
    lines, curve = EpochLines(f"{params.variant}: study protocol", epochs), []
    for epoch, loss in train(network, logits, optimizer, batches, epochs):
        features = extract(network, data.test_images, data.mean, data.std, machine)[main]
        with torch.no_grad():
            test = layer(features.to(machine.device)).cpu()
        top1, top5 = (round(accuracy(test, data.test_labels, k), 2) for k in (1, 5))
        curve.append({"epoch": epoch, "loss": round(loss, 4), "top1": top1, "top5": top5})
        lines.epoch(epoch, loss=loss, top1=top1)
    best = max(curve, key=lambda row: row["top1"])  # the first of equals
    top5 = max(row["top5"] for row in curve)
    return {"latent": main, "top1": best["top1"], "top5": top5, "best_epoch": best["epoch"], "curve": curve}


def _linear(width: int, classes: int, seed: int) -> nn.Linear:
    """A linear layer with torch's default initialization, drawn from the seed."""
    layer = nn.Linear(width, classes)
    source = generator(seed, f"{PURPOSE} layer")
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(-(width**-0.5), width**-0.5, generator=source)
    return layer
