"""Writes are whole: beside, synced, renamed; and what the system refuses ends a stage with one line.

Full, read-only and vanished folders are file systems that only the tests' own processes see (`unshare`), a limit
on a file's size (EFBIG) works everywhere. Before each fault the outputs hold earlier results; after it each must be
the earlier one or the new one, whole, and the next run must go on as if nothing had been.
"""

import errno
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lib.core.checkpoint import CheckpointStore, prune
from lib.runtime.errors import UserError
from lib.runtime.files import DTYPES, read_json, read_tensors, whole_file, write_json, write_tensors, writing
from tests.faults.count import told, tried
from tests.faults.runs import (
    EVERYTHING,
    LAST,
    OUTPUTS,
    PER_VARIANT,
    TRANSFERRED,
    copy,
    one_line,
    own_mounts,
    present,
    reference,
    server,
    strays,
    template,
    undisturbed,
    written,
)

mounting = pytest.mark.skipif(not own_mounts(), reason="this system lets nobody mount file systems of their own")
SAMPLE = ("pretrain", "linear", "tsne")
STAGES = tuple(OUTPUTS) if EVERYTHING else SAMPLE
EARLIER = b"an earlier result\n"
# The folders that a stage writes into.
FOLDERS = {
    "pretrain": (".checkpoints", "data/encoders", "plots/curves"),
    "linear": ("metrics", "data/scores"),
    "embed": ("data/embeddings",),
    "tsne": ("plots/tsne", "data/tsne"),
    "download": ("data",),
    "transfer": ("data/filters", "plots/filters"),  # the first and the last of four
    "overview": ("plots/tsne",),
    "results": ("metrics", "plots"),
}
PLACES = [(stage, folder) for stage, folders in FOLDERS.items() for folder in folders]
SOME_PLACES = (
    PLACES if EVERYTHING else [("pretrain", ".checkpoints"), ("pretrain", "data/encoders"), ("linear", "metrics")]
)
FIRST_PLACES = [(stage, folders[0]) for stage, folders in FOLDERS.items()] if EVERYTHING else SOME_PLACES
ROOM = 64_000_000  # bytes of a file system for one folder


def named(stage: str) -> str:
    return TRANSFERRED if stage == "transfer" else LAST if stage in PER_VARIANT else ""


@pytest.fixture
def project(tmp_path) -> Path:
    return tmp_path / "project"


def prepare(project: Path, stage: str) -> None:
    """A project in which the stages before this one have run, and its own outputs hold earlier results."""
    undisturbed(stage, named(stage))
    copy(reference(), project)
    spoil(project, stage)


def spoil(project: Path, stage: str) -> None:
    for name in present(reference(), named(stage), stage):
        (project / name).write_bytes(EARLIER)
    for path in project.glob(f".checkpoints/{LAST}-*/*.pt") if stage == "pretrain" else ():
        path.unlink()


def check_refused(ended, project: Path, stage: str, words: str = "") -> str:
    """One line that names a file and says what to do; every output is the earlier one or the new one."""
    line = one_line(ended.output)
    assert ended.status == 1, ended
    found = re.fullmatch(
        r"error: cannot write (\S+): (.+); .+, then run the same command again; "
        r"what was there before is kept",
        line,
    )
    assert found and words in found[2], line
    whole = present(reference(), named(stage), stage)
    for name in whole:
        content = (project / name).read_bytes()
        if name.startswith("plots/curves/") and content != EARLIER:  # so far; its columns of time and memory differ
            assert re.fullmatch(rb"(epoch,.*\n([12],.*\n)+)?\n?", content), f"half of {name}: {line}"
        else:
            assert content in (EARLIER, whole[name]), f"half of {name}: {line}"
        assert name != found[1] or content == EARLIER, line
    assert strays(project) == []
    tried("refused writes")
    told(line)
    return line


def check_goes_on(project: Path, stage: str) -> str:
    ended = server().run(project, stage, named(stage))
    assert ended.status == 0 and "Traceback" not in ended.output, ended.output
    assert written(project, named(stage), stage) == written(reference(), named(stage), stage)
    assert strays(project) == []
    return ended.output


@pytest.mark.parametrize("stage", OUTPUTS if EVERYTHING else SAMPLE)
def test_every_output_is_synced_before_it_is_renamed_and_its_folder_after(stage):
    """Then a power failure, too, leaves the earlier file or the new one."""
    moments = undisturbed(stage, named(stage))
    assert not [moment for moment in moments if moment.startswith("direct write")]
    renamed = {moment.removeprefix("after replace ") for moment in moments if moment.startswith("after replace")}
    assert {Path(name).name for name in written(reference(), named(stage), stage)} <= renamed
    for index, moment in enumerate(moments):
        if moment.startswith("before replace ") and not moment.endswith("previous.pt"):
            name = moment.removeprefix("before replace ")
            assert moments[index - 1] == f"before sync {name}.part", moments[index - 1 : index + 3]
            assert moments[index + 1] == f"after replace {name}"
            assert moments[index + 2].startswith("before sync ") and not moments[index + 2].endswith(".part")


