"""CIFAR-10, CIFAR-100 and MNIST by torchvision: small archives in the official layout, and what is refused unread."""

import io
import os
import pickle
import re
import socket
import urllib.request
from pathlib import Path
from urllib.error import URLError

import numpy
import pytest
from torchvision.datasets import CIFAR10, CIFAR100, MNIST

from lib.data.official import TIMEOUT, VARIABLE, read_official
from lib.data.sources import read_source
from lib.data.store import assemble
from lib.params.pretraining import Dataset
from tests.faults.refusals import refused
from tests.make_archives import md5, picture, small_cifar, small_mnist

LABELS = [0, 1, 2, 2, 1, 0]
CLASSES = ["airplane", "automobile", "bird"]
ARCHIVES = Path("data/archives")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The working folder; no test reads the environment's archives, the repository's or the network."""

    def no_network(*_arguments, **_named):
        raise URLError("Name or service not known")

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    return tmp_path


def small_cifar10(place: Path, monkeypatch, **altered) -> Path:
    place.mkdir(exist_ok=True)
    return small_cifar(CIFAR10, place, monkeypatch, LABELS * 5, LABELS, CLASSES, **altered)


class Payload:
    """Makes the folder when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = str(canary)

    def __reduce__(self):
        return os.makedirs, (self.canary, 0o777, True)


@pytest.mark.parametrize("given", ["kept elsewhere", "kept elsewhere/cifar-10-python.tar.gz"])
def test_cifar10_from_a_local_copy_which_is_then_kept(folder, monkeypatch, given):
    path = small_cifar10(folder / "kept elsewhere", monkeypatch)
    monkeypatch.setenv(VARIABLE, given)
    raw = read_official("cifar10", 32)
    assert raw.classes == CLASSES
    assert raw.train_labels.tolist() == LABELS * 5 and raw.test_labels.tolist() == LABELS
    images = numpy.concatenate([raw.train_images, raw.test_images])
    assert numpy.array_equal(images, [picture(number).transpose(2, 0, 1) for number in range(36)])
    about = assemble("cifar10", raw).about
    assert about["archive_checksum"] == {path.name: f"md5:{CIFAR10.tgz_md5}"}
    assert about["source"] == "cifar-10-python.tar.gz, official" and str(folder) not in str(about)
    monkeypatch.delenv(VARIABLE)
    path.unlink()
    assert read_official("cifar10", 16).train_images.shape == (30, 3, 16, 16)


def test_cifar100_has_fine_labels_and_a_relative_path_leads_to_the_main_repository(folder, monkeypatch):
    (folder / "main/kept").mkdir(parents=True)
    small_cifar(CIFAR100, folder / "main/kept", monkeypatch, [1, 0, 1, 0], [0, 1], ["apple", "bear"])
    monkeypatch.setenv("DVC_ROOT", str(folder / "main"))
    monkeypatch.setenv(VARIABLE, "kept")
    raw = read_official("cifar100", 32)
    assert raw.classes == ["apple", "bear"]
    assert raw.train_labels.tolist() == [1, 0, 1, 0] and raw.test_labels.tolist() == [0, 1]


def test_mnist_is_unpacked_anew_from_checked_files(folder, monkeypatch):
    train, test = list(range(10)) * 2, list(range(9, -1, -1))
    small_mnist(folder, monkeypatch, train, test)
    monkeypatch.setenv(VARIABLE, str(folder))
    for _ in range(2):
        raw = read_official("mnist", 28)
        assert raw.classes == [str(digit) for digit in range(10)]
        assert raw.train_labels.tolist() == train and raw.test_labels.tolist() == test
        assert all((image == number).all() for number, image in enumerate(raw.train_images))
        # As if the first run had been killed while it unpacked.
        (ARCHIVES / "MNIST/raw/train-images-idx3-ubyte").write_bytes(b"half")
    large = assemble("mnist", read_official("mnist", 32)).about
    assert large["image_size"] == 32 and large["resized"].startswith("from 28x28")
    (folder / MNIST.resources[3][0]).unlink()
    refused(lambda: read_official("mnist", 28), f"{MNIST.resources[3][0]} is not readable there")


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "mnist"])
def test_without_a_network_one_line_names_the_ways_out(dataset):
    line = refused(lambda: read_source(Dataset(dataset=dataset)), "cannot fetch", "Name or service not known")
    assert all(way in line for way in ("ENGRAM_ARCHIVE", "dataset: images", "dataset: digits"))
    assert not [path for path in ARCHIVES.rglob("*") if path.is_file()]


