"""Stand-ins: random pixels in CIFAR-10's sizes, random embeddings. What is timed does not depend on what they show."""

import numpy
import torch
from torch.nn import functional

from lib.data.store import ImageData

SIZE, CLASSES = 32, 10


def pixels(count: int) -> numpy.ndarray:
    """Random uint8 [count, 32, 32, 3], as PIL reads them."""
    return numpy.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), dtype=numpy.uint8)


def image_data(train: int, test: int) -> ImageData:
    """The stand-in as the pipeline's own data, a tenth of train for validation; the classes come in turn."""
    images = torch.from_numpy(pixels(train + test)).permute(0, 3, 1, 2).contiguous()
    labels = torch.arange(train + test) % CLASSES
    about = {"classes": [str(label) for label in range(CLASSES)], "mean": [0.5] * 3, "std": [0.25] * 3}
    return ImageData(images[:train], labels[:train], images[train:], labels[train:], torch.arange(0, train, 10), about)


def pairs(rows: int) -> list[torch.Tensor]:
    """Two views [rows / 2, 128] of random embeddings of length one, which want a gradient."""
    views = torch.randn(2, rows // 2, 128, generator=torch.Generator().manual_seed(0))
    return [view.requires_grad_() for view in functional.normalize(views, dim=2)]
