"""CIFAR-10, CIFAR-100 and MNIST from their official files.

CIFAR comes in a Python edition, whose files are pickles and run code when read, and in a binary edition of
plain records with the same images in the same order. The binary edition is read here, so that no reader of
this project unpickles. Source of the layout: https://www.cs.toronto.edu/~kriz/cifar.html, "Binary version".
"""

import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy

from lib.data.archives import open_tree
from lib.data.fetch import Official, find
from lib.data.pixels import RESIZING, square_all
from lib.data.store import Pictures
from lib.errors import UserError

SIDE = 32
LARGEST_IDX = 64 * 2**20  # bytes, unpacked


@dataclass(frozen=True)
class Cifar:
    """Where the binary edition keeps what: records of label bytes (the last is used), then 3 x 32 x 32 pixels."""

    archive: Official
    train: tuple[str, ...]
    test: str
    classes: str
    label_bytes: int


CIFAR10 = Cifar(
    Official("cifar-10-binary.tar.gz", "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
             ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",)),
    train=tuple(f"cifar-10-batches-bin/data_batch_{number}.bin" for number in range(1, 6)),
    test="cifar-10-batches-bin/test_batch.bin",
    classes="cifar-10-batches-bin/batches.meta.txt",
    label_bytes=1,
)
CIFAR100 = Cifar(
    Official("cifar-100-binary.tar.gz", "sha256:58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
             ("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",)),
    train=("cifar-100-binary/train.bin",),
    test="cifar-100-binary/test.bin",
    classes="cifar-100-binary/fine_label_names.txt",
    label_bytes=2,  # coarse, then fine
)


def mnist_files() -> dict[str, Official]:
    """MNIST's four files with the addresses and checksums that torchvision publishes."""
    from torchvision.datasets import MNIST

    parts = ("train_images", "train_labels", "test_images", "test_labels")
    return {part: Official(name, f"md5:{md5}", tuple(mirror + name for mirror in MNIST.mirrors))
            for part, (name, md5) in zip(parts, MNIST.resources, strict=True)}


def read_cifar(cifar: Cifar, size: int) -> Pictures:
    """CIFAR with the labels that ``cifar`` points at (fine ones for CIFAR-100), resized where ``size`` is not 32."""
    path = find(cifar.archive)
    with open_tree(path) as tree:
        files = tree.read([*cifar.train, cifar.test, cifar.classes])
    train_images, train_labels = _records(cifar, [files[name] for name in cifar.train])
    test_images, test_labels = _records(cifar, [files[cifar.test]])
    return Pictures(
        square_all(train_images, size), train_labels, square_all(test_images, size), test_labels,
        classes=files[cifar.classes].decode().split(),
        source=f"{cifar.archive.name}, official",
        provenance={"archive_checksum": cifar.archive.checksum, **_resizing(SIDE, size)},
    )


def read_mnist(files: dict[str, Official], size: int) -> Pictures:
    """MNIST's gray digits as RGB, resized from 28x28."""
    arrays = {part: _idx(official) for part, official in files.items()}
    return Pictures(
        square_all(arrays["train_images"], size), arrays["train_labels"],
        square_all(arrays["test_images"], size), arrays["test_labels"],
        classes=[str(digit) for digit in range(10)],
        source="MNIST, official idx files",
        provenance={"archive_checksum": {file.name: file.checksum for file in files.values()},
                    **_resizing(arrays["train_images"].shape[-1], size)},
    )


def _records(cifar: Cifar, files: Sequence[bytes]) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Images uint8 [N, 3, 32, 32] and labels [N] of record files."""
    width = cifar.label_bytes + 3 * SIDE * SIDE
    content = b"".join(files)
    if not content or len(content) % width:
        raise UserError(f"{cifar.archive.name} does not hold records of {width} bytes; get the official archive")
    records = numpy.frombuffer(content, numpy.uint8).reshape(-1, width)
    images = records[:, cifar.label_bytes:].reshape(-1, 3, SIDE, SIDE)
    return images, records[:, cifar.label_bytes - 1].astype(numpy.int64)


def _idx(official: Official) -> numpy.ndarray:
    """The uint8 array in a gzipped idx file: two zero bytes, type 8, rank, big-endian int32 sizes, values."""
    path = find(official)
    try:
        with gzip.open(path) as file:
            content = file.read(LARGEST_IDX)
    except (OSError, EOFError, zlib.error):
        content = b""
    rank = content[3] if content.startswith(b"\0\0\x08") and len(content) > 3 else 0
    shape = tuple(numpy.frombuffer(content, ">i4", rank, 4).tolist()) if len(content) >= 4 + 4 * rank else ()
    if not shape or len(content) != 4 + 4 * rank + numpy.prod(shape):
        raise UserError(f"{official.name} is not a whole idx file; get the official file")
    return numpy.frombuffer(content, numpy.uint8, offset=4 + 4 * rank).reshape(shape)


def _resizing(found: int, size: int) -> dict[str, str]:
    return {} if found == size else {"resized": f"from {found}x{found}, {RESIZING}"}
