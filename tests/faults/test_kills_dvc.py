"""Whole pipelines that are killed, in each of the ways in which dvc runs stages, and started again.

They train on a few pictures, with a checkpoint after every step, and are stopped as soon as there is one. What they
must come to is made by the stages alone, without dvc and undisturbed.
"""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.faults.count import tried
from tests.faults.runs import EVERYTHING, LAST, SETTINGS, SEVERAL, server, strays, write_params, write_pictures, written
from tests.test_pipeline import Project

everything = pytest.mark.skipif(not EVERYTHING, reason="part of make faults")
PATIENCE = 600  # seconds
EPOCHS = 12  # so that a training lasts for some seconds after its first checkpoint
# How the trainings are stopped, in turns.
SIGNALS = ("KILL", "INT", "TERM")


class Pipeline(Project):
    """A copy of the project under git and dvc, whose runs can be killed."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.environment |= SETTINGS
        write_pictures(folder)
        write_params(folder, epochs=EPOCHS)
        self.commit("a few pictures")
        self.log = folder.with_name("log")

    def begin(self, *command: str) -> subprocess.Popen:
        """Start a command as the leader of a process group of its own; its output goes to the log."""
        with open(self.log, "w") as log:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_heed_interrupts,
            )

    def wait(self, process: subprocess.Popen) -> str:
        assert process.wait(timeout=PATIENCE) == 0, self.log.read_text()[-4000:]
        return self.log.read_text()

    def until(self, happened, process: subprocess.Popen | None = None, pause: float = 0.02) -> None:
        """Wait until ``happened()``; the process must not end before."""
        patience = time.monotonic() + PATIENCE
        while not happened():
            assert process is None or process.poll() is None, self.log.read_text()[-4000:]
            assert time.monotonic() < patience, self.log.read_text()[-4000:]
            time.sleep(pause)

    def said(self, text: str) -> bool:
        return text in self.log.read_text()

    def alive(self) -> list[int]:
        """The processes that work in the project or in a copy of it that dvc made below it."""
        found = []
        for place in Path("/proc").glob("[0-9]*/cwd"):
            try:
                if Path(os.readlink(place)).is_relative_to(self.folder):
                    found.append(int(place.parent.name))
            except OSError:
                pass  # it ended, or is another user's
        return found

    def training(self) -> list[int]:
        return [number for number in self.alive() if "\0stages.pretrain\0" in _command(number)]

    def kill(self, process: subprocess.Popen, sent: str = "KILL") -> None:
        """A signal to dvc and all that it started."""
        os.killpg(process.pid, signal.Signals[f"SIG{sent}"])
        process.wait(timeout=PATIENCE)
        self.until(lambda: not self.alive())
        tried("kill points")

    def collect(self, experiment: str, targets: list[str]) -> None:
        """Bring the outputs of an experiment into the project.

        `dvc exp apply` would do it, and then fail, since it asks for the outputs of every stage, also of those that
        were not among the targets.
        """
        branch = f"branch-{experiment}"
        self.run("dvc", "exp", "branch", experiment, branch)
        self.run("git", "restore", "--source", branch, "--", ".")
        self.run("dvc", "checkout", "--force", *targets)

    def marked_as_failed(self, task: str) -> bool:
        """Ask dvc to give up a task whose worker was killed.

        dvc sends its process a signal first, and gives the task up if there is no such process. One that is dead and
        whose parent has not asked for its exit status takes the signal: then the task stays as it is.
        """
        self.run("dvc", "queue", "kill", task)
        return "Failed" in self.run("dvc", "queue", "status")

    def checkpoints(self) -> set[Path]:
        """The folders of trainings that have a checkpoint."""
        return {path.parent for path in self.folder.glob(".checkpoints/*/latest.pt")}


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job has it ignored


def _command(number: int) -> str:
    try:
        return Path(f"/proc/{number}/cmdline").read_text()
    except OSError:
        return ""


def undisturbed(pipeline: Pipeline, folder: Path, seed: int, variants: tuple[str, ...]) -> Path:
    """The outputs of pretraining some variants, and of measuring the last, by the stages alone."""
    for name in ("lib", "stages", "pictures"):
        shutil.copytree(pipeline.folder / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    write_params(folder, epochs=EPOCHS, seed=seed)
    for stage, variant in [("download", ""), *(("pretrain", name) for name in variants), ("linear", LAST)]:
        ended = server().run(folder, stage, variant, ENGRAM_CHECKPOINT_MINUTES="10")
        assert ended.status == 0, ended.output
    return folder


def check_same(pipeline: Pipeline, folder: Path, seed: int, *variants: str) -> None:
    """The pipeline's outputs are those of the undisturbed stages."""
    reference = undisturbed(pipeline, folder, seed, variants)
    for variant in variants:
        stages = ("pretrain", "linear") if variant == LAST else ("pretrain",)
        assert written(pipeline.folder, variant, *stages) == written(reference, variant, *stages), variant
    assert strays(pipeline.folder) == []


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    made = Pipeline(tmp_path_factory.mktemp("pipeline") / "project")
    yield made
    for number in made.alive():
        os.kill(number, signal.SIGKILL)


