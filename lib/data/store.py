"""The one data file: uint8 images, labels, file names, the validation split and where all of it came from."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy
import torch

from lib.data.split import SEED, VALIDATION_SHARE, stratified
from lib.runtime.errors import UserError
from lib.runtime.files import read_tensors, write_tensors

IMAGES_FILE = Path("data/images.safetensors")
TENSORS = ("train_images", "train_labels", "test_images", "test_labels", "validation")
PATHS = "paths"  # UTF-8 bytes, each name ended by a zero; only where images had names
ABOUT = {"checksum", "classes", "counts", "image_size", "mean", "std"}  # what every record beside them has


@dataclass(frozen=True)
class RawDataset:
    """What a source gives: images uint8 [N, 3, S, S], labels [N] that index ``classes`` (-1 where there are none), its
    provenance, and the names of the files, of train and then of test, where images had one each."""

    train_images: numpy.ndarray
    train_labels: numpy.ndarray
    test_images: numpy.ndarray
    test_labels: numpy.ndarray
    classes: list[str]
    source: str
    provenance: dict[str, Any] = field(default_factory=dict)
    paths: Sequence[str] = ()


@dataclass(frozen=True)
class ImageData:
    """Images uint8 [N, 3, S, S], labels int64 [N], ``validation`` sorted int64 indices into train.

    ``about``: dataset, source, checksum of pixels and labels (sha256), classes, counts, image_size, mean,
    std, and what else the source records. Without classes all labels are -1.
    """

    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    validation: torch.Tensor
    about: dict[str, Any]
    paths: Sequence[str] = ()

    @property
    def files(self) -> list[str]:
        """The name of each image, of train and then of test: its path, or its place such as test/00012."""
        places = (("train", self.train_labels), ("test", self.test_labels))
        return list(self.paths) or [f"{split}/{row:05}" for split, each in places for row in range(len(each))]

    def shown(self) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
        """Images, labels and files of what is embedded and drawn: the test split, or without labels all."""
        if self.classes:
            return self.test_images, self.test_labels, self.files[len(self.train_labels) :]
        images = torch.cat([self.train_images, self.test_images])
        return images, torch.cat([self.train_labels, self.test_labels]), self.files

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


def assemble(dataset: str, raw: RawDataset) -> ImageData:
    """Add the validation split, the pixel statistics and the counts; a UserError says that there is too little."""
    if len(raw.classes) == 1:
        raise UserError(f"{dataset}: {raw.source} has one class; at least two are needed: give images of another class")
    train_labels, test_labels = (numpy.asarray(part, numpy.int64) for part in (raw.train_labels, raw.test_labels))
    validation = stratified(train_labels.clip(0), VALIDATION_SHARE, "validation split")
    if not len(validation):
        which = "every class has" if raw.classes else "there is"
        how = "one needs two, one of them for validation"
        raise UserError(f"{dataset}: {which} a single training image; {how}")
    arrays = (raw.train_images, train_labels, raw.test_images, test_labels, validation)
    tensors = {name: torch.from_numpy(array) for name, array in zip(TENSORS, arrays)}
    mean, std = pixel_statistics(raw.train_images)
    labels = {"train": train_labels, "fitting": numpy.delete(train_labels, validation)}
    labels |= {"validation": train_labels[validation], "test": test_labels}
    # without classes all images count as one
    per_class = {
        split: numpy.bincount(each.clip(0), minlength=len(raw.classes)).tolist() for split, each in labels.items()
    }
    about = {
        "dataset": dataset,
        "source": raw.source,
        "checksum": content_checksum(tensors),
        "classes": raw.classes,
        "counts": {**{split: len(each) for split, each in labels.items()}, "per_class": per_class},
        "image_size": raw.train_images.shape[-1],
        "mean": mean,
        "std": std,
        "validation": f"{VALIDATION_SHARE:.0%} of {'every class of ' * bool(raw.classes)}train, seed {SEED}",
        "versions": {name: version(name) for name in ("numpy", "pillow", "torch", "torchvision")},
        **raw.provenance,
    }
    return ImageData(**tensors, about=about, paths=raw.paths)


def save_data(path: Path, data: ImageData) -> None:
    names = "".join(f"{name}\0" for name in data.paths).encode()
    paths = {PATHS: torch.from_numpy(numpy.frombuffer(names, numpy.uint8).copy())} if names else {}
    write_tensors(path, {**{name: getattr(data, name) for name in TENSORS}, **paths}, data.about)


def load_data(path: Path = IMAGES_FILE) -> ImageData:
    """The data file that the download stage wrote; a UserError says that it is missing, damaged or another file."""
    tensors, about = read_tensors(path)
    paths = tensors.pop(PATHS).numpy().tobytes().decode().split("\0")[:-1] if PATHS in tensors else ()
    if tensors.keys() != set(TENSORS) or not about.keys() >= ABOUT:
        raise UserError(f"{path} is not a data file of this version; delete it and run dvc repro")
    return ImageData(**tensors, about=about, paths=paths)


def content_checksum(tensors: dict[str, torch.Tensor]) -> str:
    """sha256 hex of names, shapes and bytes of images and labels."""
    digest = hashlib.sha256()
    for name in TENSORS[:4]:
        digest.update(f"{name} {list(tensors[name].shape)}\n".encode())
        digest.update(tensors[name].contiguous().numpy().data)
    return digest.hexdigest()


def pixel_statistics(images: numpy.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel of uint8 [N, 3, S, S] scaled to 0..1, from exact integer sums."""
    mean, std = [], []
    for channel in images.transpose(1, 0, 2, 3):
        # One image at a time, because counting widens each pixel to 8 bytes.
        counts = numpy.zeros(256, numpy.int64)
        for image in channel:
            counts += numpy.bincount(image.ravel(), minlength=256)
        count, total, squares = (
            sum(n * value**power for value, n in enumerate(counts.tolist())) for power in (0, 1, 2)
        )
        mean.append(total / (count * 255))
        std.append(math.sqrt(count * squares - total * total) / (count * 255) or 1.0)
    return mean, std
