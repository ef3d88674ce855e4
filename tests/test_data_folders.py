"""Class folders in a folder, zip or tar: layouts, classes, pictures of every kind, and what is refused in one line."""

import os
import re
import zlib

import numpy
import pytest
import torch

from lib.data.folders import NAMED, read_folders
from lib.data.pixels import LARGEST_IMAGE
from lib.data.store import TENSORS, assemble, load_data, save_data
from tests.faults.refusals import refused
from tests.make_archives import PACKERS, encoded, picture, png, two_level, write_folder, write_zip

JPEG = encoded(picture(3, 64, 64), "JPEG")


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)


def read(path, on_bad_image="refuse", size=32):
    return assemble("images", read_folders(str(path), size, on_bad_image))


def same(one, other) -> bool:
    return one.classes == other.classes and all(
        torch.equal(getattr(one, name), getattr(other, name)) for name in TENSORS
    )


@pytest.mark.parametrize("kind", PACKERS)
def test_what_is_unpacked_and_read_is_counted(tmp_path, kind, monkeypatch, capsys):
    monkeypatch.setattr("lib.runtime.progress.QUIET_SECONDS", 0.0)
    read_folders(str(PACKERS[kind](tmp_path / f"many.{kind}", two_level(train=30, test=10))), 32)
    said = capsys.readouterr().out
    assert re.search(r"^reading 80 pictures: step 2 of 80, about \d+ s left$", said, re.MULTILINE)
    if kind in ("zip", "tar"):  # small compressed tars are read in one piece
        assert f"unpacking many.{kind}: step 2 of 100, about" in said


# Layouts


@pytest.mark.parametrize("kind", PACKERS)
def test_pixels_order_and_provenance_of_every_kind_of_archive(tmp_path, kind):
    files = dict(reversed({f"pets/{name}": content for name, content in two_level(train=3, test=1).items()}.items()))
    strangers = ("README.txt", ".DS_Store", "train/cat/._0.png", "train/LICENSE", "train/cat/notes.TXT")
    files |= {f"pets/{name}": b"x" for name in strangers} | {"__MACOSX/pets/._train": b"x"}
    raw = read_folders(str(PACKERS[kind](tmp_path / f"many.{kind}", files)), 32)
    assert raw.classes == ["cat", "dog"]
    assert raw.train_labels.tolist() == [0, 0, 0, 1, 1, 1] and raw.test_labels.tolist() == [0, 1]
    images = numpy.concatenate([raw.train_images, raw.test_images])
    assert numpy.array_equal(images, [picture(number).transpose(2, 0, 1) for number in range(8)])
    assert raw.paths == list(two_level(train=3, test=1))
    assert raw.provenance["ignored"] == {".txt": 2, "hidden": 3, "no extension": 1}
    assert raw.source == f"{'folder' if kind == 'folder' else 'archive'} many.{kind}"
    assert ("archive_checksum" in raw.provenance) == (kind != "folder") and "test_split" not in raw.provenance


