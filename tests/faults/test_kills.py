"""Stages that are stopped at any moment, and what the next run makes of what they left.

A run is stopped by a signal to its own process group at a named moment, so that a failure can be repeated. The
reference is one run that nobody stopped; the curve's columns of time and memory are the only ones that may differ.
`make faults` goes through many moments, `make test` through a few.
"""

import os
import random
import re
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

from lib.core.checkpoint import CheckpointStore
from lib.data.store import save_data
from tests.examples import images
from tests.faults.count import tried
from tests.faults.runs import (
    EVERYTHING,
    LAST,
    SEVERAL,
    TRANSFERRED,
    VARIANTS,
    Ended,
    clear,
    copy,
    one_line,
    present,
    reference,
    server,
    strays,
    template,
    undisturbed,
    write_params,
    written,
)

everything = pytest.mark.skipif(not EVERYTHING, reason="part of make faults")
STATUS = {"KILL": -signal.SIGKILL, "TERM": 143, "INT": 130}
GOING_ON = "going on from the checkpoint at epoch "


@pytest.fixture
def project(tmp_path) -> Path:
    return copy(template(), tmp_path / "project")


def stop(project: Path, stage: str, variant: str, sent: str, moment: int | str, **environment: str) -> Ended:
    """Stop a stage and check how it ended."""
    ended = server().run(project, stage, variant, sent, moment, **environment)
    assert ended.status == STATUS[sent], f"{sent} at {moment}: {ended}"
    if sent != "KILL":
        assert "give the same command again" in one_line(ended.output)
        assert not strays(project), f"{sent} at {moment}"
    tried("kill points")
    return ended


def finish(project: Path, stage: str, variant: str, **environment: str) -> str:
    """Run the stage to its end; what it printed."""
    ended = server().run(project, stage, variant, **environment)
    assert ended.status == 0 and "Traceback" not in ended.output, ended.output
    return ended.output


def check_same(project: Path, variant: str, *stages: str, after: object = "") -> None:
    """The outputs are those of the undisturbed run, and nothing half written lies about."""
    for stage in stages:
        undisturbed(stage, variant)
    assert written(project, variant, *stages) == written(reference(), variant, *stages), f"differs after {after}"
    assert strays(project) == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_training_stopped_again_and_again_ends_the_same(variant, project):
    """Every run goes on where the one before it was stopped; the third is stopped within torch.save."""
    stop(project, "pretrain", variant, "KILL", "byte 10000 of latest.pt.part#2")
    assert len(strays(project)) == 1, "the harness stopped the run at another moment"
    if variant == LAST:
        stop(project, "pretrain", variant, "TERM", "pretrain step 2#1")
        ended = stop(project, "pretrain", variant, "INT", "byte 100000 of latest.pt.part#1")
        assert f"{GOING_ON}1, step 3 of 3" in ended.output
    stop(project, "pretrain", variant, "KILL", "after replace final.pt#1")
    assert "trained before" in finish(project, "pretrain", variant)
    check_same(project, variant, "pretrain")


def test_a_training_whose_views_have_threads_of_their_own_ends_the_same(tmp_path):
    whole, project = (copy(template(), tmp_path / name) for name in ("whole", "stopped"))
    finish(whole, "pretrain", LAST, ENGRAM_THREADS="2")
    for sent, moment in (("TERM", "pretrain step 1#1"), ("KILL", "byte 10000 of latest.pt.part#2")):
        stop(project, "pretrain", LAST, sent, moment, ENGRAM_THREADS="2")
    assert GOING_ON in finish(project, "pretrain", LAST, ENGRAM_THREADS="2")
    assert written(project, LAST, "pretrain") == written(whole, LAST, "pretrain")
    assert not strays(project)


@everything
@pytest.mark.parametrize("number", range(len(SEVERAL)))
def test_a_training_stopped_at_many_moments_ends_the_same(number, tmp_path):
    """The moments are dealt out to the variants, which pass through the same ones."""
    variant = SEVERAL[number]
    project = copy(template(), tmp_path / "listed")  # of its own: the first training makes folders, too
    names = server().run(project, "pretrain", variant, "LIST").moments
    first = names.index("after replace latest.pt") + 1  # from then on there is a checkpoint to go on from
    for sent, moment in [
        (sent, moment)
        for sent, every in (("KILL", 5), ("TERM", 25), ("INT", 25))
        for moment in range(1 + number * every, len(names) + 1, len(SEVERAL) * every)
    ]:
        project = copy(template(), tmp_path / "project")
        stop(project, "pretrain", variant, sent, moment)
        output = finish(project, "pretrain", variant)
        assert (GOING_ON in output or "trained before" in output) == (moment >= first), names[moment - 1]
        check_same(project, variant, "pretrain", after=names[moment - 1])
        shutil.rmtree(project)


