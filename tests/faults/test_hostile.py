"""Hostile input: nothing is executed and nothing is written outside the output folders.

Every payload tries to create a file named canary; the fixture compares all files before and after. Where a
payload could be harmless by mistake, a test beside it shows that the unguarded reader does fall for it.
"""

import hashlib
import io
import os
import pickle
import stat
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
import yaml

from lib.core.checkpoint import CheckpointStore
from lib.data import official
from lib.data.sources import read_source
from lib.data.store import IMAGES_FILE, load_data
from lib.methods.export import encoder_file, load_method
from lib.params.check import check_params
from lib.params.pretraining import Dataset, load_params
from lib.preset import apply_preset
from lib.runtime.files import read_about, read_arrays, read_json, write_tensors
from lib.runtime.machine import read_machine
from tests.examples import ROOT, study_params
from tests.faults.canary import Place, download, make_place
from tests.faults.class_folders import SIZE, read
from tests.faults.count import tried
from tests.faults.refusals import converted, refused
from tests.make_archives import (
    cifar10_python_files,
    encoded,
    picture,
    sha256,
    two_level,
    write_folder,
    write_tar,
    write_zip,
)


@pytest.fixture
def place(tmp_path, monkeypatch):
    yield from make_place(tmp_path, monkeypatch)


# Archives that lead out of themselves


def leading_out(place: Place) -> list[str]:
    return [
        "../canary.png",
        "../../canary.png",
        f"{place.root}/canary.png",
        "train/cat/../../../canary.png",
        "train/cat/../../canary.png",
        "..\\canary.png",
        "C:/canary.png",
        "C:\\canary.png",
        "../canary/",
    ]


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
    return {
        "pickle": pickle.dumps(payload),
        "protocol 0": pickle.dumps(payload, 0),
        "torch": saved.getvalue(),
        "old torch": old.getvalue(),
        "array of objects": objects_array(payload),
        "npz of objects": arrays.getvalue(),
        "zip of pickles": zipped.getvalue(),
    }


KINDS = list(pickles(Path("x")))


