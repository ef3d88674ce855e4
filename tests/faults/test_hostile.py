"""Hostile input: nothing is executed, nothing is written outside the output folders, nothing grows without bound.

Every payload tries to create a file named canary; the fixture compares all files before and after. Where a
payload could be harmless by mistake, a test beside it shows that the unguarded reader does fall for it.
"""

import gzip
import io
import os
import pickle
import stat
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
import zlib
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
import yaml

from lib.core.checkpoint import CheckpointStore
from lib.data import archives, official
from lib.data.fetch import Official
from lib.data.sources import read_source
from lib.data.store import IMAGES_FILE, load_data, save_data
from lib.files import read_about, read_arrays, read_json, read_tensors, write_tensors
from lib.machine import read_machine
from lib.methods.export import encoder_file, load_method
from lib.params.check import check_params
from lib.params.pretraining import Dataset, load_params
from lib.preset import apply_preset
from tests.examples import ROOT, study_params
from tests.faults.canary import Place, make_place
from tests.faults.class_folders import SIZE, read
from tests.faults.count import tried
from tests.faults.refusals import converted, refused
from tests.make_archives import (cifar10_python_files, encoded, mnist_arrays, idx, picture, sha256, two_level,
                                 write_folder, write_tar, write_zip)

MEGABYTE = 2**20


@pytest.fixture
def place(tmp_path, monkeypatch):
    yield from make_place(tmp_path, monkeypatch)


def download(images: Path) -> None:
    """What the download stage does."""
    save_data(IMAGES_FILE, read_source(Dataset(dataset="images", images_path=str(images), image_size=SIZE)))


# Archives that lead out of themselves


def leading_out(place: Place) -> list[str]:
    return ["../canary.png", "../../canary.png", f"{place.root}/canary.png", "train/cat/../../../canary.png",
            "train/cat/../../canary.png", "..\\canary.png", "C:/canary.png", "C:\\canary.png", "../canary/"]


@pytest.mark.parametrize("number", range(9))
def test_a_path_that_leaves_the_archive(place, number):
    name = leading_out(place)[number]
    made = [write_zip(place.work / "a.zip", {**two_level(), name: encoded(picture(1))})]
    if not name.endswith("/"):
        made.append(write_tar(place.work / "a.tar.gz", {**two_level(), name: encoded(picture(1))}))
    place.seal()
    for path in made:
        refused(lambda: download(path), "has a path that leaves the archive")
    assert not list(place.work.glob("data/*"))


def test_such_an_archive_is_armed(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"../canary.png": b"x"}, "w")
    (tmp_path / "out").mkdir()
    with tarfile.open(path) as archive:
        archive.extractall(tmp_path / "out", filter="fully_trusted")
    assert (tmp_path / "canary.png").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize("target", ["..", "../canary", "/etc/passwd", "."])
def test_a_link_in_a_tar_and_a_file_behind_it(place, kind, target):
    path = place.work / "a.tar"
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("train/cat")
        link.type, link.linkname = kind, target
        archive.addfile(link)
        for name, content in {**two_level(), "train/cat/canary.png": encoded(picture(1))}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    place.seal()
    refused(lambda: download(path), "'train/cat' is a link or a device; pack plain files")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
def test_a_link_or_device_in_a_zip(place, kind):
    path = write_zip(place.work / "a.zip", two_level())
    with zipfile.ZipFile(path, "a") as archive:
        member = zipfile.ZipInfo("train/cat/9.png")
        member.external_attr = (kind | 0o777) << 16
        archive.writestr(member, "../../../canary")
    place.seal()
    refused(lambda: download(path), "'train/cat/9.png' is a link or a device; pack plain files")


# Archives and files that grow


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
        "a long name": (header("././@LongLink", 32 * MEGABYTE, tarfile.GNUTYPE_LONGNAME) + bytes(32 * MEGABYTE),
                        "declares 33,554,432 bytes; allowed: 16,384"),
        "a long attribute": (pax(record("comment", "x" * 40_000)) + member, "allowed: 16,384"),
        "a slow attribute": (pax(b"1" * 16_000) + member + bytes(1024), ""),
        "many attributes": (many[:150 * 1024] + member, "more than 100 attributes"),
        "old sparse file": (header("train/cat/1.png", 512, tarfile.GNUTYPE_SPARSE) + bytes(512), "sparse file"),
        "sparse file, its map without end": (sparse_1 + header("train/cat/1.png", 512) + b"9999999999\n"
                                             + b"1\n" * (8 * MEGABYTE), "sparse file"),
        "sparse file, its map in a header": (pax(record("GNU.sparse.map", "0,1")) + header("train/cat/1.png", 512)
                                             + bytes(512), "sparse file"),
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
    return {"array of 80 terabytes": ("a.npz", promising.getvalue()), "zeros": ("a.npz", unpacking.getvalue()),
            "declared 4 GB": ("a.npz", lied), "header of 2**62": ("a.safetensors", struct.pack("<Q", 2**62)),
            "header nested": ("a.safetensors", struct.pack("<Q", len(nested)) + nested),
            "json nested": ("a.json", nested)}


