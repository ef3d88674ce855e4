"""Requirements: exact versions that fit the allowed ranges, and nothing left to be resolved."""

import re
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
FILES = ("requirements", "requirements-test", "requirements-bench")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RANGES = {
    "requirements": PROJECT["dependencies"],
    "requirements-test": [
        each for extra in ("test", "lint", "export", "explore") for each in PROJECT["optional-dependencies"][extra]
    ],
    "requirements-bench": PROJECT["optional-dependencies"]["bench"],
}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(file: str) -> dict[str, str]:
    """The exact versions of a file, by name."""
    lines = (ROOT / f"{file}.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and line[0] not in "#-")


@pytest.mark.parametrize("file", FILES)
def test_every_version_is_exact_and_within_the_range_that_pyproject_allows(file):
    pinned = pins(file)
    assert all(re.fullmatch(r"\d[\w.]*", exact) for exact in pinned.values())
    for asked in map(Requirement, RANGES[file]):
        assert asked.specifier.contains(pinned[normal(asked.name)]), asked


@pytest.mark.parametrize("file", FILES[1:])
def test_a_file_of_more_packages_stands_on_requirements_and_repeats_nothing(file):
    assert "-r requirements.txt" in (ROOT / f"{file}.txt").read_text().splitlines()
    assert not pins(file).keys() & pins("requirements").keys()
    for name in pins(file).keys() & pins(FILES[1]).keys():
        assert pins(file)[name] == pins(FILES[1])[name]


def test_nothing_is_left_to_be_resolved_when_the_exact_versions_are_installed():
    """Every package that a pinned one needs here is pinned too; torch brings its own CUDA packages.

    Where other versions are installed, only what has its exact version is looked at.
    """
    pinned = {name: exact for file in FILES for name, exact in pins(file).items()}
    base, seen = pins("requirements"), 0
    for known in distributions():
        name = normal(known.name)
        exact = name != "torch" and pinned.get(name) == known.version
        seen += exact
        allowed = {*(base if name in base else pinned), "setuptools"}
        for need in map(Requirement, known.requires or [] if exact else []):
            wanted = need.marker is None or need.marker.evaluate({"extra": ""})
            assert not wanted or normal(need.name) in allowed, f"{name}: {need}"
    assert seen > len(pinned) / 2, "this environment was installed from other versions"