def test_a_fifth_of_every_class_is_the_test_split_where_there_is_none(tmp_path):
    files = {f"{name}/{number}.png": encoded(picture(number, 8, 8)) for name in "abc" for number in range(10)}
    first = read_folders(str(write_folder(tmp_path / "one", files)), 8)
    assert numpy.bincount(first.test_labels).tolist() == [2, 2, 2] and len(first.train_labels) == 24
    again = read_folders(str(write_zip(tmp_path / "two.zip", files)), 8)
    assert numpy.array_equal(first.test_images, again.test_images)
    assert first.provenance["test_split"] == "20% of every class, drawn from seed 0"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({**two_level(), "train/eel/1.png": b""}, "train and test differ in the classes eel"),
        ({**two_level(), "test/eel/1.png": b""}, "train and test differ in the classes eel"),
        ({"train/cat/1.png": b"", "train/dog/1.png": b""}, "train and test differ in the classes cat, dog"),
        ({**two_level(), "train/cat/more/1.png": b""}, "'train/cat/more/1.png' is out of place"),
        ({**two_level(), "validation/cat/1.png": b""}, "'validation/cat/1.png' is out of place"),
        ({**two_level(), "1.png": b""}, "'1.png' is out of place"),
        ({"x/1.txt": b""}, "holds no images that can be read; allowed: JPEG"),
        ({"a/1.png": b"", "b/1.png": b"", "b/2.png": b""}, "class 'a' has one image; add one for test"),
        ({"a/1.png": JPEG, "a/2.png": JPEG, "b/1.txt": b""}, "class folder 'b' holds no images"),
        ({f"{split}/{name}/1.png": JPEG for split in ("train", "test") for name in "ab"}, "a single training image"),
        ({**two_level(), **{f"train/{name}/1.png": JPEG for name in ("é", "e\u0301")}}, "in two spellings; rename one"),
        ({**two_level(), f"train/{'a' * 101}/1.png": JPEG}, "needs another name; allowed: at most 100"),
        ({**two_level(), "train/two\nlines/1.png": JPEG}, "needs another name"),
        ({**two_level(), "train/\u202egnp/1.png": JPEG}, "needs another name"),
        ({**two_level(), "/".join("abcdefgh/1.png"): JPEG}, "is too deep, or a link leads back up; remove it"),
        (two_level() | {f"train/dog/{n}.png": b"" for n in range(4)}, "class folder 'train/dog' holds no images"),
        ({"a/1.png": JPEG, "a/2.png": b"", "b/1.png": JPEG, "b/2.png": JPEG}, "class 'a' has one image"),
        ({f"{name}/{n}.png": b"" for name in "ab" for n in (1, 2)}, "holds no images that can be read"),
    ],
)
def test_layouts_and_classes_that_do_not_suit(tmp_path, files, words):
    """Of the last three, whose images cannot all be read, what is left when these are skipped."""
    refused(lambda: read(write_folder(tmp_path / "pets", files), "skip"), words)


@pytest.mark.parametrize("kind", ["folder", "zip", "tar.gz"])
def test_a_class_folder_without_images_is_refused_and_not_forgotten(tmp_path, kind):
    within = (("train/eel", ""), ("test/fox", ""), ("train/eel", "notes.txt"), ("test/fox", ".hidden.png"))
    for number, (empty, inside) in enumerate(within):
        path, files = tmp_path / f"{number}.{kind}", {f"pets/{name}": content for name, content in two_level().items()}
        if inside or kind != "folder":
            files[f"pets/{empty}/{inside}"] = b"x" if inside else b""
        else:
            (path / "pets" / empty).mkdir(parents=True)
        refused(lambda: read(PACKERS[kind](path, files)), f"class folder '{empty}' holds no images", "put some in")


@pytest.mark.parametrize("kind", ["folder", "zip", "tar.gz"])
def test_unusual_names_are_kept(tmp_path, kind):
    names = ["猫", "кошка", "🐈", "e\u0301", "with space", "-rf", "$x^{$", "; touch canary", "a" * 100]
    files = {f"{split}/{name}/{name}.png": encoded(picture(0)) for split in ("train", "test") for name in names}
    files |= {f"train/{name}/2.png": encoded(picture(0)) for name in names}
    assert read(PACKERS[kind](tmp_path / f"pets.{kind}", files)).classes == sorted(names)
    assert not list(tmp_path.rglob("canary"))


# Where the pictures are


def test_an_empty_place_says_what_to_put_there(tmp_path):
    write_folder(tmp_path / "data/pictures", {"README.md": b"x", ".DS_Store": b"x"})
    refused(lambda: read("data/pictures"), "data/pictures is empty; put train/<class>/<image>", "by images_path")
    write_folder(tmp_path / "data/pictures", two_level())
    assert read("data/pictures").about["ignored"] == {".md": 1, "hidden": 1}


def test_what_dvc_does_not_see_is_not_read(tmp_path, monkeypatch):
    """Its temporary copy holds of data/pictures the README alone; another picture in the main repository is no other
    dependency there, and the run cache would bring back what was made of the first."""
    write_folder(tmp_path / "copy", {"data/pictures/README.md": b"x"})
    write_folder(tmp_path / "main/data/pictures", two_level())
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "main"))
    refused(lambda: read("data/pictures"), "data/pictures is empty", "an absolute path for dvc exp run --temp")
    assert read(tmp_path / "main/data/pictures").about["source"] == "folder pictures"


@pytest.mark.parametrize(
    "given", ["", "none", "~nobody-of-this-name/x", "a" * 300, "\0", "\udcff", "line\nbreak", "$(x)"]
)
def test_a_path_where_nothing_is(given):
    refused(lambda: read(given), "images_path is", "name a folder, zip or tar")