@pytest.mark.parametrize("kind", growing_files())
def test_a_file_of_the_pipeline_that_grows(place, kind):
    name, content = growing_files()[kind]
    (place.work / name).write_bytes(content)
    del content
    place.seal()
    with little_memory(12):
        for reader in {".npz": [read_arrays], ".safetensors": [read_tensors, read_about], ".json": [read_json]}[
                Path(name).suffix]:
            refused(lambda: reader(place.work / name), "is not a whole file of this pipeline; delete it")


# Pickles where a tensor is expected


class Payload:
    """Creates the file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return open, (str(self.canary), "w")


def objects_array(payload: Payload) -> bytes:
    file = io.BytesIO()
    numpy.save(file, numpy.array([payload], dtype=object), allow_pickle=True)
    return file.getvalue()


def pickles(canary: Path) -> dict[str, bytes]:
    """Files that a careless reader of tensors or arrays would unpickle."""
    payload, zipped, saved, old, arrays = Payload(canary), io.BytesIO(), io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save({"method": payload, "optimizer": payload, "position": payload}, saved)
    torch.save({"method": payload}, old, _use_new_zipfile_serialization=False)
    numpy.savez(arrays, labels=numpy.array([payload], dtype=object), latents=numpy.array(["h"]))
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("labels.npy", pickle.dumps(payload))
        archive.writestr("data.pkl", pickle.dumps(payload))
    return {"pickle": pickle.dumps(payload), "protocol 0": pickle.dumps(payload, 0), "torch": saved.getvalue(),
            "old torch": old.getvalue(), "array of objects": objects_array(payload),
            "npz of objects": arrays.getvalue(), "zip of pickles": zipped.getvalue()}


KINDS = list(pickles(Path("x")))


@pytest.mark.parametrize("kind", KINDS)
def test_a_pickle_where_a_tensor_is_expected(place, kind, capsys):
    content = pickles(place.canary)[kind]
    encoder, embeddings = encoder_file("joint"), Path("data/embeddings/joint.npz")
    for path in (IMAGES_FILE, encoder, embeddings, Path("data/scores/joint.json")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    place.seal()
    for call in (lambda: load_data(IMAGES_FILE), lambda: read_about(IMAGES_FILE), lambda: load_method(encoder),
                 lambda: read_about(encoder), lambda: read_arrays(embeddings),
                 lambda: read_json(Path("data/scores/joint.json"))):
        refused(call, "is not a whole file of this pipeline; delete it and run dvc repro")


@pytest.mark.parametrize("kind", KINDS)
def test_a_pickle_in_a_checkpoint(place, kind, capsys):
    """A checkpoint is torch's own format: plain tensors are read, and the damaged one is told and passed over."""
    store = CheckpointStore("joint", "0" * 64, place.work / ".checkpoints")
    store.folder.mkdir(parents=True)
    for path in (store.final, store.latest, store.previous):
        path.write_bytes(pickles(place.canary)[kind])
    place.seal()
    tried("inputs", 3)
    assert store.load() is None
    said = capsys.readouterr().out
    assert said.count("is damaged") == 3 and said.rstrip().endswith("training starts anew")
    tried("converted", 3)


def test_a_pickle_in_a_cifar_batch(place, monkeypatch):
    edition = official.cifar10_editions()[1]
    folder = place.work / "kept"
    folder.mkdir()
    for name in ("data_batch_1", "test_batch", "batches.meta"):
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            content = pickle.dumps({b"data": Payload(place.canary), b"labels": [0]}, protocol)
            path = write_tar(folder / edition.archive.name,
                             {**cifar10_python_files(), f"cifar-10-batches-py/{name}": content})
            cifar = replace(edition, archive=replace(edition.archive, checksum=sha256(path.read_bytes())))
            monkeypatch.setenv("ENGRAM_ARCHIVE", str(path))
            place.seal()
            refused(lambda: official.read_cifar([cifar], SIZE), "is not read", "asks to run", "get the official")


