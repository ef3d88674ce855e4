"""Settings of the machine: from the environment, then machine.yaml, then what the machine has."""

import os

import pytest
import torch

from lib.runtime.errors import UserError
from lib.runtime.machine import _compile, read_machine


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


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "cpu"])
@pytest.mark.parametrize("several", [False, True])
def test_graphs_are_the_choice_of_one_process_on_a_gpu(device, several):
    usable = device != "cpu" and not several
    assert _compile("auto", device, several) == ("graphs" if usable else "off")
    assert _compile(True, device, several) == "on"
    if usable:
        assert _compile("graphs", device, several) == "graphs"
        return
    with pytest.raises(UserError, match="CUDA graphs need a CUDA device and one process"):
        _compile("graphs", device, several)


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", False), ("bf16", True)])
def test_fp32_is_not_tf32(precision, allowed, monkeypatch):
    monkeypatch.setenv("ENGRAM_PRECISION", precision)
    torch.backends.cudnn.allow_tf32 = True
    read_machine()
    assert torch.backends.cudnn.allow_tf32 is allowed
