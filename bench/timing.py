"""How long work takes, and how much memory the process took for it."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

CALLS_AHEAD = 20  # that a GPU may be given before it is waited for


def steady(work: Callable[[], Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Seconds per call of ``work`` once it runs steadily, over whole calls.

    ``settings``: ``warm`` and ``seconds``, how long to warm up and to measure; ``least``, how many calls to measure
    however long they take. Data loaders fill their queues while warming up, so that no batch is counted as free.
    """
    _repeat(work, settings["warm"], least=2)
    return {"seconds": _repeat(work, settings["seconds"], settings["least"])}


def once(work: Callable[[], Any]) -> dict[str, Any]:
    """Seconds of a single call."""
    return {"seconds": _repeat(work, 0.0, least=1)}


def _repeat(work: Callable[[], Any], seconds: float, least: int) -> float:
    """Seconds of each of ``least`` calls, or of as many more as fit into ``seconds``."""
    started, calls = time.perf_counter(), 0
    while True:
        work()
        calls += 1
        if calls >= least and (calls % CALLS_AHEAD == 0 or not torch.cuda.is_initialized()):
            wait_for_device()
            spent = time.perf_counter() - started
            if spent >= seconds:
                return spent / calls


def wait_for_device() -> None:
    """Until a GPU has done what it was asked for, where one is used: before a clock is read."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def forever(loader: Any) -> Iterator[Any]:
    """Batches of one epoch after the other. Workers start anew with each epoch, as in a plain loop."""
    while True:
        yield from loader


def peak_memory() -> float:
    """The most MiB so far: of tensors on a GPU where one is used, else of this process, torch included (Linux)."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    lines = Path("/proc/self/status").read_text().splitlines()  # unlike ru_maxrss, VmHWM starts anew with a program
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
