"""Tiny copies of the project, and stages run in them: to the end, or to a moment of `tests.faults.kill_points`."""

import atexit
import functools
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, fields
from pathlib import Path

import pandas
import yaml

from lib.methods import method_class
from lib.methods.base import WIDEST
from lib.params.pretraining import pretraining_params
from lib.params.spec import load_yaml
from tests.examples import ROOT, params_file
from tests.make_archives import two_level, write_folder

EVERYTHING = os.environ.get("FAULTS") == "all"  # make faults
MEASURED = ["images_per_second", "seconds", "memory_gb"]  # columns of the curve that no two runs share
SETTINGS = {
    "ENGRAM_DEVICE": "cpu",
    "ENGRAM_PROCESSES": "1",
    "ENGRAM_THREADS": "1",
    "ENGRAM_PRECISION": "fp32",
    "ENGRAM_CHECKPOINT_MINUTES": "0",
    "OMP_NUM_THREADS": "1",
}
SMALL = {
    "dataset": "images",
    "images_path": "pictures",
    "epochs": 2,
    "batch_size": 8,
    "knn__k": 5,
    "linear__epochs": 2,
    "linear__study_epochs": 1,
    "tsne__points": 12,
    "tsne__perplexity": 5.0,
    "tsne__iterations": 250,
    "transfer__epochs": 1,
    "transfer__batch_size": 8,
}
# What the stages of one variant write.
OUTPUTS = {
    "pretrain": ("data/encoders/{}.safetensors", "plots/curves/{}.csv"),
    "linear": ("metrics/{}.json", "data/scores/{}.json", "data/scores/{}.npz"),
    "embed": ("data/embeddings/{}.npz",),
    "tsne": ("data/tsne/{}.npz", "plots/tsne/{}/*.png"),
    "transfer": (
        "data/filters/{}.safetensors",
        "metrics/transfer/{}.json",
        "plots/transfer/{}.*",
        "plots/filters/{}.png",
    ),
    "download": ("data/images.safetensors",),
    "overview": ("plots/tsne/overview.png",),
    "results": ("metrics/results.*", "plots/accuracy.*", "plots/confusion.*", "plots/curves.*"),
}
PER_VARIANT = ("pretrain", "linear", "embed", "tsne", "transfer")
WIDE = 256  # units of a layer, at most


def narrow(raw: dict) -> dict:
    """The parameters with no layer wider than `WIDE` and no variant with a batch of its own."""
    for block in raw["variants"].values():
        for own in ("batch_size", "micro_batch_size"):
            block.pop(own, None)
        for option in fields(method_class(block["method"]).Options):
            if option.metadata.get("high") == WIDEST:
                block[option.name] = min(block.get(option.name, option.default), WIDE)
    return raw


def small_params(**changes) -> dict:
    """params.yaml with every variant, made small; no queue has more keys than `write_pictures` has images."""
    raw = narrow(params_file(**{**SMALL, **changes}))
    for block in raw["variants"].values():
        if "queue" in block:
            block["queue"] = 2 * raw["batch_size"]  # two views of a batch
    return raw


# Every variant that trains; each method has one (tests/test_methods.py).
VARIANTS = tuple(name for name in params_file()["variants"] if pretraining_params(small_params(), name).epochs)
LAST = "dual"  # two latents and gamma: the one of params.yaml that stands for all where one is enough
SEVERAL = (VARIANTS[0], LAST, VARIANTS[-1])  # and where a few are
TRANSFERRED = load_yaml(ROOT / "presets/all.yaml")["transfer"]["variants"][0]  # whose encoder is one layer of filters


@dataclass(frozen=True)
class Ended:
    """How a run ended: its exit status, negative for a signal, and all that it printed."""

    status: int
    output: str

    @property
    def moments(self) -> list[str]:
        return json.loads(re.search(r"^moments (.*)$", self.output, re.MULTILINE)[1])


@functools.cache
def own_mounts() -> list[str]:
    """A command that gives what follows it file systems of its own; empty where the system allows none."""
    command = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    if not shutil.which(command[0]):
        return []
    tried = subprocess.run([*command, "mount", "-t", "tmpfs", "tmpfs", "/tmp"], capture_output=True)
    return [] if tried.returncode else command


class Server:
    """Starts stages quickly. Where the system allows it, it mounts file systems that nobody else sees."""

    def __init__(self) -> None:
        self.link, other = socket.socketpair()
        self.running: set[int] = set()  # process groups
        environment = {**os.environ, **SETTINGS}
        for name in ("DVC_ROOT", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE"):
            environment.pop(name, None)
        command = [*own_mounts(), sys.executable, "-m", "tests.faults.kill_points", "serve", str(other.fileno())]
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, pass_fds=[other.fileno()], stdin=subprocess.DEVNULL
        )
        other.close()
        atexit.register(self.close)

    def close(self) -> None:
        for number in self.running:
            os.killpg(number, signal.SIGKILL)
        self.process.kill()
        self.process.wait()

    def ask(self, order: dict, handles: tuple[int, ...] = ()) -> int:
        socket.send_fds(self.link, [json.dumps(order).encode()], list(handles))
        return json.loads(self.link.recv(100))

    def start(
        self,
        folder: Path,
        stage: str,
        variant: str = "",
        sent: str = "",
        moment: int | str = "",
        *,
        limit: int = 0,
        **environment: str | None,
    ) -> "Run":
        """Run a stage in ``folder``, to its end or to be sent a signal.

        ``limit``: bytes that no file may exceed. In ``environment`` None removes a variable.
        """
        reading, writing = os.pipe()
        order = {
            "run": [stage, variant, sent, str(moment)],
            "folder": str(folder),
            "limit": limit,
            "environment": environment,
        }
        process = self.ask(order, (writing,))
        self.running.add(process)
        os.close(writing)
        return Run(self, process, reading)

    def run(self, *arguments, **named) -> Ended:
        return self.start(*arguments, **named).end()

    def command(self, *words: object) -> bool:
        """Run a command that sees the server's file systems; True if it succeeds."""
        return self.ask({"command": [str(word) for word in words]}) == 0

    def seen(self, path: Path) -> Path:
        """A path under which this process finds what the server has at ``path``."""
        return Path(f"/proc/{self.process.pid}/root{path}")