@everything
def test_a_training_stopped_at_moments_of_the_clock_ends_the_same(tmp_path):
    """Signals from outside, wherever they come: between two instructions, within a kernel, within a write."""
    draw, variant = random.Random(0), VARIANTS[0]
    for number in range(6):
        project, sent = copy(template(), tmp_path / str(number)), ("KILL", "TERM", "INT")[number % 3]
        run = server().start(project, "pretrain", variant)
        run.wait_for("images on")
        time.sleep(2 * draw.random())
        os.killpg(run.process, signal.Signals[f"SIG{sent}"])
        ended = run.end()
        assert ended.status in (STATUS[sent], 0), ended
        if ended.status and sent != "KILL":
            one_line(ended.output)
        tried("kill points", int(ended.status != 0))
        finish(project, "pretrain", variant)
        check_same(project, variant, "pretrain", after=f"{sent}, run {number}")


# Moments at which `make test` stops what is measured of a trained encoder.
SAMPLE = {
    "linear": ("linear epoch 3", "byte 1 of .+npz.part"),
    "embed": (),
    "tsne": ("tsne kl_divergence_bh 100", "byte 10000 of .+png.part"),
    "transfer": ("transfer epoch 2",),
}
# Stage and variant, and which of the moments are its share in full: they are dealt out to the variants.
MEASURED = [
    (stage, variant, slice(number, None, len(SEVERAL)))
    for stage in ("linear", "embed", "tsne")
    for number, variant in enumerate(SEVERAL)
    if EVERYTHING or variant == LAST
]
MEASURED.append(("transfer", TRANSFERRED, slice(0, None, 6)))


@pytest.mark.parametrize(("stage", "variant", "share"), MEASURED)
def test_a_measurement_stopped_anywhere_ends_the_same(stage, variant, share, tmp_path):
    """What is measured starts again: what counts is that nothing half written is taken for whole."""
    undisturbed(stage, variant)
    names = server().run(copy(reference(), tmp_path / "listed"), stage, variant, "LIST").moments
    every = range(1, len(names) + 1)
    chosen = (
        every[share]
        if EVERYTHING
        else [min(number for number in every if re.fullmatch(wanted, names[number - 1])) for wanted in SAMPLE[stage]]
    )
    project = copy(reference(), tmp_path / "project")
    clear(project, variant, stage)
    whole = present(reference(), variant, stage)
    for turn, moment in enumerate(chosen):
        stop(project, stage, variant, ("KILL", "TERM", "INT")[turn % 3], moment)
        assert present(project, variant, stage).items() <= whole.items(), f"half a file after {names[moment - 1]}"
        clear(project, variant, stage)
    finish(project, stage, variant)
    check_same(project, variant, stage, after=list(chosen))


def cut(size: float):
    return lambda content: content[: int(size * len(content)) if size < 1 else int(size)]


def zeros(start: float, length: int):
    def change(content: bytes) -> bytes:
        first = int(start * (len(content) - length))
        return content[:first] + bytes(length) + content[first + length :]

    return change


def flipped(place: float):
    def change(content: bytes) -> bytes:
        index = int(place * (len(content) - 1))
        return content[:index] + bytes([content[index] ^ 1]) + content[index + 1 :]

    return change


# What a power failure, a disk or a copy can do to a file.
DAMAGE = {"half": cut(0.5), "zeros within": zeros(0.5, 4096), "a bit of a weight": flipped(0.3)}
if EVERYTHING:
    DAMAGE |= {f"cut at {size}": cut(size) for size in (0, 30, 0.1, 0.75, 0.9999)}
    DAMAGE |= {f"zeros at {start}": zeros(start, 4096) for start in (0, 0.4, 1)}
    DAMAGE |= {f"a bit at {place}": flipped(place) for place in (0.0, 0.2, 0.6, 1.0)}


@pytest.fixture(scope="module")
def halfway(tmp_path_factory) -> Path:
    """A project stopped in its second epoch, with a newest checkpoint and the one before it."""
    folder = copy(template(), tmp_path_factory.mktemp("halfway") / "project")
    undisturbed("pretrain", LAST)
    stop(folder, "pretrain", LAST, "KILL", "pretrain step 6#1")
    return folder


