"""The linear evaluation as the study ran it, beside the honest probe and never instead of it.

Encoder parameters are frozen but the network is in train mode, so that the running statistics of its
batch norms move; inputs are augmented; the best epoch is picked on the test images. See docs/methods.md, 4.
One departure remains: the study also picked its pretraining checkpoint by the best kNN on the test images,
where the network evaluated here is that of the last epoch.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from lib.data.store import ImageData
from lib.evaluate.batches import augmented_batches
from lib.evaluate.features import extract
from lib.evaluate.progress import Lines
from lib.evaluate.scores import accuracy
from lib.params.pretraining import Augment
from lib.runtime.machine import Machine, autocast
from lib.runtime.seeds import generator

BATCH_SIZE = 256
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 1e-6
PURPOSE = "study"


@dataclass(frozen=True)
class Study:
    """Test top-1 and top-5 in percent after every epoch, with the training loss; ``latent`` was probed."""

    latent: str
    curve: list[dict[str, float]]

    @property
    def top1(self) -> float:
        return max(row["top1"] for row in self.curve)

    @property
    def top5(self) -> float:
        return max(row["top5"] for row in self.curve)

    @property
    def best_epoch(self) -> int:
        """The first epoch, from 1, with the best top-1."""
        return next(int(row["epoch"]) for row in self.curve if row["top1"] == self.top1)


def study_protocol(
    method: nn.Module,
    data: ImageData,
    recipe: Augment,
    epochs: int,
    machine: Machine,
    seed: int,
    label: str = "study protocol",
) -> Study:
    """Train a linear layer on the main latent, on all training images; ``method`` itself is not touched.

    ``recipe`` is pretraining's augmentation, which the study used here too.
    """
    network = copy.deepcopy(method).to(machine.device, memory_format=torch.channels_last).requires_grad_(False)
    main, width = next(
        (name, values.shape[1])
        for name, values in extract(network, data.test_images[:2], data.mean, data.std, machine).items()
    )
    layer = _linear(width, len(data.classes), seed).to(machine.device)
    optimizer = torch.optim.Adam(layer.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    train = [tensor.to(machine.device) for tensor in (data.train_images, data.train_labels, data.mean, data.std)]
    lines = Lines(label, epochs)
    curve = []
    for epoch in range(1, epochs + 1):
        batches = augmented_batches(*train, recipe, batch_size=BATCH_SIZE, seed=seed, purpose=PURPOSE, epoch=epoch)
        loss = _train_epoch(network, main, layer, optimizer, batches, machine)
        features = extract(network, data.test_images, data.mean, data.std, machine)[main]
        with torch.no_grad():
            scores = layer(features.to(machine.device)).cpu()
        curve.append(
            {
                "epoch": epoch,
                "loss": loss,
                "top1": accuracy(scores, data.test_labels),
                "top5": accuracy(scores, data.test_labels, 5),
            }
        )
        lines.epoch(epoch, loss=loss, top1=curve[-1]["top1"])
    return Study(main, curve)


def _train_epoch(
    network: nn.Module,
    main: str,
    layer: nn.Linear,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[tuple[Tensor, Tensor]],
    machine: Machine,
) -> float:
    """One epoch of the layer; the mean loss of an image."""
    network.train()
    total, count = torch.zeros((), device=machine.device), 0
    for inputs, targets in batches:
        with torch.no_grad(), autocast(machine):
            features = network.latents(inputs)[main].float()
        loss = functional.cross_entropy(layer(features), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.detach() * len(targets)
        count += len(targets)
    return (total / count).item()


def _linear(width: int, classes: int, seed: int) -> nn.Linear:
    """A linear layer with torch's default initialization, drawn from the seed."""
    layer = nn.Linear(width, classes)
    source = generator(seed, f"{PURPOSE} layer")
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(-(width**-0.5), width**-0.5, generator=source)
    return layer
