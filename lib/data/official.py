"""CIFAR-10, CIFAR-100 and MNIST by torchvision, in data/archives; nothing is read before its checksum agrees.

CIFAR's batches are pickles, which can run code: torchvision opens one only where its own MD5 is the published one.
"""

import os
import shutil
import socket
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy
from torchvision.datasets import CIFAR10, CIFAR100, MNIST, utils
from torchvision.datasets.utils import check_integrity

from lib.data.pixels import RESIZING, square_all
from lib.data.store import RawDataset
from lib.data.unpack import user_path
from lib.runtime.errors import UserError, shown
from lib.runtime.files import whole_file, writing
from lib.runtime.progress import StepProgress

ROOT = Path("data/archives")
VARIABLE = "ENGRAM_ARCHIVE"
TIMEOUT = 30  # seconds without a byte


class Fetched(StepProgress):
    """Counts the bytes that torchvision fetches, ``total`` if the server tells, in hundredths."""

    def __init__(self, total: int | None, **_: object) -> None:
        super().__init__("fetching the archive", 100, silent=not total)
        self.bytes, self.length = 0, total or 0

    def update(self, count: int) -> None:
        self.bytes += count
        if self.length:
            self.reach(self.bytes / self.length)


def read_official(dataset: str, size: int) -> RawDataset:
    """``cifar10``, ``cifar100`` (its fine labels) or ``mnist``, fetched unless it is there; resized to ``size``.

    A UserError says that it cannot be fetched, or that what ENGRAM_ARCHIVE names has another checksum.
    """
    root = _in_project(ROOT)
    published = {"cifar10": CIFAR10, "cifar100": CIFAR100, "mnist": MNIST}[dataset]
    if dataset == "mnist":
        name, files = "MNIST", list(MNIST.resources)
        _use_local_copy(files, root / "MNIST/raw")
        stale = [root / "MNIST/raw" / Path(file).stem for file, _ in files]  # unpacked, without published checksums
    else:
        name, files = published.filename, [(published.filename, published.tgz_md5)]
        _use_local_copy(files, root)
        meta = root / published.base_folder / published.meta["filename"]  # torchvision mends the batches alone
        stale = [] if check_integrity(meta, published.meta["md5"]) else [*meta.parent.glob("*")]
    train, test = _fetched(published, name, root, stale)
    provenance: dict[str, Any] = {"archive_checksum": {file: f"md5:{md5}" for file, md5 in files}}
    images, labels = [], []
    for part in (train, test):
        # MNIST's are [N, 28, 28], CIFAR's [N, 32, 32, 3] -> [N, 3, 32, 32]
        pixels = part.data.numpy() if dataset == "mnist" else part.data.transpose(0, 3, 1, 2)
        if (side := pixels.shape[-1]) != size:
            provenance["resized"] = f"from {side}x{side}, {RESIZING}"
        images.append(square_all(pixels, size))
        labels.append(numpy.asarray(part.targets, numpy.int64))
    classes = [label.split(" - ")[0] for label in train.classes]  # MNIST's are "0 - zero", ...
    return RawDataset(images[0], labels[0], images[1], labels[1], classes, f"{name}, official", provenance)


def _in_project(path: Path | str) -> Path:
    """A path in the main repository, also when DVC runs in a temporary copy of it."""
    return Path(os.environ.get("DVC_ROOT", ".")) / path


def _fetched(published: type, name: str, root: Path, stale: list[Path]) -> list:
    """The training and the test part, without the ``stale`` files; the network's failure becomes one line."""
    before, bar = socket.getdefaulttimeout(), utils.tqdm
    socket.setdefaulttimeout(TIMEOUT)
    utils.tqdm = Fetched  # torchvision's bar fills the log with lines where there is no terminal
    try:
        with writing(root):
            for path in stale:
                path.unlink(missing_ok=True)
            try:
                return [published(root, train=train, download=True) for train in (True, False)]
            except (URLError, HTTPException, TimeoutError, ConnectionError, RuntimeError) as error:  # some are OSErrors
                reason = " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__
                ways = "dataset: images (your own) or dataset: digits (nothing is fetched)"
                how = f"set {VARIABLE} to a local copy of it, or choose in params.yaml {ways}"
                raise UserError(f"cannot fetch {name} ({reason}); {how}") from None
    finally:
        socket.setdefaulttimeout(before)
        utils.tqdm = bar


def _use_local_copy(files: list[tuple[str, str]], folder: Path) -> None:
    """Copy the (name, MD5) ``files`` from where ENGRAM_ARCHIVE says to ``folder``, where torchvision looks first."""
    given = os.environ.get(VARIABLE, "").strip()
    if not given:
        return
    place = user_path(given) or user_path(_in_project(given))
    for name, md5 in files:
        path = place / name if place and place.is_dir() else place
        if path is None or not path.is_file() or not os.access(path, os.R_OK):
            raise UserError(f"{VARIABLE} is {shown(given)}, but {name} is not readable there; name it or its folder")
        if not check_integrity(path, md5):
            which = f"which is not the official {name} of MD5 {md5}"
            raise UserError(f"{VARIABLE} is {shown(given)}, {which}; get that file")
        if not check_integrity(folder / name, md5):
            with whole_file(folder / name) as part:
                shutil.copyfile(path, part)
