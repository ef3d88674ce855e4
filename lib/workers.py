"""Whole pieces of work on the processors of this machine, each by one thread.

Kernels that are cut up among threads wait for the slowest of them, every one; a piece that one thread does from its
beginning to its end waits once. Of several pieces, what comes out does not depend on how many threads there are.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from lib.machine import Machine

START = 60  # seconds in which all threads are there


def one_thread_each(work: Callable[[Any], Any], pieces: Sequence[Any], machine: Machine) -> list[Any]:
    """``[work(piece) for piece in pieces]``, on a CPU by ``machine.threads`` at a time.

    ``work`` must not change what other pieces read, and sets autograd's and autocast's modes itself: they belong to a
    thread. If a piece fails, or the process is interrupted, pieces that have not begun are left out. What is compiled
    (machine setting compile), a single piece and pieces on a GPU are done where the caller is: torch's compiler is
    not made for several threads.
    """
    alone = torch.device(machine.device).type != "cpu" or machine.compile != "off"
    count = 1 if alone else min(machine.threads, len(pieces))
    if count <= 1:
        return [work(piece) for piece in pieces]
    pool = started_threads(count, 1)
    try:
        return list(pool.map(work, pieces))
    finally:
        pool.shutdown(cancel_futures=True)


def started_threads(count: int, share: int) -> ThreadPoolExecutor:
    """``count`` new threads that wait for work, each with ``share`` of torch's threads for what it computes.

    That number stays theirs, whatever is set elsewhere later; the caller keeps its own.

    Raises:
        RuntimeError: a thread did not start; none is left.
    """
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, initializer=_take_share, initargs=(share,))
    all_there = threading.Barrier(count, timeout=START)
    try:
        for one in [pool.submit(all_there.wait) for _ in range(count)]:
            one.result()
    except BaseException:
        all_there.abort()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    finally:
        torch.set_num_threads(before)  # torch gives a new thread the number that was set last, by whichever one
    return pool


def _take_share(share: int) -> None:
    torch.get_num_threads()  # torch gives a thread its number when it first asks or computes, and not again
    torch.set_num_threads(share)
