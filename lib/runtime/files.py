"""Writing whole files or nothing, and reading them without executing anything.

Every writer fills a file beside its target, syncs it to disk and renames it, so that a reader
never meets half a file, also after a kill or a power failure. What the system refuses, such as a full
disk, becomes a UserError of one line. No reader here unpickles: tensors are safetensors, arrays are npz with
``allow_pickle=False``, tables are CSV and everything else is JSON. (The official CIFAR archives that hold
pickles have a reader of their own, `lib.data.pickled`, which runs nothing either.)
"""

import errno
import fcntl
import glob
import json
import math
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from lib.runtime.errors import UserError

LARGEST_HEADER = 100_000_000  # bytes
LARGEST_ARRAYS = 16 * 2**30  # bytes, unpacked
# RuntimeError: also NotImplementedError and RecursionError. MemoryError: a size that only the header claims.
_DAMAGE = (
    ValueError,
    KeyError,
    TypeError,
    EOFError,
    OSError,
    RuntimeError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
)
# torch's and safetensors' names, in the order in which a file holds them, so that each is aligned
DTYPES = {
    "int64": "I64",
    "float64": "F64",
    "float32": "F32",
    "int32": "I32",
    "bfloat16": "BF16",
    "float16": "F16",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
FULL = (errno.ENOSPC, errno.EDQUOT)
CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM)
NOT_FOLDERS = (errno.ENOTDIR, errno.EEXIST)


@contextmanager
def whole_file(path: Path, needs: int = 0) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on a clean exit it is synced and renamed to ``path``.

    Parts that killed writers of the same file left behind are removed. ``needs`` is the size in bytes where
    it is known, for the message.

    Raises:
        UserError: the system refuses; what was at ``path`` before is still there.
    """
    path = Path(path)
    with writing(path, needs):
        make_folder(path.parent)
        remove_leftovers(path.parent, path.name)
        handle, part = _new_part(path)
        try:
            yield part
            with open(part, "rb") as file:
                os.fsync(file.fileno())
            os.chmod(part, 0o666 & ~_umask())
            os.replace(part, path)
            sync_folder(path.parent)
        except OSError as error:
            error.fitted = part.stat().st_size if part.exists() else None
            raise
        finally:
            part.unlink(missing_ok=True)
            os.close(handle)


@contextmanager
def writing(path: Path, needs: int = 0) -> Iterator[None]:
    """Turn the system's refusal to write ``path`` into a UserError of one line; ``needs`` in bytes, if known."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {_refusal(error, needs)}, then run the same command again; "
            "what was there before is kept"
        ) from None


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


def _new_part(path: Path) -> tuple[int, Path]:
    """An empty file beside ``path``, locked until its handle is closed or its process dies."""
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        with suppress(OSError):  # a file system without locks: nothing is ever taken for a leftover
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return handle, Path(name)
        os.close(handle)  # another process took it for a leftover before it was locked


def _refusal(error: OSError, needs: int) -> str:
    """What the system said, and what to do about it."""
    said = error.strerror or type(error).__name__
    said = said[:1].lower() + said[1:]
    fitted = getattr(error, "fitted", None)
    if fitted is not None and error.errno in (*FULL, errno.EFBIG):
        said += f" ({size(fitted)} fitted" + (f" of {size(needs)})" if needs else ")")
    if error.errno in FULL:
        return f"{said}; free some space"
    if error.errno == errno.EFBIG:
        return f"{said}; raise the limit on a file's size (ulimit -f)"
    if error.errno in CLOSED:
        return f"{said}; make the folder writable"
    if error.errno in NOT_FOLDERS:
        return f"{said}; move away the file that is in the place of a folder"
    return f"{said}; mend the folder"


def size(count: int) -> str:
    """Bytes as a person says them."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return "1 byte" if count == 1 else f"{count} bytes"


def write_bytes(path: Path, fill: Callable[[BinaryIO], Any], needs: int = 0) -> None:
    """Write ``path`` whole; ``fill`` receives an open binary file. ``needs``: its size in bytes, if known."""
    with whole_file(path, needs) as part, open(part, "wb") as file:
        fill(file)


def write_text(path: Path, text: str) -> None:
    content = text.encode()
    write_bytes(path, lambda file: file.write(content), len(content))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    with _reading(path):
        return json.loads(_existing(path).read_text())


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write named numpy arrays as a compressed npz; arrays of objects are refused."""
    import numpy

    for name, array in arrays.items():
        if numpy.asarray(array).dtype.hasobject:
            raise TypeError(f"array {name!r} holds Python objects, which only a pickle could store")
    write_bytes(path, lambda file: numpy.savez_compressed(file, **arrays))


def read_arrays(path: Path) -> dict[str, Any]:
    """Every array of an npz file, by name."""
    import numpy

    with _reading(path):
        with zipfile.ZipFile(_existing(path)) as archive:  # a file of one array, or a pickle, is no zip
            if sum(member.file_size for member in archive.infolist()) > LARGEST_ARRAYS:
                raise ValueError("arrays of a size that no stage writes")
            for member in archive.infolist():
                _require_array(archive, member)
        with numpy.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}


def _require_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Refuse, before anything is unpacked, a member that is no array or whose header promises another size."""
    from numpy.lib import format as npy

    with archive.open(member) as file:
        read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(file)]
        shape, _, kind = read_header(file)
        if file.tell() + math.prod(shape) * kind.itemsize != member.file_size:
            raise ValueError("an array of another size than its member")


def write_tensors(path: Path, tensors: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write named torch tensors as safetensors; ``about`` is kept beside them as one JSON record.

    The library's own writer is not used: killed, it leaves a file whose name nobody knows.
    """
    import torch

    codes = {getattr(torch, name): code for name, code in DTYPES.items()}
    order = sorted(tensors, key=lambda name: (list(codes).index(tensors[name].dtype), name))
    header: dict[str, Any] = {"__metadata__": {"about": json.dumps(about, sort_keys=True)}}
    end = 0
    for name in order:
        start, end = end, end + tensors[name].nbytes
        header[name] = {
            "dtype": codes[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the numbers that follow are aligned

    def fill(file: BinaryIO) -> None:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(tensors[name].detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())

    write_bytes(path, fill, 8 + len(text) + end)


def read_tensors(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors of a safetensors file, by name, and the record kept beside them."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    with _reading(path, SafetensorError):
        return load_file(_existing(path)), read_about(path)


def read_about(path: Path) -> dict[str, Any]:
    """The record beside the tensors, read from the file's header alone; torch is not imported."""
    with _reading(path), open(_existing(path), "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > LARGEST_HEADER:
            raise ValueError("a header of a size that no stage writes")
        about = json.loads(json.loads(file.read(size))["__metadata__"]["about"])
        if not isinstance(about, dict):
            raise TypeError("a record that is no block of keys and values")
        return about


def write_table(path: Path, frame: Any) -> None:
    """Write a pandas frame as CSV without its index."""
    write_text(path, frame.to_csv(index=False))


@contextmanager
def _reading(path: Path, *damage: type[Exception]):
    """Turn what reading a damaged file raises, or one that may not be read, into one line."""
    try:
        yield
    except PermissionError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; make it readable") from None
    except (*_DAMAGE, *damage):
        raise UserError(f"{path} is not a whole file of this pipeline; delete it and run dvc repro") from None


def _existing(path: Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist; the stage that writes it has not run: dvc repro")
    return path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
