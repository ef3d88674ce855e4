"""The whole pipeline, from nothing to the table, in a clone of the last commit; threads follow the processors."""

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.timing import once
from lib.machine import Machine

THREADS = ("ENGRAM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")  # which `bench.run` fixes for its arms


def side_by_side(settings: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """Variants at the same time, a processor each, then what all share: ``make parallel``."""
    return _pipeline("lib.side_by_side", [], settings)


def in_turn(settings: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """One stage after the other, each with all processors: ``dvc repro``."""
    return _pipeline("dvc", ["repro"], settings)


def _pipeline(module: str, arguments: list[str], settings: dict[str, Any]) -> dict[str, Any]:
    """``settings``: the ``preset`` and its ``changes``, each key=value."""
    own = {name: value for name, value in os.environ.items() if name not in THREADS}
    own["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), own.get("PATH", os.defpath)])
    changes = [word for change in settings["changes"] for word in ("-S", change)]
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder) / "project"

        def run(*command: str) -> None:
            subprocess.run(command, cwd=project if project.exists() else None, env=own, stdout=sys.stderr, check=True)

        run("git", "clone", "--quiet", str(Path(__file__).parents[1]), str(project))
        run(sys.executable, "-m", "lib.preset", settings["preset"], *changes)
        found = once(lambda: run(sys.executable, "-m", module, *arguments))
    return {**found, "memory": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024}
