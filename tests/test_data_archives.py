"""Zips and tars that are unsafe, too large, damaged or merely odd: refused in one line, or read whole.

Every payload tries to leave a file named canary; nothing may be left outside the temporary folder, nor inside it.
"""

import gzip
import random
import stat
import struct
import tarfile
import tempfile
import tracemalloc
import zipfile
from contextlib import contextmanager

import pytest
import torch

from lib.data import unpack
from lib.data.folders import read_folders
from lib.data.store import TENSORS, assemble
from lib.runtime.errors import UserError
from tests.faults.refusals import refused
from tests.make_archives import PACKERS, two_level, write_folder, write_tar, write_zip

ARCHIVES = [kind for kind in PACKERS if kind != "folder"]
MEGABYTE = 2**20


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch):
    """The folder of a test's own archives, watched: afterwards there is no canary and nothing temporary is left."""
    for name in ("work", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path / "work")
    yield tmp_path / "work"
    assert not list((tmp_path / "temporary").iterdir())
    assert not list(tmp_path.rglob("canary*")) and {path.name for path in tmp_path.iterdir()} == {"work", "temporary"}


def read(path):
    return assemble("images", read_folders(str(path), 8))


@contextmanager
def little_memory(megabytes: int):
    """Python's own allocations inside stay below a bound."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < megabytes * MEGABYTE
    finally:
        tracemalloc.stop()


# Members that lead out, links, devices, doubles


LEAVES, TWICE = "has a path that leaves the archive", "occurs twice; pack"
MEMBERS = {
    **dict.fromkeys(("../canary.png", "{root}/canary.png", "train/cat/../../../canary.png", "../canary/"), LEAVES),
    **dict.fromkeys(("..\\canary.png", "C:/canary.png", "C:\\canary.png"), LEAVES),
    **dict.fromkeys(("./test/dog/1.png", "test//dog/1.png", "test/./dog/1.png"), TWICE),
    "train": "cannot be unpacked",
    "train/cat/" + "x" * 300 + ".png": "cannot be unpacked: File name too long",
}


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
@pytest.mark.parametrize("name", MEMBERS)
def test_a_member_that_leads_out_comes_twice_or_has_no_place(work, kind, name):
    member = {name.format(root=work.parent): b"" if name.endswith("/") else b"x"}
    files = {**member, **two_level()} if name == "train" else {**two_level(), **member}
    refused(lambda: read(PACKERS[kind](work / f"a.{kind}", files)), f"a.{kind}", MEMBERS[name])


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
@pytest.mark.parametrize("target", ["..", "/etc/passwd"])
def test_a_link_or_device_in_a_tar_and_a_file_behind_it(work, kind, target):
    path = work / "a.tar"
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("train/cat")
        link.type, link.linkname = kind, target
        archive.addfile(link)
    behind = write_tar(work / "b.tar", {"train/cat/canary.png": b"x", **two_level()}, "w")
    path.write_bytes(path.read_bytes()[:512] + behind.read_bytes())
    behind.unlink()
    refused(lambda: read(path), "'train/cat' is a link or a device; pack plain files")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
def test_a_link_or_device_in_a_zip_and_an_encrypted_one(work, kind):
    path = write_zip(work / "a.zip", two_level())
    content = path.read_bytes()
    with zipfile.ZipFile(path, "a") as archive:
        member = zipfile.ZipInfo("train/cat/9.png")
        member.external_attr = (kind | 0o777) << 16
        archive.writestr(member, "../../../canary")
    refused(lambda: read(path), "'train/cat/9.png' is a link or a device; pack plain files")
    place = content.index(b"PK\x01\x02") + 8
    path.write_bytes(content[:place] + b"\x01" + content[place + 1 :])
    refused(lambda: read(path), "is encrypted; pack it without a password")


def test_an_archive_in_an_archive_stays_closed_and_backslashes_may_stand_between_the_parts(work):
    """Some packers on Windows write them, against the format's description."""
    inner = write_zip(work / "inner.zip", {"../canary.png": bytes(MEGABYTE)}).read_bytes()
    files = {**two_level(), "train/cat/inner.zip": inner}
    odd = {"pets\\train\\": b"", **{f"pets/{name}".replace("/", "\\"): content for name, content in files.items()}}
    found, wanted = read(write_zip(work / "a.zip", odd)), read(write_folder(work / "pets", files))
    assert all(torch.equal(getattr(found, name), getattr(wanted, name)) for name in TENSORS)
    assert found.about["ignored"] == {".zip": 1}


# Sizes


@pytest.mark.parametrize("kind", ARCHIVES)
def test_members_and_bytes_are_bounded_before_anything_is_decoded(work, kind, monkeypatch):
    path = PACKERS[kind](work / f"a.{kind}", two_level())
    monkeypatch.setattr("lib.data.folders.decode", lambda *_: pytest.fail("decoded"))
    with monkeypatch.context() as patch:
        patch.setattr(unpack, "LARGEST_TOTAL", 10_000)
        refused(lambda: read(path), "is too much: ", " in all, room for 10.0 kB")
    with monkeypatch.context() as patch:
        patch.setattr(unpack.shutil, "disk_usage", lambda _: unpack.shutil._ntuple_diskusage(10_000, 0, 10_000))
        refused(lambda: read(path), "room for 10.0 kB")
    monkeypatch.setattr(unpack, "MOST_MEMBERS", 11)
    refused(lambda: read(path), "member 'test/dog/1.png' is one too many; allowed: 11")