def checkpoint(project: Path, name: str) -> Path:
    (path,) = project.glob(f".checkpoints/{LAST}-*/{name}")
    return path


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over(damage, tmp_path, halfway):
    project = copy(halfway, tmp_path / "project")
    latest = checkpoint(project, "latest.pt")
    latest.write_bytes(DAMAGE[damage](latest.read_bytes()))
    output = finish(project, "pretrain", LAST)
    lines = [line for line in output.splitlines() if " is damaged " in line]
    assert len(lines) == 1 and lines[0].endswith("; going on from the one before it"), output
    assert f"{GOING_ON}2, step 2 of 3" in output
    check_same(project, LAST, "pretrain", after=damage)
    tried("damaged checkpoints")


@pytest.mark.parametrize(
    "moment",
    [
        "before replace latest.pt#1",
        *(("byte 1 of latest.pt.part#1", "after replace latest.pt#1", "pretrain step 1#1") if EVERYTHING else ()),
    ],
)
def test_a_damaged_checkpoint_never_takes_the_place_of_a_whole_one(moment, tmp_path, halfway):
    project = copy(halfway, tmp_path / "project")
    latest = checkpoint(project, "latest.pt")
    latest.write_bytes(latest.read_bytes()[:-1000])
    stop(project, "pretrain", LAST, "KILL", moment)
    assert f"{GOING_ON}2, step " in finish(project, "pretrain", LAST)
    check_same(project, LAST, "pretrain")
    tried("damaged checkpoints")


def test_with_no_whole_checkpoint_training_starts_anew(tmp_path, halfway):
    project = copy(halfway, tmp_path / "project")
    for name in ("latest.pt", "previous.pt"):
        checkpoint(project, name).write_bytes(b"")
    output = finish(project, "pretrain", LAST)
    assert output.count("; there is none before it: training starts anew") == 2 and GOING_ON not in output
    check_same(project, LAST, "pretrain")
    final = checkpoint(project, "final.pt")
    final.write_bytes(final.read_bytes()[:-1])
    stop(project, "pretrain", LAST, "KILL", "after replace latest.pt#1")
    assert not final.exists(), "make prune would take this training for a finished one"
    assert GOING_ON in finish(project, "pretrain", LAST)
    check_same(project, LAST, "pretrain")
    tried("damaged checkpoints", 3)


def test_what_a_training_depends_on_decides_whether_it_goes_on(tmp_path, halfway):
    project = copy(halfway, tmp_path / "project")
    write_params(project, seed=1)
    assert GOING_ON not in finish(project, "pretrain", LAST)
    assert written(project, LAST, "pretrain") != written(reference(), LAST, "pretrain")
    write_params(project)
    code = project / "lib/views/crop.py"
    unchanged = code.read_text()
    code.write_text(unchanged + "# a comment\n")
    assert GOING_ON not in finish(project, "pretrain", LAST)
    check_same(project, LAST, "pretrain")
    code.write_text(unchanged)
    save_data(project / "data/images.safetensors", images(28, classes=4, seed=1))
    assert GOING_ON not in finish(project, "pretrain", LAST)
    assert written(project, LAST, "pretrain") != written(reference(), LAST, "pretrain")
    shutil.copy(reference() / "data/images.safetensors", project / "data")
    assert f"{GOING_ON}2, step 3 of 3" in finish(project, "pretrain", LAST, ENGRAM_CHECKPOINT_MINUTES="5")
    check_same(project, LAST, "pretrain")


@pytest.mark.parametrize("first_ends", ["by itself", *(("by SIGKILL", "by SIGTERM") if EVERYTHING else ())])
def test_two_runs_of_a_variant_train_once(first_ends, project):
    """The first is halted in its second epoch while the second starts; then it goes on, or dies."""
    first = server().start(project, "pretrain", LAST, "STOP", "pretrain step 5#1")
    first.wait_for("epoch 1 of 2")
    second = server().start(project, "pretrain", LAST)
    second.wait_for("another process trains this variant already; waiting for it")
    first.halted()
    if first_ends == "by SIGTERM":
        os.killpg(first.process, signal.SIGTERM)
    os.killpg(first.process, signal.SIGKILL if first_ends == "by SIGKILL" else signal.SIGCONT)
    ended, other = first.end(), second.end()
    assert other.status == 0, other
    if first_ends == "by itself":
        assert ended.status == 0 and "trained before" in other.output and "epoch 2 of 2" not in other.output
    else:
        assert ended.status != 0 and f"{GOING_ON}2, step 2 of 3" in other.output
    check_same(project, LAST, "pretrain")
    tried("runs beside another")


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
