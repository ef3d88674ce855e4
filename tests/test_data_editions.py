"""CIFAR's two editions: the same tensors from both, which one is taken, and pickles that want to run code.

And what is published of these archives and of MNIST's.
"""

import pickle
import urllib.request
from dataclasses import replace
from urllib.error import URLError

import numpy
import pytest
import torch

from lib.data import official
from lib.data.pickled import read_pickle
from lib.data.store import TENSORS, assemble
from lib.runtime.errors import UserError
from tests.make_archives import (
    CIFAR10_LABELS,
    cifar10_files,
    cifar10_python_files,
    cifar100_files,
    cifar100_python_files,
    cifar_batch,
    python2_pickle,
    sha256,
    write_tar,
)

CIFARS = {
    "cifar10": (official.cifar10_editions, cifar10_files, cifar10_python_files),
    "cifar100": (official.cifar100_editions, cifar100_files, cifar100_python_files),
}

# Published values, typed here: by the data sets' own pages and by torchvision.
CHECKSUMS = {
    "cifar-10-binary.tar.gz": "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    "cifar-10-python.tar.gz": "md5:c58f30108f718f92721af3b95e74349a",
    "cifar-100-binary.tar.gz": "sha256:58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    "cifar-100-python.tar.gz": "md5:eb9058c3a382ffc7106e4002c42a8d85",
    "train-images-idx3-ubyte.gz": "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "md5:d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "md5:9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "md5:ec29112dd5afa0611ce80d1b7f02629c",
}


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ENGRAM_ARCHIVE", raising=False)
    monkeypatch.delenv("DVC_ROOT", raising=False)


def small(folder, dataset="cifar10", python_files=None):
    """Both editions, written small to ``folder`` under their published names, with their own checksums."""
    editions, *files = CIFARS[dataset]
    folder.mkdir(exist_ok=True)
    made = []
    for edition, content in zip(editions(), (files[0](), python_files or files[1]()), strict=True):
        path = write_tar(folder / edition.archive.name, content)
        made.append(replace(edition, archive=replace(edition.archive, checksum=sha256(path.read_bytes()))))
    return made


def test_published_addresses_and_checksums():
    editions = [*official.cifar10_editions(), *official.cifar100_editions()]
    files = [edition.archive for edition in editions] + list(official.mnist_files().values())
    assert {file.name: file.checksum for file in files} == CHECKSUMS
    assert all(
        url.startswith(("https://", "http://yann.lecun.com/")) and url.endswith(f"/{file.name}")
        for file in files
        for url in file.urls
    ) and all(file.urls for file in files)
    assert [type(edition) for edition in editions] == [official.BinaryEdition, official.PythonEdition] * 2
    assert [edition.label_bytes for edition in editions[::2]] == [1, 2]
    assert [edition.label_key for edition in editions[1::2]] == [b"labels", b"fine_labels"]


@pytest.mark.parametrize("dataset", CIFARS)
@pytest.mark.parametrize("size", [32, 16])
def test_both_editions_give_the_same_data(tmp_path, monkeypatch, dataset, size):
    editions, found = small(tmp_path / "both", dataset), []
    for edition in editions:
        monkeypatch.setenv("ENGRAM_ARCHIVE", f"both/{edition.archive.name}")
        found.append(assemble(dataset, official.read_cifar(editions, size)))
        assert found[-1].about["archive_checksum"] == edition.archive.checksum
        assert edition.archive.name in found[-1].about["source"]
    for name in TENSORS:
        assert torch.equal(*(getattr(data, name) for data in found))
        assert getattr(found[0], name).dtype == getattr(found[1], name).dtype
    same = [
        {key: value for key, value in data.about.items() if key not in ("archive_checksum", "source")} for data in found
    ]
    assert same[0] == same[1]


def test_a_folder_gives_the_binary_edition_first(tmp_path, monkeypatch):
    binary, python = small(tmp_path / "both")
    monkeypatch.setenv("ENGRAM_ARCHIVE", "both")
    assert binary.archive.name in official.read_cifar([binary, python], 32).source
    (tmp_path / "both" / binary.archive.name).unlink()
    assert python.archive.name in official.read_cifar([binary, python], 32).source
    (tmp_path / "both" / python.archive.name).rename(tmp_path / "both" / "renamed.tar.gz")
    with pytest.raises(UserError, match="cifar-10-binary.tar.gz or cifar-10-python.tar.gz or its folder"):
        official.read_cifar([binary, python], 32)
    monkeypatch.setenv("ENGRAM_ARCHIVE", "both/renamed.tar.gz")
    assert python.archive.name in official.read_cifar([binary, python], 32).source


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ("", ["cifar-10-binary.tar.gz"]),
        ("https://mirror.example/data", ["cifar-10-binary.tar.gz", "cifar-10-python.tar.gz"]),
        ("https://mirror.example/cifar-10-python.tar.gz", ["cifar-10-python.tar.gz"]),
    ],
)
def test_which_edition_is_fetched(tmp_path, monkeypatch, given, asked):
    """Without a word the binary one; a mirror's folder is asked for both, a mirror's file for itself."""
    binary, python = small(tmp_path / "mirror")
    if given:
        (tmp_path / "mirror" / binary.archive.name).unlink()
    names = []

    def answer(url, **_named):
        names.append(url.rsplit("/", 1)[-1])
        try:
            return open(tmp_path / "mirror" / names[-1], "rb")
        except FileNotFoundError:
            raise URLError("Not Found") from None

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    monkeypatch.setenv("ENGRAM_ARCHIVE", given)
    for _ in range(2):
        assert asked[-1] in official.read_cifar([binary, python], 32).source
    assert names == asked


