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
import io
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import torch

from lib.runtime.errors import UserError
from lib.runtime.files import make_folder, remove_leftovers, write_bytes, writing

LIBRARY = Path(__file__).parents[1]
# What trains the same whatever these say: errors, files, progress, checks of the whole params.yaml.
NO_RESULT = {"runtime/errors.py", "runtime/files.py", "runtime/progress.py", "runtime/stage.py", "resolve.py"}
NO_RESULT |= {"params/experiment.py", "params/evaluation.py", "params/spec.py", "params/verdict.py"}
DIGEST = hashlib.sha256().digest_size  # bytes at the end of a file
SAVING = 0.1  # of the time at most goes into checkpoints at the ends of short epochs
BROKEN = (errno.EINVAL, errno.EIO)  # a place that the file does not have, or that the disk cannot read


def fingerprint(params: dict[str, Any], data_checksum: str) -> str:
    """sha256 over the parameters, the checksum of the data, and the bytes of each module of lib loaded so far
    that can change a result."""
    digest = hashlib.sha256(json.dumps([params, data_checksum], sort_keys=True).encode())
    loaded = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    for path in sorted({Path(file) for file in loaded if file and Path(file).is_relative_to(LIBRARY)}):
        name = path.relative_to(LIBRARY).as_posix()
        if name not in NO_RESULT:
            digest.update(name.encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


class CheckpointStore:
    """The states of one variant's pretraining; held by one process at a time."""

    def __init__(self, variant: str, key: str, root: Path | None = None) -> None:
        root = root or Path(os.environ.get("DVC_ROOT", ".")) / ".checkpoints"
        self.folder = root / f"{variant}-{key[:16]}"
        self.latest, self.previous, self.final = (
            self.folder / f"{name}.pt" for name in ("latest", "previous", "final")
        )
        self.damaged: list[Path] = []  # of these files, as `load` found them
        self.saved, self.cost = time.monotonic(), 0.0  # when the last was, or the start; seconds that it took

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
            lock = open(path, "w")  # noqa: SIM115 (closed by whoever holds it)
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
        self.damaged, state = [], None
        for path in (path for path in (self.final, self.latest, self.previous) if path.exists()):
            try:
                state = _read(path)
                break
            except MemoryError:
                raise
            except Exception as error:  # a broken file fails in many ways, all of which mean the same
                if isinstance(error, OSError) and error.errno not in BROKEN:
                    raise UserError(f"cannot read {path} ({error.strerror}); make it readable, or remove it") from None
                self.damaged.append(path)
        follows = "going on from the one before it" if state else "there is none before it: training starts anew"
        for path in self.damaged:
            print(f"checkpoint {path} is damaged; {follows}", flush=True)
        return state

    def due(self, minutes: float, epoch_ends: bool) -> bool:
        """Whether to save: after so many minutes, and at an epoch's end unless the last one cost too much."""
        since = time.monotonic() - self.saved
        return since > 60 * minutes or (epoch_ends and SAVING * since > self.cost)

    def save(self, state: dict[str, Any]) -> None:
        """Keep ``state`` as the newest, and the one before it.

        Raises:
            UserError: the folder cannot be written; the state before is still there.
        """
        started = time.monotonic()
        with writing(self.latest):
            while self.damaged:  # none of them may take the place of the whole one before it
                self.damaged.pop().unlink(missing_ok=True)
            if self.latest.exists():
                os.replace(self.latest, self.previous)
        _write(self.latest, state)
        self.saved = time.monotonic()
        self.cost = self.saved - started

    def finish(self, state: dict[str, Any]) -> None:
        """Keep one final state, without what only further training would need."""
        _write(self.final, {key: value for key, value in state.items() if key != "optimizer"})
        with writing(self.folder):
            self.latest.unlink(missing_ok=True)
            self.previous.unlink(missing_ok=True)


def _write(path: Path, state: dict[str, Any]) -> None:
    """What torch.save makes of the state, then its sha256."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getbuffer()
    digest = hashlib.sha256(content).digest()
    write_bytes(path, lambda file: (file.write(content), file.write(digest)))


def _read(path: Path) -> dict[str, Any]:
    """A state as it was saved, byte for byte; torch.load alone compares no checksums and would take any numbers."""
    content = memoryview(path.read_bytes())
    if hashlib.sha256(content[:-DIGEST]).digest() != content[-DIGEST:]:
        raise ValueError("the digest at its end is another")
    return torch.load(io.BytesIO(content[:-DIGEST]), map_location="cpu", weights_only=True)


def prune(root: Path | None = None, unfinished: bool = False) -> list[Path]:
    """Remove the checkpoints of finished trainings; returns the folders removed.

    Their encoders are in DVC's cache. With ``unfinished``, remove also those that a training would go on
    from. One that a process holds is never removed.

    Raises:
        UserError: a folder may not be removed.
    """
    removed = []
    for folder in sorted((root or Path(".checkpoints")).glob("*-*")):
        if unfinished or (folder / "final.pt").exists():
            with writing(folder), open(folder / "lock", "w") as lock, suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
                removed.append(folder)
    return removed


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m lib prune", description="Remove the checkpoints of finished trainings."
    )
    parser.add_argument("--unfinished", action="store_true", help="also those that a training would go on from")
    for folder in prune(unfinished=parser.parse_args(arguments).unfinished):
        print(f"removed {folder}")
