"""Machines that share a training, and one that fails: two folders, two torchruns, one training."""

import sys
from pathlib import Path

import psutil
import pytest

from tests.machines import STAGE, STANDALONE, TORCHRUN, output, project, same_training, start, start_both, written

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def one_machine(tmp_path_factory) -> Path:
    """Trained by two processes of one machine, as the setting says."""
    folder = project(tmp_path_factory.mktemp("one") / "node", "joint", epochs=1)
    output(start([sys.executable, *STAGE], folder, ENGRAM_PROCESSES="2"))
    return folder


def test_two_machines_train_the_same_model_and_only_the_first_writes(one_machine, tmp_path):
    nodes = [project(tmp_path / name, "joint", epochs=1) for name in "01"]
    before = written(nodes[1])
    said = [output(process) for process in start_both(nodes)]
    assert same_training(one_machine, nodes[0])
    assert "on 2 nodes" in said[0] and "epoch 1 of 1" in said[0]
    assert written(nodes[1]) == before and "epoch" not in said[1]


def test_a_torchrun_around_the_stage_is_joined_whatever_the_setting(one_machine, tmp_path):
    folder = project(tmp_path / "node", "joint", epochs=1)
    said = output(start([*TORCHRUN, *STANDALONE, *STAGE], folder))
    assert same_training(one_machine, folder)
    assert said.count("epoch 1 of 1:") == 1 and "cpu x2" in said and "trained before" not in said


def test_a_machine_that_dies_ends_the_other_and_the_same_commands_go_on(tmp_path):
    epochs = 20
    whole = [project(tmp_path / "whole" / name, "joint", epochs=epochs) for name in "01"]
    for process in start_both(whole):
        output(process)
    nodes = [project(tmp_path / "broken" / name, "joint", epochs=epochs) for name in "01"]
    first, second = start_both(nodes)
    for line in first.stdout:
        if f"epoch 2 of {epochs}" in line:
            break
    for process in [*psutil.Process(second.pid).children(recursive=True), second]:  # torchrun and what it started
        process.kill()
    assert "epoch 20 of 20" not in output(first, status=1)
    said = [output(process) for process in start_both(nodes)]
    assert "going on from the checkpoint at epoch" in said[0] and same_training(whole[0], nodes[0])