def test_links_in_a_users_folder_are_followed_and_end(tmp_path):
    write_folder(tmp_path / "elsewhere", two_level())
    (tmp_path / "pets").mkdir()
    for split in ("train", "test"):
        (tmp_path / "pets" / split).symlink_to(tmp_path / "elsewhere" / split)
    assert len(read(tmp_path / "pets").train_labels) == 8
    (tmp_path / "elsewhere/train/up").symlink_to("..")
    refused(lambda: read(tmp_path / "pets"), "a link leads back up")


# Images that cannot be read


BAD = {
    "half.jpg": (JPEG[: len(JPEG) // 2], "truncated"),
    "empty.png": (b"", "it is none of JPEG"),
    "text.png": (b"no image", "it is none of JPEG"),
    "altered.png": (encoded(picture(4))[:200] + b"\0\0\0\0" + encoded(picture(4))[204:], ""),
    "pcx.png": (encoded(picture(1), "PCX"), "it is none of JPEG"),
    "script.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it is none of JPEG"),
    "phone.heic": (b"\0\0\0\x18ftypheic" + bytes(99), "it is none of JPEG"),
    "scan.pcx": (encoded(picture(1), "PCX"), "it is none of JPEG"),
    "camera.NEF": (encoded(picture(1), "PCX"), "it is none of JPEG"),
    "huge.png": (png(10_000, 10_000, 0, 1, bytes(1251 * 10_000)), "it has 10,000 x 10,000 pixels; allowed: 64,000,000"),
    "bomb.ppm": (b"P6 90000 90000 255\n", "bomb"),
    "text bomb.png": (png(1, 1, 0, 8, b"\0\0", b"a\0\0" + zlib.compress(bytes(40 * 2**20), 1)), "too large"),
}


@pytest.mark.parametrize("name", BAD)
def test_an_image_that_cannot_be_read_is_named_or_skipped_and_counted(tmp_path, name, capsys):
    content, reason = BAD[name]
    assert len(content) < 200_000 and LARGEST_IMAGE < 10**8
    path = write_folder(tmp_path / "pets", {**two_level(), f"train/dog/{name}": content})
    told = f"1 of 13 images cannot be read: 'train/dog/{name}' ("
    line = refused(lambda: read(path), told, reason, "on_bad_image: skip in params.yaml")
    assert str(tmp_path) not in line
    found = read(path, "skip")
    assert found.about["skipped"] == {"count": 1, "first": [f"train/dog/{name}"]}
    assert f"skipped, as on_bad_image says: {told}" in capsys.readouterr().out
    (path / "train/dog" / name).unlink()
    assert same(found, read(path, "skip")) and "skipped" not in read(path).about


def test_a_link_a_device_and_odd_names_are_images_that_cannot_be_read(tmp_path):
    odd = {"train/dog/two\nlines.png": b"", "train/dog/\udcff.png": b""}
    path = write_folder(tmp_path / "pets", two_level() | odd)
    (path / "train/cat/8.png").symlink_to("nowhere.png")
    refused(lambda: read(path), "'train/cat/8.png' (it is a link that leads nowhere, or a device)", "two\\nlines.png")
    (path / "train/cat/8.png").unlink()
    os.mkfifo(path / "train/cat/9.png")
    refused(lambda: read(path), "3 of 15 images", "two\\nlines.png", "\\udcff.png")
    found = read(path, "skip")
    save_data(tmp_path / "images.safetensors", found)
    assert load_data(tmp_path / "images.safetensors").about == found.about and len(found.train_labels) == 8


def test_many_images_that_cannot_be_read_change_the_splits_as_if_they_had_not_been_there(tmp_path):
    files = {f"{name}/{number}.png": encoded(picture(number)) for name in "ab" for number in range(20)}
    bad = {f"a/bad {number:02}.jpg": b"" for number in range(25)}
    path = write_zip(tmp_path / "pets.zip", {**files, **bad})
    refused(lambda: read(path), "25 of 65 images", "'a/bad 00.jpg' (", "'a/bad 02.jpg' (", " and 22 more; ")
    found = read(path, "skip")
    assert found.about["skipped"] == {"count": 25, "first": sorted(bad)[:NAMED]}
    assert same(found, read(write_zip(tmp_path / "good.zip", files)))