def test_a_zip_bomb_that_declares_few_bytes(work, monkeypatch):
    content, lengths, read_some = bytes(40 * MEGABYTE), [], zipfile.ZipExtFile.read
    path = write_zip(work / "a.zip", {**two_level(), "train/cat/0.png": content})
    path.write_bytes(path.read_bytes().replace(struct.pack("<I", len(content)), struct.pack("<I", 50)))
    assert path.stat().st_size < MEGABYTE
    note = lambda *given: lengths.append(len(block := read_some(*given))) or block  # noqa: E731
    monkeypatch.setattr(zipfile.ZipExtFile, "read", note)
    with little_memory(12):
        refused(lambda: read(path), "a.zip cannot be unpacked: Bad CRC-32 for file 'train/cat/0.png'")
    assert sum(lengths) < 100_000


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


def pax(*records: tuple[str, str]) -> bytes:
    """An extended header, padded to whole blocks."""
    return tarfile.TarInfo._create_pax_generic_header(dict(records), tarfile.XHDTYPE, "utf-8")


NAME = "train/cat/1.png"
SPARSE = pax(("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"))
GROWING = {  # tars that would take far more memory or disk than they have bytes, and what is said of each
    "declared size": (header(NAME, 2**37), "is too much: 137.4 GB"),
    "size in an extended header": (pax(("size", str(2**60))) + header(NAME, 5), "is too much"),
    "negative size": (pax(("size", "-1024")) + header(NAME, 5), "declares -1024 bytes"),
    "a long name": (header("././@LongLink", 32 * MEGABYTE, tarfile.GNUTYPE_LONGNAME), "a header of 33,554,432 bytes"),
    "a long attribute": (pax(("comment", "x" * 100_000)), "a header of 100,"),
    "old sparse file": (header(NAME, 512, tarfile.GNUTYPE_SPARSE) + bytes(512), "is a link or a device"),
    "sparse file": (SPARSE + header(NAME, 512) + b"9999999999\n" + b"1\n" * (8 * MEGABYTE), "sparse file"),
    "sparse file, its map in a header": (pax(("GNU.sparse.map", "0,1")) + header(NAME, 512) + bytes(512), "is a link"),
    "headers in headers": (pax(("a", "b")) * 2000, "cannot be unpacked"),
}


@pytest.mark.parametrize("kind", GROWING)
def test_a_tar_that_grows(work, kind):
    content, words = GROWING[kind]
    path = work / "a.tar.gz"
    path.write_bytes(gzip.compress(content + bytes(1024), 1))
    with little_memory(12):
        refused(lambda: read(path), "a.tar.gz", words)


# Damage


@pytest.mark.parametrize("kind", ARCHIVES)
def test_a_cut_archive_is_refused_wherever_it_ends(work, kind):
    """Also where a tar ends between two members, which is no error to tarfile."""
    path = PACKERS[kind](work / f"pets.{kind}", two_level())
    content = path.read_bytes()
    members = len(content.rstrip(b"\0")) // 512 + 1  # blocks, before the end mark
    ends = range(0, 512 * members + 1, 512) if kind == "tar" else range(0, len(content), len(content) // 23)
    for end in ends:
        path.write_bytes(content[:end])
        refused(lambda: read(path), path.name)


@pytest.mark.parametrize("kind", ARCHIVES)
def test_an_altered_archive_is_refused_or_gives_the_same_data(work, kind):
    """A name whose letters were altered may no longer be an image's: then it is counted among the files left out."""
    path = PACKERS[kind](work / f"pets.{kind}", two_level())
    whole, content, draw, refusals = read(path), path.read_bytes(), random.Random(kind), 0
    for _ in range(40):
        altered = bytearray(content)
        altered[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(altered)
        try:
            found = read(path)
        except UserError:
            refusals += 1
        else:
            equal = all(torch.equal(getattr(found, name), getattr(whole, name)) for name in TENSORS)
            assert (equal and found.classes == whole.classes) or found.about["ignored"]
    assert refusals > 10


def test_a_tar_that_goes_on_after_its_end_is_refused(work):
    for mode, name in (("w", "a.tar"), ("w:gz", "a.tar.gz")):
        first = write_tar(work / name, two_level(), mode)
        second = write_tar(work / f"b{name}", two_level(("eel", "fox")), mode)
        first.write_bytes(first.read_bytes() + second.read_bytes())
        refused(lambda: read(first), "goes on after its end mark; pack all files into one tar")


@pytest.mark.parametrize(
    "content", [b"", b"PK", b"PK\5\6" + bytes(18), b"\x1f\x8b", b"BZh9", b"\xfd7zXZ\0", b"Rar!\x1a\7\0"]
)
def test_what_is_no_archive(work, content):
    (work / "pets.zip").write_bytes(content)
    refused(lambda: read(work / "pets.zip"), "pets.zip")
