"""Several processes on one machine and on several: the same training, written once."""

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from lib.core import processes
from lib.core.trainer import Pretrainer
from lib.methods import build_method
from lib.runtime.errors import UserError
from lib.runtime.machine import Machine, read_machine
from tests.examples import CPU, images, pretraining
from tests.machines import STAGE, STANDALONE, TORCHRUN, output, start
from tests.two_processes import all_variants, cases


@pytest.fixture(scope="module")
def disks(tmp_path_factory) -> Path:
    """A disk for each of two processes, ``0`` and ``1``."""
    return tmp_path_factory.mktemp("disks")


@pytest.fixture(scope="module")
def verdicts(disks) -> list[str]:
    return output(start([*TORCHRUN, *STANDALONE, "-m", "tests.two_processes", str(disks)])).splitlines()


@pytest.mark.parametrize(("variant", "case"), cases())
def test_two_processes_train_what_one_trains(variant, case, verdicts):
    """Views, loss, gradient and weights. On a CPU each process has its own BatchNorm statistics, so either there
    is no BatchNorm (with micro-batches), or a stand-in computes what SyncBatchNorm does on CUDA, or BatchNorm has
    groups (MoCo). Those of one process are then the ones that two have: in each, keys change groups among its own."""
    found = [line for line in verdicts if f": {variant}, {case}: " in line]
    assert sorted(found) == [f"{rank}: {variant}, {case}: agrees" for rank in (0, 1)]


def test_the_lead_gives_the_others_what_it_alone_can_read(verdicts):
    assert {"0: lead: agrees", "1: lead: agrees"} <= set(verdicts)


def test_a_checkpoint_is_needed_on_the_disk_of_the_lead_alone(verdicts, disks):
    assert {"0: resume: agrees", "1: resume: agrees"} <= set(verdicts)
    assert any("going on from the checkpoint at epoch 1, step 3 of 4" in line for line in verdicts)
    assert (disks / "0").exists() and not (disks / "1").exists()


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_views_do_not_depend_on_the_number_of_processes(world, monkeypatch):
    def views(world: int, rank: int) -> list[torch.Tensor]:
        monkeypatch.setattr(processes, "world_size", lambda: world)
        monkeypatch.setattr(processes, "rank", lambda: rank)
        params = pretraining("simclr")
        run = Pretrainer(build_method(params), images(), params, CPU)
        return run.views(run.draws(1, 2), run.order(1)[2], run.rows)

    parts = [views(world, rank) for rank in range(world)]
    for whole, *shares in zip(views(1, 0), *parts):
        torch.testing.assert_close(torch.cat(shares), whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize("variant", all_variants())
def test_batch_norm_is_shared_where_there_is_cuda(variant, monkeypatch):
    with torch.device("meta"):
        method = build_method(all_variants()[variant])

    def norms(world: int, device: str) -> tuple[int, int]:
        monkeypatch.setattr(processes, "world_size", lambda: world)
        machine = Machine(device=device, processes=world, threads=1, precision="fp32", checkpoint_minutes=10.0)
        kinds = [type(module) for module in processes.share_statistics(method, machine).modules()]
        return kinds.count(nn.SyncBatchNorm), kinds.count(nn.BatchNorm1d) + kinds.count(nn.BatchNorm2d)

    none, plain = norms(2, "cpu")
    assert none == 0 and norms(1, "cuda") == (0, plain) and norms(2, "cuda") == (plain, 0)


@pytest.fixture
def launched(monkeypatch, tmp_path):
    """As torchrun leaves the environment in a process of the second machine."""
    threads = torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("ENGRAM_", "DVC_"))]:
        monkeypatch.delenv(name)
    for name, value in {
        "TORCHELASTIC_RUN_ID": "x",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_WORLD_SIZE": "3",
        "GROUP_RANK": "1",
        "ENGRAM_THREADS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    yield
    torch.set_num_threads(threads)


def test_what_torchrun_started_is_what_the_machine_says(launched, monkeypatch):
    machine = read_machine()
    assert (machine.processes, machine.nodes) == (2, 3)
    monkeypatch.setenv("ENGRAM_PROCESSES", "1")
    with pytest.raises(UserError, match="processes is '1' while torchrun has started 2 .* allowed: auto or 2"):
        read_machine()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"processes": 4}, ["--nproc-per-node", "4", "--standalone"]),
        (
            {"processes": 1, "torchrun": "--nnodes 2 --node-rank 1"},
            ["--nproc-per-node", "1", "--nnodes", "2", "--node-rank", "1"],
        ),
        ({"processes": 1}, None),
    ],
)
def test_torchrun_gets_what_the_settings_say(settings, expected, monkeypatch):
    commands = []
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setattr(os, "execv", lambda program, command: commands.append(command))
    processes.start(Machine(**{**vars(CPU), **settings}), "stages.pretrain", ["joint"])
    assert commands == ([[*TORCHRUN, *expected, *STAGE]] if expected else [])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("torchrun: --nnodes '2", "torchrun is .* allowed: arguments of torchrun, for example --nnodes 2"),
        ("nodes: 2", "unknown key nodes; allowed: device, .*, torchrun"),
    ],
)
def test_a_setting_that_torchrun_could_not_use_is_refused(text, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ENGRAM_TORCHRUN", raising=False)
    (tmp_path / "machine.yaml").write_text(text)
    with pytest.raises(UserError, match=words):
        read_machine()