@pytest.mark.parametrize("stage", STAGES)
def test_a_limit_on_the_size_of_files(stage, project):
    prepare(project, stage)
    sizes = [path.stat().st_size for name in present(reference(), named(stage), stage) for path in [reference() / name]]
    limits = sorted({1, *(size - 1 for size in sizes[::2]), *(size // 2 for size in sizes[1::2])})
    for limit in limits if EVERYTHING else [max(limits)]:
        spoil(project, stage)
        line = check_refused(server().run(project, stage, named(stage), limit=limit), project, stage, "file too large")
        assert "(ulimit -f)" in line
    check_goes_on(project, stage)


@contextmanager
def file_system(place: Path, *options: str) -> Iterator[Path]:
    """Mount something at ``place`` for the server alone; yields the path under which it is seen from here."""
    place.mkdir(parents=True, exist_ok=True)
    assert server().command("mount", *options, place), f"mount {' '.join(options)} failed"
    try:
        yield server().seen(place)
    finally:
        assert server().command("umount", place)


def fill(folder: Path, left: int) -> Path:
    """Take all space of the file system but ``left`` bytes; the file that takes it."""
    state, filler = os.statvfs(folder), folder / "filler"
    filler.write_bytes(bytes(state.f_bavail * state.f_frsize - left))
    return filler


@mounting
@pytest.mark.parametrize(("stage", "folder"), SOME_PLACES)
def test_a_full_disk(stage, folder, project):
    prepare(project, stage)
    model = reference() / f"data/encoders/{LAST}.safetensors"
    kept = folder != ".checkpoints"  # of the other variants there are too many to copy, and none is read
    state = 0 if kept else 3 * model.stat().st_size  # Adam's two moments are with the weights
    earlier = sum(path.stat().st_size for path in (reference() / folder).rglob("*") if path.is_file()) if kept else 0
    with file_system(project / folder, "-t", "tmpfs", "-o", f"size={ROOM + earlier + 3 * state}", "tmpfs") as seen:
        assert not kept or server().command("cp", "-a", f"{reference() / folder}/.", project / folder)
        spoil(server().seen(project), stage)
        filler = fill(seen, left=3 * state // 2)
        ended = server().run(project, stage, named(stage))
        line = check_refused(ended, server().seen(project), stage, "no space left on device (")
        assert " fitted" in line and "; free some space" in line
        filler.unlink()
        output = check_goes_on(server().seen(project), stage)
        assert folder != ".checkpoints" or "going on from the checkpoint at epoch 1" in output


@mounting
@pytest.mark.parametrize(("stage", "folder"), FIRST_PLACES)
def test_a_read_only_folder(stage, folder, project):
    prepare(project, stage)
    with file_system(project / folder, "--bind", str(project / folder)):
        assert server().command("mount", "-o", "remount,bind,ro", project / folder)
        line = check_refused(server().run(project, stage, named(stage)), project, stage, "read-only file system")
        assert "; make the folder writable" in line
    check_goes_on(project, stage)


@pytest.mark.parametrize("fault", ["a file", *(["nothing"] if EVERYTHING else [])])
def test_checkpoints_that_vanish_in_the_middle(fault, project):
    """While a training is halted, their folder is moved away, and a file or nothing takes its place."""
    prepare(project, "pretrain")
    folder, kept = project / ".checkpoints", project / "kept"
    run = server().start(project, "pretrain", LAST, "STOP", "pretrain step 5#1")
    run.wait_for("epoch 1 of 2")
    run.halted()
    folder.rename(kept)
    if fault == "a file":
        folder.write_text("a file\n")
    os.killpg(run.process, signal.SIGCONT)
    ended = run.end()
    if fault == "a file":
        folder.unlink()
        kept.rename(folder)
        check_refused(ended, project, "pretrain")
        assert "going on from the checkpoint at epoch 2, step 2 of 3" in check_goes_on(project, "pretrain")
    else:
        assert ended.status == 0 and (folder / next(kept.glob(f"{LAST}-*")).name / "final.pt").exists(), ended
        assert "trained before" in check_goes_on(project, "pretrain")
        tried("vanished checkpoints")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into any folder; read-only mounts stand in for this")
@pytest.mark.parametrize(("stage", "folder"), SOME_PLACES)
def test_a_folder_without_the_right_to_write(stage, folder, project):
    prepare(project, stage)
    (project / folder).mkdir(exist_ok=True)
    (project / folder).chmod(0o555)
    try:
        check_refused(server().run(project, stage, named(stage)), project, stage, "ermission denied")
    finally:
        (project / folder).chmod(0o755)
    check_goes_on(project, stage)


@pytest.mark.parametrize(
    ("stage", "folder"), [place for place in FIRST_PLACES if place[1] != "data"] if EVERYTHING else FIRST_PLACES[:1]
)
def test_a_file_in_the_place_of_a_folder(stage, folder, project):
    """But for folders that also hold what the stage reads."""
    prepare(project, stage)
    kept = project / f"{folder}-kept"
    (project / folder).rename(kept)
    (project / folder).write_text("a file\n")
    ended = server().run(project, stage, named(stage))
    (project / folder).unlink()
    kept.rename(project / folder)
    line = check_refused(ended, project, stage, "")
    assert "move away the file that is in the place of a folder" in line
    check_goes_on(project, stage)


def test_machine_settings_that_vanish(project, tmp_path):
    """Gone while a training is halted: nothing changes. Gone before it is resumed: it goes on with the defaults."""
    prepare(project, "pretrain")
    (project / "machine.yaml").write_text("checkpoint_minutes: 0\n")
    unset = {"ENGRAM_CHECKPOINT_MINUTES": None}
    run = server().start(project, "pretrain", LAST, "STOP", "pretrain step 2#1", **unset)
    run.wait_for("steps of 8 images on")
    run.halted()
    stopped = copy(project, tmp_path / "stopped")
    (project / "machine.yaml").unlink()
    os.killpg(run.process, signal.SIGCONT)
    assert run.end().status == 0
    assert written(project, LAST, "pretrain") == written(reference(), LAST, "pretrain")
    (stopped / "machine.yaml").unlink()
    ended = server().run(stopped, "pretrain", LAST, **unset)
    assert ended.status == 0 and "going on from the checkpoint at epoch 1, step 2 of 3" in ended.output, ended
    tried("vanished settings", 2)


def test_parts_that_killed_writers_left_are_removed_and_those_in_use_are_not(tmp_path):
    left, other = tmp_path / ".a.json.killed.part", tmp_path / ".b.json.killed.part"
    left.write_text("half")
    other.write_text("of another file")
    with whole_file(tmp_path / "a.json") as first:
        first.write_text("1\n")
        write_json(tmp_path / "a.json", 2)
        assert first.exists() and not left.exists() and other.exists()
    assert read_json(tmp_path / "a.json") == 1 and other.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".b.json.killed.part", "a.json"]


def test_an_error_while_writing_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, 1)
    for error in (KeyError("x"), KeyboardInterrupt(), UserError("x")):
        with pytest.raises(type(error)), whole_file(path) as part:
            part.write_text("half")
            raise error
    assert read_json(path) == 1 and [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "free some space"),
        (errno.EROFS, "make the folder writable"),
        (errno.EACCES, "make the folder writable"),
        (errno.EPERM, "make the folder writable"),
        (errno.EFBIG, r"raise the limit on a file's size \(ulimit -f\)"),
        (errno.EIO, "mend the folder"),
        (errno.ENOTDIR, "move away the file that is in the place of a folder"),
    ],
)
def test_what_the_system_refuses_is_told_in_one_line(code, advice, tmp_path):
    with pytest.raises(UserError, match=rf"^cannot write .*/x: [a-z].*; {advice}, then run the same command again; "):
        with writing(tmp_path / "x"):
            raise OSError(code, os.strerror(code))
    tried("refused writes")


