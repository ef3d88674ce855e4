"""Checkpoints that survive a kill, outside the pipeline's outputs (DVC deletes those before a run).

One folder per variant and fingerprint. The fingerprint covers the resolved parameters, the code and
the data, so a changed one never resumes from an old state. ``latest.pt`` is written beside, synced and
renamed, after the one before it was kept as ``previous.pt``. A finished training leaves ``final.pt``.
At every moment one whole state is there, however the process or the machine ends.
"""

import argparse
import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import torch

from lib.runtime.errors import UserError
from lib.runtime.files import make_folder, remove_leftovers, write_bytes, writing

LIBRARY = Path(__file__).parents[1]
CHECK_ONLY = ("lib.params.check", "lib.params.evaluation")  # loaded by every stage, without a part in training
BLOCK = 2**20  # bytes
BROKEN = (errno.EINVAL, errno.EIO)  # a place that the file does not have, or that the disk cannot read


def fingerprint(params: dict[str, Any], data_checksum: str) -> str:
    """sha256 over the parameters, the checksum of the data, and the bytes of each module of lib loaded so far."""
    digest = hashlib.sha256(json.dumps([params, data_checksum], sort_keys=True).encode())
    files = {
        Path(module.__file__)
        for name, module in list(sys.modules.items())
        if getattr(module, "__file__", None) and name not in CHECK_ONLY
    }
    for path in sorted(file for file in files if file.is_relative_to(LIBRARY)):
        digest.update(path.relative_to(LIBRARY).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


class WrongChecksum(Exception):
    """A file does not end with the sha256 of what is before it."""


class CheckpointStore:
    """The states of one variant's pretraining; held by one process at a time."""

    def __init__(self, variant: str, key: str, root: Path | None = None) -> None:
        root = root or Path(os.environ.get("DVC_ROOT", ".")) / ".checkpoints"
        self.folder = root / f"{variant}-{key[:16]}"
        self.latest = self.folder / "latest.pt"
        self.previous = self.folder / "previous.pt"
        self.final = self.folder / "final.pt"
        self.damaged: list[Path] = []  # of these files, as `load` found them

    @contextmanager
    def held(self) -> Iterator[None]:
        """Wait for, then hold, the only right to train this variant with this fingerprint.

        Raises:
            UserError: the folder cannot be written.
        """
        with writing(self.folder):
            lock = self._take()
        with lock:
            remove_leftovers(self.folder)
            yield

    def _take(self) -> TextIO:
        """The folder's lock, held until it is closed."""
        path = self.folder / "lock"
        while True:
            make_folder(self.folder)
            lock = open(path, "w")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print("another process trains this variant already; waiting for it", flush=True)
                fcntl.flock(lock, fcntl.LOCK_EX)
            if path.exists() and os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                return lock
            lock.close()  # whoever held it removed the folder, so that it guards nothing

    def load(self) -> dict[str, Any] | None:
        """The newest whole state, or None. A damaged one is passed over with a line that says so.

        Raises:
            UserError: a state may not be read.
        """
        lines, self.damaged = [], []
        for path in (self.final, self.latest, self.previous):
            if not path.exists():
                continue
            try:
                state = _read(path)
            except MemoryError:
                raise
            except Exception as error:  # a broken file fails in many ways, all of which mean the same
                if isinstance(error, OSError) and error.errno not in BROKEN:
                    raise UserError(
                        f"{path} cannot be read ({error.strerror}); give yourself the right to read it, or remove it"
                    ) from None
                self.damaged.append(path)
                lines.append(f"checkpoint {path} is damaged ({type(error).__name__})")
            else:
                self._tell(lines, "going on from the one before it")
                return state
        self._tell(lines, "there is none before it: training starts anew")
        return None

    @staticmethod
    def _tell(damaged: list[str], consequence: str) -> None:
        for line in damaged:
            print(f"{line}; {consequence}", flush=True)

    def save(self, state: dict[str, Any]) -> None:
        """Keep ``state`` as the newest, and the one before it.

        Raises:
            UserError: the folder cannot be written; the state before is still there.
        """
        with writing(self.latest):
            while self.damaged:  # none of them may take the place of the whole one before it
                self.damaged.pop().unlink(missing_ok=True)
            if self.latest.exists():
                os.replace(self.latest, self.previous)
            needs = self.previous.stat().st_size if self.previous.exists() else 0
        write_bytes(self.latest, lambda file: _save(state, file), needs)

    def finish(self, state: dict[str, Any]) -> None:
        """Keep one final state, without what only further training would need."""
        slim = {key: value for key, value in state.items() if key != "optimizer"}
        write_bytes(self.final, lambda file: _save(slim, file))
        with writing(self.folder):
            self.latest.unlink(missing_ok=True)
            self.previous.unlink(missing_ok=True)


class _Summed:
    """A file that is written from its start to its end, and the sha256 of what was written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.flush, self.digest = file, file.flush, hashlib.sha256()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self.file.write(data)


def _read(path: Path) -> dict[str, Any]:
    """A state as it was saved, byte for byte; torch.load alone compares no checksums and would take any numbers."""
    digest = hashlib.sha256()
    left = path.stat().st_size - digest.digest_size
    with open(path, "rb") as file:
        while left > 0 and (block := file.read(min(left, BLOCK))):
            digest.update(block)
            left -= len(block)
        if file.read() != digest.digest():
            raise WrongChecksum
    return torch.load(path, map_location="cpu", weights_only=True)


def _save(state: dict[str, Any], file: BinaryIO) -> None:
    """torch.save, then the sha256 of what it wrote; a write that failed or was interrupted is reported as such."""
    summed = _Summed(file)
    try:
        torch.save(state, summed)
        file.write(summed.digest.digest())
    except RuntimeError as error:
        cause: BaseException | None = error
        while cause := cause.__context__:
            if isinstance(cause, OSError) or not isinstance(cause, Exception):
                raise cause from None
        raise


def prune(root: Path | None = None, unfinished: bool = False) -> list[Path]:
    """Remove the checkpoints of finished trainings; returns the folders removed.

    Their encoders are in DVC's cache. With ``unfinished``, remove also those that a training would go on
    from. One that a process holds is never removed.

    Raises:
        UserError: a folder may not be removed.
    """
    removed = []
    for folder in sorted((root or Path(".checkpoints")).glob("*-*")):
        if not unfinished and not (folder / "final.pt").exists():
            continue
        with writing(folder), open(folder / "lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            shutil.rmtree(folder)
            removed.append(folder)
    return removed


def main() -> None:
    parser = argparse.ArgumentParser(description="Remove the checkpoints of finished trainings.")
    parser.add_argument("--unfinished", action="store_true", help="also those that a training would go on from")
    try:
        for folder in prune(unfinished=parser.parse_args().unfinished):
            print(f"removed {folder}")
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
