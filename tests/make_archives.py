"""Small pictures, class folders and archives, also in the official layouts, for the tests of data."""

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image
from torchvision.datasets import CIFAR10, MNIST


def picture(number: int, height: int = 32, width: int = 32) -> numpy.ndarray:
    """uint8 [height, width, 3], another one for every number."""
    return numpy.random.default_rng(number).integers(0, 256, (height, width, 3), numpy.uint8)


def encoded(image: numpy.ndarray | Image.Image, kind: str = "PNG", **options) -> bytes:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, kind: int, depth: int, rows: bytes, extra: bytes = b"") -> bytes:
    """A PNG of the given color type, from rows that each begin with a zero; ``extra``: a chunk of compressed text."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    text = chunk(b"zTXt", extra) if extra else b""
    return b"\x89PNG\r\n\x1a\n" + head + text + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def two_level(classes: tuple[str, ...] = ("cat", "dog"), train: int = 4, test: int = 2) -> dict[str, bytes]:
    """Files of train/<class>/<n>.png and test/<class>/<n>.png; picture numbers run in sorted order from 0."""
    names = [
        f"{split}/{name}/{number}.png"
        for split, count in (("train", train), ("test", test))
        for name in sorted(classes)
        for number in range(count)
    ]
    return {name: encoded(picture(number)) for number, name in enumerate(names)}


def write_folder(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def write_zip(path: Path, files: Mapping[str, bytes]) -> Path:
    """A name that ends in / is that of a folder."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tar(path: Path, files: Mapping[str, bytes], mode: str = "w:gz") -> Path:
    """A name that ends in / is that of a folder."""
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.type = len(content), tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            archive.addfile(member, io.BytesIO(content))
    return path


PACKERS: dict[str, Callable[[Path, Mapping[str, bytes]], Path]] = {
    "folder": write_folder,
    "zip": write_zip,
    "tar": lambda path, files: write_tar(path, files, "w"),
    "tar.gz": write_tar,
    "tar.bz2": lambda path, files: write_tar(path, files, "w:bz2"),
    "tar.xz": lambda path, files: write_tar(path, files, "w:xz"),
}


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def small_cifar(
    published: type[CIFAR10], folder: Path, patch: Any, train: Any, test: Any, classes: list[str], altered: Any = None
) -> Path:
    """An archive in the layout of CIFAR-10 or CIFAR-100, with these labels; its checksums count as the published ones.

    Picture numbers run from 0 through the training and the test files. ``altered``: other contents of files in the
    archive, whose own checksums then differ from those that are published.
    """
    names = [name for name, _ in published.train_list]
    parts = dict(zip(names, numpy.array_split(train, len(names)))) | {published.test_list[0][0]: numpy.array(test)}
    key, first, files = "labels" if published.base_folder == CIFAR10.base_folder else "fine_labels", 0, {}
    for name, labels in parts.items():
        pixels = numpy.stack([picture(first + index).transpose(2, 0, 1).ravel() for index in range(len(labels))])
        files[name], first = python2_pickle({"data": pixels, key: labels.tolist()}), first + len(labels)
    files[published.meta["filename"]] = python2_pickle({published.meta["key"]: classes})
    within = {f"{published.base_folder}/{name}": content for name, content in {**files, **(altered or {})}.items()}
    path = write_tar(folder / published.filename, within)
    patch.setattr(published, "tgz_md5", md5(path.read_bytes()))
    patch.setattr(published, "train_list", [[name, md5(files[name])] for name in names])
    patch.setattr(published, "test_list", [[name, md5(files[name])] for name, _ in published.test_list])
    patch.setattr(published, "meta", {**published.meta, "md5": md5(files[published.meta["filename"]])})
    return path


def python2_pickle(value: dict) -> bytes:
    """Protocol 2, with numpy's module and types as they were written when the official files were made."""
    return pickle.dumps(value, 2).replace(b"numpy._core", b"numpy.core").replace(b"\x89\x88\x87", b"K\0K\1\x87")


def small_mnist(folder: Path, patch: pytest.MonkeyPatch, train: Sequence[int], test: Sequence[int]) -> Path:
    """MNIST's four files with these labels, whose checksums count as the published ones; picture n is filled with n."""
    resources = []
    for (name, _), labels in zip(MNIST.resources, (train, train, test, test)):
        array = numpy.array(labels)
        if "images" in name:
            array = numpy.ones((1, 28, 28), int) * numpy.arange(len(labels))[:, None, None]
        sizes = numpy.array(array.shape, ">i4").tobytes()
        content = gzip.compress(bytes((0, 0, 8, array.ndim)) + sizes + array.astype(numpy.uint8).tobytes())
        (folder / name).write_bytes(content)
        resources.append((name, md5(content)))
    patch.setattr(MNIST, "resources", resources)
    return folder
