"""Class folders: layouts, archives, pixels, and what is refused in one line."""

import io
import os
import stat
import struct
import tarfile
import zipfile

import numpy
import pytest
import torch
from lib.data.archives import open_tree
from PIL import Image

from lib.data import archives
from lib.data.folders import read_folders
from lib.data.pixels import blank, decode
from lib.data.store import assemble
from lib.runtime.errors import UserError
from tests.make_archives import encoded, picture, sha256, two_level, write_folder, write_tar, write_zip


def refusal(*arguments) -> str:
    with pytest.raises(UserError) as caught:
        read_folders(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


def read(path, size=32, seed=0):
    return read_folders(str(path), size, seed)


@pytest.fixture(params=["folder", "zip", "tar", "tar.gz", "tar.xz"])
def packed(request, tmp_path):
    """A function that writes files as a folder, zip or tar."""

    def write(files):
        if request.param == "folder":
            return write_folder(tmp_path / "pets", files)
        if request.param == "zip":
            return write_zip(tmp_path / "pets.zip", files)
        mode = {"tar": "w", "tar.gz": "w:gz", "tar.xz": "w:xz"}[request.param]
        return write_tar(tmp_path / f"pets.{request.param}", files, mode)

    return write


def test_two_levels_keep_pixels_and_order(packed):
    files = two_level(train=3, test=1)
    path = packed(dict(reversed(files.items())))
    found = read(path)
    recorded = sha256(path.read_bytes()) if path.is_file() else None
    assert found.provenance.get("archive_checksum") == recorded
    assert found.classes == ["cat", "dog"]
    assert found.train_labels.tolist() == [0, 0, 0, 1, 1, 1] and found.test_labels.tolist() == [0, 1]
    images = numpy.concatenate([found.train_images, found.test_images])
    assert all(numpy.array_equal(images[number], picture(number).transpose(2, 0, 1)) for number in range(8))


def test_wrapping_folder_and_strangers(packed):
    files = {f"pets/{name}": content for name, content in two_level().items()}
    strangers = {
        "pets/README.txt": b"",
        "pets/.DS_Store": b"x",
        "pets/train/cat/._0.png": b"x",
        "__MACOSX/pets/._train": b"x",
        "pets/train/LICENSE": b"x",
        "pets/train/cat/notes.TXT": b"x",
    }
    found = read(packed({**strangers, **files}))
    assert len(found.train_labels) == 8
    assert found.provenance["ignored"] == {".txt": 2, "hidden": 3, "no extension": 1}
    assert "/" not in found.source and found.source.split()[1].startswith("pets")


def test_one_level_splits_by_seed(packed):
    files = {f"{name}/{number}.png": encoded(picture(number, 8, 8)) for name in "abc" for number in range(10)}
    path = packed(files)
    first, again, other = read(path, 8, 1), read(path, 8, 1), read(path, 8, 2)
    assert numpy.bincount(first.test_labels).tolist() == [2, 2, 2] and len(first.train_labels) == 24
    assert numpy.array_equal(first.test_images, again.test_images)
    assert not numpy.array_equal(first.test_images, other.test_images)
    assert "seed 1" in first.provenance["test_split"]


def test_a_class_named_train_is_a_class(tmp_path):
    files = {f"{name}/{number}.png": encoded(picture(number)) for name in ("train", "test", "bus") for number in (0, 1)}
    assert read(write_folder(tmp_path / "a", files)).classes == ["bus", "test", "train"]


@pytest.mark.parametrize(
    ("extra", "part"),
    [
        ({"train/eel/1.png": b""}, "test has no image of: eel"),
        ({"test/eel/1.png": b""}, "train has no image of: eel"),
        ({"train/cat/more/1.png": b""}, "'train/cat/more/1.png' is out of place"),
        ({"validation/cat/1.png": b""}, "'validation/cat/1.png' is out of place"),
        ({"1.png": b""}, "'1.png' is out of place"),
    ],
)
def test_layout_refused(tmp_path, extra, part):
    assert part in refusal(str(write_folder(tmp_path / "pets", {**two_level(), **extra})), 32, 0)


def test_layout_missing_parts(tmp_path):
    only_train = {name: content for name, content in two_level().items() if name.startswith("train")}
    assert "no other" in refusal(str(write_folder(tmp_path / "a", only_train)), 32, 0)
    assert "holds no images" in refusal(str(write_folder(tmp_path / "b", {"x/1.txt": b""})), 32, 0)
    assert "where nothing is" in refusal(str(tmp_path / "none"), 32, 0)
    assert "neither a folder" in refusal(str(write_folder(tmp_path, {"c.txt": b"no"}) / "c.txt"), 32, 0)
    single = {"a/1.png": b"", "b/1.png": b"", "b/2.png": b""}
    assert "class 'a' has one image" in refusal(str(write_folder(tmp_path / "d", single)), 32, 0)
    with pytest.raises(UserError, match="has 1 class"):
        one = {f"a/{number}.png": encoded(picture(number)) for number in range(5)}
        assemble("images", read(write_folder(tmp_path / "e", one)))


def test_relative_to_the_main_repository(tmp_path, monkeypatch):
    write_folder(tmp_path / "main" / "pets", two_level())
    (tmp_path / "copy").mkdir()
    monkeypatch.chdir(tmp_path / "copy")
    assert "where nothing is" in refusal("pets", 32, 0)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "main"))
    assert read("pets").source == "folder pets"


