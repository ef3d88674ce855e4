"""Hostile input that would grow without bound: archives, images, files between the stages, YAML.

What is declared is refused by its number; what is not declared is read no further than what is.
"""

import gzip
import io
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy
import pytest

from lib.data import archives, official
from lib.data.fetch import Official
from lib.data.store import IMAGES_FILE
from lib.params.check import check_params
from lib.params.pretraining import load_params
from lib.runtime.files import read_about, read_arrays, read_json, read_tensors
from tests.examples import study_params
from tests.faults.canary import download, make_place
from tests.faults.class_folders import SIZE
from tests.faults.count import tried
from tests.faults.refusals import refused
from tests.make_archives import (
    encoded,
    idx,
    mnist_arrays,
    picture,
    sha256,
    two_level,
    write_folder,
    write_tar,
    write_zip,
)

MEGABYTE = 2**20


@pytest.fixture
def place(tmp_path, monkeypatch):
    yield from make_place(tmp_path, monkeypatch)


@contextmanager
def little_memory(megabytes: int):
    """Python's own allocations inside stay below a bound."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < megabytes * MEGABYTE
    finally:
        tracemalloc.stop()


def lying_zip(path: Path, declared: int, content: bytes) -> Path:
    """A zip whose member train/cat/0.png holds ``content`` and declares another size."""
    write_zip(path, {**two_level(), "train/cat/0.png": content})
    told, lied = struct.pack("<I", len(content)), struct.pack("<I", declared)
    path.write_bytes(path.read_bytes().replace(told, lied))
    return path


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE, **attributes) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    for key, value in attributes.items():
        setattr(member, key, value)
    return member.tobuf(tarfile.GNU_FORMAT)


def pax(content: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    """An extended header with records of ``content``, padded to whole blocks."""
    return header("pax", len(content), kind) + content + bytes(-len(content) % 512)


def record(key: str, value: str) -> bytes:
    text = f" {key}={value}\n"
    length = len(text) + 1
    while len(str(length)) + len(text) != length:
        length += 1
    return f"{length}{text}".encode()


def growing_tars() -> dict[str, tuple[bytes, str]]:
    """Tars that would take far more memory or time than they have bytes, and what is said of each."""
    png = encoded(picture(1))
    member = header("train/cat/1.png", len(png)) + png + bytes(-len(png) % 512)
    sparse_1 = pax(record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0"))
    many = b"".join(pax(record(f"key{number}", "x"), tarfile.XGLTYPE) for number in range(150))
    return {
        "declared size": (header("train/cat/1.png", 300 * MEGABYTE), "314,572,800 bytes; allowed: 268,435,456"),
        "size in an extended header": (pax(record("size", str(2**60))) + header("train/cat/1.png", 5), "a.tar.gz"),
        "negative size": (pax(record("size", "-1024")) + header("train/cat/1.png", 5), "declares -1024 bytes"),
        "zeros after the end": (member + bytes(40 * MEGABYTE), "goes on after its end mark"),
        "a long name": (
            header("././@LongLink", 32 * MEGABYTE, tarfile.GNUTYPE_LONGNAME) + bytes(32 * MEGABYTE),
            "declares 33,554,432 bytes; allowed: 16,384",
        ),
        "a long attribute": (pax(record("comment", "x" * 40_000)) + member, "allowed: 16,384"),
        "a slow attribute": (pax(b"1" * 16_000) + member + bytes(1024), ""),
        "many attributes": (many[: 150 * 1024] + member, "more than 100 attributes"),
        "old sparse file": (header("train/cat/1.png", 512, tarfile.GNUTYPE_SPARSE) + bytes(512), "sparse file"),
        "sparse file, its map without end": (
            sparse_1 + header("train/cat/1.png", 512) + b"9999999999\n" + b"1\n" * (8 * MEGABYTE),
            "sparse file",
        ),
        "sparse file, its map in a header": (
            pax(record("GNU.sparse.map", "0,1")) + header("train/cat/1.png", 512) + bytes(512),
            "sparse file",
        ),
        "headers in headers": (pax(record("a", "b")) * 2000 + member, "a.tar.gz"),
    }


@pytest.mark.parametrize("kind", growing_tars())
def test_a_tar_that_grows(place, kind):
    content, words = growing_tars()[kind]
    path = place.work / "a.tar.gz"
    path.write_bytes(gzip.compress(content, 1))
    del content
    place.seal()
    with little_memory(12):
        line = refused(lambda: download(path), words)
    assert "a.tar.gz" in line


def test_a_zip_that_grows(place):
    bomb = bytes(40 * MEGABYTE)
    small = lying_zip(place.work / "small.zip", 50, bomb)
    large = lying_zip(place.work / "large.zip", 2**32 - 16, b"0123456789" * 1000)
    place.seal()
    assert small.stat().st_size < MEGABYTE
    with little_memory(12):
        refused(lambda: download(small), "train/cat/0.png")
        refused(lambda: download(large), "has 4,294,967,280 bytes; allowed: 268,435,456; remove it")


def test_many_bytes_in_all_are_refused_by_what_is_declared(place, monkeypatch):
    monkeypatch.setattr(archives, "LARGEST_TOTAL", 10_000)
    made = [write_zip(place.work / "a.zip", two_level()), write_tar(place.work / "a.tar.gz", two_level())]
    place.seal()
    for path in made:
        refused(lambda: download(path), "declares more than")


def test_an_archive_in_an_archive_stays_closed(place):
    inner = write_zip(place.root / "inner.zip", {"../canary.png": bytes(MEGABYTE)}).read_bytes()
    path = write_zip(place.work / "a.zip", {**two_level(), "train/cat/inner.zip": inner})
    place.seal()
    download(path)
    tried("inputs")
    tried("converted")
    assert read_about(IMAGES_FILE)["ignored"] == {".zip": 1}


def test_an_image_that_grows(place):
    chunk = b"zTXtcomment\0\0" + zlib.compress(bytes(40 * MEGABYTE), 1)
    text = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    png = encoded(picture(1))
    path = write_folder(place.work / "pets", {**two_level(), "train/cat/9.png": png[:33] + text + png[33:]})
    place.seal()
    with little_memory(24):
        refused(lambda: download(path), "train/cat/9.png cannot be read as an image")


def test_an_idx_file_that_grows(place, monkeypatch):
    (place.work / "kept").mkdir()
    files = {}
    for part, published in official.mnist_files().items():
        content = idx(mnist_arrays()[published.name])
        if part == "train_images":
            content = gzip.compress(bytes((0, 0, 8, 1)) + struct.pack(">i", 2**31 - 1) + bytes(96 * MEGABYTE), 1)
        (place.work / "kept" / published.name).write_bytes(content)
        files[part] = Official(published.name, sha256(content), ())
    monkeypatch.setenv("ENGRAM_ARCHIVE", str(place.work / "kept"))
    place.seal()
    with little_memory(200):
        refused(lambda: official.read_mnist(files, SIZE), "train-images-idx3-ubyte.gz is not a whole idx file")


def growing_files() -> dict[str, tuple[str, bytes]]:
    """Files between the stages whose header promises more than they hold, or that unpack to more."""
    array = io.BytesIO()
    numpy.lib.format.write_array_header_1_0(array, {"descr": "<f8", "fortran_order": False, "shape": (10**13,)})
    promising, unpacking = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(promising, "w") as archive:
        archive.writestr("h.npy", array.getvalue() + bytes(100))
    with zipfile.ZipFile(unpacking, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("h.npy", bytes(64 * MEGABYTE))
    lied = unpacking.getvalue().replace(struct.pack("<I", 64 * MEGABYTE), struct.pack("<I", 0xF0000000))
    nested = b"[" * 200_000
    return {
        "array of 80 terabytes": ("a.npz", promising.getvalue()),
        "zeros": ("a.npz", unpacking.getvalue()),
        "declared 4 GB": ("a.npz", lied),
        "header of 2**62": ("a.safetensors", struct.pack("<Q", 2**62)),
        "header nested": ("a.safetensors", struct.pack("<Q", len(nested)) + nested),
        "json nested": ("a.json", nested),
    }


@pytest.mark.parametrize("kind", growing_files())
def test_a_file_of_the_pipeline_that_grows(place, kind):
    name, content = growing_files()[kind]
    (place.work / name).write_bytes(content)
    del content
    place.seal()
    with little_memory(12):
        for reader in {".npz": [read_arrays], ".safetensors": [read_tensors, read_about], ".json": [read_json]}[
            Path(name).suffix
        ]:
            refused(lambda: reader(place.work / name), "is not a whole file of this pipeline; delete it")


def test_yaml_that_grows(place):
    laughs = "a0: &a0 [1, 1]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60))
    merges = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 60))
    loop, variants = "variants: &v\n  joint: *v\n", study_params()["variants"]
    texts = {
        laughs: "unknown key a0",
        merges: "'<<' is not understood",
        loop: "variants.joint",
        f"epochs: *x{'y' * 10}\n": "undefined alias",
        "epochs: " + "[" * 5000: "nested too deep",
        "gamma: &g [*g]\n": "gamma is [[[...]]]",
        f"epochs: {'9' * 4000}\n": "a number of about 4,00",
        f"epochs: {'9' * 5000}\n": "is not the int that it looks like",
        f"gamma: 0x{'f' * 5000}\n": "digits",
        f"dataset: {'x' * 20_000}\n": "dataset is 'xxx",
        f"{'k' * 500}: 1\n": "unknown key 'kkk",
    }
    for text, words in texts.items():
        (place.work / "params.yaml").write_text(text)
        place.seal()
        with little_memory(40) if text in (laughs, merges) else nullcontext():
            refused(lambda: check_params({"variants": variants, **load_params()}), words)
