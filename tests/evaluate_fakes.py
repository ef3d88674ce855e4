"""A tiny trained method and tiny images for the tests of lib/evaluate."""

import numpy
import torch
from torch import nn

from lib.data.store import ImageData, RawDataset, assemble
from lib.params.pretraining import Augment, Monitor, Optimizer, Pretraining
from lib.runtime.machine import Machine

MACHINE = Machine(device="cpu", processes=1, threads=1, precision="fp32", checkpoint_minutes=10.0)
CLASSES = ["red", "green", "blue"]


class TinyMethod(nn.Module):
    """A convolution with batch norm; one latent, or the two halves of its map; counts its forward passes."""

    def __init__(self, latents: tuple[str, ...] = ("h",)) -> None:
        super().__init__()
        self.names, self.halves = latents, len(latents) > 1
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.projector = nn.Linear(8, 4)
        self.images = 0

    def allow_end_to_end_gradient(self) -> None:
        """Gradients pass already."""

    def latents(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        self.images += len(images)
        halves = nn.functional.adaptive_avg_pool2d(self.encoder(images), (len(self.names), 1))
        return {name: halves[:, :, row, 0] for row, name in enumerate(self.names)}

    def project(self, latents: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {f"z_{name}": self.projector(h) for name, h in latents.items()}


def tiny_method(latents: tuple[str, ...] = ("h",), seed: int = 0) -> TinyMethod:
    """As a trained method comes from its file: eval mode, no gradients, moved batch norm statistics."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        method = TinyMethod(latents)
        with torch.no_grad():
            method.latents(torch.randn(64, 3, 8, 8))
    method.images = 0
    return method.eval().requires_grad_(False)


def tiny_data(train: int = 150, test: int = 60, seed: int = 0) -> ImageData:
    """Noisy 8x8 pictures whose class is the channel that is a little brighter; class names by color."""
    draw = numpy.random.default_rng(seed)
    labels = {"train": numpy.arange(train) % 3, "test": numpy.arange(test) % 3}
    images = {}
    for split, classes in labels.items():
        values = draw.normal(110, 45, (len(classes), 3, 8, 8))
        values[numpy.arange(len(classes)), classes] += 22
        images[split] = values.clip(0, 255).astype(numpy.uint8)
    return assemble(
        "images",
        RawDataset(images["train"], labels["train"], images["test"], labels["test"], CLASSES, "drawn for the tests"),
    )


def pretraining(seed: int = 0, **augment) -> Pretraining:
    sizes = {"image_size": 8, "batch_size": 32, "micro_batch_size": 0, "epochs": 1, "seed": seed}
    blocks = {"optimizer": Optimizer(), "augment": Augment(**augment), "monitor": Monitor()}
    return Pretraining("tiny", "tiny", {}, encoder=None, gamma=None, **sizes, **blocks)


def about(seed: int = 0) -> dict:
    """The record kept with the trained method."""
    return {
        "variant": "tiny",
        "method": "tiny",
        "pretraining": pretraining(seed).as_json(),
        "data": {"checksum": "of the images"},
        "versions": {"torch": "2"},
    }


def state(method: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in method.state_dict().items()}


def same_state(method: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, before[name]) for name, tensor in method.state_dict().items())
