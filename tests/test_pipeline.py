"""What a change reruns, by running dvc on tiny data in a copy of the project.

The tests of this file share one copy and run in order: each starts where the one before it ended.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

from tests.examples import ROOT, study_params

VARIANTS = tuple(study_params()["variants"])
READ_GAMMA = tuple(name for name, block in study_params()["variants"].items() if block["watch"]["number"] == "gamma")
UNTRAINED = tuple(name for name, block in study_params()["variants"].items() if block.get("epochs") == 0)
TINY = [
    "dataset=digits",
    "image_size=16",
    "encoder=small",
    "batch_size=256",
    "epochs=1",
    "monitor.every=1",
    "monitor.k=5",
    "linear.epochs=1",
    "linear.study_epochs=1",
    "knn.k=5",
    "tsne.points=60",
    "tsne.perplexity=5.0",
    "tsne.iterations=250",
]
PER_VARIANT = ("pretrain", "linear", "embed", "tsne")


def stages(*names: str, variants: tuple[str, ...] = VARIANTS) -> set[str]:
    """Names of stages, those with variants spelled out."""
    return {
        f"{name}@{variant}" if name in PER_VARIANT else name
        for name in names
        for variant in (variants if name in PER_VARIANT else ("",))
    }


class Project:
    """A copy of the project in a git repository of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        listed = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True, capture_output=True, check=True
        ).stdout.splitlines()
        for name in listed:
            output = Path(name).parts[0] in ("metrics", "plots") and Path(name).name != "README.md"
            generated = output or name == "dvc.lock"  # the project may hold a run, such as the demo's
            if (ROOT / name).is_file() and not generated:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        names = {
            f"GIT_{role}_{field}": value
            for role in ("AUTHOR", "COMMITTER")
            for field, value in (("NAME", "Test"), ("EMAIL", "test@example.org"))
        }
        self.environment = {
            **os.environ,
            **names,
            "PATH": path,
            "PYTHONDONTWRITEBYTECODE": "1",
            "ENGRAM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            "DVC_NO_ANALYTICS": "1",
        }
        self.environment.pop("PYTHONPATH", None)
        self.run("git", "init", "--quiet")
        self.preset("study", *TINY)
        self.commit("tiny")

    def run(self, *command: str, status: int = 0) -> str:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=900,
        )
        assert done.returncode == status, f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-4000:]}"
        return done.stdout

    def preset(self, name: str, *settings: str) -> None:
        self.run("python", "-m", "lib.preset", name, *(part for setting in settings for part in ("-S", setting)))

    def commit(self, message: str) -> None:
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "-m", message)

    def change(self, **settings: str) -> None:
        """Change values of params.yaml on top of the tiny settings; dots in keys are ``__``."""
        self.preset("study", *TINY, *(f"{key.replace('__', '.')}={value}" for key, value in settings.items()))

    def repro(self, *arguments: str) -> set[str]:
        """Run the pipeline; the names of the stages whose command ran."""
        return ran(self.run("dvc", "repro", *arguments))

    def metrics(self) -> dict[str, dict]:
        return {name: json.loads((self.folder / f"metrics/{name}.json").read_text()) for name in VARIANTS}


def ran(output: str) -> set[str]:
    return set(re.findall(r"Running stage '([^']+)'", output))


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    return Project(tmp_path_factory.mktemp("project"))


def test_the_first_run_runs_every_stage_and_leaves_nothing_to_do(project):
    assert project.repro() == stages("download", *PER_VARIANT, "overview", "results")
    assert "up to date" in project.run("dvc", "status")
    assert project.repro() == set()
    untracked = project.run("git", "status", "--porcelain", "--untracked-files=all").splitlines()
    assert not [line for line in untracked if ".gitignore" in line], "dvc wrote a .gitignore of its own"
    project.commit("first run")