class Run:
    """A stage that runs; ``process`` is its process id and its process group."""

    def __init__(self, server: Server, process: int, output: int) -> None:
        self.server, self.process, self.pipe, self.text = server, process, output, ""

    def wait_for(self, text: str, seconds: float = 120.0) -> None:
        """Until it has printed ``text``."""
        patience = time.monotonic() + seconds
        while text not in self.text:
            assert self._read(patience - time.monotonic()), f"no {text!r} in:\n{self.text}"

    def halted(self) -> None:
        """Until a signal has stopped it."""
        while not re.search(r"\) [Tt] ", Path(f"/proc/{self.process}/stat").read_text()):
            time.sleep(0.05)

    def end(self, seconds: float = 300.0) -> Ended:
        patience = time.monotonic() + seconds
        while self._read(patience - time.monotonic()):
            pass
        os.close(self.pipe)
        self.server.running.discard(self.process)
        return Ended(self.server.ask({"wait": self.process}), self.text)

    def _read(self, seconds: float) -> bool:
        ready, _, _ = select.select([self.pipe], [], [], max(0.0, seconds))
        assert ready, f"a stage printed nothing more for too long:\n{self.text}"
        block = os.read(self.pipe, 65536)
        self.text += block.decode()
        return bool(block)


@functools.cache
def server() -> Server:
    return Server()


@functools.cache
def template() -> Path:
    """A project of 28 training images of 16x16 pixels, without git and dvc: stages are run by hand."""
    above = Path(tempfile.mkdtemp(prefix="faults-"))
    atexit.register(shutil.rmtree, above, ignore_errors=True)
    folder = above / "project"
    for name in ("lib", "stages"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    write_pictures(folder)
    write_params(folder)
    ended = server().run(folder, "download")
    assert ended.status == 0, ended.output
    return folder


@functools.cache
def reference() -> Path:
    """A copy of the project in which stages run undisturbed, each once and when it is first wanted."""
    return copy(template(), template().with_name("reference"))


@functools.cache
def undisturbed(stage: str, variant: str = "") -> list[str]:
    """Run a stage in `reference`, after those whose outputs it reads; its moments."""
    needs = {
        "linear": ("pretrain",),
        "embed": ("pretrain",),
        "tsne": ("embed",),
        "transfer": ("pretrain",),
        "overview": ("tsne",),
        "results": ("linear",),
    }
    for name in needs.get(stage, ()):
        for each in [variant] if variant else small_params()["variants"]:
            undisturbed(name, each)
    ended = server().run(reference(), stage, variant, "LIST")
    assert ended.status == 0, ended.output
    return ended.moments


def write_pictures(folder: Path) -> None:
    """28 training images: three batches of 8, also for a method that does not train with the 4 of validation."""
    write_folder(folder / "pictures", two_level(("bird", "cat", "dog", "frog"), train=7, test=3))


def write_params(folder: Path, **changes) -> None:
    (folder / "params.yaml").write_text(yaml.safe_dump(small_params(**changes), sort_keys=False))


def copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def present(folder: Path, variant: str, *stages: str) -> dict[str, bytes]:
    """Those outputs of some stages that are there, the curve without its columns of time and memory."""
    patterns = [pattern.format(variant) for stage in stages for pattern in OUTPUTS[stage]]
    found = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for pattern in patterns
        for path in sorted(folder.glob(pattern))
    }
    for name in (name for name in found if name.startswith("plots/curves/")):
        found[name] = pandas.read_csv(folder / name).drop(columns=MEASURED).to_csv(index=False).encode()
    return found


def written(folder: Path, variant: str, *stages: str) -> dict[str, bytes]:
    """The outputs of some stages; none may be missing."""
    for pattern in (pattern.format(variant) for stage in stages for pattern in OUTPUTS[stage]):
        assert list(folder.glob(pattern)), f"{folder / pattern} was not written"
    return present(folder, variant, *stages)


def clear(folder: Path, variant: str, *stages: str) -> None:
    """Remove the outputs of some stages, as DVC does before it runs them."""
    for pattern in (pattern.format(variant) for stage in stages for pattern in OUTPUTS[stage]):
        for path in folder.glob(pattern):
            path.unlink()


def strays(folder: Path) -> list[str]:
    """Files that no stage means to leave behind."""
    return [
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and (path.suffix == ".part" or path.name.startswith(".tmp"))
    ]


def one_line(output: str) -> str:
    """The one line that a stage ended with; what it said before is no error."""
    assert "Traceback" not in output, output
    lines = [line for line in output.splitlines() if re.match(r"error: |terminated|interrupted", line)]
    assert len(lines) == 1 and output.rstrip().endswith(lines[0]), output
    return lines[0]
