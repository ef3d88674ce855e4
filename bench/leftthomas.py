"""The leftthomas/SimCLR recipe, written afresh from its description.

Images are transformed one by one with PIL in the data loader's workers; the model computes in fp32, one
forward for each view. Departures: the encoder is the same network as ours, so that implementations are
compared and not architectures; the pictures are held in memory as CIFAR-10's are.
"""

from typing import Any

import numpy
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from bench.images import CLASSES, SIZE, labels, pixels
from bench.timing import as_it_comes, forever, once, steady
from lib.encoders import build_encoder
from lib.runtime.machine import Machine

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
HIDDEN, OUT = 512, 128
TEMPERATURE = 0.5
RATE, WEIGHT_DECAY = 1e-3, 1e-6
NEIGHBOURS = 200
LINEAR_BATCH, LINEAR_EPOCHS = 512, 100  # the recipe's linear evaluation
PLAIN = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
AUGMENT = transforms.Compose(
    [
        transforms.RandomResizedCrop(SIZE),
        transforms.RandomHorizontalFlip(0.5),
        transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
        transforms.RandomGrayscale(0.2),
        PLAIN,
    ]
)


class RawDataset(Dataset):
    """(view, ..., label): ``views`` transforms of one picture. images uint8 [N, 32, 32, 3]."""

    def __init__(self, images: numpy.ndarray, targets: numpy.ndarray, transform: Any, views: int) -> None:
        self.images, self.targets, self.transform, self.views = images, targets, transform, views

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple:
        picture = Image.fromarray(self.images[index])
        return *(self.transform(picture) for _ in range(self.views)), int(self.targets[index])


class Model(nn.Module):
    """Encoder, global mean and projector; ``forward`` gives unit rows of both."""

    def __init__(self, encoder: str) -> None:
        super().__init__()
        self.encoder = build_encoder(encoder)
        self.projector = nn.Sequential(
            nn.Linear(self.encoder.width, HIDDEN, bias=False),
            nn.BatchNorm1d(HIDDEN),
            nn.ReLU(inplace=True),
            nn.Linear(HIDDEN, OUT),
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        feature = self.feature(images)
        return functional.normalize(feature, dim=1), functional.normalize(self.projector(feature), dim=1)

    def feature(self, images: Tensor) -> Tensor:
        return functional.adaptive_avg_pool2d(self.encoder(images), 1).flatten(1)

    def latents(self, images: Tensor) -> dict[str, Tensor]:
        """Under the name by which our evaluation asks."""
        return {"h": self.feature(images)}


def contrast(first: Tensor, second: Tensor) -> Tensor:
    """NT-Xent of unit rows [B, D] as exponentials and their sums, the diagonal masked out."""
    rows = torch.cat([first, second])
    similar = torch.exp(rows @ rows.T / TEMPERATURE)  # [2B, 2B]
    others = ~torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    total = similar.masked_select(others).view(len(rows), -1).sum(1)
    positive = torch.exp((first * second).sum(1) / TEMPERATURE)
    return -torch.log(torch.cat([positive, positive]) / total).mean()


class Training:
    """The recipe's loop over one set of images, a step at a time."""

    def __init__(
        self, images: numpy.ndarray, targets: numpy.ndarray, encoder: str, batch: int, workers: int, device: str
    ) -> None:
        self.device = device
        self.loader = train_loader(images, targets, batch, workers)
        self.batches = forever(self.loader)
        self.model = Model(encoder).to(device).train()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY)

    def step(self) -> float:
        first, second = (view.to(self.device, non_blocking=True) for view in next(self.batches)[:2])
        loss = contrast(self.model(first)[1], self.model(second)[1])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


def train_loader(images: numpy.ndarray, targets: numpy.ndarray, batch: int, workers: int) -> DataLoader:
    return DataLoader(
        RawDataset(images, targets, AUGMENT, 2),
        batch_size=batch,
        shuffle=True,
        num_workers=workers,
        pin_memory=True,
        drop_last=True,
    )


def data(settings: dict[str, Any], machine: Machine) -> dict[str, Any]:
    count = settings["train"]
    batches = forever(
        train_loader(pixels(count, channels_last=True), labels(count), settings["batch"], settings["workers"])
    )
    return steady(lambda: next(batches), settings)


def step(settings: dict[str, Any], machine: Machine) -> dict[str, Any]:
    count = settings["train"]
    training = Training(
        pixels(count, channels_last=True),
        labels(count),
        settings["encoder"],
        settings["batch"],
        settings["workers"],
        machine.device,
    )
    return {**steady(training.step, settings), "precision": as_it_comes(machine)}


def embed(settings: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """Features of all images, then the test images' weighted votes of their nearest neighbours."""
    sets = _plain_sets(settings)
    model = Model(settings["encoder"]).eval()

    def work() -> None:
        bank, queries = (torch.cat([model(images)[0] for images, _ in loader]) for loader in sets)
        targets = torch.from_numpy(sets[0].dataset.targets)
        for part in queries.split(settings["batch"]):
            _votes(part, bank, targets)

    with torch.no_grad():
        model(torch.zeros(settings["batch"], 3, SIZE, SIZE))  # warms up
        return {**once(work), "precision": "fp32"}


def probe(settings: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """The linear evaluation: a layer trained through the frozen encoder, on freshly augmented images.

    Steps are timed and multiplied to the recipe's epochs; its passes over the test images are left out.
    """
    count, size = settings["train"], min(LINEAR_BATCH, settings["train"])
    dataset = RawDataset(pixels(count, channels_last=True), labels(count), AUGMENT, 1)
    batches = forever(
        DataLoader(
            dataset, batch_size=size, shuffle=True, num_workers=settings["workers"], pin_memory=True, drop_last=True
        )
    )
    model = Model(settings["encoder"]).train().requires_grad_(False)
    layer = nn.Linear(model.encoder.width, CLASSES)
    optimizer = torch.optim.Adam(layer.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY)

    def work() -> float:
        images, targets = next(batches)
        loss = functional.cross_entropy(layer(model.feature(images)), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    found = steady(work, settings)
    whole = found["seconds"] * (count // size) * LINEAR_EPOCHS
    return {
        **found,
        "seconds": whole,
        "precision": "fp32",
        "extrapolated": f"multiplied to {LINEAR_EPOCHS} epochs; steps timed: {found['calls']}",
    }


def _plain_sets(settings: dict[str, Any]) -> list[DataLoader]:
    """Loaders of the training and the test images without augmentation."""
    return [
        DataLoader(
            RawDataset(pixels(count, channels_last=True), labels(count), PLAIN, 1),
            batch_size=settings["batch"],
            num_workers=settings["workers"],
            pin_memory=True,
        )
        for count in (settings["train"], settings["test"])
    ]


def _votes(queries: Tensor, bank: Tensor, targets: Tensor) -> Tensor:
    """Class scores [n, C] of unit rows [n, D] from unit rows [N, D]."""
    similar, index = (queries @ bank.T).topk(min(NEIGHBOURS, len(bank)), dim=1)
    chosen = functional.one_hot(targets[index], CLASSES)  # [n, k, C]
    return (chosen * torch.exp(similar / TEMPERATURE)[:, :, None]).sum(1)