def test_a_killed_dvc_repro_goes_on(pipeline, tmp_path):
    """dvc alone is killed, and its training lives on beside a second until it is killed, too.

    In full, all are killed then, and once more within the probe.
    """
    command = ("dvc", "repro", f"linear@{LAST}")
    process = pipeline.begin(*command)
    pipeline.until(pipeline.checkpoints, process)
    (orphan,) = pipeline.training()
    os.kill(orphan, signal.SIGSTOP)
    process.kill()
    process.wait()
    tried("kill points")
    process = pipeline.begin(*command)
    pipeline.until(lambda: pipeline.said("another process trains this variant already; waiting for it"), process)
    assert len(pipeline.training()) == 2
    os.kill(orphan, signal.SIGKILL)
    pipeline.until(lambda: pipeline.said(f"{LAST}: going on from the checkpoint at epoch "), process)
    if EVERYTHING:
        pipeline.kill(process)
        process = pipeline.begin(*command)
        pipeline.until(lambda: pipeline.said("features of "), process)
        assert pipeline.said(f"{LAST}: going on from the checkpoint at epoch ")
        pipeline.kill(process)
        process = pipeline.begin(*command)
        assert f"Stage 'pretrain@{LAST}' didn't change, skipping" in pipeline.wait(process)
    pipeline.wait(process)
    check_same(pipeline, tmp_path / "reference", 0, LAST)


def wanted(variants: tuple[str, ...]) -> list[str]:
    return [*(f"pretrain@{variant}" for variant in variants), f"linear@{LAST}"]


@everything
@pytest.mark.parametrize(("seed", "way", "variants"), [(1, "exp run", SEVERAL[:2]), (2, "exp run --temp", (LAST,))])
def test_trainings_go_on_in_experiments(seed, way, variants, pipeline, tmp_path):
    """One stop within each training; the last run goes to the end."""
    targets = wanted(variants)
    pipeline.run("git", "checkout", "--quiet", "--", ".")
    command = ["dvc", *way.split(), "--name", f"faults-{seed}", "-S", f"seed={seed}", *targets]
    killed = pipeline.checkpoints()
    for turn in range(len(variants)):  # in dvc's order
        process = pipeline.begin(*command)
        pipeline.until(lambda: pipeline.checkpoints() - killed, process)
        killed |= pipeline.checkpoints()
        pipeline.kill(process, SIGNALS[turn % len(SIGNALS)])
    assert ": going on from the checkpoint at epoch " in pipeline.wait(pipeline.begin(*command))
    if "--temp" in way:
        pipeline.collect(f"faults-{seed}", targets)
    check_same(pipeline, tmp_path / "reference", seed, *variants)


@everything
def test_a_training_goes_on_in_the_queue(pipeline, tmp_path):
    """The worker is killed with its training, the task is queued again."""
    targets = wanted((LAST,))
    pipeline.run("git", "checkout", "--quiet", "--", ".")

    def start(name: str) -> None:
        pipeline.run("dvc", "exp", "run", "--queue", "--name", name, "-S", "seed=4", *targets)
        pipeline.wait(pipeline.begin("dvc", "queue", "start"))  # whose worker keeps its output open

    earlier = pipeline.checkpoints()
    start("queued")
    pipeline.until(lambda: pipeline.checkpoints() - earlier)
    for number in pipeline.alive():
        os.kill(number, signal.SIGKILL)
    pipeline.until(lambda: not pipeline.alive())
    tried("kill points")
    pipeline.until(lambda: pipeline.marked_as_failed("queued"))
    pipeline.run("dvc", "queue", "remove", "queued")
    start("queued")
    pipeline.until(lambda: "Success" in pipeline.run("dvc", "queue", "status"), pause=2)
    pipeline.collect("queued", targets)
    check_same(pipeline, tmp_path / "reference", 4, LAST)
