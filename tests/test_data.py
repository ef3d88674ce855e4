"""The data file, the splits, the official archives and the download stage."""

import io
import os
import subprocess
import sys
import threading
import tracemalloc
import urllib.request
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import URLError

import numpy
import pytest
import torch

from lib.data import fetch, official, store
from lib.data.fetch import Official
from lib.data.sources import read_digits, read_source
from lib.data.split import stratified, validation_split
from lib.data.store import RawDataset, assemble, content_checksum, load_data, pixel_statistics, save_data
from lib.params.pretraining import Dataset
from lib.runtime.errors import UserError
from lib.runtime.files import write_tensors
from tests.make_archives import (
    cifar10_files,
    cifar100_files,
    idx,
    mnist_arrays,
    picture,
    sha256,
    two_level,
    write_tar,
    write_zip,
)

ROOT = Path(__file__).parents[1]
REAL_URLOPEN = urllib.request.urlopen


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """No test reads the environment's archives or the repository's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ENGRAM_ARCHIVE", raising=False)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setattr(urllib.request, "urlopen", no_network)


def no_network(*_arguments, **_named):
    raise URLError("Name or service not known")


def small_cifar(
    folder: Path, cifar: official.BinaryEdition | official.PythonEdition, files: dict[str, bytes]
) -> official.BinaryEdition | official.PythonEdition:
    """``cifar`` with an archive of ``files`` written to ``folder`` and the checksum of that archive."""
    folder.mkdir(exist_ok=True)
    path = write_tar(folder / cifar.archive.name, files)
    return replace(cifar, archive=replace(cifar.archive, checksum=sha256(path.read_bytes())))


@contextmanager
def served(folder: Path):
    """The address of a local server of the folder's files, and the paths asked of it."""
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_arguments):
            asked.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_stratified_counts_and_tiny_classes():
    labels = numpy.repeat([0, 1, 2, 3, 4, 5], [1, 2, 3, 14, 15, 500])
    chosen = stratified(labels, 0.1, 0, "test")
    assert numpy.bincount(labels[chosen], minlength=6).tolist() == [0, 1, 1, 1, 2, 50]
    assert chosen.tolist() == sorted(set(chosen.tolist())) and chosen.dtype == numpy.int64
    assert not numpy.array_equal(chosen, stratified(labels, 0.1, 1, "test"))
    longer = numpy.concatenate([labels, [0] * 40])
    assert set(chosen[labels[chosen] == 5]) == {
        index for index in stratified(longer, 0.1, 0, "test") if longer[index] == 5
    }


def test_validation_depends_on_labels_alone():
    labels = numpy.arange(1000) % 10
    state = torch.manual_seed(1).get_state()
    first = validation_split(labels)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    assert numpy.array_equal(first, validation_split(labels)) and len(first) == 100
    assert first[:5].tolist() == [0, 2, 12, 17, 24]


@pytest.mark.parametrize("at_once", [1, 200, 2**19])
def test_statistics_equal_the_slow_form(monkeypatch, at_once):
    monkeypatch.setattr(store, "COUNTED_AT_ONCE", at_once)
    images = numpy.stack([picture(number, 8, 8).transpose(2, 0, 1) for number in range(9)])
    images[:, 2] = 51
    mean, std = pixel_statistics(images)
    slow = images.astype(numpy.float64) / 255
    assert mean == pytest.approx(slow.mean((0, 2, 3)).tolist(), abs=1e-12)
    assert std[:2] == pytest.approx(slow.std((0, 2, 3))[:2].tolist(), abs=1e-12)
    assert mean[2] == pytest.approx(0.2) and std[2] == 1.0


def test_statistics_of_large_images_take_little_memory():
    images = numpy.zeros((16, 3, 512, 512), numpy.uint8)
    tracemalloc.start()
    try:
        assert pixel_statistics(images) == ([0.0] * 3, [1.0] * 3)
        assert tracemalloc.get_traced_memory()[1] < images.nbytes
    finally:
        tracemalloc.stop()


