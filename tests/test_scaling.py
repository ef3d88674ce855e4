"""Several processes on one machine and on several: the same training, written once."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from lib.core import processes
from lib.methods import build_method
from lib.runtime.errors import UserError
from lib.runtime.machine import read_machine
from tests.examples import CPU, VARIANTS, pretraining, trainer
from tests.machines import STAGE, STANDALONE, TORCHRUN, output, start
from tests.two_processes import COMPARED


@pytest.fixture(scope="module")
def disks(tmp_path_factory) -> Path:
    """A disk for each of two processes, ``0`` and ``1``."""
    return tmp_path_factory.mktemp("disks")


@pytest.fixture(scope="module")
def verdicts(disks) -> list[str]:
    command = [*TORCHRUN, *STANDALONE, "-m", "tests.two_processes", str(disks)]
    return output(start(command, DVC_ROOT=str(disks))).splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("name", [*COMPARED, "main rank", "resume"])
def test_two_processes_train_what_one_trains(name, verdicts):
    """Views, loss, gradient and weights; and what the main rank alone can read reaches the other."""
    found = [line for line in verdicts if f": {name}: " in line]
    assert sorted(found) == [f"{rank}: {name}: agrees" for rank in (0, 1)]


@pytest.mark.slow
def test_a_checkpoint_is_needed_on_the_disk_of_the_main_rank_alone(verdicts, disks):
    assert any("going on from the checkpoint at epoch 1, step 3 of 4" in line for line in verdicts)
    assert (disks / "0").exists() and not (disks / "1").exists()


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_views_do_not_depend_on_the_number_of_processes(world, monkeypatch):
    def views(world: int, rank: int) -> list[torch.Tensor]:
        monkeypatch.setattr(processes, "world_size", lambda: world)
        monkeypatch.setattr(processes, "rank", lambda: rank)
        run = trainer()
        return run.views(run.batch(1, 2, run.order(1)[2]))

    parts = [views(world, rank) for rank in range(world)]
    for whole, *local in zip(views(1, 0), *parts):
        torch.testing.assert_close(torch.cat(local), whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_batch_norm_is_shared_where_there_is_cuda(variant, monkeypatch):
    with torch.device("meta"):
        method = build_method(pretraining(variant))

    def norms(world: int, device: str) -> tuple[int, int]:
        monkeypatch.setattr(processes, "world_size", lambda: world)
        machine = replace(CPU, device=device, processes=world)
        kinds = [type(module) for module in processes.share_statistics(method, machine).modules()]
        return kinds.count(nn.SyncBatchNorm), kinds.count(nn.BatchNorm1d) + kinds.count(nn.BatchNorm2d)

    none, plain = norms(2, "cpu")
    assert none == 0 and norms(1, "cuda") == (0, plain) and norms(2, "cuda") == (plain, 0)


def test_what_torchrun_started_is_what_the_machine_says(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    for name in [name for name in os.environ if name.startswith(("ENGRAM_", "DVC_"))]:
        monkeypatch.delenv(name)
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, value)
    machine = read_machine()
    assert (machine.processes, machine.nodes) == (2, 3)
    monkeypatch.setenv("ENGRAM_PROCESSES", "1")
    with pytest.raises(UserError, match="processes is '1' while torchrun has started 2 .* allowed: auto or 2"):
        read_machine()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"processes": 4}, ["4", "--standalone"]),
        ({"processes": 1, "torchrun": "--nnodes 2 --node-rank 1"}, ["1", "--nnodes", "2", "--node-rank", "1"]),
        ({"processes": 1}, None),
    ],
)
def test_torchrun_gets_what_the_settings_say(settings, expected, monkeypatch):
    commands = []
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setattr(os, "execv", lambda program, command: commands.append(command))
    processes.start(replace(CPU, **settings), "stages.pretrain", ["joint"])
    assert commands == ([[*TORCHRUN, "--nproc-per-node", *expected, *STAGE]] if expected else [])
