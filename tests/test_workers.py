"""Pieces of work by one thread each; memory that stays with a stage's process."""

import os
import platform
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch

from bench import plan
from bench.arm import keeps
from lib import stage
from lib.evaluate.features import extract_with_projections
from lib.methods import build_method
from lib.workers import one_thread_each, started_threads
from tests.evaluate_fakes import MACHINE
from tests.examples import FORMS, ROOT, images, params_file, pretraining

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
    begun: list[int] = []

    def work(piece: int) -> None:
        begun.append(piece)
        if piece == 0:
            raise ValueError("no such piece")
        time.sleep(0.2)

    with pytest.raises(ValueError, match="no such piece"):
        one_thread_each(work, range(100), TWO)
    assert len(begun) < 20 and torch.get_num_threads() == 2


@pytest.mark.parametrize("broken", ["start", "initializer"])
def test_a_thread_that_does_not_start_is_an_error_and_leaves_none_waiting(broken, monkeypatch):
    begun, start, running = [], threading.Thread.start, threading.active_count()

    def second_fails(what, then):
        begun.append(what)
        if len(begun) == 2:
            raise RuntimeError("can't start new thread")
        return then(what)

    if broken == "start":
        monkeypatch.setattr(threading.Thread, "start", lambda thread: second_fails(thread, start))
    else:
        monkeypatch.setattr("lib.workers._take_share", lambda share: second_fails(share, torch.set_num_threads))
        monkeypatch.setattr("lib.workers.START", 1)
    with pytest.raises((RuntimeError, threading.BrokenBarrierError)):
        started_threads(2, 1)
    for _ in range(100):
        if threading.active_count() == running:
            break
        time.sleep(0.05)
    assert threading.active_count() == running and torch.get_num_threads() == 2


def test_nothing_and_what_is_compiled_are_done_where_the_caller_is():
    assert one_thread_each(lambda _: 1 / 0, [], TWO) == []
    here = threading.get_ident()
    assert one_thread_each(lambda _: threading.get_ident(), range(3), replace(TWO, compile="on")) == [here] * 3


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("variant", [*params_file()["variants"], *FORMS])
def test_features_do_not_depend_on_the_number_of_threads(variant, precision):
    torch.manual_seed(0)
    method, data, found = build_method(pretraining(variant)), images(40), []
    method.see_data(data.mean, data.std, len(data.train_images), len(data.classes))
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        machine = replace(TWO, threads=threads, precision=precision)
        found.append(extract_with_projections(method, data.train_images, data.mean, data.std, machine, batch=7))
    for other in found[1:]:
        for what, named in found[0].items():
            assert named.keys() == other[what].keys()
            assert all(torch.equal(values, other[what][name]) for name, values in named.items())


def test_a_stage_keeps_memory_and_so_do_the_arms_that_stand_for_stages(monkeypatch):
    called: list[str] = []
    monkeypatch.setattr(stage, "keep_memory", lambda: called.append("kept"))
    monkeypatch.setattr(stage, "load_params", lambda: called.append("read") or {})
    monkeypatch.setattr(stage, "check_params", lambda raw: None)
    monkeypatch.setattr(sys, "argv", ["stage"])
    stage.run_stage(lambda raw: called.append("ran"), "A stage.")
    assert called == ["kept", "read", "ran"]
    arms = {arm for row in plan.rows(plan.FULL, list(plan.SECTIONS)) for arm in row.arms}
    without = {arm for arm in arms if not keeps(arm)}
    assert {"parts.memory_given_back", "leftthomas.step", "with_lightly.step", "parts.whole_matrix"} <= without
    assert {"ours.step", "ours.data", "ours.embed", "parts.fp32", "parts.convolutions", "parts.in_turn",
            "systems.system"} <= arms - without
    assert keeps("accuracy.ours") and not keeps("accuracy.leftthomas")


FAULTS = """
import resource, sys
from threading import Thread
from lib.stage import keep_memory
if sys.argv[1] == "kept":
    keep_memory()
import torch
torch.set_num_threads(1)
def blocks(count):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        torch.empty(5 * 2**24, dtype=torch.uint8).fill_(1)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
def twice():
    blocks(8)
    blocks(8)
if sys.argv[2] == "here":
    twice()
else:
    thread = Thread(target=twice)
    thread.start()
    thread.join()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc alone")
@pytest.mark.parametrize("where", ["here", "in a thread"])
def test_memory_that_a_stage_frees_is_not_asked_for_again(where):
    """Eight blocks of 80 MiB are 163,840 pages of 4 KiB, or 320 of 2 MiB."""
    usual = {name: value for name, value in os.environ.items()
             if not name.startswith("MALLOC_") and name not in ("GLIBC_TUNABLES", "LD_PRELOAD")}
    kept, given_back = ([int(line) for line in subprocess.run(
        [sys.executable, "-c", FAULTS, which, where], cwd=ROOT, env=usual, capture_output=True, text=True,
        check=True).stdout.split()] for which in ("kept", "given back"))
    assert given_back[1] > 250, "without it the system hands pages out again"
    assert kept[1] < given_back[1] / 4