def test_what_is_fetched_is_kept_and_fetched_once(folder, monkeypatch, capfd):
    monkeypatch.setattr("lib.runtime.progress.QUIET_SECONDS", 0.0)
    monkeypatch.setenv("DVC_ROOT", str(folder / "main"))
    content, asked = small_cifar10(folder / "server", monkeypatch).read_bytes(), []

    class Answer(io.BytesIO):
        url, length = None, len(content)

        def read(self, _size):
            return super().read(len(content) // 100 + 1)

    def urlopen(request, **_named):
        asked.append((request.full_url, socket.getdefaulttimeout()))
        return Answer(content)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    for _ in range(2):
        assert read_official("cifar10", 32).test_labels.tolist() == LABELS
    assert set(asked) == {(CIFAR10.url, TIMEOUT)} and len(asked) == 2, "a redirect is looked for, then the file fetched"
    assert md5((folder / "main" / ARCHIVES / CIFAR10.filename).read_bytes()) == CIFAR10.tgz_md5
    assert socket.getdefaulttimeout() is None
    said = capfd.readouterr()
    assert re.fullmatch("fetching the archive: step 2 of 100, about \\d+ s left\n", said.out) and not said.err


@pytest.mark.parametrize("error", [TimeoutError("timed out"), ConnectionResetError("reset"), None])
def test_a_broken_connection_is_the_networks_fault(monkeypatch, error):
    class Broken(io.BytesIO):
        url, length = None, 3

        def read(self, *_arguments):
            if error:
                raise error
            return super().read(*_arguments)

    monkeypatch.setattr(urllib.request, "urlopen", lambda *_arguments, **_named: Broken(b"not"))
    refused(lambda: read_official("cifar10", 32), "cannot fetch cifar-10-python.tar.gz", str(error or "corrupted"))


# Checksum first, then read


def test_an_archive_of_another_checksum_is_not_opened(folder, monkeypatch):
    path = small_cifar10(folder / "kept", monkeypatch)
    content = path.read_bytes()
    monkeypatch.setenv(VARIABLE, str(path))
    for altered in (content + b"!", content[:-1], b"", pickle.dumps(Payload(folder / "canary"))):
        path.write_bytes(altered)
        refused(lambda: read_official("cifar10", 32), "is not the official", CIFAR10.tgz_md5)
    assert not ARCHIVES.exists() and not (folder / "canary").exists()


@pytest.mark.parametrize("name", ["data_batch_1", "data_batch_5", "test_batch", "batches.meta"])
def test_a_pickle_of_another_checksum_is_never_unpickled(folder, monkeypatch, name):
    """In the archive itself, or put beside it where an earlier run had unpacked it: then it is unpacked again."""
    canary = folder / "canary"
    armed = pickle.dumps({"data": Payload(canary), "labels": [0], "label_names": Payload(canary)})
    pickle.loads(armed)
    assert canary.exists(), "the payload works"
    canary.rmdir()
    small_cifar10(folder, monkeypatch)
    monkeypatch.setenv(VARIABLE, str(folder))
    good = read_official("cifar10", 32)
    (ARCHIVES / CIFAR10.base_folder / name).write_bytes(armed)
    again = read_official("cifar10", 32)
    assert numpy.array_equal(good.train_images, again.train_images) and again.classes == CLASSES
    small_cifar10(folder, monkeypatch, altered={name: armed})
    (ARCHIVES / CIFAR10.base_folder / name).write_bytes(b"")
    refused(lambda: read_official("cifar10", 32), "cannot fetch", "corrupted")
    assert not canary.exists()


@pytest.mark.parametrize("given", ["none", "$(touch canary)", "~nobody-of-this-name", "x" * 300, "https://a.example/x"])
def test_a_local_copy_that_is_not_there(folder, monkeypatch, given):
    monkeypatch.setenv(VARIABLE, given)
    refused(lambda: read_official("cifar10", 32), "ENGRAM_ARCHIVE is", "cifar-10-python.tar.gz is not readable there")
    assert not list(folder.iterdir())
