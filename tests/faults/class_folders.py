"""Class folders and archives of them for the fault tests, read as the download stage reads them."""

from pathlib import Path

import torch

from lib.data.folders import read_folders
from lib.data.store import TENSORS, ImageData, assemble
from tests.faults.refusals import refused
from tests.make_archives import encoded, picture, write_folder, write_tar, write_zip

SIZE = 8
FORMATS = {
    ".zip": write_zip,
    ".tar": lambda path, files: write_tar(path, files, "w"),
    ".tar.gz": write_tar,
    ".tar.bz2": lambda path, files: write_tar(path, files, "w:bz2"),
    ".tar.xz": lambda path, files: write_tar(path, files, "w:xz"),
}
JPEG = encoded(picture(3, 64, 64), "JPEG")


def read(path: Path | str, on_bad_image: str = "refuse") -> ImageData:
    return assemble("images", read_folders(str(path), SIZE, 0, on_bad_image))


def refused_folder(where: Path, files: dict[str, bytes], *words: str) -> str:
    return refused(lambda: read(write_folder(where / "pets", files)), *words)


def same(one: ImageData, other: ImageData) -> bool:
    """Whether two data sets have the same classes, images, labels and splits."""
    return one.classes == other.classes and all(
        torch.equal(getattr(one, name), getattr(other, name)) for name in TENSORS
    )
