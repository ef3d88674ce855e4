"""Checkpoints that survive a kill, outside the pipeline's outputs (DVC deletes those before a run).

One folder per variant and fingerprint. The fingerprint covers the resolved parameters, the code and
the data, so a changed one never resumes from an old state. ``latest.pt`` is written beside, synced and
renamed, after the one before it was kept as ``previous.pt``. A finished training leaves ``final.pt``.
"""

import argparse
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

from lib.errors import UserError
from lib.files import write_bytes

LIBRARY = Path(__file__).parents[1]
CHECK_ONLY = ("lib.params.check", "lib.params.evaluation")  # loaded by every stage, without a part in training


def fingerprint(params: dict[str, Any], data_checksum: str) -> str:
    """sha256 over the parameters, the checksum of the data, and the bytes of each module of lib loaded so far."""
    digest = hashlib.sha256(json.dumps([params, data_checksum], sort_keys=True).encode())
    files = {Path(module.__file__) for name, module in list(sys.modules.items())
             if getattr(module, "__file__", None) and name not in CHECK_ONLY}
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
        self.final = self.folder / "final.pt"

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
        """The newest whole state, or None. A damaged one is passed over with a line that says so.

        Raises:
            UserError: a state may not be read.
        """
        damaged = []
        for path in (self.final, self.latest, self.previous):
            if not path.exists():
                continue
            try:
                state = torch.load(path, map_location="cpu", weights_only=True)
            except PermissionError:
                raise UserError(f"{path} may not be read; give yourself the right to read it, or remove it") from None
            except Exception as error:  # a truncated file fails in many ways, all of which mean the same
                damaged.append(f"checkpoint {path} is damaged ({type(error).__name__})")
            else:
                self._tell(damaged, "going on from the one before it")
                return state
        self._tell(damaged, "there is none before it: training starts anew")
        return None

    @staticmethod
    def _tell(damaged: list[str], consequence: str) -> None:
        for line in damaged:
            print(f"{line}; {consequence}", flush=True)

    def save(self, state: dict[str, Any]) -> None:
        if self.latest.exists():
            os.replace(self.latest, self.previous)
        write_bytes(self.latest, lambda file: torch.save(state, file))

    def finish(self, state: dict[str, Any]) -> None:
        """Keep one final state, without what only further training would need."""
        slim = {key: value for key, value in state.items() if key != "optimizer"}
        write_bytes(self.final, lambda file: torch.save(slim, file))
        self.latest.unlink(missing_ok=True)
        self.previous.unlink(missing_ok=True)


def prune(root: Path | None = None, unfinished: bool = False) -> list[Path]:
    """Remove the checkpoints of finished trainings; returns the folders removed.

    Their encoders are in DVC's cache. With ``unfinished``, remove also those that a training would go on
    from. One that a process holds is never removed.
    """
    removed = []
    for folder in sorted((root or Path(".checkpoints")).glob("*-*")):
        if not unfinished and not (folder / "final.pt").exists():
            continue
        with open(folder / "lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            shutil.rmtree(folder)
            removed.append(folder)
    return removed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Remove the checkpoints of finished trainings.")
    parser.add_argument("--unfinished", action="store_true", help="also those that a training would go on from")
    for removed_folder in prune(unfinished=parser.parse_args().unfinished):
        print(f"removed {removed_folder}")
