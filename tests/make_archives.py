"""Small pictures, class folders and archives in the official layouts, for the tests of data."""

import gzip
import hashlib
import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy
from PIL import Image


def picture(number: int, height: int = 32, width: int = 32) -> numpy.ndarray:
    """uint8 [height, width, 3], another one for every number."""
    return numpy.random.default_rng(number).integers(0, 256, (height, width, 3), numpy.uint8)


def encoded(image: numpy.ndarray | Image.Image, kind: str = "PNG", **options) -> bytes:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def two_level(classes: tuple[str, ...] = ("cat", "dog"), train: int = 4, test: int = 2) -> dict[str, bytes]:
    """Files of train/<class>/<n>.png and test/<class>/<n>.png; picture numbers run in sorted order from 0."""
    names = [f"{split}/{name}/{number}.png" for split, count in (("train", train), ("test", test))
             for name in sorted(classes) for number in range(count)]
    return {name: encoded(picture(number)) for number, name in enumerate(names)}


def write_folder(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def write_zip(path: Path, files: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tar(path: Path, files: Mapping[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def cifar_records(labels: list[tuple[int, ...]], first: int) -> bytes:
    """Records of label bytes and 3x32x32 pixels; picture numbers run from ``first``."""
    return b"".join(bytes(label) + picture(first + index).transpose(2, 0, 1).tobytes()
                    for index, label in enumerate(labels))


def cifar10_files() -> dict[str, bytes]:
    """Five training batches of 6 and a test batch of 6, of three classes."""
    labels = [(0,), (1,), (2,), (2,), (1,), (0,)]
    folder = "cifar-10-batches-bin"
    files = {f"{folder}/data_batch_{number}.bin": cifar_records(labels, 6 * (number - 1)) for number in range(1, 6)}
    return {f"{folder}/batches.meta.txt": b"airplane\nautomobile\nbird\n\n", f"{folder}/readme.html": b"<html>",
            f"{folder}/test_batch.bin": cifar_records(labels, 30), **files}


def cifar100_files() -> dict[str, bytes]:
    """Coarse label always 7; fine labels 0, 1."""
    folder = "cifar-100-binary"
    return {f"{folder}/fine_label_names.txt": b"apple\nbear\n", f"{folder}/coarse_label_names.txt": b"x\ny\n",
            f"{folder}/train.bin": cifar_records([(7, 1), (7, 0), (7, 1), (7, 0)], 0),
            f"{folder}/test.bin": cifar_records([(7, 0), (7, 1)], 4)}


def idx(array: numpy.ndarray) -> bytes:
    """A uint8 array as a gzipped idx file."""
    sizes = numpy.array(array.shape, ">i4").tobytes()
    return gzip.compress(bytes((0, 0, 8, array.ndim)) + sizes + array.astype(numpy.uint8).tobytes())


def sha256(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()
