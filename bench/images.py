"""Stand-ins for CIFAR-10, of its sizes. What is timed does not depend on what the pictures show."""

import numpy
import torch

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