def test_the_outputs_are_those_that_the_readme_names(project):
    expected = {"simclr": (["h"], ["z"]), "dual": (["upper", "lower"], ["z_upper", "z_lower"])}
    for variant, (latents, projections) in expected.items():
        with numpy.load(project.folder / f"data/embeddings/{variant}.npz", allow_pickle=False) as file:
            assert list(file["latents"]) == latents and list(file["projections"]) == projections
            rows = len(file["labels"])
            for name in latents + projections:
                assert file[name].shape[0] == rows and file[name].dtype == numpy.float32
        assert all((project.folder / f"plots/tsne/{variant}/{latent}.png").stat().st_size > 5000 for latent in latents)
    for name in ("metrics/results.md", "metrics/results.csv", "plots/tsne/overview.png", "plots/curves.png"):
        assert (project.folder / name).is_file()
    for variant, metrics in project.metrics().items():
        assert {"top1", "top5", "knn", "study_top1", "study_top5"} <= metrics.keys()
        nested = {"upper", "lower", "both", "mean"} if variant == "dual" else set()
        assert {key for key, value in metrics.items() if isinstance(value, dict)} == nested


def test_linear_reruns_no_pretraining(project):
    project.change(linear__epochs="2")
    assert project.repro() == stages("linear", "results")


def test_tsne_reruns_only_tsne(project):
    project.change(linear__epochs="2", tsne__perplexity="6.0")
    assert project.repro() == stages("tsne", "overview")


def test_gamma_reruns_joint_and_dual(project):
    project.change()
    project.repro()
    project.run("git", "checkout", "--quiet", ".")
    output = project.run("dvc", "exp", "run", "-S", "gamma=0.1")
    expected = stages(*PER_VARIANT, variants=READ_GAMMA) | {"overview", "results"}
    assert ran(output) == expected
    moved = json.loads(project.run("dvc", "metrics", "diff", "--json"))
    assert set(moved) == {f"metrics/{variant}.json" for variant in READ_GAMMA}
    assert "up to date" in project.run("dvc", "status")


def test_an_old_gamma_comes_from_the_run_cache(project):
    before = project.run("git", "show", "HEAD:metrics/joint.json")
    project.change()
    output = project.run("dvc", "repro")
    assert ran(output) & stages(*PER_VARIANT, "download") == set()
    assert "Stage 'pretrain@joint' is cached" in output
    assert (project.folder / "metrics/joint.json").read_text() == before


def test_editing_a_method_reruns_that_method(project):
    project.run("git", "checkout", "--quiet", ".")
    project.repro()
    with open(project.folder / "lib/methods/dual.py", "a") as file:
        file.write("\n# a comment\n")
    reran = project.repro()
    assert reran & stages("download", "pretrain") == {"pretrain@dual"}
    assert reran <= stages(*PER_VARIANT, variants=("dual",)) | {"overview", "results"}


def test_batch_size_reruns_all_but_download(project):
    """Of what is not trained the embeddings come out the same, so that nothing after them runs."""
    project.change(batch_size="128")
    assert project.repro() == stages(*PER_VARIANT, "overview", "results") - stages("tsne", variants=UNTRAINED)


def test_training_again_gives_the_same_bytes(project):
    outputs = ("data/encoders/joint.safetensors", "metrics/joint.json", "data/scores/joint.npz")
    before = [(project.folder / name).read_bytes() for name in outputs]
    shutil.rmtree(project.folder / ".checkpoints")
    for stage in ("pretrain@joint", "linear@joint"):
        assert project.repro("-f", "-s", stage) == {stage}
    assert [(project.folder / name).read_bytes() for name in outputs] == before


def test_plots_open_without_a_network(project):
    project.run("python", "-m", "lib.offline_plots")
    project.run("dvc", "plots", "show")
    page = (project.folder / "dvc_plots/index.html").read_text()
    assert "vega.js" in page and (project.folder / ".dvc/vega.js").stat().st_size > 500_000
    assert not re.findall(r"<(?:script|link)[^>]*(?:src|href)=\"?https?://", page)
    for name in ("Training loss", "Accuracy on the test images", "overview.png"):
        assert name in page