def test_round_trip_and_damage(tmp_path):
    data = assemble("digits", read_digits(8))
    path = tmp_path / "images.safetensors"
    save_data(path, data)
    found = load_data(path)
    for name in ("train_images", "train_labels", "test_images", "test_labels", "validation"):
        assert torch.equal(getattr(found, name), getattr(data, name))
    assert found.about == data.about
    assert found.mean.dtype == torch.float32 and found.std.shape == (3,)
    both = torch.cat([found.fitting, found.validation]).sort().values
    assert torch.equal(both, torch.arange(len(found.train_labels)))
    with pytest.raises(UserError, match="has not run"):
        load_data(tmp_path / "none.safetensors")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="not a whole file"):
        load_data(path)
    path.write_bytes(b"no")
    with pytest.raises(UserError, match="not a whole file"):
        load_data(path)
    write_tensors(path, {"train_images": data.train_images}, data.about)
    with pytest.raises(UserError, match="not a whole data file"):
        load_data(path)


def test_checksum_follows_the_content():
    data = assemble("digits", read_digits(8))
    tensors = {
        name: getattr(data, name).clone() for name in ("train_images", "train_labels", "test_images", "test_labels")
    }
    assert content_checksum(tensors) == data.about["checksum"]
    tensors["test_labels"][0] += 1
    assert content_checksum(tensors) != data.about["checksum"]


def test_assemble_refuses_what_cannot_train():
    images = numpy.zeros((2, 3, 8, 8), numpy.uint8)

    def made(train, test, classes):
        return RawDataset(
            images[: len(train)], numpy.array(train), images[: len(test)], numpy.array(test), classes, "x"
        )

    with pytest.raises(UserError, match="a single training image"):
        assemble("images", made([0, 1], [0, 1], ["a", "b"]))
    with pytest.raises(UserError, match="class 'b' has no test image"):
        assemble("images", made([0, 1], [0, 0], ["a", "b"]))
    with pytest.raises(UserError, match="outside its 2 classes"):
        assemble("images", made([0, 2], [0, 1], ["a", "b"]))


def test_digits():
    pictures = read_digits(32)
    assert pictures.train_images.shape == (1438, 3, 32, 32) and len(pictures.test_labels) == 359
    counts = numpy.bincount(numpy.concatenate([pictures.train_labels, pictures.test_labels]))
    assert numpy.bincount(pictures.test_labels).tolist() == [int(count * 0.2 + 0.5) for count in counts]
    small = read_digits(8)
    assert small.train_images.max() == 255 and small.train_images.min() == 0
    assert (small.train_images[:, 0] == small.train_images[:, 2]).all()
    seeded = [read_source(Dataset(dataset="digits", image_size=8, seed=seed)).about for seed in (0, 1)]
    assert seeded[0] == seeded[1]


def test_cifar10_from_a_local_copy(tmp_path, monkeypatch):
    cifar = small_cifar(tmp_path / "kept elsewhere", official.CIFAR10, cifar10_files())
    for given in ("kept elsewhere", f"kept elsewhere/{cifar.archive.name}"):
        monkeypatch.setenv("ENGRAM_ARCHIVE", given)
        found = official.read_cifar([cifar], 32)
        assert found.classes == ["airplane", "automobile", "bird"]
        assert found.train_labels.tolist() == [0, 1, 2, 2, 1, 0] * 5 and len(found.test_labels) == 6
        images = numpy.concatenate([found.train_images, found.test_images])
        assert all(numpy.array_equal(images[number], picture(number).transpose(2, 0, 1)) for number in range(36))
    about = assemble("cifar10", found).about
    assert about["archive_checksum"] == cifar.archive.checksum and str(tmp_path) not in str(about)
    assert official.read_cifar([cifar], 16).train_images.shape == (30, 3, 16, 16)


