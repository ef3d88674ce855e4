"""A stage that is stopped at a chosen moment.

    python -m tests.faults.kill_points pretrain joint KILL 17
    python -m tests.faults.kill_points pretrain joint TERM "after replace latest.pt#2"

runs a stage in the working folder and sends its process group the signal at moment 17, or at the second of
that name. Moments are: every step of a training, every epoch of a probe, every few movements of a t-SNE; of
every file the first byte and some later ones; every sync, rename and removal. Signal LIST stops nothing and
prints the moments, with any file that is opened for writing under its own name.

    python -m tests.faults.kill_points serve 5

takes orders at socket 5 (see `tests.faults.runs`) and forks a process for each, which spares the seconds that
importing torch takes. Each of them loads the project's own modules from its working folder, and no other has.
"""

import builtins
import json
import os
import re
import resource
import runpy
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

OFFSETS = (1, 10_000, 100_000, 1_000_000)  # bytes of a file after which there is a moment
MOVEMENTS = 25  # of a t-SNE for each moment
# What the stages import of others, so that a forked process need not.
LIBRARIES = (
    "torch",
    "torchvision",
    "pandas",
    "safetensors.torch",
    "rich.progress",
    "sklearn.manifold",
    "yaml",
    "threadpoolctl",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "PIL.Image",
)
# Where a stage computes: module, class or none, function, and how many calls there are for each moment.
COMPUTING = {
    "pretrain": ("lib.core.trainer", "Pretrainer", "step", 1),
    "linear": ("lib.evaluate.progress", "Lines", "epoch", 1),
    "transfer": ("lib.evaluate.progress", "Lines", "epoch", 1),
    "tsne": ("sklearn.manifold._t_sne", None, "_kl_divergence_bh", MOVEMENTS),
}


class Moments:
    """Names the moments of a run as they are reached, and acts at one of them."""

    def __init__(self, chosen: str, act: Callable[[], None]) -> None:
        self.names: list[str] = []
        self.chosen, self.act = chosen, act

    def reach(self, name: str) -> None:
        self.names.append(name)
        if self.chosen in (str(len(self.names)), f"{name}#{self.names.count(name)}"):
            self.act()


class ReportingFile:
    """A file that is written, with a moment after each of `OFFSETS`; what was written so far is on the disk then."""

    def __init__(self, file: Any, name: str, moments: Moments) -> None:
        self.file, self.name, self.moments, self.done = file, name, moments, 0

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        count = len(rest)
        for offset in OFFSETS:
            if self.done < offset <= self.done + len(rest):
                part, rest = rest[: offset - self.done], rest[offset - self.done :]
                self.file.write(part)
                self.file.flush()
                self.done = offset
                self.moments.reach(f"byte {offset} of {self.name}")
        self.file.write(rest)
        self.done += len(rest)
        return count

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> "ReportingFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


def watch(stage: str, moments: Moments) -> None:
    """Have the stage's computing, and whatever it does to files in the working folder, report moments."""
    here = os.getcwd()

    def reporting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*paths: Any) -> None:
            inside = os.path.abspath(paths[-1]).startswith(here) and os.path.lexists(paths[0])
            if inside:
                moments.reach(f"before {name} {_shown(paths[-1])}")
            function(*paths)
            if inside:
                moments.reach(f"after {name} {_shown(paths[-1])}")

        return call

    def sync(handle: int, really: Callable[[int], None] = os.fsync) -> None:
        moments.reach(f"before sync {_shown(os.readlink(f'/proc/self/fd/{handle}'))}")
        really(handle)

    def opened(path: Any, mode: str = "r") -> Any:
        file = builtins.open(path, mode)
        return ReportingFile(file, _shown(path), moments) if "w" in mode else file

    os.replace, os.unlink, os.fsync = reporting("replace", os.replace), reporting("unlink", os.unlink), sync
    import_module("lib.runtime.files").open = opened  # hides the builtin from that module alone
    if stage in COMPUTING:
        module, owner, name, every = COMPUTING[stage]
        place = getattr(import_module(module), owner) if owner else import_module(module)
        setattr(place, name, _counting(getattr(place, name), f"{stage} {name.strip('_')}", every, moments))


def _counting(function: Callable[..., Any], name: str, every: int, moments: Moments) -> Callable[..., Any]:
    """The function, with a moment after every so many calls."""
    calls = 0

    def call(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        result = function(*arguments, **named)
        calls += 1
        if calls % every == 0:
            moments.reach(f"{name} {calls}")
        return result

    return call


def _shown(path: Any) -> str:
    """A file's name without what is random in the name of a part."""
    name = Path(os.fsdecode(path)).name
    return re.sub(r"^\.(.+)\.[^.]+\.part$", r"\1.part", name)


def _report_direct_writes(moments: Moments) -> None:
    """A moment for every file of the working folder that is opened for writing and is neither part nor lock."""
    here = os.getcwd()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" or not isinstance(arguments[0], (str, bytes)):
            return
        path, flags = os.path.abspath(os.fsdecode(arguments[0])), arguments[2]
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        if writes and path.startswith(here) and not re.search(r"\.part$|/lock$|/__pycache__/", path):
            moments.reach(f"direct write {_shown(path)}")

    sys.addaudithook(hook)


def run(stage: str, variant: str, sent: str = "", moment: str = "") -> int:
    """Run a stage of the working folder, or any of its modules, to the end or to the moment; returns its status."""

    def act() -> None:
        number = signal.Signals[f"SIG{sent}"]
        if os.getpgrp() == os.getpid():
            os.killpg(0, number)
        else:
            os.kill(os.getpid(), number)

    moments = Moments(moment, act)
    sys.path[0] = os.getcwd()
    module = stage if "." in stage else f"stages.{stage}"
    sys.argv = [module, *([variant] if variant else [])]
    if sent:
        watch(stage, moments)
    if sent == "LIST":
        _report_direct_writes(moments)
    status = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        status = 1
        traceback.print_exc()
    if sent == "LIST":
        print(f"moments {json.dumps(moments.names)}", flush=True)
    return status


def _child(order: dict[str, Any], output: int) -> None:
    """Become the stage that was ordered; never returns."""
    status = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job has it ignored
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(order["folder"])
        for name, value in order["environment"].items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        if order["limit"]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (order["limit"], order["limit"]))
        status = run(*order["run"])
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def serve(handle: int) -> None:
    """Answer orders until the other side closes: run (its process id), wait (its status), command (its status)."""
    for name in LIBRARIES:
        import_module(name)
    link = socket.socket(fileno=handle)
    while True:
        text, handles, _, _ = socket.recv_fds(link, 1_000_000, 1)
        if not text:
            return
        order = json.loads(text)
        if "run" in order:
            answer = os.fork()
            if not answer:
                link.close()
                _child(order, handles[0])
            os.close(handles[0])
        elif "wait" in order:
            answer = os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1])
        else:
            answer = subprocess.run(order["command"], stdin=subprocess.DEVNULL, capture_output=True).returncode
        link.send(json.dumps(answer).encode())


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    else:
        sys.exit(run(*sys.argv[1:]))
