"""Dependencies: exact versions that fit the allowed ranges and each other, and ranges with two ends to try."""

import re
import subprocess
import sys
from importlib.metadata import distributions, version
from importlib.util import find_spec

import pytest
from packaging.requirements import Requirement

from tests.versions import direct, light, pins, requirements


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_version_is_exact_and_within_the_allowed_range():
    pinned = pins()
    assert len(pinned) > 50 and all(re.fullmatch(r"\d[\w.]*", exact) for exact in pinned.values())
    for asked in map(Requirement, direct()):
        assert asked.specifier.contains(pinned[asked.name]), asked


def test_nothing_is_left_to_be_resolved_when_the_exact_versions_are_installed():
    """Every package that a pinned one needs here is pinned too; torch brings its own CUDA packages.

    Where other versions are installed, only what has its exact version is looked at.
    """
    pinned, seen = pins(), 0
    for known in distributions():
        name = normal(known.name)
        exact = name != "torch" and pinned.get(name) == known.version
        seen += exact
        for need in map(Requirement, known.requires or [] if exact else []):
            wanted = need.marker is None or need.marker.evaluate({"extra": ""})
            assert not wanted or normal(need.name) in {*pinned, "setuptools"}, f"{name}: {need}"
    assert seen > len(pinned) / 2, "this environment was installed from other versions"


@pytest.mark.skipif(find_spec("pip") is None, reason="an environment without pip")
def test_what_is_installed_fits_together():
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_what_is_installed_is_within_the_allowed_ranges():
    for asked in map(Requirement, direct()):
        assert asked.specifier.contains(version(asked.name), prereleases=True), asked


def test_both_ends_of_the_ranges_can_be_asked_for():
    assert {"pandas", "scikit-learn", "matplotlib", "rich", "pyyaml", "dvc"} <= light().keys()
    oldest, newest = requirements("oldest"), requirements("newest")
    assert len(oldest) == len(newest) == len(direct())
    for name, (low, high) in light().items():
        assert f"{name}=={low}" in oldest and f"{name}>={low},<{high}" in newest
    assert f"torch=={pins()['torch']}" in oldest and f"torch=={pins()['torch']}" in newest
