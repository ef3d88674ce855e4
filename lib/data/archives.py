"""Files in a directory, a zip or a tar, read by name without unpacking anything to disk.

An archive is material from strangers: paths that leave it, links, devices, encrypted or duplicate members
and sizes beyond the limits are refused, and no more bytes are read than a member declared. Nothing is left out
in silence: an archive that ends early, or goes on after its end, is refused.
"""

import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from lib.runtime.errors import UserError, shown

LARGEST_FILE = 256 * 2**20  # bytes
LARGEST_TOTAL = 256 * 2**30
LARGEST_TAR_NOTE = 16 * 2**10  # a header that extends another: a long name, attributes
MOST_SHARED_NOTES = 100  # attributes that a tar gives to all members after them
LARGEST_PADDING = 16 * 2**20  # zeros after a tar's end mark
MOST_MEMBERS = 5_000_000
LONGEST_PATH = 4096  # characters
DEEPEST = 6  # folders below a directory: ends the walk where a link leads back up
COMPRESSIONS = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ": "xz"}
_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    RuntimeError,
    NotImplementedError,
    ValueError,
)


class Tree:
    """Regular files by their path inside; ``names`` are sorted, with / between the parts.

    ``folders``: the path of every folder, also of one without files, where the archive lists it.
    """

    kind: str

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sizes: dict[str, int] = {}
        self.folders: set[str] = set()
        self._total = 0

    @property
    def names(self) -> list[str]:
        return sorted(self.sizes)

    def contents(self, wanted: Collection[str]) -> Iterator[tuple[str, bytes]]:
        """(name, bytes) of each wanted file, in the order that is cheapest to read."""
        raise NotImplementedError

    def read(self, wanted: Collection[str]) -> dict[str, bytes]:
        """The bytes of a few files by name.

        Raises:
            UserError: a file is missing.
        """
        for name in wanted:
            if name not in self.sizes:
                raise UserError(f"{self.path.name} holds no {name}; give the whole archive, unchanged")
        return dict(self.contents(wanted))

    def _add(self, name: str, size: int) -> str:
        """Register a file under its plain path; returns that path."""
        plain = self._plain(name)
        if plain in self.sizes:
            raise UserError(f"{self.path.name}: member {shown(plain)} occurs twice; pack it again")
        if size < 0:
            raise UserError(f"{self.path.name}: member {shown(plain)} declares {size} bytes; pack it again")
        self.sizes[plain] = size
        self._total += size
        self._bound(len(self.sizes))
        return plain

    def _add_folder(self, name: str) -> None:
        if PurePosixPath(name).parts:  # "./" is the archive itself
            self.folders.add(self._plain(name))

    def _plain(self, name: str) -> str:
        """A member's path without empty and "." parts; refused when it could lead out of the archive."""
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or "\\" in name or ":" in parts[0]:
            raise UserError(f"{self.path.name}: member {shown(name)} has a path that leaves the archive; pack it again")
        if len(name) > LONGEST_PATH:
            raise UserError(
                f"{self.path.name}: member {shown(name)} has a path of {len(name):,} characters; "
                f"allowed: {LONGEST_PATH:,}; rename it and pack it again"
            )
        return "/".join(parts)

    def _bound(self, members: int) -> None:
        """Refuse too many members, folders included, or too many bytes."""
        if self._total > LARGEST_TOTAL or members > MOST_MEMBERS:
            raise UserError(
                f"{self.path.name} declares more than {LARGEST_TOTAL // 2**30} GiB or "
                f"{MOST_MEMBERS:,} members; split it"
            )

    def _bytes(self, name: str, file: BinaryIO) -> bytes:
        """A member's bytes: exactly as many as it declared, and no more than `LARGEST_FILE`."""
        size = self.sizes[name]
        if size > LARGEST_FILE:
            raise UserError(f"{self.path.name}: {name} has {size:,} bytes; allowed: {LARGEST_FILE:,}; remove it")
        content = file.read(size + 1)
        if len(content) != size:
            raise UserError(
                f"{self.path.name}: {name} does not have the {size:,} bytes that it declares; "
                "it is damaged or changes while it is read; get it again"
            )
        return content


class Folder(Tree):
    """A directory of the user's own; links in it are followed."""

    kind = "folder"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._walk(path, "", 0)

    def _walk(self, folder: Path, inside: str, depth: int) -> None:
        try:
            for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
                name = f"{inside}{entry.name}"
                if entry.is_dir():
                    self._enter(folder / entry.name, name, depth + 1)
                elif entry.is_file():
                    self.sizes[name] = entry.stat().st_size
                    self._bound(len(self.sizes))
                elif not entry.name.startswith("."):  # editors leave hidden links that lead nowhere
                    raise UserError(f"{self.path.name}: {name} is a link that leads nowhere, or a device; remove it")
        except OSError as error:
            raise UserError(f"cannot read {self.path.name}/{inside}: {error.strerror}; make it readable") from None

    def _enter(self, folder: Path, name: str, depth: int) -> None:
        if depth > DEEPEST:
            raise UserError(
                f"{self.path.name}: folder {name} is out of place, deeper than {DEEPEST} folders (a link "
                "may lead back up); remove it"
            )
        self.folders.add(name)
        self._walk(folder, f"{name}/", depth)

    def contents(self, wanted: Collection[str]) -> Iterator[tuple[str, bytes]]:
        for name in sorted(wanted):
            try:
                with open(self.path / name, "rb") as file:
                    content = self._bytes(name, file)
            except OSError as error:
                raise UserError(f"cannot read {self.path.name}/{name}: {error.strerror}; make it readable") from None
            yield name, content


