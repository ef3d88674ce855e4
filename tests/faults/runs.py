"""Trainings in processes of their own: to the end, or to a moment of `tests.faults.kill_points`."""

import json
import multiprocessing
import os
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from lib.data.store import save_data
from lib.runtime.files import write_json
from tests.examples import images, pretraining
from tests.faults.kill_points import run

SETTINGS = {
    "ENGRAM_DEVICE": "cpu",
    "ENGRAM_PROCESSES": "1",
    "ENGRAM_THREADS": "1",
    "ENGRAM_PRECISION": "fp32",
    "ENGRAM_CHECKPOINT_MINUTES": "0",
    "OMP_NUM_THREADS": "1",
    "DVC_ROOT": ".",
}
OUTPUTS = ("data/encoders/{}.safetensors", "plots/curves/{}.csv")  # of a training, the same whatever stopped it
PATIENCE = 300.0  # seconds

# Processes are forked from one that has imported the libraries, which takes seconds, and nothing else.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["torch", "torchvision", "pandas", "safetensors.torch", "rich.progress", "yaml"])


@dataclass(frozen=True)
class Ended:
    """How a run ended: its exit status, negative for a signal, and all that it printed."""

    status: int
    output: str

    @property
    def moments(self) -> list[str]:
        return json.loads(re.search(r"^moments (.*)$", self.output, re.MULTILINE)[1])


class Run:
    """A stage that runs; its process id is its process group."""

    def __init__(self, folder: Path, variant: str, sent: str = "", moment: int | str = "", **settings: str) -> None:
        self.log = folder.with_name(f"{folder.name}-{time.monotonic_ns()}.log")
        environment = {**SETTINGS, **settings}
        where = (str(folder), str(self.log), "stages.pretrain", variant)
        self.process = FORKS.Process(target=run, args=(*where, sent, str(moment), environment))
        self.process.start()

    def output(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def wait_for(self, text: str) -> None:
        """Until it has printed ``text``."""
        patience = time.monotonic() + PATIENCE
        while text not in self.output():
            assert self.process.is_alive() and time.monotonic() < patience, f"no {text!r} in:\n{self.output()}"
            time.sleep(0.02)

    def halted(self) -> None:
        """Until a signal has stopped it."""
        while ") T " not in Path(f"/proc/{self.process.pid}/stat").read_text():
            time.sleep(0.02)

    def send(self, sent: str) -> None:
        os.killpg(self.process.pid, signal.Signals[f"SIG{sent}"])

    def end(self) -> Ended:
        self.process.join(PATIENCE)
        if self.process.is_alive():
            self.send("KILL")
            raise AssertionError(f"a stage does not end:\n{self.output()}")
        return Ended(self.process.exitcode, self.output())


def new_project(folder: Path, *variants: str, **changes) -> Path:
    """What pretraining reads: three batches of images, and the resolved parameters of some variants."""
    for variant in variants:
        params = pretraining(variant, batch_size=8, **changes)
        write_json(folder / f"data/variants/{variant}.json", params.as_json())
    save_data(folder / "data/images.safetensors", images(28, classes=4))
    return folder


def written(folder: Path, variant: str) -> dict[str, bytes]:
    """The outputs of a training; none may be missing."""
    return {name: (folder / name.format(variant)).read_bytes() for name in OUTPUTS}


def strays(folder: Path) -> list[str]:
    """Files that no stage means to leave behind."""
    return [str(path) for path in folder.rglob("*") if path.suffix == ".part" or path.name.startswith(".tmp")]


def one_line(output: str) -> str:
    """The one line that a stage ended with; what it said before is no error."""
    assert "Traceback" not in output, output
    lines = [line for line in output.splitlines() if re.match(r"error: |terminated|interrupted", line)]
    assert len(lines) == 1 and output.rstrip().endswith(lines[0]), output
    return lines[0]