@pytest.mark.parametrize("kind", KINDS)
def test_a_pickle_where_a_tensor_is_expected(place, kind, capsys):
    content = pickles(place.canary)[kind]
    encoder, embeddings = encoder_file("joint"), Path("data/embeddings/joint.npz")
    for path in (IMAGES_FILE, encoder, embeddings, Path("data/scores/joint.json")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    place.seal()
    for call in (
        lambda: load_data(IMAGES_FILE),
        lambda: read_about(IMAGES_FILE),
        lambda: load_method(encoder),
        lambda: read_about(encoder),
        lambda: read_arrays(embeddings),
        lambda: read_json(Path("data/scores/joint.json")),
    ):
        refused(call, "is not a whole file of this pipeline; delete it and run dvc repro")


@pytest.mark.parametrize("kind", KINDS)
def test_a_pickle_in_a_checkpoint(place, kind, capsys):
    """A checkpoint is torch's own format: plain tensors are read, and the damaged one is told and passed over."""
    store = CheckpointStore("joint", "0" * 64, place.work / ".checkpoints")
    store.folder.mkdir(parents=True)
    for path in (store.final, store.latest, store.previous):
        content = pickles(place.canary)[kind]
        path.write_bytes(content + hashlib.sha256(content).digest())  # as the store ends its files
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
            path = write_tar(
                folder / edition.archive.name, {**cifar10_python_files(), f"cifar-10-batches-py/{name}": content}
            )
            cifar = replace(edition, archive=replace(edition.archive, checksum=sha256(path.read_bytes())))
            monkeypatch.setenv("ENGRAM_ARCHIVE", str(path))
            place.seal()
            refused(lambda: official.read_cifar([cifar], SIZE), "is not read", "asks to run", "get the official")


@pytest.mark.parametrize("kind", KINDS)
def test_these_pickles_are_armed(tmp_path, kind):
    canary = tmp_path / "canary"
    content = io.BytesIO(pickles(canary)[kind])
    careless = {
        "torch": lambda: torch.load(content, weights_only=False),
        "old torch": lambda: torch.load(content, weights_only=False),
        "array of objects": lambda: numpy.load(content, allow_pickle=True),
        "npz of objects": lambda: numpy.load(content, allow_pickle=True)["labels"],
        "zip of pickles": lambda: pickle.loads(zipfile.ZipFile(content).read("data.pkl")),
    }
    careless.get(kind, lambda: pickle.load(content))()
    assert canary.exists()


@pytest.mark.parametrize(
    "about",
    [
        {},
        {"pretraining": None},
        {"pretraining": {}},
        {"pretraining": []},
        {"pretraining": {"method": "os"}},
        {"pretraining": {"method": "..os", "encoder": "../x", "variant": "x"}},
    ],
)
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
        "object": "!!python/object:lib.runtime.errors.UserError {}",
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


# Names that look like options or commands

SHELL = [
    "-rf",
    "--help",
    "$(touch canary)",
    "`touch canary`",
    "; touch canary",
    "| touch canary",
    "&& touch canary",
    "> canary",
    "a' touch canary '",
    'a" touch canary "',
    "$HOME",
    "${epochs}",
    "%s{0}",
    "*",
    "~",
    "=1+1",
    "#",
    "$x^{$",
    "</script><script>",
]


def test_variants_with_such_names_are_refused(place):
    place.seal()
    raw = study_params()
    variants = raw["variants"]
    for name in (*SHELL, "a/b", "../x", "a.b", "", " ", "a\nb", "-", "x" * 51, 1, None, True):
        refused(
            lambda: check_params({**raw, "variants": {name: variants["simclr"]}}), "is not a usable name; allowed: "
        )


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
    for folder, arguments in (
        (place.root / "evil", ["stages.download"]),
        (place.work, ["stages.embed", f"joint; touch {place.root}/can''ary"]),
    ):
        tried("inputs")
        done = subprocess.run(
            [sys.executable, "-m", *arguments], cwd=folder, env=environment, text=True, capture_output=True, timeout=300
        )
        assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
        tried("refused")


def test_classes_and_images_with_such_names_go_through_the_whole_pipeline(place):
    """They are text to every stage: read, trained on, drawn into pictures, written into tables."""
    from stages import download as first
    from stages import embed, linear, overview, pretrain, results, tsne

    classes = [name for name in SHELL if "/" not in name]
    names = ["-rf", "$(touch canary)", "; touch canary", "two\nlines", "a\tb"]
    files = {
        f"{split}/{label}/{name}.png": encoded(picture(number, SIZE, SIZE))
        for split in ("train", "test")
        for number, label in enumerate(classes)
        for name in names
    }
    write_folder(place.work / "-pets; touch canary", files)
    raw = {
        "dataset": "images",
        "images_path": "-pets; touch canary",
        "image_size": SIZE,
        "encoder": "small",
        "batch_size": 32,
        "epochs": 1,
        "variants": {"simclr": study_params()["variants"]["simclr"]},
        "linear": {"epochs": 1, "study_epochs": 1},
        "knn": {"k": 5},
        "tsne": {"points": 40, "perplexity": 5.0, "iterations": 250},
    }
    check_params(raw)
    place.seal()
    converted(lambda: first.main(raw))
    for stage in (pretrain, linear, embed, tsne):
        stage.main(raw, "simclr")
    for stage in (overview, results):
        stage.main(raw)
    assert read_about(IMAGES_FILE)["classes"] == sorted(classes) and len(classes) == 18
    assert read(place.work / "-pets; touch canary").classes == sorted(classes)
    assert all(
        (place.work / name).is_file()
        for name in ("metrics/results.md", "plots/tsne/overview.png", "plots/confusion.csv", "plots/confusion.png")
    )