@pytest.mark.parametrize("kind", KINDS)
def test_these_pickles_are_armed(tmp_path, kind):
    canary = tmp_path / "canary"
    content = io.BytesIO(pickles(canary)[kind])
    careless = {"torch": lambda: torch.load(content, weights_only=False),
                "old torch": lambda: torch.load(content, weights_only=False),
                "array of objects": lambda: numpy.load(content, allow_pickle=True),
                "npz of objects": lambda: numpy.load(content, allow_pickle=True)["labels"],
                "zip of pickles": lambda: pickle.loads(zipfile.ZipFile(content).read("data.pkl"))}
    careless.get(kind, lambda: pickle.load(content))()
    assert canary.exists()


@pytest.mark.parametrize("about", [
    {}, {"pretraining": None}, {"pretraining": {}}, {"pretraining": []}, {"pretraining": {"method": "os"}},
    {"pretraining": {"method": "..os", "encoder": "../x", "variant": "x"}}])
def test_an_encoder_file_with_a_record_of_its_own(place, about):
    write_tensors(encoder_file("joint"), {"x": torch.zeros(3)}, about)
    place.seal()
    refused(lambda: load_method(encoder_file("joint")), "data/encoders/joint.safetensors")


# YAML that asks for more than values


def yaml_payloads(canary: Path) -> dict[str, str]:
    return {
        "apply": f"!!python/object/apply:os.system ['touch {canary}']",
        "new": f"!!python/object/new:os.system ['touch {canary}']",
        "apply, in a list": f"[!!python/object/apply:subprocess.getoutput ['touch {canary}']]",
        "name": "!!python/name:os.system",
        "module": "!!python/module:antigravity",
        "object": "!!python/object:lib.errors.UserError {}",
        "tuple": "!!python/tuple [1, 2]",
        "unicode": "!!python/unicode x",
        "own tag": "!canary x",
        "verbatim": f"!<tag:yaml.org,2002:python/object/apply:os.system> ['touch {canary}']",
        "env": "!env HOME",
        "include": "!include /etc/passwd",
    }


@pytest.mark.parametrize("kind", yaml_payloads(Path("x")))
def test_a_yaml_tag_builds_nothing(place, kind):
    payload = yaml_payloads(place.canary)[kind]
    (place.work / "machine.yaml").write_text(f"device: {payload}\n")
    (place.work / "presets").mkdir()
    (place.work / "presets/evil.yaml").write_text(f"epochs: {payload}\n")
    (place.work / "presets/study.yaml").write_bytes((ROOT / "presets/study.yaml").read_bytes())
    kept = place.work / "kept.yaml"
    kept.write_bytes((ROOT / "params.yaml").read_bytes())
    for text in (f"epochs: {payload}\n", f"{payload}\n", f"? {payload}\n: 1\n", f"variants:\n  joint: {payload}\n"):
        (place.work / "params.yaml").write_text(text)
        place.seal()
        line = refused(load_params, "params.yaml is not valid YAML")
        assert "could not determine a constructor for the tag" in line or "found unhashable key" in line
    refused(read_machine, "machine.yaml is not valid YAML")
    refused(lambda: apply_preset("evil", [], kept, place.work / "presets"), "evil.yaml is not valid YAML")
    refused(lambda: apply_preset("study", [f"epochs={payload}"], kept, place.work / "presets"), "epochs")


def test_such_yaml_is_armed(tmp_path):
    for kind in ("apply", "new", "apply, in a list", "verbatim"):
        canary = tmp_path / kind.replace(", in a ", "")
        yaml.unsafe_load(f"epochs: {yaml_payloads(canary)[kind]}")
        assert canary.exists(), kind


