"""Small pictures, class folders and archives in the official layouts, for the tests of data."""

import gzip
import hashlib
import io
import struct
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
    return b"".join(
        bytes(label) + picture(first + index).transpose(2, 0, 1).tobytes() for index, label in enumerate(labels)
    )


CIFAR10_LABELS = [(0,), (1,), (2,), (2,), (1,), (0,)]
CIFAR100_LABELS = [(7, 1), (7, 0), (7, 1), (7, 0)], [(7, 0), (7, 1)]


def cifar10_files() -> dict[str, bytes]:
    """Five training batches of 6 and a test batch of 6, of three classes."""
    labels, folder = CIFAR10_LABELS, "cifar-10-batches-bin"
    files = {f"{folder}/data_batch_{number}.bin": cifar_records(labels, 6 * (number - 1)) for number in range(1, 6)}
    return {
        f"{folder}/batches.meta.txt": b"airplane\nautomobile\nbird\n\n",
        f"{folder}/readme.html": b"<html>",
        f"{folder}/test_batch.bin": cifar_records(labels, 30),
        **files,
    }


def cifar100_files() -> dict[str, bytes]:
    """Coarse label always 7; fine labels 0, 1."""
    folder = "cifar-100-binary"
    return {
        f"{folder}/fine_label_names.txt": b"apple\nbear\n",
        f"{folder}/coarse_label_names.txt": b"x\ny\n",
        f"{folder}/train.bin": cifar_records(CIFAR100_LABELS[0], 0),
        f"{folder}/test.bin": cifar_records(CIFAR100_LABELS[1], 4),
    }


def cifar10_python_files() -> dict[str, bytes]:
    """What `cifar10_files` holds, in the layout of the Python edition."""
    folder = "cifar-10-batches-py"
    batches = {f"data_batch_{number}": 6 * (number - 1) for number in range(1, 6)} | {"test_batch": 30}
    names = {"num_cases_per_batch": 6, "label_names": ["airplane", "automobile", "bird"], "num_vis": 3072}
    return {
        f"{folder}/batches.meta": python2_pickle(names),
        f"{folder}/readme.html": b"<html>",
        **{
            f"{folder}/{name}": python2_pickle(cifar_batch(CIFAR10_LABELS, first, ["labels"]))
            for name, first in batches.items()
        },
    }


def cifar100_python_files() -> dict[str, bytes]:
    """What `cifar100_files` holds, in the layout of the Python edition."""
    folder, keys = "cifar-100-python", ["coarse_labels", "fine_labels"]
    names = {"fine_label_names": ["apple", "bear"], "coarse_label_names": ["x", "y"]}
    return {
        f"{folder}/file.txt~": b"",
        f"{folder}/meta": python2_pickle(names),
        f"{folder}/train": python2_pickle(cifar_batch(CIFAR100_LABELS[0], 0, keys)),
        f"{folder}/test": python2_pickle(cifar_batch(CIFAR100_LABELS[1], 4, keys)),
    }


def cifar_batch(labels: list[tuple[int, ...]], first: int, keys: list[str]) -> dict:
    """A batch of the Python edition, with one list of labels per key."""
    pixels = numpy.stack([picture(first + index).transpose(2, 0, 1).reshape(-1) for index in range(len(labels))])
    return {
        "batch_label": "batch",
        "data": pixels,
        "filenames": [f"{index}.png" for index in range(len(labels))],
        **{key: [label[place] for label in labels] for place, key in enumerate(keys)},
    }


def python2_pickle(value: dict) -> bytes:
    """Protocol 2 as Python 2 wrote it: strings without encoding, and arrays by the names numpy had then."""
    return b"\x80\x02" + _opcodes(value) + b"."


def _opcodes(value) -> bytes:
    if isinstance(value, bool) or value is None:
        return {True: b"\x88", False: b"\x89", None: b"N"}[value]
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, str | bytes):
        content = value.encode() if isinstance(value, str) else value
        return b"T" + struct.pack("<i", len(content)) + content
    if isinstance(value, list):
        return b"](" + b"".join(map(_opcodes, value)) + b"e"
    if isinstance(value, tuple):
        return b"(" + b"".join(map(_opcodes, value)) + b"t"
    if isinstance(value, dict):
        return b"}(" + b"".join(_opcodes(part) for pair in value.items() for part in pair) + b"u"
    kind = b"cnumpy\ndtype\n" + _opcodes((value.dtype.str[1:], 0, 1)) + b"R"
    kind += _opcodes((3, "|", None, None, None, -1, -1, 0)) + b"b"
    by_columns = not value.flags.c_contiguous
    state = _opcodes(1) + _opcodes(value.shape) + kind + _opcodes(by_columns) + _opcodes(value.tobytes("A"))
    return (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n"
        + _opcodes((0,))
        + _opcodes("b")
        + b"tR("
        + state
        + b"tb"
    )


def idx(array: numpy.ndarray) -> bytes:
    """A uint8 array as a gzipped idx file."""
    sizes = numpy.array(array.shape, ">i4").tobytes()
    return gzip.compress(bytes((0, 0, 8, array.ndim)) + sizes + array.astype(numpy.uint8).tobytes())


def mnist_arrays() -> dict[str, numpy.ndarray]:
    """Small MNIST files by their published names, no two alike: 20 training images and 10 test images."""
    return {
        "train-images-idx3-ubyte.gz": numpy.arange(20 * 784).reshape(20, 28, 28) % 251,
        "train-labels-idx1-ubyte.gz": numpy.arange(20) % 10,
        "t10k-images-idx3-ubyte.gz": numpy.arange(10 * 784).reshape(10, 28, 28) % 241,
        "t10k-labels-idx1-ubyte.gz": 9 - numpy.arange(10),
    }


def sha256(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()