def test_a_wrong_checksum_stops_before_unpickling(tmp_path, monkeypatch):
    editions = small(tmp_path / "both")
    path = tmp_path / "both" / editions[1].archive.name
    path.write_bytes(path.read_bytes() + b"!")
    monkeypatch.setattr(official, "read_pickle", lambda *_given: pytest.fail("read before checked"))
    monkeypatch.setattr(official, "open_tree", lambda *_given: pytest.fail("opened before checked"))
    monkeypatch.setenv("ENGRAM_ARCHIVE", str(path))
    with pytest.raises(UserError, match=f"the official {path.name} has {editions[1].archive.checksum}"):
        official.read_cifar(editions, 32)


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_reader_equals_the_full_unpickler(order):
    batch = cifar_batch(CIFAR10_LABELS, 0, ["labels"])
    batch["data"] = numpy.asarray(batch["data"], order=order)
    content = python2_pickle(batch)
    found, full = read_pickle(content, "x"), pickle.loads(content, encoding="bytes")
    assert numpy.array_equal(found[b"data"], batch["data"]) and numpy.array_equal(full[b"data"], batch["data"])
    assert {**found, b"data": 0} == {**full, b"data": 0} and found[b"labels"] == [0, 1, 2, 2, 1, 0]
    text = b"(dp0\nS'label_names'\np1\n(lp2\nS'cat'\np3\naS'dog'\np4\nas."
    assert read_pickle(text, "x") == {b"label_names": [b"cat", b"dog"]}


def hostile(ran) -> dict[str, bytes]:
    """Pickles that would create the file ``ran`` or reach an object of the interpreter."""
    command = f"touch {ran}".encode()
    text = b"X" + len(command).to_bytes(4, "little") + command
    build = python2_pickle({"data": numpy.zeros((1, 3072), numpy.uint8)})
    return {
        "system": b"cos\nsystem\n(S'" + command + b"'\ntR.",
        "stack": b"\x80\x04\x8c\x05posix\x8c\x06system\x93" + text + b"\x85R.",
        "instance": b"(S'" + command + b"'\nios\nsystem\n.",
        "eval": b"cbuiltins\neval\n(S'open(\"" + str(ran).encode() + b'", "w")\'\ntR.',
        "python 2's eval": b"c__builtin__\neval\n(S'open(\"" + str(ran).encode() + b'", "w")\'\ntR.',
        "dotted": b"\x80\x04\x8c\x05numpy\x8c\x0dndarray.tofile\x93.",
        "numpy's own": b"cnumpy\nload\n(S'x'\ntR.",
        "behind an array": build[:-1] + b"0cos\nsystem\n(S'" + command + b"'\ntR.",
        "persistent": b"Psomething\n.",
        "extension": b"\x80\x02\x82\x01.",
        "state of a name": b"cnumpy\nndarray\n}(S'__init__'\nI1\nub.",
        "array of objects": build.replace(b"u1", b"O8"),
        "no array": b"cnumpy\nndarray\n)R.",
    }


@pytest.mark.parametrize("kind", hostile("x"))
def test_a_hostile_pickle_runs_nothing(tmp_path, monkeypatch, kind):
    ran = tmp_path / "ran"
    content = hostile(ran)[kind]
    with pytest.raises(UserError) as caught:
        read_pickle(content, "x.tar.gz")
    assert "\n" not in str(caught.value) and str(caught.value).startswith("x.tar.gz is not read")
    files = {**cifar10_python_files(), "cifar-10-batches-py/data_batch_3": content}
    editions = small(tmp_path / "both", python_files=files)
    monkeypatch.setenv("ENGRAM_ARCHIVE", f"both/{editions[1].archive.name}")
    with pytest.raises(UserError, match="cifar-10-python.tar.gz is not read"):
        official.read_cifar(editions, 32)
    assert not ran.exists()


def test_the_hostile_pickles_are_armed(tmp_path):
    """The full unpickler does run them, so that the test above can fail."""
    for kind in ("system", "stack", "instance", "eval", "python 2's eval", "behind an array"):
        ran = tmp_path / kind.replace(" ", "").replace("'", "")
        pickle.loads(hostile(ran)[kind], encoding="bytes")
        assert ran.exists(), kind


@pytest.mark.parametrize(
    ("batch", "part"),
    [
        ({"labels": [0]}, "does not hold 3072 pixels"),
        ({"data": numpy.zeros((1, 3072), numpy.uint8)}, "does not hold 3072 pixels"),
        ({"labels": [0, 1], "data": numpy.zeros((1, 3072), numpy.uint8)}, "does not hold 3072 pixels"),
        ({"labels": ["0"], "data": numpy.zeros((1, 3072), numpy.uint8)}, "does not hold 3072 pixels"),
        ({"labels": [0], "data": numpy.zeros((1, 12), numpy.uint8)}, "does not hold 3072 pixels"),
    ],
)
def test_batches_that_are_not_cifar(tmp_path, monkeypatch, batch, part):
    files = {**cifar10_python_files(), "cifar-10-batches-py/test_batch": python2_pickle(batch)}
    editions = small(tmp_path / "both", python_files=files)
    monkeypatch.setenv("ENGRAM_ARCHIVE", f"both/{editions[1].archive.name}")
    with pytest.raises(UserError, match=part):
        official.read_cifar(editions, 32)
