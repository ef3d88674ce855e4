"""A stage that is stopped at a chosen moment, or lists its moments; run in a process of its own by `tests.faults.runs`.

Moments are: every step of a training; of every file some of its bytes; every sync, rename and removal. A moment has a
number, or a name and how often that came: ``after replace latest.pt#2``.
"""

import builtins
import json
import os
import re
import runpy
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

OFFSETS = (1, 10_000, 1_000_000)  # bytes of a file after which there is a moment


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


def watch(moments: Moments) -> None:
    """Have the steps of a training, and whatever is done to files in the working folder, report moments."""
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
        file = builtins.open(path, mode)  # noqa: SIM115 (handed on)
        return ReportingFile(file, _shown(path), moments) if "w" in mode else file

    os.replace, os.unlink, os.fsync = reporting("replace", os.replace), reporting("unlink", os.unlink), sync
    import_module("lib.runtime.files").open = opened  # hides the builtin from that module alone
    pretrainer = import_module("lib.core.trainer").Pretrainer
    step = pretrainer.step

    def counted(self: Any, *position: Any) -> Any:
        values = step(self, *position)
        moments.reach("step")
        return values

    pretrainer.step = counted


def _shown(path: Any) -> str:
    """A file's name without what is random in the name of a part."""
    return re.sub(r"^\.(.+)\.[^.]+\.part$", r"\1.part", Path(os.fsdecode(path)).name)


def run(folder: str, log: str, module: str, variant: str, sent: str, moment: str, environment: dict[str, str]) -> None:
    """Become the module of a stage in ``folder``, sent a signal at a moment; signal LIST prints the moments instead.

    It has a process group of its own, and its output goes to the file ``log``.
    """
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job has it ignored
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 (until the process ends)
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    os.chdir(folder)
    os.environ.update(environment)
    moments = Moments(moment, lambda: os.killpg(0, signal.Signals[f"SIG{sent}"]))
    if sent:
        watch(moments)
    sys.argv = [module, variant]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        if sent == "LIST":
            print(f"moments {json.dumps(moments.names)}")
        sys.stdout.flush()
