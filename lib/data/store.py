"""The one data file: uint8 images, labels, the validation split and where all of it came from."""

import hashlib
import math
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy
import torch

from lib.data.split import VALIDATION_SEED, VALIDATION_SHARE, validation_split
from lib.runtime.errors import UserError, shown
from lib.runtime.files import read_tensors, write_tensors

IMAGES_FILE = Path("data/images.safetensors")
COUNTED_AT_ONCE = 2**19  # pixels: counting widens each to 8 bytes
TENSORS = ("train_images", "train_labels", "test_images", "test_labels", "validation")


@dataclass(frozen=True)
class RawDataset:
    """What a source gives: images uint8 [N, 3, S, S], labels [N] that index ``classes``, and its provenance."""

    train_images: numpy.ndarray
    train_labels: numpy.ndarray
    test_images: numpy.ndarray
    test_labels: numpy.ndarray
    classes: list[str]
    source: str
    provenance: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ImageData:
    """Images uint8 [N, 3, S, S], labels int64 [N], ``validation`` sorted int64 indices into train.

    ``about``: dataset, source, checksum of pixels and labels (sha256), classes, counts, image_size, mean,
    std, and what else the source records.
    """

    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    validation: torch.Tensor
    about: dict[str, Any]

    @property
    def classes(self) -> list[str]:
        return self.about["classes"]

    @property
    def fitting(self) -> torch.Tensor:
        """Sorted int64 indices of the training images that are not for validation."""
        held_out = torch.zeros(len(self.train_labels), dtype=torch.bool)
        held_out[self.validation] = True
        return torch.nonzero(~held_out).flatten()

    @property
    def mean(self) -> torch.Tensor:
        """float32 [3], of the training pixels scaled to 0..1."""
        return torch.tensor(self.about["mean"], dtype=torch.float32)

    @property
    def std(self) -> torch.Tensor:
        """float32 [3], over all training pixels scaled to 0..1; 1 for a channel that never varies."""
        return torch.tensor(self.about["std"], dtype=torch.float32)


def assemble(dataset: str, pictures: RawDataset) -> ImageData:
    """Add the validation split, the pixel statistics and the counts.

    Raises:
        UserError: too few classes or images to train and to choose on.
    """
    _check(dataset, pictures)
    train_labels = numpy.ascontiguousarray(pictures.train_labels, numpy.int64)
    test_labels = numpy.ascontiguousarray(pictures.test_labels, numpy.int64)
    validation = validation_split(train_labels)
    if not len(validation):
        raise UserError(
            f"{dataset}: every class has a single training image; at least one class needs two, "
            "one of them for validation; add one"
        )
    tensors = {
        name: torch.from_numpy(array)
        for name, array in zip(
            TENSORS, (pictures.train_images, train_labels, pictures.test_images, test_labels, validation), strict=True
        )
    }
    mean, std = pixel_statistics(pictures.train_images)
    about = {
        "dataset": dataset,
        "source": pictures.source,
        "checksum": content_checksum(tensors),
        "classes": pictures.classes,
        "counts": _counts(pictures, validation),
        "image_size": pictures.train_images.shape[-1],
        "mean": mean,
        "std": std,
        "validation": f"{VALIDATION_SHARE:.0%} of every class of train, seed {VALIDATION_SEED}",
        "versions": {name: version(name) for name in ("numpy", "pillow", "torch", "torchvision")},
        **pictures.provenance,
    }
    return ImageData(**tensors, about=about)


def save_data(path: Path, data: ImageData) -> None:
    write_tensors(path, {name: getattr(data, name) for name in TENSORS}, data.about)


def load_data(path: Path = IMAGES_FILE) -> ImageData:
    """The data file that the download stage wrote.

    Raises:
        UserError: missing, damaged, or not what the download stage writes.
    """
    tensors, about = read_tensors(path)
    try:
        data = ImageData(**{name: tensors[name] for name in TENSORS}, about=about)
        if _is_whole(data):
            return data
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):  # whatever an altered record leads to
        pass
    raise UserError(f"{path} is not a whole data file of this pipeline; delete it and run dvc repro")


