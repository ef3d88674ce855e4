"""What takes minutes: remotes and the queue of DVC, machines that fail. Run by ``make scaling``, skipped elsewhere."""

import copy
import json
import os
import re
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.machines import (
    PATIENCE,
    STAGE,
    STANDALONE,
    TORCHRUN,
    node,
    output,
    same_training,
    start,
    start_both,
    written,
)
from tests.test_pipeline import Project, ran

pytestmark = pytest.mark.skipif("ENGRAM_TEST_SCALING" not in os.environ, reason="takes minutes: make scaling runs it")
NODES = "cpu x1 on 2 nodes, 1 threads, fp32"


@pytest.fixture(scope="module")
def one_machine(tmp_path_factory) -> Path:
    """Trained by two processes of one machine, as the setting says."""
    folder = node(tmp_path_factory.mktemp("one") / "node")
    output(start([sys.executable, *STAGE], folder, ENGRAM_PROCESSES="2"))
    return folder


def test_two_machines_train_the_same_model_and_only_the_first_writes(one_machine, tmp_path):
    nodes = [node(tmp_path / "0"), node(tmp_path / "1")]
    before = written(nodes[1])
    said = [output(process) for process in start_both(nodes)]
    same_training(one_machine, nodes[0], NODES)
    assert written(nodes[1]) == before and "epoch 1 of 1" in said[0] and "epoch" not in said[1]


def test_a_torchrun_around_the_stage_is_joined_whatever_the_setting(one_machine, tmp_path):
    folder = node(tmp_path / "node")
    said = output(start([*TORCHRUN, *STANDALONE, *STAGE], folder))
    same_training(one_machine, folder, "cpu x2, 1 threads, fp32")
    assert said.count("epoch 1 of 1") == 1 and "trained before" not in said


def test_dvc_away_from_the_lead_is_refused_on_every_machine(tmp_path):
    nodes = [node(tmp_path / "0"), node(tmp_path / "1")]
    before = [written(folder) for folder in nodes]
    for process in start_both(nodes, {}, {"DVC_STAGE": "pretrain@joint"}):
        assert "error: DVC runs on node 1, but node 0 writes the results; run dvc on" in output(process, status=1)
    assert [written(folder) for folder in nodes] == before


def test_a_machine_that_dies_ends_the_other_and_the_same_commands_go_on(tmp_path):
    epochs = 20
    whole = [node(tmp_path / "whole" / name, epochs) for name in "01"]
    for process in start_both(whole):
        output(process)
    nodes = [node(tmp_path / "broken" / name, epochs) for name in "01"]
    first, second = start_both(nodes)
    for line in first.stdout:
        if f"epoch 2 of {epochs}" in line:
            break
    for process in [*psutil.Process(second.pid).children(recursive=True), second]:  # torchrun and what it started
        process.kill()
    assert "epoch 20 of 20" not in output(first, status=1)
    said = [output(process) for process in start_both(nodes)]
    assert "going on from the checkpoint at epoch" in said[0]
    same_training(whole[0], nodes[0], NODES)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    """A project with its images and one trained variant."""
    project = Project(tmp_path_factory.mktemp("project"))
    project.repro("download")
    project.repro("-s", "pretrain@simclr")
    project.commit("trained")
    return project


TRACKED = {"download": "data/images.safetensors", "pretrain@simclr": "data/encoders/simclr.safetensors"}


def travels(project: Project, folder: Path, url: str, *options: tuple[str, str]) -> None:
    """What ``project`` pushes, a fresh clone pulls, byte for byte, and has nothing left to run."""
    project.run("dvc", "remote", "add", "--force", "--default", "store", url)
    for name, value in options:
        project.run("dvc", "remote", "modify", "store", name, value)
    project.commit("remote")
    project.run("dvc", "push", *TRACKED)
    project.run("git", "clone", "--quiet", str(project.folder), str(folder))
    clone = copy.copy(project)
    clone.folder = folder
    assert not any((folder / name).exists() for name in TRACKED.values())
    clone.run("dvc", "pull", *TRACKED)
    for name in TRACKED.values():
        assert (folder / name).read_bytes() == (project.folder / name).read_bytes()
    assert clone.repro("download") == clone.repro("-s", "pretrain@simclr") == set()


def test_a_clone_pulls_what_was_pushed_to_a_folder(project, tmp_path):
    travels(project, tmp_path / "clone", str(tmp_path / "store"))


def test_a_clone_pulls_what_was_pushed_to_s3(project, tmp_path, monkeypatch):
    reason = "a remote on S3 is tested where dvc-s3 and moto[server] are installed"
    pytest.importorskip("dvc_s3", reason=reason)
    server = pytest.importorskip("moto.server", reason=reason).ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    server.start()
    try:
        address = "http://{}:{}".format(*server.get_host_and_port())
        import boto3

        boto3.client("s3", endpoint_url=address).create_bucket(Bucket="engram")
        monkeypatch.setattr(project, "environment", {**project.environment, **keys})
        travels(project, tmp_path / "clone", "s3://engram/store", ("endpointurl", address))
    finally:
        server.stop()


def test_a_queue_of_four_gammas_trains_what_they_share_once(project):
    """Two workers, only pretraining: joint reads gamma, simclr does not."""
    (project.folder / "machine.yaml").write_text("precision: fp32\n")
    project.change(epochs="2")
    project.commit("two epochs, of which nothing is trained yet")
    targets = ["pretrain@simclr", "pretrain@joint"]
    project.run("dvc", "exp", "run", "--queue", "-S", "gamma=0.001,0.01,0.1,1", *targets)
    project.run("dvc", "queue", "start", "-j", "2")
    deadline = time.monotonic() + PATIENCE
    while re.search("Queued|Running", status := project.run("dvc", "queue", "status")):
        assert time.monotonic() < deadline, status
        time.sleep(5)
        if "Running" not in status:  # both workers gave up, as DVC's do on a busy machine
            project.run("dvc", "queue", "start", "-j", "2")
    tasks = re.findall(r"^(\w+) .*Success$", status, flags=re.MULTILINE)
    assert len(tasks) == 4, status
    logs = "".join(project.run("dvc", "queue", "logs", task) for task in tasks)
    ends = re.findall(r"pretrain (\w+): epoch 2 of 2", logs)
    assert sorted(ends) == ["joint"] * 4 + ["simclr"]
    assert set(re.findall(r" on (cpu.*): about", logs)) == {"cpu x1, 1 threads, fp32"}, "machine.yaml did not reach it"
    missing = {0.001, 0.01, 0.1, 1.0} - shown(project)
    again = "".join(project.run("dvc", "exp", "run", "-S", f"gamma={gamma}", *targets) for gamma in missing)
    assert not ran(again) and shown(project) == {0.001, 0.01, 0.1, 1.0}


def shown(project: Project) -> set[float]:
    """The gammas of all experiments. DVC may lose one of two that end at once, but not what they have computed."""
    text = project.run("dvc", "exp", "show", "--json")
    baseline = json.loads(text[text.index("[") :])[1]
    return {float(run["revs"][0]["data"]["params"]["params.yaml"]["data"]["gamma"]) for run in baseline["experiments"]}
