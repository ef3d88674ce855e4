"""Faulty archives, classes, labels and data files, case by case: refused in one line, never dropped in silence."""

import bz2
import gzip
import lzma
import random
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy
import pytest

from lib.data import official
from lib.data.fetch import Official
from lib.data.sources import read_digits, read_source
from lib.data.store import TENSORS, RawDataset, assemble, load_data
from lib.params.check import check_params
from lib.params.pretraining import Dataset
from lib.runtime.files import write_tensors
from tests.examples import study_params
from tests.faults.class_folders import FORMATS, JPEG, SIZE, read, refused_folder, same
from tests.faults.refusals import attempt, refused
from tests.make_archives import (
    cifar10_files,
    cifar10_python_files,
    cifar_batch,
    cifar_records,
    encoded,
    idx,
    mnist_arrays,
    picture,
    python2_pickle,
    sha256,
    two_level,
    write_folder,
    write_tar,
    write_zip,
)


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ENGRAM_ARCHIVE", raising=False)
    monkeypatch.delenv("DVC_ROOT", raising=False)


# Archives


@pytest.mark.parametrize("kind", FORMATS)
def test_a_truncated_archive_is_refused_wherever_it_ends(tmp_path, kind):
    """Also where a tar ends between two members, which is no error to tarfile."""
    path = FORMATS[kind](tmp_path / f"pets{kind}", two_level())
    content = path.read_bytes()
    ends = range(0, len(content) - 10_240, 512) if kind == ".tar" else range(0, len(content), len(content) // 23)
    for end in ends:
        path.write_bytes(content[:end])
        refused(lambda: read(path), path.name)


@pytest.mark.parametrize("kind", FORMATS)
def test_an_altered_archive_is_refused_or_gives_the_same_data(tmp_path, kind):
    """A name whose letters were altered may no longer be an image's: then it is counted among the files left out."""
    path = FORMATS[kind](tmp_path / f"pets{kind}", two_level())
    whole, content, draw = read(path), path.read_bytes(), random.Random(kind)
    for _ in range(80):
        altered = bytearray(content)
        altered[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(altered)
        found = attempt(lambda: read(path))
        assert found is None or same(found, whole) or found.about["ignored"]


def test_a_tar_that_goes_on_after_its_end_is_refused(tmp_path):
    first = write_tar(tmp_path / "a.tar", two_level(), "w")
    second = write_tar(tmp_path / "b.tar", two_level(("eel", "fox")), "w")
    first.write_bytes(first.read_bytes() + second.read_bytes())
    refused(lambda: read(first), "goes on after its end mark", "into one tar")


def test_what_is_no_archive(tmp_path):
    for content in (b"", b"PK", b"PK\5\6" + bytes(18), b"\x1f\x8b", b"BZh9", b"\xfd7zXZ\0", JPEG, b"Rar!\x1a\7\0"):
        (tmp_path / "pets.zip").write_bytes(content)
        refused(lambda: read(tmp_path / "pets.zip"), "pets.zip")


@pytest.mark.parametrize(
    "given",
    [
        "",
        "none.zip",
        "~nobody-of-this-name/x",
        "a" * 300,
        "a/" * 3000,
        "\0",
        "\udcff",
        "line\nbreak",
        "pets.zip/inside",
    ],
)
def test_a_path_where_nothing_is(tmp_path, given):
    write_zip(tmp_path / "pets.zip", two_level())
    params = {**study_params(), "dataset": "images", "images_path": given}
    if given:
        check_params(params)
        refused(lambda: read(given), "images_path", "a folder, zip or tar")
    else:
        refused(lambda: check_params(params), "images_path is empty", "a folder, zip or tar")


def small(folder: Path, cifar, files: dict[str, bytes]):
    folder.mkdir()
    path = write_tar(folder / cifar.archive.name, files)
    return replace(cifar, archive=replace(cifar.archive, checksum=sha256(path.read_bytes()))), path


def test_a_wrong_checksum_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    cifar, path = small(tmp_path / "kept", official.CIFAR10, cifar10_files())
    monkeypatch.setattr(official, "open_tree", lambda _path: pytest.fail("opened before it was checked"))
    for altered in (path.read_bytes()[:-1], path.read_bytes() + b"!", b""):
        path.write_bytes(altered)
        monkeypatch.setenv("ENGRAM_ARCHIVE", str(path))
        refused(lambda: official.read_cifar([cifar], SIZE), cifar.archive.checksum, "get that file, unchanged")


@pytest.mark.parametrize("given", ["-rf", "$(touch ran)", "; touch ran", "~nobody-of-this-name", "x" * 300, "https://"])
def test_an_archive_setting_that_names_nothing(tmp_path, monkeypatch, given):
    monkeypatch.setenv("ENGRAM_ARCHIVE", given)
    refused(lambda: read_source(Dataset(dataset="cifar10")), "ENGRAM_ARCHIVE")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicate_names(tmp_path, kind):
    class Twice(dict):
        """Files of which the last comes again under a name that means the same."""

        def items(self):
            name, content = list(super().items())[-1]
            return [*super().items(), (self.second or name, content)]

    for number, second in enumerate((None, "./test/dog/1.png", "test//dog/1.png", "test/./dog/1.png")):
        files = Twice(two_level())
        files.second = second
        refused(lambda: read(FORMATS[kind](tmp_path / f"{number}{kind}", files)), "'test/dog/1.png' occurs twice")


def test_files_that_are_none(tmp_path):
    path = write_folder(tmp_path / "pets", two_level())
    (path / "train/cat/8.png").symlink_to("nowhere.png")
    refused(lambda: read(path), "train/cat/8.png is a link that leads nowhere, or a device; remove it")
    (path / "train/cat/8.png").unlink()
    (path / "train/cat/.#lock").symlink_to("editor@nowhere")
    assert len(read(path).train_labels) == 8
    write_folder(path, {"a/b/c/d/e/f/g/1.png": JPEG})
    refused(lambda: read(path), "deeper than 6 folders", "remove it")


# Classes, labels and counts


def test_a_missing_class(tmp_path, monkeypatch):
    without = {name: content for name, content in two_level().items() if not name.startswith("test/dog")}
    refused_folder(tmp_path, without, "test has no image of: dog", "remove the class")
    files = {**cifar10_files(), "cifar-10-batches-bin/test_batch.bin": cifar_records([(0,), (1,)], 0)}
    cifar, path = small(tmp_path / "kept", official.CIFAR10, files)
    monkeypatch.setenv("ENGRAM_ARCHIVE", str(path))
    refused(lambda: assemble("cifar10", official.read_cifar([cifar], SIZE)), "class 'bird' has no test image")


@pytest.mark.parametrize("kind", ["folder", *FORMATS])
@pytest.mark.parametrize("inside", ["", "notes.txt", ".hidden.png"])
def test_an_empty_class_is_refused_and_not_forgotten(tmp_path, kind, inside):
    for number, (files, empty) in enumerate(
        (
            (two_level(), "train/eel"),
            (two_level(), "test/cat/../fox"),
            ({f"{name}/{index}.png": encoded(picture(index)) for name in "ab" for index in range(5)}, "c"),
        )
    ):
        empty = empty.replace("cat/../", "")
        files = {f"pets/{name}": content for name, content in files.items()}
        if kind == "folder":
            path = write_folder(tmp_path / f"{number}", files)
            (path / "pets" / empty).mkdir(parents=True)
            if inside:
                (path / "pets" / empty / inside).write_bytes(b"x")
        else:
            files = {**files, f"pets/{empty}/{inside}": b"x"} if inside else files
            path = tmp_path / f"{number}{kind}"
            (write_zip_with_folder if kind == ".zip" else write_tar_with_folder)(path, files, f"pets/{empty}", kind)
        refused(lambda: read(path), f"class folder '{empty}' holds no images", "put some in or remove it")


def write_zip_with_folder(path: Path, files: dict[str, bytes], folder: str, _kind: str) -> None:
    write_zip(path, {**files, f"{folder}/": b""})


def write_tar_with_folder(path: Path, files: dict[str, bytes], folder: str, kind: str) -> None:
    write_tar(path.with_suffix(".files"), files, "w")
    with tarfile.open(path.with_suffix(".files"), "a") as archive:
        member = tarfile.TarInfo(folder)
        member.type = tarfile.DIRTYPE
        archive.addfile(member)
    compress = {".tar": bytes, ".tar.gz": gzip.compress, ".tar.bz2": bz2.compress, ".tar.xz": lzma.compress}[kind]
    path.write_bytes(compress(path.with_suffix(".files").read_bytes()))


def test_folders_that_are_no_classes_may_be_empty(tmp_path):
    root = write_folder(tmp_path / "pets", two_level())
    for name in (".git/objects", "docs", "train/cat/empty", "__MACOSX/train"):
        (root / name).mkdir(parents=True)
    assert len(read(root).train_labels) == 8


def test_zero_images(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    for path in (
        tmp_path / "empty",
        write_zip(tmp_path / "a.zip", {}),
        write_tar(tmp_path / "a.tar.gz", {}),
        write_folder(tmp_path / "text", {"train/cat/1.txt": b"x"}),
    ):
        refused(lambda: read(path), "holds no images; allowed: .bmp")
    files = {name: b"" if name.endswith(".bin") else content for name, content in cifar10_files().items()}
    cifar, path = small(tmp_path / "kept", official.CIFAR10, files)
    monkeypatch.setenv("ENGRAM_ARCHIVE", str(path))
    refused(lambda: official.read_cifar([cifar], SIZE), "does not hold records of 3073 bytes")


def mnist(folder: Path, arrays: dict[str, numpy.ndarray]) -> dict[str, Official]:
    folder.mkdir()
    files = {}
    for part, published in official.mnist_files().items():
        content = idx(arrays[published.name])
        (folder / published.name).write_bytes(content)
        files[part] = Official(published.name, sha256(content), ())
    return files


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("train-images-idx3-ubyte.gz", lambda array: array[:0], "0 train images and 20 labels"),
        ("t10k-labels-idx1-ubyte.gz", lambda array: array[:9], "10 test images and 9 labels"),
        ("train-labels-idx1-ubyte.gz", lambda array: array * 0 + 10, "the first is 10; allowed: 0 to 9"),
    ],
)
def test_mnist_with_other_counts_or_labels(tmp_path, monkeypatch, name, change, words):
    arrays = mnist_arrays()
    arrays[name] = change(arrays[name])
    files = mnist(tmp_path / "kept", arrays)
    monkeypatch.setenv("ENGRAM_ARCHIVE", str(tmp_path / "kept"))
    refused(lambda: assemble("mnist", official.read_mnist(files, SIZE)), words, "get it again")


def test_one_image_and_one_class(tmp_path):
    one = encoded(picture(0))
    refused_folder(tmp_path / "a", {"cat/1.png": one}, "class 'cat' has one image", "add one or remove the class")
    refused_folder(tmp_path / "b", {"train/cat/1.png": one, "test/cat/1.png": one}, "has 1 class; at least two")
    refused_folder(tmp_path / "c", {f"cat/{number}.png": one for number in range(9)}, "has 1 class; at least two")
    pair = {f"{split}/{name}/1.png": one for split in ("train", "test") for name in "ab"}
    refused_folder(tmp_path / "d", pair, "every class has a single training image", "add one")


@pytest.mark.parametrize("label", [3, 255])
def test_labels_out_of_range(tmp_path, monkeypatch, label):
    labels = [(0,), (1,), (2,), (label,)]
    binary = {**cifar10_files(), "cifar-10-batches-bin/data_batch_2.bin": cifar_records(labels, 0)}
    python = {
        **cifar10_python_files(),
        "cifar-10-batches-py/data_batch_2": python2_pickle(cifar_batch(labels, 0, ["labels"])),
    }
    for folder, edition, files in (("b", official.CIFAR10, binary), ("p", official.cifar10_editions()[1], python)):
        cifar, path = small(tmp_path / folder, edition, files)
        monkeypatch.setenv("ENGRAM_ARCHIVE", str(path))
        refused(
            lambda: assemble("cifar10", official.read_cifar([cifar], SIZE)),
            "1 train labels outside its 3 classes",
            f"the first is {label}; allowed: 0 to 2",
        )


@pytest.mark.parametrize("change", [{"train/eel/1.png": JPEG}, {"test/eel/1.png": JPEG}])
def test_a_test_folder_with_other_classes(tmp_path, change):
    refused_folder(tmp_path, {**two_level(), **change}, "has no image of: eel; both need the same")


# The file between the stages


def altered_files() -> dict[str, tuple[dict, dict]]:
    """Changes to the tensors and to the record of a data file."""
    return {
        "a label too high": ({"train_labels": lambda labels: labels + 1}, {}),
        "a label below zero": ({"test_labels": lambda labels: labels - 1}, {}),
        "labels of another type": ({"train_labels": lambda labels: labels.float()}, {}),
        "fewer labels": ({"train_labels": lambda labels: labels[1:]}, {}),
        "no test images": ({"test_images": lambda images: images[:0], "test_labels": lambda labels: labels[:0]}, {}),
        "images of another type": ({"train_images": lambda images: images.float()}, {}),
        "images without channels": ({"train_images": lambda images: images[:, 0]}, {}),
        "a validation index too high": ({"validation": lambda rows: rows + 10_000}, {}),
        "no validation": ({"validation": lambda rows: rows[:0]}, {}),
        "a tensor missing": ({"validation": None}, {}),
        "a class missing": ({}, {"classes": ["0", "1"]}),
        "no classes": ({}, {"classes": None}),
        "no counts": ({}, {"counts": None}),
        "other counts": ({}, {"counts": {"train": 3, "test": 1}}),
        "another size": ({}, {"image_size": 9}),
        "a mean that is none": ({}, {"mean": ["a", "b", "c"]}),
        "a mean without end": ({}, {"mean": [float("inf")] * 3}),
        "a deviation of zero": ({}, {"std": [0.0, 1.0, 1.0]}),
        "no checksum": ({}, {"checksum": None}),
    }


@pytest.mark.parametrize("kind", altered_files())
def test_an_altered_data_file(tmp_path, kind):
    data = assemble("digits", read_digits(SIZE))
    tensors, about = altered_files()[kind]
    found = {name: getattr(data, name) for name in TENSORS}
    for name, change in tensors.items():
        if change is None:
            del found[name]
        else:
            found[name] = change(found[name])
    path = tmp_path / "images.safetensors"
    write_tensors(path, {name: getattr(data, name) for name in TENSORS}, data.about)
    load_data(path)
    write_tensors(path, found, {**data.about, **about})
    refused(lambda: load_data(path), "not a whole data file of this pipeline; delete it and run dvc repro")


def test_too_little_to_train_on():
    images = numpy.zeros((2, 3, SIZE, SIZE), numpy.uint8)
    pictures = RawDataset(images, numpy.array([0, 1]), images, numpy.array([0]), ["a", "b"], "x")
    refused(lambda: assemble("images", pictures), "2 test images and 1 labels")