def test_cifar100_has_fine_labels(tmp_path, monkeypatch):
    monkeypatch.setenv("ENGRAM_ARCHIVE", "here")
    found = official.read_cifar([small_cifar(tmp_path / "here", official.CIFAR100, cifar100_files())], 32)
    assert found.classes == ["apple", "bear"]
    assert found.train_labels.tolist() == [1, 0, 1, 0] and found.test_labels.tolist() == [0, 1]
    assert numpy.array_equal(found.test_images[1], picture(5).transpose(2, 0, 1))


def test_mnist(tmp_path, monkeypatch):
    published = official.mnist_files()
    assert {part: file.name for part, file in published.items()} == {
        "train_images": "train-images-idx3-ubyte.gz",
        "train_labels": "train-labels-idx1-ubyte.gz",
        "test_images": "t10k-images-idx3-ubyte.gz",
        "test_labels": "t10k-labels-idx1-ubyte.gz",
    }
    arrays = mnist_arrays()
    for name, array in arrays.items():
        (tmp_path / name).write_bytes(idx(array))
    files = {part: Official(file.name, sha256(idx(arrays[file.name])), ()) for part, file in published.items()}
    monkeypatch.setenv("ENGRAM_ARCHIVE", str(tmp_path))
    same = official.read_mnist(files, 28)
    assert (same.train_images == arrays["train-images-idx3-ubyte.gz"][:, None]).all()
    assert (same.test_images == arrays["t10k-images-idx3-ubyte.gz"][:, None]).all()
    assert same.train_labels.tolist() == list(range(10)) * 2
    assert same.test_labels.tolist() == list(range(9, -1, -1))
    large = assemble("mnist", official.read_mnist(files, 32))
    assert large.train_images.shape == (20, 3, 32, 32) and "28x28" in large.about["resized"]
    broken = idx(numpy.arange(10))[:-9]
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(broken)
    files["test_labels"] = Official("t10k-labels-idx1-ubyte.gz", sha256(broken), ())
    with pytest.raises(UserError, match="not a whole idx file"):
        official.read_mnist(files, 28)


def test_wrong_checksum_stops_before_reading(tmp_path, monkeypatch):
    cifar = small_cifar(tmp_path / "a", official.CIFAR10, cifar10_files())
    path = tmp_path / "a" / cifar.archive.name
    path.write_bytes(path.read_bytes() + b"!")
    monkeypatch.setenv("ENGRAM_ARCHIVE", str(path))
    monkeypatch.setattr(official, "open_tree", lambda _path: pytest.fail("read before checked"))
    with pytest.raises(UserError, match=f"the official {cifar.archive.name} has {cifar.archive.checksum}"):
        official.read_cifar([cifar], 32)
    monkeypatch.setenv("ENGRAM_ARCHIVE", "missing.tar.gz")
    with pytest.raises(UserError, match="must name cifar-10-binary.tar.gz or its folder"):
        official.read_cifar([cifar], 32)


def test_no_network_lists_the_alternatives():
    with pytest.raises(UserError) as caught:
        read_source(Dataset(dataset="cifar10"))
    message = str(caught.value)
    assert "\n" not in message and "www.cs.toronto.edu: Name or service not known" in message
    assert all(part in message for part in ("ENGRAM_ARCHIVE", "dataset: images", "dataset: digits"))
    assert not list(Path("data/archives").glob("*"))