def test_corrupt_image_is_named(packed):
    files = two_level()
    whole = encoded(picture(0, 64, 64), "JPEG")
    for broken in (
        whole[: len(whole) // 2],
        b"",
        b"not an image",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    ):
        message = refusal(str(packed({**files, "train/dog/2.png": broken})), 32, 0)
        assert "train/dog/2.png cannot be read as an image" in message


def test_huge_image_is_refused_unread():
    for side, part in ((9000, "9,000 x 9,000 pixels; allowed: 64,000,000"), (90_000, "more than 64,000,000 pixels")):
        with pytest.raises(ValueError, match=part):
            decode(f"P6 {side} {side} 255\n".encode(), 32)


def test_unreadable_file_is_named(tmp_path, monkeypatch):
    root = write_folder(tmp_path / "pets", two_level())
    target = root / "train/cat/1.png"
    real = open

    def denied(path, *arguments, **named):
        if os.fspath(path) == os.fspath(target):
            raise PermissionError(13, "Permission denied")
        return real(path, *arguments, **named)

    monkeypatch.setattr(archives, "open", denied, raising=False)
    assert "pets/train/cat/1.png: Permission denied" in refusal(str(root), 32, 0)


@pytest.mark.parametrize("name", ["/etc/cat/1.png", "../cat/1.png", "train/../../x.png", "C:/cat/1.png", "a\\b.png"])
def test_names_that_leave_the_archive(tmp_path, name):
    files = {**two_level(), name: b"x"}
    for path in (write_zip(tmp_path / "a.zip", files), write_tar(tmp_path / "a.tar", files, "w")):
        assert "leaves the archive" in refusal(str(path), 32, 0)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_a_tar(tmp_path, kind):
    path = write_tar(tmp_path / "a.tar", two_level(), "w")
    with tarfile.open(path, "a") as archive:
        member = tarfile.TarInfo("train/cat/9.png")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    assert "link or a device" in refusal(str(path), 32, 0)


def test_link_twin_and_password_in_a_zip(tmp_path):
    path = write_zip(tmp_path / "a.zip", two_level())
    content = path.read_bytes()
    with zipfile.ZipFile(path, "a") as archive:
        member = zipfile.ZipInfo("train/cat/9.png")
        member.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(member, "/etc/passwd")
    assert "link or a device" in refusal(str(path), 32, 0)
    path.write_bytes(content)
    with pytest.warns(UserWarning), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("train/cat/1.png", b"x")
    assert "occurs twice" in refusal(str(path), 32, 0)
    place = content.index(b"PK\x01\x02") + 8
    path.write_bytes(content[:place] + b"\x01" + content[place + 1 :])
    assert "encrypted" in refusal(str(path), 32, 0)


def test_sizes_are_bounded(tmp_path, monkeypatch):
    files = two_level()
    paths = [
        write_zip(tmp_path / "a.zip", files),
        write_tar(tmp_path / "a.tar.gz", files),
        write_folder(tmp_path / "a", files),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(archives, "LARGEST_FILE", 1000)
        assert all("allowed: 1,000" in refusal(str(path), 32, 0) for path in paths)
    monkeypatch.setattr(archives, "LARGEST_TOTAL", 10_000)
    assert all("declares more" in refusal(str(path), 32, 0) for path in paths[:2])


def test_directories_of_an_archive_are_counted_and_not_kept(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "a.tar", two_level(), "w")
    with tarfile.open(path, "a") as archive:
        for number in range(5000):
            member = tarfile.TarInfo(f"empty/{number}")
            member.type = tarfile.DIRTYPE
            archive.addfile(member)
    opened, real = [], tarfile.open
    with monkeypatch.context() as patch:
        patch.setattr(tarfile, "open", lambda *given, **named: opened.append(real(*given, **named)) or opened[-1])
        assert len(read(path).train_labels) == 8
    assert opened and max(len(archive.members) for archive in opened) <= 1
    zipped = write_zip(tmp_path / "a.zip", {**two_level(), **{f"empty/{number}/": b"" for number in range(5000)}})
    assert len(read(zipped).train_labels) == 8
    monkeypatch.setattr(archives, "MOST_MEMBERS", 5000)
    assert all("5,000 members" in refusal(str(given), 32, 0) for given in (path, zipped))


def test_lying_and_damaged_archives(tmp_path):
    files = {**two_level(), "train/cat/1.png": bytes(5000)}
    path = write_zip(tmp_path / "a.zip", files)
    content = path.read_bytes()
    path.write_bytes(content.replace(struct.pack("<I", 5000), struct.pack("<I", 50)))
    assert "train/cat/1.png" in refusal(str(path), 32, 0)
    path.write_bytes(content[:-200])
    assert "damaged" in refusal(str(path), 32, 0)
    path = write_tar(tmp_path / "a.tar.gz", two_level())
    path.write_bytes(path.read_bytes()[:-3000])
    assert "damaged" in refusal(str(path), 32, 0)


def test_oversized_extended_header_is_not_read(tmp_path):
    member = tarfile.TarInfo("pax")
    member.type, member.size = tarfile.XHDTYPE, 2**33
    path = tmp_path / "a.tar"
    path.write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    assert "declares 8,589,934,592 bytes" in refusal(str(path), 32, 0)


def test_links_in_a_users_folder_are_followed_and_end(tmp_path):
    write_folder(tmp_path / "elsewhere", two_level())
    (tmp_path / "pets").mkdir()
    for split in ("train", "test"):
        (tmp_path / "pets" / split).symlink_to(tmp_path / "elsewhere" / split)
    assert len(read(tmp_path / "pets").train_labels) == 8
    (tmp_path / "elsewhere" / "train" / "up").symlink_to("..")
    assert "out of place" in refusal(str(tmp_path / "pets"), 32, 0)


def test_a_missing_file_and_one_that_grew(tmp_path):
    with open_tree(write_folder(tmp_path / "pets", {"a": b"1234"})) as tree:
        with pytest.raises(UserError, match="holds no x"):
            tree.read(["x"])
        assert tree.read(["a"]) == {"a": b"1234"}
        tree.sizes["a"] = 3
        with pytest.raises(UserError, match="3 bytes that it declares"):
            tree.read(["a"])


def test_formats_outside_the_list_are_not_tried():
    with pytest.raises(ValueError, match="it is none of JPEG"):
        decode(encoded(picture(1), "PCX"), 32)


def test_orientation_is_respected():
    image = picture(3, 24, 40)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = decode(encoded(image, "PNG", exif=exif), 32)
    upright = decode(encoded(numpy.rot90(image, -1).copy()), 32)
    assert numpy.array_equal(turned, upright)
    assert not numpy.array_equal(turned, decode(encoded(image), 32))


def test_modes_become_rgb():
    gray = picture(5, 32, 32)[..., 0]
    expected = numpy.repeat(gray[None], 3, axis=0)
    assert numpy.array_equal(decode(encoded(Image.fromarray(gray)), 32), expected)
    deep = Image.fromarray(gray.astype(numpy.uint16) * 256 + 7)
    assert numpy.array_equal(decode(encoded(deep), 32), expected)
    assert numpy.array_equal(decode(encoded(deep, "TIFF"), 32), expected)
    clear = Image.new("RGBA", (32, 32), (200, 10, 10, 0))
    assert (decode(encoded(clear), 32) == 255).all()
    palette = Image.fromarray(picture(6)).convert("P")
    assert numpy.array_equal(decode(encoded(palette), 32), numpy.asarray(palette.convert("RGB")).transpose(2, 0, 1))
    ink = Image.new("CMYK", (32, 32), (0, 255, 255, 0))
    red, green, blue = decode(encoded(ink, "TIFF"), 32).reshape(3, -1).mean(1)
    assert red > 200 and green < 50 and blue < 50


@pytest.mark.parametrize("values", [numpy.float32, numpy.int32])
def test_gray_without_a_stated_range_is_refused(values):
    image = Image.fromarray(picture(5, 32, 32)[..., 0].astype(values))
    with pytest.raises(ValueError, match="no stated range; save it with 8 or 16 bits"):
        decode(encoded(image, "TIFF"), 32)


def test_gray_of_12_bits_is_refused_in_tiff_and_scaled_in_pgm():
    content = encoded(Image.new("I;16", (32, 32), 4095), "TIFF")
    twelve = content.replace(struct.pack("<HHIHH", 258, 3, 1, 16, 0), struct.pack("<HHIHH", 258, 3, 1, 12, 0))
    assert twelve != content
    with pytest.raises(ValueError, match="no stated range"):
        decode(twelve, 32)
    gray = numpy.full((32, 32), 4095, ">u2")
    assert (decode(b"P5 32 32 4095\n" + gray.tobytes(), 32) == 255).all()
    assert (decode(b"P5 32 32 65535\n" + gray.tobytes(), 32) == 15).all()


def test_resizing_is_antialiased_bicubic_of_the_whole_image():
    checkers = ((numpy.indices((128, 64)).sum(0) % 2) * 255).astype(numpy.uint8)
    small = decode(encoded(Image.fromarray(checkers)), 32)
    assert small.shape == (3, 32, 32) and abs(small.astype(int) - 127).max() <= 3
    image = picture(7, 50, 90)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(image).permute(2, 0, 1)[None].float(), (32, 32), mode="bicubic", antialias=True
    )
    expected = expected.round().clamp(0, 255)[0].numpy()
    assert abs(decode(encoded(image), 32).astype(float) - expected).max() <= 2


def test_damaged_exif_does_not_cost_the_image():
    image = picture(8)
    assert numpy.array_equal(decode(encoded(image, "PNG", exif=b"Exif\0\0II*\0garbage"), 32), image.transpose(2, 0, 1))


def test_more_than_the_memory_is_refused():
    with pytest.raises(UserError, match="lower image_size"):
        blank(10**9, 512)


def test_animation_gives_its_first_frame():
    frames = [Image.new("L", (32, 32), value) for value in (10, 200)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "TIFF", save_all=True, append_images=frames[1:])
    assert (decode(buffer.getvalue(), 32) == 10).all()