def test_yaml_that_grows(place):
    laughs = "a0: &a0 [1, 1]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60))
    merges = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 60))
    loop, variants = "variants: &v\n  joint: *v\n", study_params()["variants"]
    texts = {laughs: "unknown key a0", merges: "'<<' is not understood", loop: "variants.joint",
             f"epochs: *x{'y' * 10}\n": "undefined alias", "epochs: " + "[" * 5000: "nested too deep",
             "gamma: &g [*g]\n": "gamma is [[[...]]]", f"epochs: {'9' * 4000}\n": "a number of about 4,00",
             f"epochs: {'9' * 5000}\n": "is not the int that it looks like", f"gamma: 0x{'f' * 5000}\n": "digits",
             f"dataset: {'x' * 20_000}\n": "dataset is 'xxx", f"{'k' * 500}: 1\n": "unknown key 'kkk"}
    for text, words in texts.items():
        (place.work / "params.yaml").write_text(text)
        place.seal()
        with little_memory(40) if text in (laughs, merges) else nullcontext():
            refused(lambda: check_params({"variants": variants, **load_params()}), words)


# Names that look like options or commands

SHELL = ["-rf", "--help", "$(touch canary)", "`touch canary`", "; touch canary", "| touch canary", "&& touch canary",
         "> canary", "a' touch canary '", 'a" touch canary "', "$HOME", "${epochs}", "%s{0}", "*", "~", "=1+1", "#",
         "$x^{$", "</script><script>"]


def test_variants_with_such_names_are_refused(place):
    place.seal()
    raw = study_params()
    variants = raw["variants"]
    for name in (*SHELL, "a/b", "../x", "a.b", "", " ", "a\nb", "-", "x" * 51, 1, None, True):
        refused(lambda: check_params({**raw, "variants": {name: variants["simclr"]}}),
                "is not a usable name; allowed: ")


def test_paths_and_settings_with_such_names_are_text(place, monkeypatch):
    place.seal()
    raw = study_params()
    for name in (*SHELL, "two\nlines", "\0", "x" * 300):
        refused(lambda: download(Path("none") / name), "images_path is")
        for key in ("dataset", "encoder", "seed", "linear"):
            refused(lambda: check_params({**raw, key: name}), f"params.yaml: {key} is ")
        if "\0" not in name:
            monkeypatch.setenv("ENGRAM_ARCHIVE", f"none/{name}")
            refused(lambda: read_source(Dataset(dataset="cifar10")), "ENGRAM_ARCHIVE is")


def test_a_stage_ends_in_one_line_and_runs_nothing(place):
    """The real command, with a hostile params.yaml and with a hostile variant's name."""
    (place.work / "params.yaml").write_text(yaml.safe_dump(study_params()))
    (place.root / "evil").mkdir()
    (place.root / "evil" / "params.yaml").write_text(f"epochs: {yaml_payloads(place.canary)['apply']}\n")
    place.seal()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    for folder, arguments in ((place.root / "evil", ["stages.download"]),
                              (place.work, ["stages.embed", f"joint; touch {place.root}/can''ary"])):
        tried("inputs")
        done = subprocess.run([sys.executable, "-m", *arguments], cwd=folder, env=environment, text=True,
                              capture_output=True, timeout=300)
        assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
        tried("refused")


def test_classes_and_images_with_such_names_go_through_the_whole_pipeline(place):
    """They are text to every stage: read, trained on, drawn into pictures, written into tables."""
    from stages import download as first, embed, linear, overview, pretrain, results, tsne

    classes = [name for name in SHELL if "/" not in name]
    names = ["-rf", "$(touch canary)", "; touch canary", "two\nlines", "a\tb"]
    files = {f"{split}/{label}/{name}.png": encoded(picture(number, SIZE, SIZE)) for split in ("train", "test")
             for number, label in enumerate(classes) for name in names}
    write_folder(place.work / "-pets; touch canary", files)
    raw = {"dataset": "images", "images_path": "-pets; touch canary", "image_size": SIZE, "encoder": "small",
           "batch_size": 32, "epochs": 1, "variants": {"simclr": study_params()["variants"]["simclr"]},
           "linear": {"epochs": 1, "study_epochs": 1}, "knn": {"k": 5},
           "tsne": {"points": 40, "perplexity": 5.0, "iterations": 250}}
    check_params(raw)
    place.seal()
    converted(lambda: first.main(raw))
    for stage in (pretrain, linear, embed, tsne):
        stage.main(raw, "simclr")
    for stage in (overview, results):
        stage.main(raw)
    assert read_about(IMAGES_FILE)["classes"] == sorted(classes) and len(classes) == 18
    assert read(place.work / "-pets; touch canary").classes == sorted(classes)
    assert all((place.work / name).is_file() for name in ("metrics/results.md", "plots/tsne/overview.png",
                                                          "plots/confusion.csv", "plots/confusion.png"))
