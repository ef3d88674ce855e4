"""How long work takes, and how much memory the process took for it."""

import multiprocessing
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from lib.runtime.machine import Machine

WARM_CALLS = 2
CALLS_AHEAD = 20  # of a GPU


def steady(work: Callable[[], Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Seconds per call of ``work`` once it runs steadily, over whole calls.

    ``settings``: ``warm`` and ``seconds``, how long to warm up and to measure; ``least``, how many calls to
    measure however long they take. Data loaders fill their queues while warming up, so that a batch made
    in advance is not counted as free. ``workers_memory`` is read while their workers run.
    """
    _repeat(work, settings["warm"], WARM_CALLS)
    seconds, calls = _repeat(work, settings["seconds"], settings["least"])
    return {"seconds": seconds / calls, "calls": calls, "workers_memory": workers_memory()}


def once(work: Callable[[], Any]) -> dict[str, Any]:
    """Seconds of a single call."""
    started = time.perf_counter()
    work()
    wait_for_device()
    return {"seconds": time.perf_counter() - started, "calls": 1}


def _repeat(work: Callable[[], Any], seconds: float, least: int) -> tuple[float, int]:
    """Whole calls for at least ``seconds`` and ``least`` calls; returns the seconds spent and the calls.

    Every so many calls a GPU is waited for, so that what is spent is known; the last time before the clock is read.
    """
    started, calls = time.perf_counter(), 0
    while True:
        work()
        calls += 1
        if calls >= least and (calls % CALLS_AHEAD == 0 or not _on_a_gpu()):
            wait_for_device()
            spent = time.perf_counter() - started
            if spent >= seconds:
                return spent, calls


def _on_a_gpu() -> bool:
    """Whether this process has used one: calls then return before the work is done."""
    return torch.cuda.is_initialized()


def wait_for_device() -> None:
    """Until a GPU has done what it was asked for, where one is used: before a clock is read."""
    if _on_a_gpu():
        torch.cuda.synchronize()


def forever(loader: Any) -> Iterator[Any]:
    """Batches of one epoch after the other. Workers start anew with each epoch, as in a plain loop."""
    while True:
        yield from loader


def as_it_comes(machine: Machine) -> str:
    """The precision in which torch computes the convolutions of a network in fp32: on a GPU tf32, if it may."""
    return "tf32" if machine.device == "cuda" and torch.backends.cudnn.allow_tf32 else "fp32"


def peak_memory() -> float:
    """The largest resident size of this process so far, in MiB (Linux).

    The kernel's VmHWM: unlike ru_maxrss it starts anew with a new program.
    """
    return _kibibytes(Path("/proc/self/status"), "VmHWM") / 1024


def device_memory() -> float | None:
    """The most that tensors took on the GPU so far, in MiB; None where none is used."""
    return torch.cuda.max_memory_allocated() / 2**20 if _on_a_gpu() else None


def workers_memory() -> float:
    """MiB that the running worker processes hold for themselves; what they share with this process is not counted."""
    files = [Path(f"/proc/{child.pid}/smaps_rollup") for child in multiprocessing.active_children()]
    return sum(_kibibytes(file, "Private_Clean") + _kibibytes(file, "Private_Dirty") for file in files) / 1024


def _kibibytes(file: Path, key: str) -> int:
    return next(int(line.split()[1]) for line in file.read_text().splitlines() if line.startswith(f"{key}:"))
