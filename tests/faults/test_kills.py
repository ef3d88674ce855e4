"""Trainings that are stopped at any moment, and what the next run makes of what they left.

A run is stopped by a signal to its own process group at a named moment, so that a failure can be repeated. The
reference is one run that nobody stopped; not one byte of the outputs may differ.
"""

import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

from lib.core.checkpoint import CheckpointStore
from tests.examples import VARIANTS
from tests.faults.runs import Ended, Run, new_project, one_line, strays, written

STATUS = {"KILL": -signal.SIGKILL, "TERM": 143, "INT": 130}
GOING_ON = "going on from the checkpoint at epoch "
VARIANT = "dual"  # two latents and gamma: the one that stands for all where one is enough


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A function: the outputs of a variant whose training nobody stopped."""
    folder, known = tmp_path_factory.mktemp("reference"), {}

    def outputs(variant: str) -> dict[str, bytes]:
        if variant not in known:
            project = new_project(folder / variant, variant)
            finish(project, variant)
            known[variant] = written(project, variant)
        return known[variant]

    return outputs


def stop(project: Path, variant: str, sent: str, moment: int | str) -> Ended:
    """Stop a training and check how it ended."""
    ended = Run(project, variant, sent, moment).end()
    assert ended.status == STATUS[sent], f"{sent} at {moment}: {ended}"
    if sent != "KILL":
        assert "give the same command again" in one_line(ended.output)
        assert not strays(project), f"{sent} at {moment}"
    return ended


def finish(project: Path, variant: str, **settings: str) -> str:
    """Train to the end; what it printed."""
    ended = Run(project, variant, **settings).end()
    assert ended.status == 0 and "Traceback" not in ended.output, ended.output
    return ended.output


def test_a_training_stopped_within_a_checkpoint_ends_the_same(tmp_path, reference):
    project = new_project(tmp_path / "project", VARIANT)
    stop(project, VARIANT, "KILL", "byte 10000 of latest.pt.part#2")
    assert len(strays(project)) == 1, "the harness stopped the run at another moment"
    assert f"{GOING_ON}1, step 2 of 3" in finish(project, VARIANT)
    assert written(project, VARIANT) == reference(VARIANT) and not strays(project)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_training_stopped_again_and_again_ends_the_same(variant, tmp_path, reference):
    project = new_project(tmp_path / "project", variant)
    stop(project, variant, "KILL", "byte 1 of latest.pt.part#1")
    stop(project, variant, "TERM", "step#2")
    ended = stop(project, variant, "INT", "byte 10000 of latest.pt.part#1")
    assert f"{GOING_ON}1, step 3 of 3" in ended.output or f"{GOING_ON}1, step 2 of 3" in ended.output
    stop(project, variant, "KILL", "after replace final.pt#1")
    assert "trained before" in finish(project, variant)
    assert written(project, variant) == reference(variant) and not strays(project)


@pytest.mark.slow
def test_a_training_stopped_at_many_moments_ends_the_same(tmp_path, reference):
    names = Run(new_project(tmp_path / "listed", VARIANT), VARIANT, "LIST").end().moments
    first = names.index("after replace latest.pt") + 1  # from then on there is a checkpoint to go on from
    for turn, moment in enumerate(range(1, len(names) + 1, 3)):
        project = new_project(tmp_path / "project", VARIANT)
        stop(project, VARIANT, ("KILL", "KILL", "TERM", "INT")[turn % 4], moment)
        output = finish(project, VARIANT)
        assert (GOING_ON in output or "trained before" in output) == (moment >= first), names[moment - 1]
        assert written(project, VARIANT) == reference(VARIANT) and not strays(project), names[moment - 1]
        shutil.rmtree(project)


@pytest.mark.slow
def test_what_a_training_depends_on_decides_whether_it_goes_on(tmp_path, reference):
    project = new_project(tmp_path / "project", VARIANT)
    stop(project, VARIANT, "KILL", "step#5")
    other = new_project(tmp_path / "other", VARIANT, seed=1)
    (project / ".checkpoints").rename(other / ".checkpoints")
    assert GOING_ON not in finish(other, VARIANT)
    assert written(other, VARIANT) != reference(VARIANT)
    (other / ".checkpoints").rename(project / ".checkpoints")
    assert f"{GOING_ON}2, step 2 of 3" in finish(project, VARIANT, ENGRAM_CHECKPOINT_MINUTES="5")
    assert written(project, VARIANT) == reference(VARIANT)


@pytest.mark.slow
@pytest.mark.parametrize("sent", ["CONT", "KILL"])
def test_two_runs_of_a_variant_train_once(sent, tmp_path, reference):
    """The first is halted in its second epoch while the second starts; then it goes on, or dies."""
    project = new_project(tmp_path / "project", VARIANT)
    first = Run(project, VARIANT, "STOP", "step#5")
    first.wait_for("epoch 1 of 2")
    first.halted()
    second = Run(project, VARIANT)
    second.wait_for("another process trains this variant already; waiting for it")
    first.send(sent)
    ended, other = first.end(), second.end()
    assert other.status == 0, other
    if sent == "CONT":
        assert ended.status == 0 and "trained before" in other.output and "epoch 2 of 2" not in other.output
    else:
        assert ended.status == -signal.SIGKILL and f"{GOING_ON}2, step 2 of 3" in other.output
    assert written(project, VARIANT) == reference(VARIANT)


def test_a_lock_that_was_removed_guards_nothing(tmp_path):
    """Whoever waits for the lock of a folder that make prune removes must take a new one."""
    store, waiting = (CheckpointStore("simclr", "key", root=tmp_path) for _ in range(2))
    with store.held():
        thread = threading.Thread(target=lambda: held.append(waiting._take()))
        held: list = []
        thread.start()
        time.sleep(0.3)
        assert not held
        shutil.rmtree(store.folder)
    thread.join(timeout=30)
    assert os.path.samestat(os.fstat(held[0].fileno()), os.stat(store.folder / "lock"))
    held[0].close()
