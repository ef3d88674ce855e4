"""Situations that users of such pipelines report in public, each by running dvc in a copy of the project."""

import re
from pathlib import Path

import pytest
from PIL import Image

from lib.data.store import load_data
from tests.project import Project

pytestmark = pytest.mark.slow


def paint(folder: Path, red: int, classes: tuple[str, ...] = ("cat", "dog"), count: int = 20) -> None:
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            Image.new("RGB", (16, 16), (red, index, 40 * number)).save(folder / name / f"{index}.png")


@pytest.mark.parametrize("packed", [False, True])
def test_pictures_that_were_replaced_are_seen_without_force(tmp_path, packed):
    """The run cache must not bring the old ones back, also after another value was tried in between."""
    import shutil

    folder = tmp_path / "pictures"
    paint(folder, 10)
    place = shutil.make_archive(str(tmp_path / "packed"), "zip", folder) if packed else str(folder)
    project = Project(tmp_path / "project", ("simclr",), "dataset=images", f"images_path={place}", "batch_size=16")
    reds = []
    for red, settings in ((10, ()), (10, ("image_size=24",)), (200, ()), (200, ("image_size=24",))):
        if red == 200 and not settings:
            paint(folder, 200)
            if packed:
                shutil.make_archive(str(tmp_path / "packed"), "zip", folder)
        project.preset(*settings)
        project.run("dvc", "repro", "download")
        reds.append(round(float(load_data(project.folder / "data/images.safetensors").mean[0]) * 255))
    assert reds == [10, 10, 200, 200]
    assert project.repro("download") == set()


def test_a_subfolder_writes_nothing_outside_the_repository(tmp_path):
    project = Project(tmp_path / "inner", ("simclr",))
    before = {path for path in tmp_path.rglob("*") if ".git" not in path.parts and "cache" not in path.parts}
    (project.folder / "notes").mkdir()
    project.run("bash", "-c", "cd notes && dvc repro -s ../dvc.yaml:download")
    written = {path for path in tmp_path.rglob("*") if ".git" not in path.parts and "cache" not in path.parts} - before
    assert (project.folder / "data/images.safetensors") in written
    assert all(path.is_relative_to(project.folder) for path in written)


def test_a_name_is_never_run_by_the_shell(tmp_path):
    project = Project(tmp_path, ("simclr",))
    project.run("dvc", "repro", "resolve")
    project.add("'x; touch CANARY': {method: simclr}", "\"y'; touch CANARY; '\": {method: simclr}")
    for target in (["pretrain@x; touch CANARY"], ["-s", "pretrain@x; touch CANARY"], []):
        output = project.run("dvc", "repro", *target, status=None)
        assert "Running stage 'pretrain" not in output
    assert "is not a usable name" in output and not (project.folder / "CANARY").exists()


def test_a_name_that_dvc_cannot_spell_is_refused_in_our_words(tmp_path):
    """YAML reads 2048 as a number, and to DVC the dot of v1.5 ends a key."""
    project = Project(tmp_path, ("simclr",))
    for name in ("2048", "v1.5"):
        project.preset()
        project.add(f"{name}: {{method: simclr}}")
        refused = f"error: params.yaml: variants.{name} is not a usable name; allowed: a letter, then letters"
        # without images the first stage says so, with them resolve
        commands = [("dvc", "repro"), ("dvc", "repro", "-s", "resolve"), ("dvc", "repro", "-s", "pretrain@simclr")]
        for command in commands if (project.folder / "data/variants").exists() else commands[:1]:
            output = project.run(*command, status=None)
            assert output.count("error: ") == output.count(refused) == 1, output
        project.preset()
        project.run("dvc", "repro", "resolve")


def test_left_overs_of_a_renamed_variant_go_with_it(tmp_path):
    """Else a fresh clone of the commit would see other inputs of the table than the folder it was made in."""
    project = Project(tmp_path / "made", ("simclr", "joint"))
    project.repro()
    project.commit("joint")
    path = project.folder / "params.yaml"
    path.write_text(path.read_text().replace("  joint:", "  pulled:"))
    project.repro()
    left = [path.relative_to(project.folder) for path in project.folder.rglob("joint*")]
    assert not [path for path in left if path.parts[0] not in (".times", ".checkpoints", ".dvc", ".git")]
    project.commit("renamed")
    clone = tmp_path / "clone"
    project.run("git", "clone", "-q", str(project.folder), str(clone))
    cache = project.folder / ".dvc/cache"
    status = project.run(
        "bash", "-c", f"cd {clone} && dvc config --local cache.dir {cache} && dvc checkout -q && dvc status"
    )
    assert "up to date" in status


def test_a_committed_value_comes_back_after_gc(tmp_path):
    """An output with clock times in it would never match its recorded digest again."""
    project = Project(tmp_path, ("joint",))
    project.run("dvc", "repro", "pretrain")
    project.commit("trained")
    project.run("dvc", "gc", "-w", "-f")
    for _ in range(2):
        project.run("python", "-m", "lib", "prune")
        project.run("dvc", "exp", "run", "-S", "gamma=0.2", "pretrain@joint")
        project.run("git", "checkout", "-q", ".")
        output = project.run("dvc", "repro", "pretrain@joint")
    assert not re.search(r"epoch 1 of 1", output)
