"""Pieces of work by one thread each; memory that stays with a stage's process."""

import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lib.evaluate.features import extract_with_projections
from lib.workers import one_thread_each
from tests.evaluate_fakes import MACHINE, tiny_data, tiny_method
from tests.examples import ROOT

TWO = replace(MACHINE, device="cpu", threads=2)


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_pieces_are_done_at_the_same_time_by_one_thread_each_and_come_back_in_order():
    both = threading.Barrier(2, timeout=20)

    def work(piece: int) -> tuple[int, int, str]:
        both.wait()  # passes only when two pieces are under way
        return piece, torch.get_num_threads(), threading.current_thread().name

    found = one_thread_each(work, range(6), TWO)
    assert [piece for piece, *_ in found] == list(range(6))
    assert {threads for _, threads, _ in found} == {1}
    assert len({name for *_, name in found}) == 2
    assert torch.get_num_threads() == 2
    assert one_thread_each(lambda _: torch.get_num_threads(), range(1), TWO) == [2], "a single piece has all threads"
    fresh: list[int] = []
    later = threading.Thread(target=lambda: fresh.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert fresh == [2], "threads that start afterwards are as before"


def test_one_thread_works_where_it_is():
    here = threading.get_ident()
    assert one_thread_each(lambda _: threading.get_ident(), range(3), replace(TWO, threads=1)) == [here] * 3
    assert one_thread_each(lambda _: threading.get_ident(), range(3), replace(TWO, device="cuda")) == [here] * 3


def test_a_piece_that_fails_stops_those_that_have_not_begun():
    begun, let_go = [], threading.Event()

    def work(piece: int) -> None:
        begun.append(piece)
        if piece == 0:
            raise ValueError("no such piece")
        let_go.wait(0.2)

    with pytest.raises(ValueError, match="no such piece"):
        one_thread_each(work, range(100), TWO)
    assert len(begun) < 20 and torch.get_num_threads() == 2


def test_features_do_not_depend_on_the_number_of_threads():
    method, data = tiny_method(), tiny_data()
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        machine = replace(TWO, threads=threads)
        found.append(extract_with_projections(method, data.train_images, data.mean, data.std, machine, batch=7))
    for other in found[1:]:
        for what, named in found[0].items():
            assert named.keys() == other[what].keys()
            assert all(torch.equal(values, other[what][name]) for name, values in named.items())


FAULTS = """
import resource, sys
import torch
from lib.stage import keep_memory
if sys.argv[1] == "kept":
    keep_memory()
torch.set_num_threads(1)
for _ in range(4):
    torch.empty(2**26, dtype=torch.uint8).fill_(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    torch.empty(2**26, dtype=torch.uint8).fill_(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="glibc on Linux alone")
def test_memory_that_a_stage_frees_is_not_asked_for_again():
    """Eight blocks of 64 MiB are 131,072 pages of 4 KiB, or 256 of 2 MiB."""
    kept, given_back = (int(subprocess.run([sys.executable, "-c", FAULTS, which], cwd=ROOT, capture_output=True,
                                           text=True, check=True).stdout) for which in ("kept", "given back"))
    assert given_back > 200, "without it the system hands pages out again"
    assert kept < given_back / 4
