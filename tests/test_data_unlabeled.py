"""Pictures in one folder: no classes, or those that a labels.csv gives them; file names are kept."""

import pytest
import torch

from lib.data.folders import read_folders
from lib.data.store import assemble, load_data, save_data
from tests.faults.refusals import refused
from tests.make_archives import PACKERS, encoded, picture, write_folder

FLAT = {f"photo {number}.png": encoded(picture(number, 8, 8)) for number in range(20)}


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)


def read(path, on_bad_image="refuse"):
    return assemble("images", read_folders(str(path), 8, on_bad_image))


# How pictures lie


@pytest.mark.parametrize(
    ("kind", "around"), [("folder", ""), ("folder", "mine/photos/"), ("zip", "photos/"), ("tar.gz", "")]
)
def test_pictures_in_one_folder_have_no_classes_and_keep_their_names(tmp_path, kind, around):
    data = read(PACKERS[kind](tmp_path / f"a.{kind}", {around + name: content for name, content in FLAT.items()}))
    assert data.classes == [] and len(data.train_labels) == 16 and len(data.test_labels) == 4
    assert set(data.train_labels.tolist()) == set(data.test_labels.tolist()) == {-1}
    assert len(data.validation) == 2 and data.about["test_split"] == "20% of the images, drawn from seed 0"
    names = [name.removeprefix("photos/") for name in data.files]
    assert sorted(names) == sorted(FLAT)
    number = int(names[-1].split()[1][:-4])
    assert torch.equal(data.test_images[-1], torch.from_numpy(picture(number, 8, 8).transpose(2, 0, 1)))
    save_data(tmp_path / "images.safetensors", data)
    assert load_data(tmp_path / "images.safetensors").files == data.files


def test_train_and_test_without_classes_are_splits_and_no_classes(tmp_path):
    files = {f"{'test' if number % 4 else 'train'}/{name}": FLAT[name] for number, name in enumerate(FLAT)}
    data = read(write_folder(tmp_path / "a", files))
    assert data.classes == [] and [name.partition("/")[0] for name in data.files] == ["train"] * 5 + ["test"] * 15
    assert "test_split" not in data.about
    half = write_folder(tmp_path / "b", {"train/1.png": b"", "train/2.png": b"", "test/1.txt": b""})
    refused(lambda: read(half), "test holds no images")


def test_names_of_no_encoding_and_pictures_that_are_skipped(tmp_path):
    odd = {"\udcff.png": FLAT["photo 0.png"], "two\nlines.png": FLAT["photo 1.png"], "bad.jpg": b"", "phone.heic": b"x"}
    path = write_folder(tmp_path / "a", FLAT | odd)
    refused(lambda: read(path), "2 of 24 images cannot be read: 'bad.jpg' (", "'phone.heic' (")
    data = read(path, on_bad_image="skip")
    save_data(tmp_path / "images.safetensors", data)
    assert set(load_data(tmp_path / "images.safetensors").files) == {*FLAT, "\\udcff.png", "two\nlines.png"}


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"1.png": FLAT["photo 0.png"]}, "there is one image; add one for test"),
        ({name: FLAT[name] for name in list(FLAT)[:2]}, "there is a single training image"),
        (FLAT | {"more/1.png": b""}, "is out of place; allowed: train/<class>/<image>"),
        (dict.fromkeys(FLAT, b""), "holds no images that can be read"),
    ],
)
def test_too_few_pictures_or_a_mixed_layout(tmp_path, files, words):
    refused(lambda: read(write_folder(tmp_path / "a", files), on_bad_image="skip"), words)


# labels.csv


def csv(*lines: str) -> bytes:
    return "\n".join(["file,label", *lines]).encode()


LINES = [f"{name},{'NA' if number % 2 else 'cat'}" for number, name in enumerate(FLAT)]


@pytest.mark.parametrize(("around", "below"), [("", ""), ("mine/", "images/")])
def test_a_table_gives_pictures_in_one_folder_their_classes(tmp_path, around, below):
    files = {f"{around}{below}{name}": content for name, content in FLAT.items()}
    files[f"{around}labels.csv"] = b"\xef\xbb\xbf" + csv(*(below + line for line in LINES))
    data = read(write_folder(tmp_path / "a", files))
    assert data.classes == ["NA", "cat"] and len(data.test_labels) == 4
    given = dict(line.split(",") for line in LINES)
    labels = torch.cat([data.train_labels, data.test_labels]).tolist()
    assert [given[name.removeprefix(below)] for name in data.files] == [data.classes[label] for label in labels]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (csv(*LINES[1:]), "'photo 0.png' has no line"),
        (csv(*LINES, "none.png,cat"), "'none.png' where no picture is; 'photo 0.png' is one"),
        (csv(*LINES, LINES[0]), "'photo 0.png' has several lines"),
        (csv(*LINES[1:], "photo 0.png,"), "'photo 0.png' has an empty label"),
        (csv(*LINES[1:], "photo 0.png"), "'photo 0.png' has an empty label"),
        (b"name;class\n", "cannot be read"),
        (b"", "cannot be read"),
        (b"file,label\n\xff\xfe", "cannot be read"),
        (csv(*(f"{name},cat" for name in FLAT)), "has one class; at least two"),
        (csv(*LINES[1:], "photo 0.png,\u202egnp"), "needs another name"),
        (csv(*LINES[1:], "photo 0.png,dog"), "class 'dog' has one image; add one for test, or remove the class"),
    ],
)
def test_a_table_that_does_not_fit(tmp_path, table, words):
    refused(lambda: read(write_folder(tmp_path / "a", {**FLAT, "labels.csv": table})), words)


def test_blanks_around_a_label_are_no_part_of_it_and_class_folders_take_no_table(tmp_path):
    table = csv(*(f"{line} " if number % 3 else line for number, line in enumerate(LINES)))
    assert read(write_folder(tmp_path / "a", {**FLAT, "labels.csv": table})).classes == ["NA", "cat"]
    files = {f"{kind}/{name}": content for kind in ("cat", "dog") for name, content in FLAT.items()}
    refused(lambda: read(write_folder(tmp_path / "b", {**files, "labels.csv": table})), "lies beside class folders")
