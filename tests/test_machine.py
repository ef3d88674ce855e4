"""Settings of the machine: from the environment, then machine.yaml, then what the machine has."""

import os
import platform
import subprocess
import sys

import pytest
import torch

from lib.runtime.errors import UserError
from lib.runtime.machine import _compile, read_machine
from tests.examples import ROOT


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("ENGRAM_") or name == "DVC_ROOT":
            monkeypatch.delenv(name)
    flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = flags


def test_processes_share_the_processors_that_this_one_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setenv("ENGRAM_PROCESSES", "2")
    machine = read_machine()
    assert (machine.processes, machine.threads, torch.get_num_threads()) == (2, 2, 2)
    machine = read_machine(alone=True)  # a stage that is one process in any case
    assert (machine.processes, machine.threads) == (1, 4)


def test_the_environment_comes_before_the_file(tmp_path, monkeypatch):
    (tmp_path / "machine.yaml").write_text("threads: 2\nprecision: fp32\n")
    monkeypatch.setenv("ENGRAM_THREADS", "1")
    machine = read_machine()
    assert (machine.threads, machine.precision, machine.processes) == (1, "fp32", 1)


def test_a_temporary_copy_finds_the_file_of_the_repository(tmp_path, monkeypatch):
    (tmp_path / "machine.yaml").write_text("precision: bf16\n")
    (tmp_path / "copy").mkdir()
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert read_machine().precision == "bf16"
    (tmp_path / "copy/machine.yaml").write_text("# of its own, with nothing but this comment\n")
    assert read_machine().processes == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("treads: 2", "unknown key treads; allowed: device"),
        ("nodes: 2", "unknown key nodes; allowed: device, .*, torchrun"),
        ("threads: 0", "threads is 0; allowed"),
        ("threads: many", "threads is 'many'; allowed"),
        ("precision: fp16", "precision is 'fp16'; allowed: auto, fp32, bf16"),
        ("device: tpu", "device is 'tpu'; usable here: auto, cpu"),
        ("device: cuda:99", "device is 'cuda:99'; usable here: auto, cpu"),
        ("checkpoint_minutes: -1", "checkpoint_minutes is -1; allowed"),
        ("compile: fast", "compile is 'fast'; allowed: auto, off, on, graphs"),
        ("torchrun: --nnodes '2", "torchrun is .* allowed: arguments of torchrun, for example --nnodes 2"),
    ],
)
def test_a_setting_that_cannot_be_honored_is_refused(text, words, tmp_path):
    (tmp_path / "machine.yaml").write_text(text)
    with pytest.raises(UserError, match=words):
        read_machine()


@pytest.mark.parametrize(("written", "meant"), [("on", "on"), ("off", "off"), ("auto", "off"), ('"on"', "on")])
def test_compile_means_what_yaml_makes_of_on_and_off(written, meant, tmp_path):
    (tmp_path / "machine.yaml").write_text(f"compile: {written}\n")
    machine = read_machine()
    assert machine.compile == meant and ("compiled" in str(machine)) == (meant == "on")


@pytest.mark.parametrize(
    ("value", "device", "several", "chosen"),
    [
        ("auto", "cuda", False, "graphs"),
        ("auto", "cuda:1", False, "graphs"),
        ("auto", "cuda", True, "off"),
        ("auto", "cpu", False, "off"),
        ("graphs", "cuda", False, "graphs"),
        (True, "cuda", True, "on"),
        ("graphs", "cuda", True, "with several processes; CUDA graphs need a CUDA device and one process"),
        ("graphs", "cpu", False, "with device 'cpu'; CUDA graphs need"),
    ],
)
def test_graphs_are_the_choice_of_one_process_on_a_gpu(value, device, several, chosen):
    if " " not in chosen:
        assert _compile(value, device, several) == chosen
        return
    with pytest.raises(UserError, match=chosen):
        _compile(value, device, several)


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", False), ("bf16", True)])
def test_fp32_is_not_tf32(precision, allowed, monkeypatch):
    monkeypatch.setenv("ENGRAM_PRECISION", precision)
    torch.backends.cudnn.allow_tf32 = True
    read_machine()
    assert torch.backends.cudnn.allow_tf32 is allowed


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps what it likes")
def test_memory_that_is_freed_is_kept():
    """Each block of 64 MiB is new pages from the system, or the ones of the block before it."""
    code = (
        "import resource\nfrom lib.runtime.machine import keep_freed_memory\n{}\n"
        "def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(5):\n    before = faults(); block = bytearray(2**26); del block\nprint(faults() - before)"
    )
    counts = [
        int(subprocess.run([sys.executable, "-c", code.format(call)], cwd=ROOT, capture_output=True, timeout=60).stdout)
        for call in ("", "keep_freed_memory()")
    ]
    assert counts[1] < 0.1 * counts[0]
