"""What must be seen while a training runs: numbers that break, embeddings that collapse, steps that do not end."""

import faulthandler
import os
import resource
import signal
import sys
import time
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor

COLLAPSED = 0.05  # embedding_std; the mean cosine of two different images is then above 0.9975

STUCK_SECONDS = 120.0  # without a step, or `SLOWER` times as long as a step takes: nothing moves any more
SLOWER = 20


class Watchdog:
    """Ends the process with status 1, and the line at which each of its threads stands, when no step is made for long.

    The timer is in C: it needs no Python thread, and works where the interpreter's lock is never given back; its words
    go to stderr. The first step, which may compile, and what comes between two epochs may take their time (`rest`), and
    so may a terminal's Ctrl-Z. It does nothing under a debugger and outside of the main thread, which gets no signals.
    """

    def __init__(self, on: bool = True) -> None:
        self.limit, self.last, self.renewed = STUCK_SECONDS, 0.0, 0.0  # seconds; 0: at rest
        self.on, self.before = on and sys.gettrace() is None, cast(Any, None)  # of SIGTSTP, what was done before

    def __enter__(self) -> "Watchdog":
        try:
            self.before = signal.signal(signal.SIGTSTP, self._pause)
        except ValueError:  # not the main thread
            self.on = False
        return self

    def __exit__(self, *_: object) -> None:
        self.rest()
        if self.before is not None:
            signal.signal(signal.SIGTSTP, self.before)

    def _pause(self, *_: object) -> None:
        self.rest()
        os.kill(os.getpid(), signal.SIGSTOP)

    def stepped(self) -> None:
        """A step has been made after another: the next must come in time."""
        now = time.monotonic()
        if self.last and self.on:
            self.limit = max(self.limit, SLOWER * (now - self.last))
            if now - self.renewed > 1:  # a timer takes longer to set than a fast step does
                self.renewed = now
                faulthandler.dump_traceback_later(self.limit, exit=True, file=2)
        self.last = now

    def rest(self) -> None:
        faulthandler.cancel_dump_traceback_later()
        self.last = self.renewed = 0.0


class Guard:
    """Remembers the first step whose loss or gradient is not finite, on the device and without waiting for it.

    From that step on no update is made: the optimizers read ``found_inf``, a number that is 1 then and 0
    before. So the parameters are still those of the last good step when the host learns of it.
    """

    def __init__(self, device: str) -> None:
        self.first = torch.zeros((), dtype=torch.int64, device=device)  # 1 + the number of the step; 0: none

    def watch(self, number: int, loss: Tensor, gradients: Iterable[Tensor]) -> Tensor:
        """Look at step ``number``; returns ``found_inf``, float32 []."""
        size = torch.nn.utils.get_total_norm(gradients).to(loss.dtype)
        broken = ~torch.isfinite(loss + size)
        self.first = torch.where(broken & (self.first == 0), number + 1, self.first)
        return (self.first > 0).float()

    def broken_step(self) -> int | None:
        """The number of the first step that broke; waits for the device."""
        first = int(self.first.item())
        return first - 1 if first else None


def embedding_std(rows: Tensor) -> Tensor:
    """The collapse metric of embeddings [B, D], []: their standard deviation over their root mean square length.

    1 when they balance around zero, 0 when all are equal. Of L2-normalized embeddings its square is 1 minus the mean
    cosine of two of them (each with itself included).
    """
    power = rows.square().sum(1).mean()
    variance = (rows - rows.mean(0)).square().sum(1).mean()
    return torch.where(power > 0, variance / power, 0.0).sqrt()


def peak_memory(device: str) -> int:
    """Bytes: the most that tensors ever took on a CUDA device, or this process in memory, libraries included."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def forget_peak(device: str) -> None:
    """What was evaluated between two epochs does not count into `peak_memory`; in a process's own it stays."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
