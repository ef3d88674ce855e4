"""CIFAR-10, CIFAR-100 and MNIST from their official files.

CIFAR is published in a binary edition of plain records and in a Python edition of pickles, the one that
torchvision downloads; both hold the same images in the same order and give the same tensors here. The binary
edition is the one that is fetched, because reading records cannot run code. The Python edition is read where
ENGRAM_ARCHIVE names it, after its checksum matched, by a reader that admits nothing but arrays and plain values
(lib/data/pickled.py). Source of the layouts: https://www.cs.toronto.edu/~kriz/cifar.html.
"""

import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from lib.data.archives import open_tree
from lib.data.fetch import Official, find, find_edition
from lib.data.pickled import read_pickle
from lib.data.pixels import RESIZING, square_all
from lib.data.store import RawDataset
from lib.runtime.errors import UserError

SIDE = 32
LARGEST_IDX = 64 * 2**20  # bytes, unpacked


@dataclass(frozen=True)
class BinaryEdition:
    """Where the binary edition keeps what: records of label bytes (the last is used), then 3 x 32 x 32 pixels."""

    archive: Official
    train: tuple[str, ...]
    test: tuple[str, ...]
    classes: str
    label_bytes: int

    def pictures(self, files: Sequence[bytes]) -> tuple[numpy.ndarray, numpy.ndarray]:
        """Images uint8 [N, 3, 32, 32] and labels int64 [N] of record files."""
        width = self.label_bytes + 3 * SIDE * SIDE
        content = b"".join(files)
        if not content or len(content) % width:
            raise UserError(f"{self.archive.name} does not hold records of {width} bytes; get the official archive")
        records = numpy.frombuffer(content, numpy.uint8).reshape(-1, width)
        images = records[:, self.label_bytes :].reshape(-1, 3, SIDE, SIDE)
        return images, records[:, self.label_bytes - 1].astype(numpy.int64)

    def names(self, content: bytes) -> list[str]:
        return content.decode().split()


@dataclass(frozen=True)
class PythonEdition:
    """Where the Python edition keeps what: dicts with ``data`` uint8 [N, 3072], and labels and names by key."""

    archive: Official
    train: tuple[str, ...]
    test: tuple[str, ...]
    classes: str
    label_key: bytes
    name_key: bytes

    def pictures(self, files: Sequence[bytes]) -> tuple[numpy.ndarray, numpy.ndarray]:
        """Images uint8 [N, 3, 32, 32] and labels int64 [N] of batch files."""
        batches = [read_pickle(content, self.archive.name) for content in files]
        images = [batch.get(b"data") for batch in batches]
        labels = [batch.get(self.label_key) for batch in batches]
        for pixels, numbers in zip(images, labels, strict=True):
            if (
                not isinstance(pixels, numpy.ndarray)
                or not _is_list_of(numbers, int)
                or pixels.shape != (len(numbers), 3 * SIDE * SIDE)
            ):
                raise UserError(
                    f"{self.archive.name} does not hold {3 * SIDE * SIDE} pixels and a label per image; "
                    "get the official archive"
                )
        return (
            numpy.concatenate(images).reshape(-1, 3, SIDE, SIDE),
            numpy.concatenate([numpy.array(numbers, numpy.int64) for numbers in labels]),
        )

    def names(self, content: bytes) -> list[str]:
        found = read_pickle(content, self.archive.name).get(self.name_key)
        if not _is_list_of(found, bytes):
            raise UserError(f"{self.archive.name} holds no names of its classes; get the official archive")
        return [name.decode() for name in found]


def _is_list_of(found: Any, kind: type) -> bool:
    return isinstance(found, list) and all(type(value) is kind for value in found)


CIFAR10 = BinaryEdition(
    Official(
        "cifar-10-binary.tar.gz",
        "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
    ),
    train=tuple(f"cifar-10-batches-bin/data_batch_{number}.bin" for number in range(1, 6)),
    test=("cifar-10-batches-bin/test_batch.bin",),
    classes="cifar-10-batches-bin/batches.meta.txt",
    label_bytes=1,
)
CIFAR100 = BinaryEdition(
    Official(
        "cifar-100-binary.tar.gz",
        "sha256:58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        ("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",),
    ),
    train=("cifar-100-binary/train.bin",),
    test=("cifar-100-binary/test.bin",),
    classes="cifar-100-binary/fine_label_names.txt",
    label_bytes=2,  # coarse, then fine
)


def cifar10_editions() -> tuple[BinaryEdition, PythonEdition]:
    """The two editions of CIFAR-10; the first is the one that is fetched."""
    from torchvision.datasets import CIFAR10 as PUBLISHED

    return CIFAR10, _python_edition(PUBLISHED, b"labels")


def cifar100_editions() -> tuple[BinaryEdition, PythonEdition]:
    """The two editions of CIFAR-100, with its fine labels; the first is the one that is fetched."""
    from torchvision.datasets import CIFAR100 as PUBLISHED

    return CIFAR100, _python_edition(PUBLISHED, b"fine_labels")


def _python_edition(published: Any, label_key: bytes) -> PythonEdition:
    """Names and checksum of the Python edition, as torchvision's class publishes them."""
    train, test = (
        tuple(f"{published.base_folder}/{name}" for name, _ in files)
        for files in (published.train_list, published.test_list)
    )
    return PythonEdition(
        Official(published.filename, f"md5:{published.tgz_md5}", (published.url,)),
        train,
        test,
        f"{published.base_folder}/{published.meta['filename']}",
        label_key,
        published.meta["key"].encode(),
    )


def mnist_files() -> dict[str, Official]:
    """MNIST's four files with the addresses and checksums that torchvision publishes."""
    from torchvision.datasets import MNIST

    parts = ("train_images", "train_labels", "test_images", "test_labels")
    return {
        part: Official(name, f"md5:{md5}", tuple(mirror + name for mirror in MNIST.mirrors))
        for part, (name, md5) in zip(parts, MNIST.resources, strict=True)
    }


def read_cifar(editions: Sequence[BinaryEdition | PythonEdition], size: int) -> RawDataset:
    """CIFAR from the edition at hand, else from the first one, fetched; resized where ``size`` is not 32."""
    archive, path = find_edition([edition.archive for edition in editions])
    cifar = next(edition for edition in editions if edition.archive == archive)
    with open_tree(path) as tree:
        files = tree.read([*cifar.train, *cifar.test, cifar.classes])
    train_images, train_labels = cifar.pictures([files[name] for name in cifar.train])
    test_images, test_labels = cifar.pictures([files[name] for name in cifar.test])
    return RawDataset(
        square_all(train_images, size),
        train_labels,
        square_all(test_images, size),
        test_labels,
        classes=cifar.names(files[cifar.classes]),
        source=f"{cifar.archive.name}, official",
        provenance={"archive_checksum": cifar.archive.checksum, **_resizing(SIDE, size)},
    )


def read_mnist(files: dict[str, Official], size: int) -> RawDataset:
    """MNIST's gray digits as RGB, resized from 28x28."""
    arrays = {part: _idx(official) for part, official in files.items()}
    return RawDataset(
        square_all(arrays["train_images"], size),
        arrays["train_labels"],
        square_all(arrays["test_images"], size),
        arrays["test_labels"],
        classes=[str(digit) for digit in range(10)],
        source="MNIST, official idx files",
        provenance={
            "archive_checksum": {file.name: file.checksum for file in files.values()},
            **_resizing(arrays["train_images"].shape[-1], size),
        },
    )


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
