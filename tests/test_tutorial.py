"""Every command of docs/tutorial.md, in its order, in a clone: what a reader would type."""

import re

import pytest

from tests.examples import ROOT
from tests.project import Project, ran

pytestmark = pytest.mark.slow
PAGE = (ROOT / "docs/tutorial.md").read_text()


def test_every_command_of_the_tutorial_runs(tmp_path):
    project = Project(tmp_path, ("simclr", "joint", "dual"))
    parts = re.findall(r"```(sh|python)\n(.*?)```", PAGE, re.DOTALL)
    path = tmp_path / re.search(r"Write it to `([\w/]+\.py)`", PAGE)[1]
    said: dict[str, list[str]] = {}
    for kind, text in parts:
        if kind == "python":
            path.write_text(text)
        for line in text.splitlines() if kind == "sh" else ():
            if line == "make demo":  # with the environment that runs this test, and in less time
                project.preset()
                line = "dvc repro"
            elif line.startswith(". "):
                continue
            elif line.startswith("python -m lib preset demo"):
                line += "".join(f" -S {setting}" for setting in project.settings)
            said.setdefault(line, []).append(project.run("bash", "-c", line))
    (planned,) = said["python -m lib plan -S gamma=0.03"]
    assert "pretrain@joint" in planned and "pretrain@dual" in planned and "pretrain@simclr" not in planned
    assert ran(said["dvc exp run -S gamma=0.03"][0]) >= {"pretrain@joint", "pretrain@dual"}
    assert not any(stage.startswith("pretrain") for stage in ran(said["dvc exp run -S gamma=0.01"][0]))
    (moved,) = said["dvc metrics diff"]
    assert "metrics/joint.json" in moved and "metrics/simclr.json" not in moved
    seeds, own = said["python -m lib show"]
    assert "±" in seeds and "spectral" not in seeds
    assert "spectral" in own
