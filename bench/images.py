"""Stand-ins for CIFAR-10, of its sizes. What is timed does not depend on what the pictures show."""

import numpy
import torch

from lib.data.store import ImageData

SIZE, CLASSES, SEED = 32, 10, 0
ABOUT = "random pixels, 32x32 RGB, as many as CIFAR-10 has"


def pixels(count: int, channels_last: bool) -> numpy.ndarray:
    """uint8 [count, 32, 32, 3], as PIL reads them, or [count, 3, 32, 32]."""
    shape = (count, SIZE, SIZE, 3) if channels_last else (count, 3, SIZE, SIZE)
    return numpy.random.default_rng(SEED).integers(0, 256, shape, dtype=numpy.uint8)


def labels(count: int) -> numpy.ndarray:
    """int64 [count]: the classes in turn."""
    return numpy.arange(count) % CLASSES


def image_data(train: int, test: int) -> ImageData:
    """The stand-in as the pipeline's own data, a tenth of train for validation."""
    images, every = torch.from_numpy(pixels(train + test, channels_last=False)), torch.from_numpy(labels(train + test))
    about = {"classes": [str(label) for label in range(CLASSES)], "mean": [0.5] * 3, "std": [0.25] * 3}
    return ImageData(images[:train], every[:train], images[train:], every[train:], torch.arange(0, train, 10), about)


def latents(count: int, width: int) -> numpy.ndarray:
    """float32 [count, width]: ten Gaussian clouds that overlap, a stand-in for a trained network's latents."""
    stream = numpy.random.default_rng(SEED)
    centers = stream.normal(size=(CLASSES, width))
    return (centers[labels(count)] + 2 * stream.normal(size=(count, width))).astype(numpy.float32)
