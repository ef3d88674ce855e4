"""What a change reruns, by running dvc on tiny data in a copy of the project.

The tests of this file share one copy and run in order: each starts where the one before it ended.
"""

import json

import numpy
import pytest

from lib.runtime.stage import CHARTS
from tests.project import Project, of, ran

ALWAYS = {"resolve", "results", "report"}


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    return Project(tmp_path_factory.mktemp("project"), ("simclr", "joint"))


def test_the_first_run_runs_every_stage_and_leaves_nothing_to_do(project):
    assert project.repro() == {"download"} | ALWAYS | of("simclr") | of("joint")
    assert "up to date" in project.run("dvc", "status")
    assert project.repro() == set()
    untracked = project.run("git", "status", "--porcelain", "--untracked-files=all")
    assert ".gitignore" not in untracked, "dvc wrote a .gitignore of its own"
    project.commit("first run")


def test_the_outputs_are_those_that_the_readme_names(project):
    with numpy.load(project.folder / "data/embeddings/simclr.npz", allow_pickle=False) as file:
        assert list(file["latents"]) == ["h"] and list(file["projections"]) == ["z"]
        assert len(file["h"]) == len(file["labels"]) and file["h"].dtype == numpy.float32
    assert {"episode_bits", "concept_bits"} < json.loads(
        (project.folder / "metrics/memory/joint.json").read_text()
    ).keys()
    for name in ("metrics/results.md", "metrics/results.csv", "plots/tsne/overview.png", "plots/curves.png"):
        assert (project.folder / name).is_file()
    assert {"top1", "knn", "study_top1"} <= json.loads((project.folder / "metrics/joint.json").read_text()).keys()
    resolved = json.loads((project.folder / "data/variants/simclr.json").read_text())
    assert "gamma" not in resolved and "lib/methods/simclr.py" in resolved["code"]


def test_the_plan_tells_what_gamma_reruns_and_writes_nothing(project):
    text = project.run("python", "-m", "lib", "plan", "-S", "gamma=0.1")
    lines = {line.split()[0]: line for line in text.splitlines() if "@" in line.split()[0] or line.startswith("re")}
    assert lines.keys() == ALWAYS | of("joint")
    assert "gamma 0.01 -> 0.1" in lines["pretrain@joint"] and "trained already: simclr" in text
    assert "up to date" in project.run("dvc", "status")


def test_gamma_reruns_joint_alone(project):
    output = project.run("dvc", "exp", "run", "-S", "gamma=0.1")
    assert ran(output) == ALWAYS | of("joint")
    moved = json.loads(project.run("dvc", "metrics", "diff", "--json"))
    assert set(moved) == {"metrics/joint.json", "metrics/memory/joint.json"}
    assert "up to date" in project.run("dvc", "status")
    listed = project.run("python", "-m", "lib", "experiments", "top1").splitlines()
    rows = [line for line in listed if "gamma=0.1" in line.split()]
    assert len(rows) == 1 and all(len(line) <= 100 for line in listed)


def test_an_old_gamma_comes_from_the_run_cache(project):
    project.run("git", "checkout", "--quiet", ".")
    output = project.run("dvc", "repro")
    assert ran(output) == {"resolve", "results"} and "Stage 'pretrain@joint' is cached" in output
    assert project.run("git", "status", "--porcelain") == ""


def test_charts_of_all_variants_do_not_outlive_a_variants_old_numbers(project):
    charts = [project.folder / path for path in CHARTS]
    assert all(chart.is_file() for chart in charts)
    # the second value is in the run cache: not a stage of the variant runs
    for setting, stages in (("knn.k=3", {"resolve", "linear@joint"}), ("gamma=0.1", {"resolve"})):
        assert ran(project.run("dvc", "exp", "run", "-S", setting, "linear@joint")) == stages
        assert not any(chart.exists() for chart in charts)
        project.run("git", "checkout", "--quiet", ".")
        project.repro()
        assert all(chart.is_file() for chart in charts) and project.run("git", "status", "--porcelain") == ""


def test_a_slip_is_refused_in_one_line_before_anything_runs(project):
    project.run("git", "checkout", "--quiet", ".")
    project.preset("variants.joint.term=pul")
    for command in (("repro",), ("repro", "-s", "pretrain@joint"), ("exp", "run", "-n", "typo")):
        output = project.run("dvc", *command, status=None)
        assert "variants.joint.term is 'pul'; allowed:" in output and "epoch 1 of 1" not in output
    assert "typo" not in project.run("dvc", "exp", "list")
