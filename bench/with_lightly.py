"""lightly, used as its documented SimCLR example uses it: its transform, projection head, loss and loop.

Its color strength and blur are set so that it draws the same augmentation as the others (0.5 is what its
documentation recommends for small images; without blur it has less to do than by default). Departure: the
encoder is the same network as ours.
"""

from typing import Any

import numpy
import torch
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from bench.images import SIZE, labels, pixels
from bench.timing import as_it_comes, forever, steady
from lib.encoders import build_encoder
from lib.runtime.machine import Machine

HIDDEN, OUT = 512, 128
RATE = 0.06


class RawDataset(Dataset):
    """([view, view], label), as torchvision's CIFAR10 with lightly's transform gives them."""

    def __init__(self, images: numpy.ndarray, targets: numpy.ndarray) -> None:
        self.images, self.targets = images, targets
        self.transform = SimCLRTransform(input_size=SIZE, cj_strength=0.5, gaussian_blur=0.0)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[list[Tensor], int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.targets[index])


class Model(nn.Module):
    def __init__(self, encoder: str) -> None:
        super().__init__()
        self.encoder = build_encoder(encoder)
        self.head = SimCLRProjectionHead(self.encoder.width, HIDDEN, OUT)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(nn.functional.adaptive_avg_pool2d(self.encoder(images), 1).flatten(1))


def _loader(settings: dict[str, Any]) -> DataLoader:
    count = settings["train"]
    return DataLoader(
        RawDataset(pixels(count, channels_last=True), labels(count)),
        batch_size=settings["batch"],
        shuffle=True,
        drop_last=True,
        num_workers=settings["workers"],
    )


def data(settings: dict[str, Any], machine: Machine) -> dict[str, Any]:
    batches = forever(_loader(settings))
    return steady(lambda: next(batches), settings)


def step(settings: dict[str, Any], machine: Machine) -> dict[str, Any]:
    batches = forever(_loader(settings))
    model, criterion = Model(settings["encoder"]).to(machine.device).train(), NTXentLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)

    def work() -> None:
        (first, second), _ = next(batches)
        loss = criterion(model(first.to(machine.device)), model(second.to(machine.device)))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return {**steady(work, settings), "precision": as_it_comes(machine)}