def test_tensors_are_as_the_library_reads_them(tmp_path):
    path, about = tmp_path / "x.safetensors", {"name": 'é"\\', "numbers": [1, 2]}
    tensors = {
        f"{name} {rows}": torch.randint(0, 2, (rows, 3)).to(getattr(torch, name))
        for name in DTYPES
        for rows in (0, 1, 5)
    }
    tensors |= {
        "scalar": torch.tensor(7.5),
        "strided": torch.arange(12.0).view(3, 4).T,
        "channels last": torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last),
    }
    write_tensors(path, tensors, about)
    found = load_file(path)
    assert found.keys() == tensors.keys() and all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert all(found[name].dtype == tensors[name].dtype for name in tensors)
    assert read_tensors(path)[1] == about


def test_any_flipped_bit_of_a_checkpoint_is_noticed(tmp_path):
    """torch.load compares no checksums, and one bit can tell it that a tensor is a folder; the store compares."""
    store = CheckpointStore("simclr", "key", root=tmp_path)
    state = {"weights": torch.arange(200.0), "position": {"epoch": 3, "sums": [0.5]}}
    with store.held():
        store.save(state)
        whole = store.latest.read_bytes()
        assert store.load() is not None
        for index in range(0, len(whole), 1 if EVERYTHING else 7):
            store.latest.write_bytes(whole[:index] + bytes([whole[index] ^ 16]) + whole[index + 1 :])
            assert store.load() is None, f"byte {index} of {len(whole)}"
            tried("flipped bits")


@mounting
def test_prune_that_is_refused(tmp_path):
    project = copy(template(), tmp_path / "project")
    store = CheckpointStore("simclr", "key", root=project / ".checkpoints")
    with store.held():
        store.finish({"value": 1})
    with file_system(store.folder, "--bind", str(store.folder)):
        assert server().command("mount", "-o", "remount,bind,ro", store.folder)
        ended = server().run(project, "lib.core.checkpoint")
    assert ended.status == 1 and one_line(ended.output).startswith("error: cannot write .checkpoints/simclr-key: read-")
    assert store.load() == {"value": 1} and prune(project / ".checkpoints") == [store.folder]
    tried("refused writes")
