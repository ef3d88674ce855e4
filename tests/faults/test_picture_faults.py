"""Faulty and unusual pictures and names, case by case: refused in one line, or converted and that is stated."""

import struct
import zlib

import pytest
from PIL import Image

from lib.data.folders import NAMED
from lib.data.pixels import LARGEST_IMAGE
from lib.data.store import load_data, save_data
from lib.params.check import check_params
from tests.examples import study_params
from tests.faults.class_folders import FORMATS, JPEG, read, refused_folder, same
from tests.faults.refusals import converted, refused
from tests.make_archives import encoded, picture, two_level, write_folder, write_zip


def damaged() -> dict[str, bytes]:
    """Files that are named as images and are none, or not whole."""
    png = encoded(picture(4, 64, 64))
    return {
        "half a JPEG": JPEG[: len(JPEG) // 2],
        "empty": b"",
        "text": b"no image",
        "half a PNG": png[: len(png) // 2],
        "altered PNG": png[:200] + b"\0\0\0\0" + png[204:],
        "a format not allowed": encoded(picture(1), "PCX"),
    }


@pytest.mark.parametrize("kind", damaged())
def test_a_corrupt_image_is_named_and_counted(tmp_path, kind, capsys):
    files = {**two_level(), "train/dog/2.png": damaged()[kind]}
    path = write_folder(tmp_path / "pets", files)
    refused(lambda: read(path), "train/dog/2.png cannot be read as an image", "(1 of 12 images)", "on_bad_image: skip")
    found = converted(lambda: read(path, "skip"))
    assert found.about["skipped"] == {"count": 1, "first": ["train/dog/2.png"]}
    assert (
        "skipped, as on_bad_image says: 1 of 12 images that cannot be read: 'train/dog/2.png' ("
        in capsys.readouterr().out
    )
    (path / "train/dog/2.png").unlink()
    assert same(found, read(path)) and len(found.train_labels) == 7


def test_many_corrupt_images_are_all_counted_and_the_first_named(tmp_path):
    files = {f"{name}/{number}.png": encoded(picture(number)) for name in "ab" for number in range(20)}
    bad = {f"a/bad {number:02}.jpg": b"" for number in range(25)}
    path = write_zip(tmp_path / "pets.zip", {**files, **bad})
    refused(lambda: read(path), "a/bad 00.jpg cannot", "nor can 24 more: a/bad 01.jpg, ", " and 21 more (25 of 65 ")
    found = converted(lambda: read(path, "skip"))
    assert found.about["skipped"] == {"count": 25, "first": sorted(bad)[:NAMED]} and NAMED == 20
    assert same(found, read(write_zip(tmp_path / "good.zip", files)))
    assert read(tmp_path / "good.zip", "skip").about.get("skipped") is None


def test_a_class_does_not_vanish_with_its_corrupt_images(tmp_path):
    bad = {f"train/dog/{number}.png": b"" for number in range(4)}
    path = write_folder(tmp_path / "pets", {**two_level(), **bad})
    refused(lambda: read(path, "skip"), "none of the images in 'train/dog' can be read")
    path = write_folder(tmp_path / "one", {"a/1.png": JPEG, "a/2.png": b"", "b/1.png": JPEG, "b/2.png": JPEG})
    refused(lambda: read(path, "skip"), "class 'a' has one image")
    path = write_folder(tmp_path / "none", {"a/1.png": b"", "b/1.png": b"", "a/2.png": b"", "b/2.png": b""})
    refused(lambda: read(path, "skip"), "none of the images in 'a' can be read")


def test_skipping_has_no_effect_on_another_dataset():
    for dataset in ("cifar10", "digits"):
        refused(
            lambda: check_params({**study_params(), "dataset": dataset, "on_bad_image": "skip"}),
            f"on_bad_image is 'skip', which has no effect with dataset {dataset}; set dataset to images",
        )
    refused(lambda: check_params({**study_params(), "on_bad_image": "drop"}), "allowed: 'refuse', 'skip'")
    check_params({**study_params(), "dataset": "images", "images_path": "x", "on_bad_image": "skip"})


def png(width: int, height: int, kind: int, depth: int, rows: bytes) -> bytes:
    """A PNG of the given color type, from rows that each begin with a zero."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(picture(1), exif=exif)


def unusual() -> dict[str, tuple[bytes, list[str]]]:
    """RawDataset of other kinds than 8-bit RGB, and the conversions that are stated."""
    palette = Image.fromarray(picture(6)).convert("P")
    deep = bytes(range(256)) * 2
    rgb16 = png(4, 4, 2, 16, b"".join(b"\0" + deep[24 * row : 24 * (row + 1)] for row in range(4)))
    gray16 = png(4, 4, 0, 16, b"".join(b"\0" + deep[8 * row : 8 * (row + 1)] for row in range(4)))
    return {
        "CMYK JPEG": (encoded(Image.new("CMYK", (9, 9), (0, 255, 255, 0)), "JPEG"), ["CMYK to RGB"]),
        "CMYK TIFF": (encoded(Image.new("CMYK", (9, 9)), "TIFF"), ["CMYK to RGB"]),
        "palette": (encoded(palette), ["palette to RGB"]),
        "palette with one clear": (encoded(palette, transparency=0), ["palette to RGB", "transparency to white"]),
        "16-bit gray": (gray16, ["gray to RGB", "16 bits to 8"]),
        "16-bit color": (rgb16, ["16 bits to 8"]),
        "16-bit PPM": (b"P6 2 2 65535\n" + bytes(24), ["16 bits to 8"]),
        "alpha": (encoded(Image.new("RGBA", (9, 9), (9, 9, 9, 0))), ["transparency to white"]),
        "gray with alpha": (encoded(Image.new("LA", (9, 9))), ["transparency to white", "gray to RGB"]),
        "gray": (encoded(Image.new("L", (9, 9))), ["gray to RGB"]),
        "black and white": (encoded(Image.new("1", (9, 9))), ["gray to RGB"]),
        "YCbCr": (encoded(Image.new("YCbCr", (9, 9)), "TIFF"), ["YCbCr to RGB"]),
        "1x1": (encoded(picture(1, 1, 1)), []),
        "1x5000": (encoded(picture(1, 1, 5000)), []),
        "turned by EXIF": (turned(), ["turned upright by its EXIF tag"]),
    }


@pytest.mark.parametrize("kind", unusual())
def test_a_picture_of_another_kind_is_converted_and_that_is_stated(tmp_path, kind, capsys):
    content, expected = unusual()[kind]
    plain = two_level()
    path = write_folder(tmp_path / "pets", {**plain, "train/dog/9.png": content})
    found = converted(lambda: read(path))
    assert found.about["converted"] == dict.fromkeys(sorted(expected), 1)
    assert found.about["resized"].startswith("the whole image") and len(found.train_labels) == 9
    said = capsys.readouterr().out
    assert said.startswith("converted: ") if expected else not said
    assert all(f"{word} (1)" in said for word in expected)
    if "alpha" in kind or "CMYK" in kind:
        wanted = {"alpha": (255, 255, 255), "CMYK JPEG": (255, 0, 0)}.get(kind)
        pixel = found.train_images[-1, :, 4, 4].tolist()
        assert wanted is None or max(abs(a - b) for a, b in zip(pixel, wanted)) < 30


def test_a_picture_of_10000_by_10000_is_refused_unread_and_may_be_skipped(tmp_path):
    huge = png(10_000, 10_000, 0, 1, (b"\0" + bytes(1250)) * 10_000)
    assert len(huge) < 50_000 and LARGEST_IMAGE < 10**8
    path = write_folder(tmp_path / "pets", {**two_level(), "train/dog/9.png": huge})
    refused(lambda: read(path), "train/dog/9.png", "it has 10,000 x 10,000 pixels; allowed: 64,000,000")
    assert converted(lambda: read(path, "skip")).about["skipped"]["count"] == 1


# Names


@pytest.mark.parametrize("kind", ["folder", ".zip", ".tar.gz"])
@pytest.mark.parametrize("name", ["猫", "ネコ neko", "кошка", "🐈", "e\u0301", "with space", "-rf", "$x$", "a" * 100])
def test_unicode_and_long_names_are_kept(tmp_path, kind, name):
    files = {f"{split}/{label}/{name}.png": encoded(picture(0)) for split in ("train", "test") for label in (name, "b")}
    files |= {f"train/{label}/2.png": encoded(picture(0)) for label in (name, "b")}
    path = write_folder(tmp_path / "pets", files) if kind == "folder" else FORMATS[kind](tmp_path / f"p{kind}", files)
    assert converted(lambda: read(path)).classes == sorted([name, "b"])


def test_names_that_cannot_be_kept(tmp_path):
    for number, (name, words) in enumerate(
        [
            ("a" * 101, "has a name of 101 characters; allowed: 100; rename it"),
            ("two\nlines", r"'two\\nlines' has a name that cannot be printed; rename it"),
            ("red\x1b[31m", "cannot be printed"),
            ("\u202egnp", "cannot be printed"),
            ("\udcff", "cannot be printed"),
        ]
    ):
        files = {**two_level(), f"train/{name}/1.png": JPEG, f"test/{name}/1.png": JPEG}
        refused(lambda: read(write_folder(tmp_path / f"{number}", files)), words.replace("\\\\", "\\"))
    long = {**two_level(), "train/cat/" + "x" * 5000 + ".png": JPEG}
    for kind, write in FORMATS.items():
        refused(lambda: read(write(tmp_path / f"long{kind}", long)), "characters; allowed: 4,096; rename it")


def test_image_names_that_end_the_line_stay_on_the_line(tmp_path):
    files = {**two_level(), "train/dog/two\nlines.png": b"", "train/dog/\udcff.png": b""}
    path = write_folder(tmp_path / "pets", files)
    refused(lambda: read(path), "train/dog/two\\nlines.png", "\\udcff.png", "(2 of 14 images)")
    found = converted(lambda: read(path, "skip"))
    assert found.about["skipped"]["count"] == 2
    save_data(tmp_path / "images.safetensors", found)
    assert load_data(tmp_path / "images.safetensors").about == found.about


def test_two_spellings_of_one_name(tmp_path):
    for number, (one, other) in enumerate([("é", "e\u0301"), ("가", "\u1100\u1161")]):
        files = {f"train/{name}/1.png": JPEG for name in (one, other)} | {f"test/{one}/1.png": JPEG}
        refused_folder(tmp_path / f"{number}", files, "one name in two spellings of Unicode; rename one")
