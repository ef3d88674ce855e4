"""Writing whole files or nothing, and reading them without executing anything.

Every writer fills a part beside its target, syncs it and renames it: a reader never meets half a file, also after a
kill or a power failure. Equal content gives equal bytes, so that DVC sees no change. No reader unpickles: tensors are
safetensors, arrays npz without Python objects, tables CSV and everything else JSON.
"""

import errno
import fcntl
import glob
import hashlib
import json
import os
import secrets
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import BadZipFile, ZipFile

from safetensors import SafetensorError, safe_open

from lib.runtime.errors import UserError

ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "make the folder writable"),
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST), "move away the file that is in the place of a folder"),
    errno.EFBIG: "raise the limit on a file's size (ulimit -f)",
}
# What damaged files make their readers raise; RuntimeError for nesting too deep, MemoryError for a size only claimed.
DAMAGE = (ValueError, LookupError, TypeError, EOFError, OSError, RuntimeError, MemoryError)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield the path of an empty part beside ``path``; on a clean exit it is synced and renamed to ``path``.

    Parts that killed writers of the same file left behind are removed. A UserError says that the system refuses;
    what was at ``path`` before is then still there.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    with writing(path):
        make_folder(path.parent)
        remove_leftovers(path.parent, path.name)
        handle = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            # Locked until it is closed or this process dies. Without locks nothing is ever taken for a leftover.
            with suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield part
            # The content is on disk before it has the name, and the name before anything builds on it.
            os.fsync(handle)
            os.replace(part, path)
            sync_folder(path.parent)
        finally:
            os.close(handle)
            part.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the system's refusal to write ``path`` into a UserError of one line."""
    try:
        yield
    except OSError as error:
        said, advice = error.strerror or type(error).__name__, ADVICE.get(error.errno or 0, "mend the folder")
        how = f"{advice}, then run the same command again; what was there before is kept"
        raise UserError(f"cannot write {path}: {said[:1].lower()}{said[1:]}; {how}") from None


def require_room(folder: Path) -> None:
    """A UserError where ``folder`` could not be written in: asked before something long whose result goes there."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "is not writable" if there.is_dir() else "is no folder"
        raise UserError(f"cannot write to {folder}: {there} {why}; name another folder with --to")


def make_folder(folder: Path) -> None:
    """Make ``folder`` and those above it, as lasting as the files that will be in them."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for place in missing:
        sync_folder(place.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` lasting, where its file system knows how to."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove what killed writers of ``name``, or of any file, left in ``folder``: parts that no process holds."""
    for part in folder.glob(f".{glob.escape(name) if name else '*'}.*.part"):
        with suppress(OSError), open(part, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink()


def size(count: int) -> str:
    """Bytes as a person says them."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return "1 byte" if count == 1 else f"{count} bytes"


def write_bytes(path: Path, fill: Callable[[BinaryIO], Any]) -> None:
    """Write ``path`` whole; ``fill`` receives an open binary file."""
    with whole_file(path) as part, open(part, "wb") as file:
        fill(file)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, lambda file: file.write(text.encode()))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object of keys and values in a file; every one of the pipeline holds one."""
    with _reading(path):
        value = json.loads(path.read_bytes())
        if not isinstance(value, dict):
            raise TypeError("no object")
        return value


def write_table(path: Path, frame: Any) -> None:
    """Write a pandas frame as CSV without its index."""
    write_text(path, frame.to_csv(index=False))


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write named numpy arrays as a compressed npz; arrays of objects are refused."""
    import numpy

    named: dict[str, Any] = {name: numpy.asarray(arrays[name]) for name in arrays}
    if objects := [name for name, array in named.items() if array.dtype.hasobject]:
        raise TypeError(f"{objects} hold Python objects, which only a pickle could store")
    write_bytes(path, lambda file: numpy.savez_compressed(file, **named))


def read_arrays(path: Path) -> dict[str, Any]:
    """Every array of an npz file, by name."""
    from numpy.lib.format import read_array  # numpy.load would hand out the bytes of what is no array

    with _reading(path), ZipFile(path) as archive:
        return {name.removesuffix(".npy"): read_array(archive.open(name)) for name in archive.namelist()}


def write_tensors(path: Path, tensors: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write named torch tensors as safetensors; ``about`` is kept beside them as one JSON record."""
    from safetensors.torch import save  # not save_file, which fills a file of its own choice and renames it

    named = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = save(named, {"about": json.dumps(about, sort_keys=True)})
    write_bytes(path, lambda file: file.write(content))


def read_tensors(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors of a safetensors file, by name, and the record kept beside them."""
    from safetensors.torch import load_file

    about = read_about(path)
    with _reading(path):
        return load_file(path), about


def read_about(path: Path) -> dict[str, Any]:
    """The record beside the tensors, read from the file's header alone; torch is not imported."""
    with _reading(path), safe_open(path, "numpy") as file:
        about = json.loads(file.metadata()["about"])
        if not isinstance(about, dict):
            raise TypeError("a record that is no block of keys and values")
        return about


def md5(path: Path) -> str:
    """DVC's checksum of a file, or of a folder: of the list of its files, with theirs."""
    if not path.is_dir():
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "md5").hexdigest()
    files = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}
    listed = json.dumps([{"md5": md5(files[name]), "relpath": name} for name in sorted(files)])
    return hashlib.md5(listed.encode(), usedforsecurity=False).hexdigest() + ".dir"


def overlap(path: str, other: str) -> bool:
    """Whether one path is the other, or in it."""
    return Path(path).is_relative_to(other) or Path(other).is_relative_to(path)


def require_file(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"{path} does not exist; the stage that writes it has not run: dvc repro")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what reading a missing, closed or damaged file raises into one line."""
    require_file(path)
    try:
        yield
    except PermissionError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; make it readable") from None
    except (*DAMAGE, BadZipFile, zlib.error, SafetensorError):
        raise UserError(f"{path} is not a whole file of this pipeline; delete it and run dvc repro") from None
