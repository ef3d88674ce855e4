"""Other implementations: the leftthomas/SimCLR recipe, lightly, and kornia's augmentation.

leftthomas/SimCLR is written afresh from its description; lightly is used as its documented SimCLR example uses it,
with the strength of color and blur at which it draws the same augmentation as the others. Both transform pictures one
by one with PIL in a data loader's workers and compute in fp32, one forward pass for each view. Departures: the encoder
is the same network as ours, so that implementations are compared and not architectures; the pictures are in memory.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from bench.images import CLASSES, SIZE, pixels
from bench.timing import forever, once, steady
from lib.data.store import ImageData
from lib.encoders import build_encoder
from lib.methods.base import projector
from lib.runtime.machine import Machine

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
HIDDEN, OUT = 512, 128
TEMPERATURE, NEIGHBORS = 0.5, 200  # of the leftthomas recipe
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


@dataclass
class Recipe:
    """``views`` of a picture, the projection head for a width, the loss of two projections [B, D], the optimizer."""

    views: Callable[[Image.Image], Sequence[Tensor]]
    head: Callable[[int], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    optimizer: Callable[[Any], torch.optim.Optimizer]


def leftthomas() -> Recipe:
    head, adam = partial(projector, hidden=HIDDEN, outputs=OUT), partial(torch.optim.Adam, lr=1e-3, weight_decay=1e-6)
    return Recipe(lambda picture: [AUGMENT(picture), AUGMENT(picture)], head, contrast, adam)


def lightly() -> Recipe:
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform

    views = SimCLRTransform(input_size=SIZE, cj_strength=0.5, gaussian_blur=0.0)
    head = partial(SimCLRProjectionHead, hidden_dim=HIDDEN, output_dim=OUT)
    return Recipe(views, head, NTXentLoss(), partial(torch.optim.SGD, lr=0.06))


def contrast(first: Tensor, second: Tensor) -> Tensor:
    """NT-Xent of [B, D] each, as exponentials and their sums, the diagonal masked out."""
    first, second = functional.normalize(first, dim=1), functional.normalize(second, dim=1)
    rows = torch.cat([first, second])
    similar = torch.exp(rows @ rows.T / TEMPERATURE)  # [2B, 2B]
    others = ~torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    total = similar.masked_select(others).view(len(rows), -1).sum(1)
    positive = torch.exp((first * second).sum(1) / TEMPERATURE)
    return -torch.log(torch.cat([positive, positive]) / total).mean()


class Model(nn.Module):
    def __init__(self, encoder: str, head: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.encoder = build_encoder(encoder)
        self.head = head(self.encoder.width)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.latents(images)["h"])

    def latents(self, images: Tensor) -> dict[str, Tensor]:
        """Under the name by which our evaluation asks."""
        return {"h": functional.adaptive_avg_pool2d(self.encoder(images), 1).flatten(1)}


class Pictures(Dataset):
    """What ``transform`` makes of each picture of images uint8 [N, 32, 32, 3]."""

    def __init__(self, images: numpy.ndarray, transform: Callable[[Image.Image], Any]) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        return self.transform(Image.fromarray(self.images[index]))


def loader(pictures: Pictures, settings: dict[str, Any], train: bool = True) -> DataLoader:
    """Whole batches in a random order, or all pictures once."""
    batch, workers = settings["batch"], settings["workers"]
    return DataLoader(pictures, batch, shuffle=train, drop_last=train, num_workers=workers, pin_memory=True)


class Training:
    """A recipe's loop over images uint8 [N, 32, 32, 3], a step at a time."""

    def __init__(self, recipe: Recipe, images: numpy.ndarray, settings: dict[str, Any], device: str) -> None:
        self.loader = loader(Pictures(images, recipe.views), settings)
        self.batches, self.recipe, self.device = forever(self.loader), recipe, device
        self.model = Model(settings["encoder"], recipe.head).to(device).train()
        self.optimizer = recipe.optimizer(self.model.parameters())

    def step(self) -> float:
        first, second = (view.to(self.device, non_blocking=True) for view in next(self.batches))
        loss = self.recipe.loss(self.model(first), self.model(second))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


def as_the_recipe(data: ImageData) -> ImageData:
    """The same images, to be normalized by the recipe's constants, with which its network is trained."""
    return replace(data, about={**data.about, "mean": list(MEAN), "std": list(STD)})


def _step(recipe: Callable[[], Recipe], settings: dict[str, Any], machine: Machine) -> dict[str, Any]:
    return steady(Training(recipe(), pixels(settings["train"]), settings, machine.device).step, settings)


def _data(recipe: Callable[[], Recipe], settings: dict[str, Any], machine: Machine) -> dict[str, Any]:
    batches = forever(loader(Pictures(pixels(settings["train"]), recipe().views), settings))
    return steady(lambda: next(batches), settings)


leftthomas_step, lightly_step = partial(_step, leftthomas), partial(_step, lightly)
leftthomas_data, lightly_data = partial(_data, leftthomas), partial(_data, lightly)


def leftthomas_embed(settings: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """Features of all images, then the test images' weighted votes of their nearest neighbors."""
    model = Model(settings["encoder"], leftthomas().head).eval()
    train, test = (Pictures(pixels(settings[split]), PLAIN) for split in ("train", "test"))
    targets = torch.arange(len(train)) % CLASSES

    def features(pictures: Pictures) -> Tensor:
        parts = [model.latents(images)["h"] for images in loader(pictures, settings, train=False)]
        return functional.normalize(torch.cat(parts), dim=1)

    def work() -> None:
        bank, queries = features(train), features(test)
        for part in queries.split(settings["batch"]):
            similar, index = (part @ bank.T).topk(min(NEIGHBORS, len(bank)), dim=1)
            chosen = functional.one_hot(targets[index], CLASSES)  # [n, k, C]
            (chosen * torch.exp(similar / TEMPERATURE)[:, :, None]).sum(1)

    with torch.no_grad():
        model.latents(torch.zeros(settings["batch"], 3, SIZE, SIZE))  # warms up
        return once(work)


def kornia_data(settings: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """Two views of a batch at once, every image with draws of its own; without gradients, which data do not need."""
    from kornia import augmentation

    images, batch = torch.from_numpy(pixels(settings["train"])).permute(0, 3, 1, 2).contiguous(), settings["batch"]
    augment = augmentation.AugmentationSequential(
        augmentation.RandomResizedCrop((SIZE, SIZE), scale=(0.08, 1.0)),
        augmentation.RandomHorizontalFlip(p=0.5),
        augmentation.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        augmentation.RandomGrayscale(p=0.2),
        augmentation.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
        data_keys=["input"],
        same_on_batch=False,
    )

    def work() -> None:
        views = images[torch.randint(len(images), (batch,))].float() / 255
        augment(views), augment(views)

    with torch.no_grad():
        return steady(work, settings)