class Zip(Tree):
    """A zip, read by its central directory."""

    kind = "archive"

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        super().__init__(path)
        self._archive = archive
        self._members: dict[str, zipfile.ZipInfo] = {}
        self._bound(len(archive.infolist()))
        for member in archive.infolist():
            mode = member.external_attr >> 16
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise UserError(f"{path.name}: member {shown(member.filename)} is a link or a device; pack plain files")
            if member.is_dir() and not member.file_size:
                self._add_folder(member.filename)
            else:
                self._members[self._add(member.filename, member.file_size)] = member

    def contents(self, wanted: Collection[str]) -> Iterator[tuple[str, bytes]]:
        for name in sorted(wanted, key=lambda name: self._members[name].header_offset):
            if self._members[name].flag_bits & 1:
                raise UserError(f"{self.path.name}: {name} is encrypted; pack it without a password")
            with _damage_named(f"{self.path.name}: {name}"), self._archive.open(self._members[name]) as file:
                content = self._bytes(name, file)
            yield name, content


class Tar(Tree):
    """A tar, plain or compressed, read from front to back: once for the names, once for the contents."""

    kind = "archive"

    def __init__(self, path: Path, compression: str = "") -> None:
        """``compression``: "" for none, else one of `COMPRESSIONS`."""
        super().__init__(path)
        self._mode = f"r:{compression}"
        for name, size, _ in self._members():
            self._add(name, size)

    def contents(self, wanted: Collection[str]) -> Iterator[tuple[str, bytes]]:
        left = set(wanted)
        for name, _, file in self._members():
            plain = "/".join(PurePosixPath(name).parts)
            if plain in left:
                left.remove(plain)
                with _damage_named(f"{self.path.name}: {plain}"):
                    content = self._bytes(plain, file())
                yield plain, content
            if not left:
                return

    def _members(self) -> Iterator[tuple]:
        """(name, declared size, function that opens it) of each regular file; then the end is looked at."""
        with _damage_named(self.path.name), tarfile.open(self.path, self._mode, tarinfo=_Header) as archive:
            for count, member in enumerate(archive, 1):
                archive.members.clear()  # tarfile keeps every header otherwise
                self._bound(count)
                if len(archive.pax_headers) > MOST_SHARED_NOTES:
                    raise _Unsafe(f"it has more than {MOST_SHARED_NOTES} attributes of all members; pack plain files")
                if member.isdir():
                    self._add_folder(member.name)
                    continue
                if not member.isreg() or member.issparse():
                    raise UserError(
                        f"{self.path.name}: member {shown(member.name)} is a link or a device; pack plain files"
                    )
                yield member.name, member.size, lambda member=member: archive.extractfile(member)
            _require_zeros(archive.fileobj)


_NOTES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)


class _Unsafe(Exception):
    """What a tar must not hold; the message says where and what to do."""


class _Header(tarfile.TarInfo):
    """Refuses what tarfile would read without bound, and a header that it would take for the archive's end."""

    @classmethod
    def frombuf(cls, buf, *arguments, **named):
        if len(buf) < tarfile.BLOCKSIZE:
            raise tarfile.ReadError("it ends before its end mark")
        try:
            header = super().frombuf(buf, *arguments, **named)
        except tarfile.HeaderError:
            if any(buf):
                raise tarfile.ReadError("what should be a member's header is none") from None
            raise  # the end mark
        note = header.type in _NOTES
        most = LARGEST_TAR_NOTE if note else LARGEST_FILE
        if header.type == tarfile.GNUTYPE_SPARSE:
            cls._refuse_sparse()
        if not 0 <= header.size <= most:
            raise _Unsafe(
                f"{'a header' if note else 'member'} {shown(header.name)} declares {header.size:,} bytes; "
                f"allowed: {most:,}; pack plain files"
            )
        return header

    def _refuse_sparse(*_arguments):
        raise _Unsafe("it has a sparse file, whose size is not bounded; pack plain files, with tar without --sparse")

    _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _refuse_sparse


def _require_zeros(file: BinaryIO) -> None:
    """Read a tar on from its end mark: only padding may follow, and a compressed one has its checksum there."""
    left = LARGEST_PADDING
    while block := file.read(2**20):
        left -= len(block)
        if any(block) or left < 0:
            raise _Unsafe("it goes on after its end mark; pack all files into one tar")


@contextmanager
def open_tree(path: Path) -> Iterator[Tree]:
    """The files of a directory, zip or tar (plain, gz, bz2 or xz).

    Raises:
        UserError: missing, of another kind, unsafe or damaged.
    """
    if path.is_dir():
        yield Folder(path)
        return
    try:
        with open(path, "rb") as file:
            start = file.read(512)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give a folder, zip or tar") from None
    if start.startswith(b"PK"):
        with _damage_named(path.name):
            archive = zipfile.ZipFile(path)
        with archive:
            yield Zip(path, archive)
        return
    compression = next((name for mark, name in COMPRESSIONS.items() if start.startswith(mark)), "")
    if compression or start[257:262] == b"ustar":
        yield Tar(path, compression)
    else:
        raise UserError(f"{path.name} is neither a folder nor a zip or tar; give one of these")


@contextmanager
def _damage_named(what: str) -> Iterator[None]:
    try:
        yield
    except _Unsafe as error:
        raise UserError(f"{what}: {error}") from None
    except _DAMAGE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{what} cannot be read: {reason}; the archive is damaged, get it again") from None
