"""requirements.txt: exact versions of everything, within the ranges of pyproject.toml, that fit together."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import distributions, version
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ASKED = [Requirement(line) for line in (*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"])]


def pins() -> dict[str, str]:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_every_version_is_exact_and_within_the_allowed_range():
    pinned = pins()
    assert len(pinned) > 50 and all(re.fullmatch(r"\d[\w.]*", exact) for exact in pinned.values())
    for asked in ASKED:
        assert asked.specifier.contains(pinned[asked.name]), asked
        assert asked.specifier.contains(version(asked.name), prereleases=True), f"installed here: {asked}"


def test_nothing_is_left_to_be_resolved_when_the_exact_versions_are_installed():
    """Every package that a pinned one needs here is pinned too; torch brings its own CUDA packages."""
    pinned, seen = pins(), 0
    for known in distributions():
        name = re.sub(r"[-_.]+", "-", known.name).lower()
        if name == "torch" or pinned.get(name) != known.version:  # where other versions are installed
            continue
        seen += 1
        for need in map(Requirement, known.requires or []):
            wanted = need.marker is None or need.marker.evaluate({"extra": ""})
            assert not wanted or re.sub(r"[-_.]+", "-", need.name).lower() in {*pinned, "setuptools"}, f"{name}: {need}"
    assert seen > len(pinned) / 2, "this environment was installed from other versions"


@pytest.mark.slow
@pytest.mark.skipif(find_spec("pip") is None, reason="an environment without pip")
def test_what_is_installed_fits_together():
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