def _is_whole(data: ImageData) -> bool:
    """Whether shapes, types, labels, indices and the record's numbers are those that `assemble` gives."""
    about, size, classes = data.about, data.about["image_size"], len(data.classes)
    for split in ("train", "test"):
        images, labels = getattr(data, f"{split}_images"), getattr(data, f"{split}_labels")
        shape = (about["counts"][split], 3, size, size)
        if images.dtype != torch.uint8 or tuple(images.shape) != shape or not _indices(labels, shape[0], classes):
            return False
    numbers = torch.cat([data.mean, data.std])
    return (
        _indices(data.validation, len(data.validation), len(data.train_labels))
        and len(data.validation) > 0
        and numbers.shape == (6,)
        and bool(numbers.isfinite().all())
        and bool((data.std > 0).all())
        and isinstance(about["checksum"], str)
    )


def _indices(found: torch.Tensor, count: int, below: int) -> bool:
    """Whether a tensor is int64 [count] with values in 0..below-1."""
    return (
        found.dtype == torch.int64
        and found.shape == (count,)
        and count > 0
        and int(found.min()) >= 0
        and int(found.max()) < below
    )


def content_checksum(tensors: dict[str, torch.Tensor]) -> str:
    """sha256 hex of names, shapes and bytes of images and labels."""
    digest = hashlib.sha256()
    for name in TENSORS[:4]:
        digest.update(f"{name} {list(tensors[name].shape)}\n".encode())
        digest.update(tensors[name].contiguous().numpy())
    return digest.hexdigest()


def pixel_statistics(images: numpy.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel of uint8 [N, 3, S, S] scaled to 0..1, from exact integer sums."""
    mean, std = [], []
    step = max(1, COUNTED_AT_ONCE // (images.shape[2] * images.shape[3]))
    for channel in range(images.shape[1]):
        counts = sum(
            numpy.bincount(images[start : start + step, channel].ravel(), minlength=256)
            for start in range(0, len(images), step)
        ).tolist()
        count = sum(counts)
        total = sum(value * times for value, times in enumerate(counts))
        squares = sum(value * value * times for value, times in enumerate(counts))
        mean.append(total / (count * 255))
        std.append(math.sqrt(count * squares - total * total) / (count * 255) or 1.0)
    return mean, std


def _check(dataset: str, pictures: RawDataset) -> None:
    classes = range(len(pictures.classes))
    if len(classes) < 2:
        raise UserError(
            f"{dataset}: {pictures.source} has {len(classes)} class; at least two are needed: give images "
            "of another class"
        )
    for split, images, labels in (
        ("train", pictures.train_images, pictures.train_labels),
        ("test", pictures.test_images, pictures.test_labels),
    ):
        if len(images) != len(labels):
            raise UserError(
                f"{dataset}: {pictures.source} has {len(images):,} {split} images and {len(labels):,} "
                "labels; get it again"
            )
        outside = labels[(labels < 0) | (labels >= len(classes))].tolist()
        if outside:
            raise UserError(
                f"{dataset}: {pictures.source} has {len(outside):,} {split} labels outside its "
                f"{len(classes)} classes, the first is {outside[0]}; allowed: 0 to {len(classes) - 1}; "
                "get it again"
            )
        absent = sorted(set(classes) - set(labels.tolist()))
        if absent:
            raise UserError(
                f"{dataset}: class {shown(pictures.classes[absent[0]])} has no {split} image; every class "
                "needs at least one for train and one for test; add one or get the data again"
            )


def _counts(pictures: RawDataset, validation: numpy.ndarray) -> dict[str, Any]:
    labels = {
        "train": pictures.train_labels,
        "fitting": numpy.delete(pictures.train_labels, validation),
        "validation": pictures.train_labels[validation],
        "test": pictures.test_labels,
    }
    size = len(pictures.classes)
    per_class = {split: numpy.bincount(found, minlength=size).tolist() for split, found in labels.items()}
    return {**{split: len(found) for split, found in labels.items()}, "per_class": per_class}
