"""A pipeline that is killed under dvc, in each of the ways in which dvc runs stages, and started again.

What it must come to is made by the same stages in another copy of the project, which nobody stops.
"""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.faults.runs import SETTINGS, strays, written
from tests.project import LIMIT, Project

pytestmark = pytest.mark.slow
VARIANT = "joint"
GOING_ON = f"{VARIANT}: going on from the checkpoint at epoch "
TARGET = f"pretrain@{VARIANT}"


def new_project(folder: Path) -> Project:
    project = Project(folder, (VARIANT,), "batch_size=64", "epochs=3")
    project.environment |= {name: value for name, value in SETTINGS.items() if name != "DVC_ROOT"}  # which dvc sets
    return project


def kill_when_training(project: Project, sent: str, *command: str) -> None:
    """A signal to dvc and all that it started, once there is a checkpoint."""
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=project.folder, env=project.environment, start_new_session=True, **quiet)
    patience = time.monotonic() + LIMIT
    while not list(project.folder.glob(f".checkpoints/{VARIANT}-*/latest.pt")):
        assert process.poll() is None and time.monotonic() < patience
        time.sleep(0.02)
    os.killpg(process.pid, signal.Signals[f"SIG{sent}"])
    assert process.wait(timeout=LIMIT) != 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, bytes]:
    project = new_project(tmp_path_factory.mktemp("whole") / "project")
    project.repro(TARGET)
    return written(project.folder, VARIANT)


@pytest.mark.parametrize(
    ("way", "sent"), [(["repro"], "KILL"), (["repro"], "TERM"), (["exp", "run"], "KILL"), (["exp", "run"], "INT")]
)
def test_a_training_killed_under_dvc_goes_on(way, sent, whole, tmp_path):
    project, command = new_project(tmp_path / "project"), ("dvc", *way, TARGET)
    kill_when_training(project, sent, *command)
    assert GOING_ON in project.run(*command)
    assert written(project.folder, VARIANT) == whole and not strays(project.folder)


def test_a_training_in_a_temporary_copy_goes_on(whole, tmp_path):
    """dvc trains in a folder that is gone after a kill; the checkpoint is in the project's own."""
    project = new_project(tmp_path / "project")
    command = ("dvc", "exp", "run", "--temp", "--name", "killed", TARGET)
    kill_when_training(project, "KILL", *command)
    assert GOING_ON in project.run(*command)
    # It brings the outputs, then ends with an error about those of the stages that were not asked for.
    project.run("dvc", "exp", "apply", "killed", status=None)
    assert written(project.folder, VARIANT) == whole
