"""A pipeline that is killed under dvc, in each of the ways in which dvc runs stages, and started again.

What it must come to is made by the same stages in another copy of the project, which nobody stops.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.examples import ROOT, raw_params
from tests.faults.runs import SETTINGS, strays, written

pytestmark = pytest.mark.slow
PATIENCE = 600  # seconds
VARIANT = "joint"
PARAMS = raw_params("demo", {VARIANT: {"method": "simclr", "term": "pull"}}, batch_size=64, epochs=3)
PARAMS["transfer"] = {"variants": []}
GOING_ON = f"{VARIANT}: going on from the checkpoint at epoch "
TARGET = f"pretrain@{VARIANT}"


class Pipeline:
    """A copy of the project under git and dvc, whose runs can be killed with all that they started."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder.with_name(f"{folder.name}.log")
        for name in ("lib", "stages", ".dvc/config", ".gitignore", ".dvcignore", "dvc.yaml", "data/pictures/README.md"):
            place = folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, place, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, place)
        (folder / "params.yaml").write_text(yaml.safe_dump(PARAMS, sort_keys=False))
        own = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1"}
        self.environment = {**os.environ, **SETTINGS, **own}
        del self.environment["DVC_ROOT"]  # which dvc sets
        self.run("git", "init", "--quiet")
        self.run("git", "add", "--all")
        self.run(
            "git", "-c", "user.name=Test", "-c", "user.email=test@example.org", "commit", "--quiet", "-m", "a state"
        )

    def begin(self, *command: str) -> subprocess.Popen:
        """Start a command as the leader of a process group of its own; its output goes to the log."""
        with open(self.log, "w") as log:
            options = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": subprocess.STDOUT}
            return subprocess.Popen(command, cwd=self.folder, env=self.environment, start_new_session=True, **options)

    def run(self, *command: str) -> str:
        process = self.begin(*command)
        assert process.wait(timeout=PATIENCE) == 0, self.log.read_text()[-4000:]
        return self.log.read_text()

    def kill_when_training(self, process: subprocess.Popen, sent: str) -> None:
        """A signal to dvc and all that it started, once there is a checkpoint."""
        patience = time.monotonic() + PATIENCE
        while not list(self.folder.glob(f".checkpoints/{VARIANT}-*/latest.pt")):
            assert process.poll() is None and time.monotonic() < patience, self.log.read_text()[-4000:]
            time.sleep(0.02)
        os.killpg(process.pid, signal.Signals[f"SIG{sent}"])
        assert process.wait(timeout=PATIENCE) != 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, bytes]:
    pipeline = Pipeline(tmp_path_factory.mktemp("whole") / "project")
    pipeline.run("dvc", "repro", TARGET)
    return written(pipeline.folder, VARIANT)


@pytest.mark.parametrize(
    ("way", "sent"), [(["repro"], "KILL"), (["repro"], "TERM"), (["exp", "run"], "KILL"), (["exp", "run"], "INT")]
)
def test_a_training_killed_under_dvc_goes_on(way, sent, whole, tmp_path):
    pipeline = Pipeline(tmp_path / "project")
    command = ("dvc", *way, TARGET)
    pipeline.kill_when_training(pipeline.begin(*command), sent)
    assert GOING_ON in pipeline.run(*command)
    assert written(pipeline.folder, VARIANT) == whole and not strays(pipeline.folder)


def test_a_training_in_a_temporary_copy_goes_on(whole, tmp_path):
    """dvc trains in a folder that is gone after a kill; the checkpoint is in the project's own."""
    pipeline = Pipeline(tmp_path / "project")
    command = ("dvc", "exp", "run", "--temp", "--name", "killed", TARGET)
    pipeline.kill_when_training(pipeline.begin(*command), "KILL")
    assert GOING_ON in pipeline.run(*command)
    # It brings the outputs, then ends with an error about those of the stages that were not asked for.
    pipeline.begin("dvc", "exp", "apply", "killed").wait(timeout=PATIENCE)
    assert written(pipeline.folder, VARIANT) == whole
