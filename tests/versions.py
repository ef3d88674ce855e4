"""The oldest or the newest versions that pyproject.toml allows of the light dependencies, as requirements for pip.

    python -m tests.versions oldest

A dependency is light if pyproject.toml bounds it on both sides; the others stay at the version of
requirements.txt. `make test-oldest` and `make test-newest` install what is printed and run the tests.
"""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
BOUNDED = re.compile(r"([a-z-]+)>=([\d.]+),<([\d.]+)")


def pins() -> dict[str, str]:
    """The exact versions of requirements.txt, by name."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def direct() -> list[str]:
    """What the project and its tests ask for, as pyproject.toml writes it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *project["optional-dependencies"]["test"]]


def light() -> dict[str, tuple[str, str]]:
    """The light dependencies: the oldest version that is allowed, and the first that no longer is."""
    found = (BOUNDED.fullmatch(asked) for asked in direct())
    return {match[1]: (match[2], match[3]) for match in found if match}


def requirements(end: str) -> list[str]:
    """One line for each direct dependency; ``end`` of the ranges is oldest or newest."""
    pinned, lines = pins(), []
    for asked in direct():
        name = re.match(r"[a-z-]+", asked)[0]
        varied = {"oldest": "{}=={}", "newest": "{}>={},<{}"}[end] if name in light() else ""
        lines.append(varied.format(name, *light()[name]) if varied else f"{name}=={pinned[name]}")
    return lines


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1])))
