"""Dividing the machine among trainings that run side by side: processor cores and GPUs.

Whatever the user set stays: with ENGRAM_THREADS no cores are assigned, with one named device no GPU is.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

from lib.errors import UserError
from lib.machine import MACHINE_FILE
from lib.params.spec import load_yaml

T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """``cores`` are numbers of processors, ``gpus`` names for CUDA_VISIBLE_DEVICES; empty means nothing is assigned."""

    cores: tuple[int, ...]
    gpus: tuple[str, ...]

    @classmethod
    def whole(cls) -> "Share":
        return cls((), ())

    @contextmanager
    def held(self) -> Iterator[None]:
        """Children started inside are held to the cores, and so are their threads."""
        if not self.cores:
            yield
            return
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, self.cores)
        try:
            yield
        finally:
            os.sched_setaffinity(0, before)

    def environment(self) -> dict[str, str]:
        return {"CUDA_VISIBLE_DEVICES": ",".join(self.gpus)} if self.gpus else {}

    def words(self) -> str:
        """``" on GPU 1 and 16 cores"``; empty where nothing is assigned."""
        parts = [f"GPU {', '.join(self.gpus)}"] if self.gpus else []
        if self.cores:
            parts.append(f"core {self.cores[0]}" if len(self.cores) == 1 else f"{len(self.cores)} cores")
        return f" on {' and '.join(parts)}" if parts else ""


def job_count() -> int:
    """How many trainings this machine takes at once, each with the processes and threads that are set."""
    processes = _count("processes")
    if gpus := _gpus():
        return max(1, len(gpus) // processes)
    if _setting("device").startswith("cuda"):
        return 1  # one device that the user named
    return max(1, len(_cores()) // (processes * _count("threads")))


def shares(count: int) -> list[Share]:
    """``count`` shares of the cores and GPUs that this process may use."""
    cores = _cores() if _setting("threads") == "auto" and hasattr(os, "sched_setaffinity") else []
    return [Share(*parts) for parts in zip(divided(cores, count), divided(_gpus(), count), strict=True)]


def divided(items: Sequence[T], count: int) -> list[tuple[T, ...]]:
    """``count`` runs of neighbours, as even as can be; where there are fewer items than runs, they are shared."""
    if not items:
        return [()] * count
    if len(items) < count:
        return [(items[number % len(items)],) for number in range(count)]
    ends = [len(items) * number // count for number in range(count + 1)]
    return [tuple(items[start:end]) for start, end in zip(ends, ends[1:])]


def _cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _gpus() -> list[str]:
    """The CUDA devices to divide; none where the user chose the CPU or one device."""
    if _setting("device") not in ("auto", "cuda"):
        return []
    count = _device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return visible.split(",")[:count] if visible else [str(number) for number in range(count)]


@cache
def _device_count() -> int:
    """Asked of torch in a process of its own, so that this one, which only waits, does not hold torch for days."""
    code = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"torch does not load, so GPUs cannot be counted: {done.stderr.strip().splitlines()[-1:]}")
    return int(done.stdout.split()[-1])


def _setting(name: str) -> str:
    """As `lib.machine.read_machine` finds it, unresolved: the environment, then machine.yaml, then auto."""
    path = Path(os.environ.get("DVC_ROOT", ".")) / MACHINE_FILE
    written = load_yaml(path, may_be_empty=True) if path.exists() else {}
    return str(os.environ.get(f"ENGRAM_{name.upper()}", written.get(name, "auto")))


def _count(name: str) -> int:
    value = _setting(name)
    if value == "auto":
        return 1
    if not value.isdigit() or int(value) < 1:
        raise UserError(f"machine setting {name} is {value!r}; allowed: auto or a whole number of at least 1")
    return int(value)
