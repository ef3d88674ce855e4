"""A place for hostile input: it notices a file outside the output folders, and a program that is started."""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lib.params.pretraining import Dataset

OUTPUTS = ("data", "metrics", "plots", ".checkpoints")  # what stages write, in the working folder
STARTS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen")
MARK = "canary"

_started: list[str] = []


def _notice(event: str, arguments: tuple) -> None:
    if event in STARTS and MARK in repr(arguments):
        _started.append(f"{event} {arguments!r}")


sys.addaudithook(_notice)  # for the rest of the process: it cannot be taken away


@dataclass
class Place:
    """``work`` is the working folder. A payload tries to create ``canary``, or any other file outside `OUTPUTS`."""

    root: Path
    work: Path
    canary: Path
    before: dict[Path, tuple[int, int]] = field(default_factory=dict)

    def seal(self) -> None:
        """From here on nothing outside the output folders may come, go or change."""
        self.before = self.listing()
        _started.clear()

    def listing(self) -> dict[Path, tuple[int, int]]:
        """Size and time of every file outside the output folders; of folders that they are there."""
        outputs = [self.work / name for name in OUTPUTS]
        every = [path for path in self.root.rglob("*") if not any(path.is_relative_to(folder) for folder in outputs)]
        stats = [(path, path.is_dir(), os.lstat(path)) for path in every]
        return {path: (0, 0) if folder else (stat.st_size, stat.st_mtime_ns) for path, folder, stat in stats}

    def check(self) -> None:
        assert self.before, "the test did not seal the place"
        assert self.listing() == self.before
        assert not self.canary.exists() and not list(self.root.rglob(f"{MARK}*"))
        assert not _started


def make_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """For a fixture: changes into the place, and checks it after the test."""
    place = Place(tmp_path, tmp_path / "work", tmp_path / MARK)
    place.work.mkdir()
    (tmp_path / "bystander.txt").write_text("as it was")
    monkeypatch.chdir(place.work)
    for name in ("ENGRAM_ARCHIVE", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    yield place
    place.check()


def download(images: Path) -> None:
    """What the download stage does."""
    from lib.data.sources import read_source
    from lib.data.store import IMAGES_FILE, save_data
    from tests.faults.class_folders import SIZE

    save_data(IMAGES_FILE, read_source(Dataset(dataset="images", images_path=str(images), image_size=SIZE)))
