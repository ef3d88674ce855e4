"""Checkpoints that survive a kill, outside the pipeline's outputs (DVC deletes those before a run).

One folder per variant and fingerprint. The fingerprint covers the resolved parameters, the code and
the data, so a changed one never resumes from an old state. ``latest.pt`` is written beside, synced and
renamed, after the one before it was kept as ``previous.pt``.
"""

import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lib.files import write_bytes

LIBRARY = Path(__file__).parents[1]


def fingerprint(params: dict[str, Any], data_checksum: str) -> str:
    """sha256 over the parameters, the checksum of the data, and the bytes of each loaded module of lib."""
    digest = hashlib.sha256(json.dumps([params, data_checksum], sort_keys=True).encode())
    files = {Path(module.__file__) for module in list(sys.modules.values()) if getattr(module, "__file__", None)}
    for path in sorted(file for file in files if file.is_relative_to(LIBRARY)):
        digest.update(path.relative_to(LIBRARY).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


class CheckpointStore:
    """The states of one variant's pretraining; held by one process at a time."""

    def __init__(self, variant: str, key: str, root: Path | None = None) -> None:
        root = root or Path(os.environ.get("DVC_ROOT", ".")) / ".checkpoints"
        self.folder = root / f"{variant}-{key[:16]}"
        self.latest = self.folder / "latest.pt"
        self.previous = self.folder / "previous.pt"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Wait for, then hold, the only right to train this variant with this fingerprint."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print("another process trains this variant already; waiting for it", flush=True)
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def load(self) -> dict[str, Any] | None:
        """The newest whole state, or None. A damaged one is passed over with a line that says so."""
        for path in (self.latest, self.previous):
            if not path.exists():
                continue
            try:
                return torch.load(path, map_location="cpu", weights_only=True)
            except Exception as error:  # a truncated file fails in many ways, all of which mean the same
                print(f"checkpoint {path} cannot be read ({type(error).__name__}); using the one before", flush=True)
        return None

    def save(self, state: dict[str, Any]) -> None:
        if self.latest.exists():
            os.replace(self.latest, self.previous)
        write_bytes(self.latest, lambda file: torch.save(state, file))

    def finish(self, state: dict[str, Any]) -> None:
        """Keep one final state, without what only further training would need."""
        self.save({key: value for key, value in state.items() if key != "optimizer"})
        self.previous.unlink(missing_ok=True)


def prune(root: Path | None = None) -> list[Path]:
    """Remove every checkpoint that no process holds; returns the folders removed."""
    removed = []
    for folder in sorted((root or Path(".checkpoints")).glob("*-*")):
        with open(folder / "lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            shutil.rmtree(folder)
            removed.append(folder)
    return removed


if __name__ == "__main__":
    for removed_folder in prune():
        print(f"removed {removed_folder}")