def test_a_mirror_is_asked_once(tmp_path, monkeypatch, capsys):
    cifar = small_cifar(tmp_path / "mirror", official.CIFAR10, cifar10_files())
    monkeypatch.setattr(urllib.request, "urlopen", REAL_URLOPEN)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "main"))
    with served(tmp_path / "mirror") as (address, asked):
        monkeypatch.setenv("ENGRAM_ARCHIVE", address)
        first = official.read_cifar([cifar], 32)
        second = official.read_cifar([cifar], 32)
        assert asked == [f"/{cifar.archive.name}"]
        kept = tmp_path / "main" / "data" / "archives" / cifar.archive.name
        kept.write_bytes(b"damaged")
        monkeypatch.setenv("ENGRAM_ARCHIVE", f"{address}/{cifar.archive.name}")
        official.read_cifar([cifar], 32)
        assert len(asked) == 2 and sha256(kept.read_bytes()) == cifar.archive.checksum
        wrong = replace(cifar, archive=replace(cifar.archive, checksum=sha256(b"other")))
        with pytest.raises(UserError, match="fetched from 127.0.0.1: .* has sha256:"):
            official.read_cifar([wrong], 32)
        absent = replace(cifar, archive=replace(cifar.archive, name="absent.tar.gz"))
        monkeypatch.setenv("ENGRAM_ARCHIVE", address)
        with pytest.raises(UserError, match="cannot fetch absent.tar.gz .127.0.0.1: (File not found|Not Found)"):
            official.read_cifar([absent], 32)
    assert numpy.array_equal(first.train_images, second.train_images)
    assert "fetching cifar-10-binary.tar.gz from 127.0.0.1" in capsys.readouterr().out


def test_a_broken_connection_is_the_networks_fault(monkeypatch):
    class Broken(io.BytesIO):
        def read(self, *_arguments):
            raise ConnectionResetError("Connection reset by peer")

    monkeypatch.setattr(urllib.request, "urlopen", lambda *_arguments, **_named: Broken())
    monkeypatch.setenv("ENGRAM_ARCHIVE", "https://someone:secret@mirror.example/data")
    with pytest.raises(UserError, match="mirror.example: Connection reset by peer") as caught:
        fetch.find(Official("a.gz", "sha256:0", ()))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ("https://someone:secret@mirror.invalid/data", "mirror.invalid: InvalidURL"),
        ("https://[secret/data", "not a usable URL"),
        ("https:///secret", "not a usable URL"),
    ],
)
def test_a_bad_address_shows_no_password(monkeypatch, capsys, given, part):
    monkeypatch.setattr(urllib.request, "urlopen", REAL_URLOPEN)
    monkeypatch.setenv("ENGRAM_ARCHIVE", given)
    with pytest.raises(UserError, match=part) as caught:
        fetch.find(Official("a.gz", "sha256:0", ()))
    assert "secret" not in str(caught.value) + capsys.readouterr().out


def stage(folder: Path, params: str) -> subprocess.CompletedProcess:
    (folder / "params.yaml").write_text(params)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "stages.download"],
        cwd=folder,
        env=environment,
        text=True,
        capture_output=True,
        timeout=120,
    )


VARIANTS = """
variants:
  simclr:
    method: simclr
    watch: {loss: ntxent, term: ntxent, part: methods/base, number: seed}
"""


def test_the_stage_writes_the_same_bytes_twice(tmp_path):
    write_zip(tmp_path / "pets.zip", {**two_level(train=20), "notes.txt": b"x"})
    params = f"dataset: images\nimages_path: pets.zip\nimage_size: 32\n{VARIANTS}"
    written = []
    for seed in (0, 1):
        done = stage(tmp_path, f"{params}seed: {seed}\n")
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert lines[0] == (
            "images: 40 training images (4 of them for validation), 4 test images, 2 classes, 32x32 RGB"
        )
        assert lines[1] == "source: archive pets.zip; files left out: 1 .txt" and len(lines) == 3
        written.append((tmp_path / "data/images.safetensors").read_bytes())
    assert written[0] == written[1]
    assert str(tmp_path).encode() not in written[0]


def test_the_stage_fails_in_one_line(tmp_path):
    done = stage(tmp_path, f"dataset: images\nimages_path: none.zip\n{VARIANTS}")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "where nothing is" in done.stderr
