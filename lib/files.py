"""Writing whole files or nothing, and reading them without executing anything.

Every writer fills a file beside its target, syncs it to disk and renames it, so that a reader
never meets half a file. No reader here unpickles: tensors are safetensors, arrays are npz with
``allow_pickle=False``, tables are CSV and everything else is JSON. (The official CIFAR archives that hold
pickles have a reader of their own, `lib.data.pickled`, which runs nothing either.)
"""

import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from lib.errors import UserError

LARGEST_HEADER = 100_000_000  # bytes


@contextmanager
def whole_file(path: Path):
    """Yield a temporary path beside ``path``; on a clean exit it is synced and renamed to ``path``."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; make the folder writable and run again") from None
    os.close(handle)
    part = Path(name)
    try:
        yield part
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(part, 0o666 & ~_umask())
        os.replace(part, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; free some space or mend the folder "
                        "and run again, nothing was replaced") from error
    finally:
        part.unlink(missing_ok=True)


def write_bytes(path: Path, fill: Callable[[BinaryIO], Any]) -> None:
    """Write ``path`` whole; ``fill`` receives an open binary file."""
    with whole_file(path) as part, open(part, "wb") as file:
        fill(file)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, lambda file: file.write(text.encode()))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    try:
        return json.loads(_existing(path).read_text())
    except ValueError:
        raise _damaged(path) from None


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

    try:
        with numpy.load(_existing(path), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        raise _damaged(path) from None


def write_tensors(path: Path, tensors: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write named torch tensors as safetensors; ``about`` is kept beside them as one JSON record."""
    from safetensors.torch import save_file

    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with whole_file(path) as part:
        save_file(plain, part, metadata={"about": json.dumps(about, sort_keys=True)})


def read_tensors(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors of a safetensors file, by name, and the record kept beside them."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(_existing(path)), read_about(path)
    except SafetensorError:
        raise _damaged(path) from None


def read_about(path: Path) -> dict[str, Any]:
    """The record beside the tensors, read from the file's header alone; torch is not imported."""
    with open(_existing(path), "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > LARGEST_HEADER:
            raise _damaged(path)
        text = file.read(size)
    try:
        return json.loads(json.loads(text)["__metadata__"]["about"])
    except (ValueError, KeyError, TypeError):
        raise _damaged(path) from None


def write_table(path: Path, frame: Any) -> None:
    """Write a pandas frame as CSV without its index."""
    write_text(path, frame.to_csv(index=False))


def _damaged(path: Path) -> UserError:
    return UserError(f"{path} is not a whole file of this pipeline; delete it and run dvc repro")


def _existing(path: Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist; the stage that writes it has not run: dvc repro")
    return path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
