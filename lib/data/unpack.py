"""Zips and tars, unpacked into a temporary folder: material from strangers, refused where it is unsafe or damaged.

Paths that leave the archive, links, devices, encrypted or repeated members, and more bytes or members than the bounds
allow are refused, and so is an archive that ends early or goes on after its end: nothing is left out in silence.
"""

import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath

from lib.runtime.errors import UserError, one_line, shown
from lib.runtime.files import size
from lib.runtime.progress import StepProgress

LARGEST_TOTAL = 64 * 2**30  # bytes, unpacked; and never more than the disk has room for
LARGEST_NOTE = 64 * 2**10  # bytes of a tar's header that extends another, read into memory at once
MOST_MEMBERS = 2_000_000
COMPRESSIONS = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ": "xz"}


def user_path(given: Path | str) -> Path | None:
    """What a user names, absolute or relative to the working folder; None if it is not there."""
    try:
        path = Path(given).expanduser()
        return path if given and path.exists() else None
    except (OSError, RuntimeError, ValueError):  # too long, no such user, a character that no path has
        return None


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """``path`` itself where it is a folder, else a temporary folder with what the zip or tar (gz, bz2, xz) holds.

    A UserError says that it is of another kind, unsafe, too large or damaged.
    """
    if path.is_dir():
        yield path
        return
    if not path.is_file():  # a pipe would be waited for
        raise UserError(f"{path} is neither a file nor a folder; give one of these")
    with tempfile.TemporaryDirectory(prefix="engram-") as folder:
        try:
            _unpack(path, folder)
        except Exception as error:  # readers of damaged archives raise errors of many kinds
            if isinstance(error, UserError):
                raise
            how = "get it again, or unpack it yourself and give the folder"
            raise UserError(f"{path.name} cannot be unpacked: {one_line(error)}; {how}") from None
        yield Path(folder)


def _unpack(path: Path, folder: str) -> None:
    with open(path, "rb") as file:
        start = file.read(512)
    compression = next((name for mark, name in COMPRESSIONS.items() if start.startswith(mark)), "")
    bounds = _Bounds(path.name, folder)
    if start.startswith(b"PK"):
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():  # all of them, before the first is written
                info.filename = info.filename.replace("\\", "/")  # of some packers on Windows
                bounds.admit(info.filename, info.file_size, info.external_attr >> 16)
                if info.flag_bits & 1:
                    raise UserError(f"{path.name}: {shown(info.filename)} is encrypted; pack it without a password")
            written, total = 0, max(1, bounds.total)
            with StepProgress(f"unpacking {path.name}", 100) as progress:
                for info in archive.infolist():
                    archive.extract(info, folder)  # no more bytes than it declares
                    written += info.file_size
                    progress.reach(written / total)
    elif compression or start[257:262] == b"ustar":
        _unpack_tar(path, compression, folder, bounds)
    else:
        raise UserError(f"{path.name} is neither a folder nor a zip or tar; give one of these")


def _unpack_tar(path: Path, compression: str, folder: str, bounds: "_Bounds") -> None:
    with (
        open(path, "rb") as packed,
        tarfile.open(fileobj=packed, mode=f"r:{compression}", tarinfo=_Header) as archive,  # type: ignore[call-overload]
        StepProgress(f"unpacking {path.name}", 100) as progress,
    ):
        length = path.stat().st_size
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python before 3.11.4 has none
        for info in archive:
            archive.members.clear()  # tarfile keeps every header otherwise
            plain = info.isdir() or (info.isreg() and not info.issparse())
            bounds.admit(info.name + "/" * info.isdir(), info.size, 0 if plain else stat.S_IFLNK)
            archive.extract(info, folder, set_attrs=False)
            progress.reach(packed.tell() / length)
        while block := archive.fileobj.read(2**20):  # a compressed tar has its checksum there
            if block.strip(b"\0"):
                raise UserError(f"{path.name} goes on after its end mark; pack all files into one tar")


class _Bounds:
    """What an archive's members may be, one by one and together."""

    def __init__(self, where: str, folder: str) -> None:
        self.where, self.room = where, min(LARGEST_TOTAL, shutil.disk_usage(folder).free)
        self.members = self.total = 0
        self.files: set[tuple[str, ...]] = set()

    def admit(self, name: str, length: int, mode: int) -> None:
        """Refuse a member by its name, its size in bytes or its mode (0: not known) before it is written."""
        path = PureWindowsPath(name)  # knows both separators, and drives
        self.members += 1
        self.total += length
        for refused, why in (
            (path.anchor or ".." in path.parts, "has a path that leaves the archive"),
            (stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR), "is a link or a device"),
            (path.parts in self.files, "occurs twice"),
            (length < 0, f"declares {length} bytes"),
            (self.members > MOST_MEMBERS, f"is one too many; allowed: {MOST_MEMBERS:,}"),
            (self.total > self.room, f"is too much: {size(self.total)} in all, room for {size(self.room)}"),
        ):
            if refused:
                how = "pack plain files anew, or unpack it yourself and give the folder"
                raise UserError(f"{self.where}: member {shown(name)} {why}; {how}")
        if not name.endswith("/"):
            self.files.add(path.parts)


class _Header(tarfile.TarInfo):
    """Refuses what tarfile would take for the archive's end, and what it would read into memory without bound."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Header":
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise  # the end mark
            raise tarfile.ReadError("it ends before its end mark, or a header is damaged") from None
        if header.type not in tarfile.REGULAR_TYPES and not 0 <= header.size <= LARGEST_NOTE:
            raise tarfile.ReadError(f"a header of {header.size:,} bytes")
        return header

    def _proc_gnusparse_10(self, *_: object) -> None:  # its map has no bound
        raise tarfile.ReadError("it has a sparse file; pack plain files")
