"""The whole pipeline, from nothing to the table, in a clone of the last commit; threads follow the processors."""

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.timing import once
from lib.runtime.errors import UserError
from lib.runtime.machine import Machine

ROOT = Path(__file__).parents[1]
THREADS = ("ENGRAM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")  # which `bench.run` fixes for its arms


def side_by_side(settings: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """Variants at the same time, a processor each, then what all share: ``make parallel``."""
    return _pipeline([sys.executable, "-m", "lib.side_by_side"], settings)


def in_turn(settings: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """One stage after the other, each with all processors: ``dvc repro``."""
    return _pipeline([sys.executable, "-m", "dvc", "repro"], settings)


def _pipeline(command: list[str], settings: dict[str, Any]) -> dict[str, Any]:
    """``settings``: the ``preset`` and its ``changes``, each key=value.

    Raises:
        UserError: a command that failed; what went wrong is above.
    """
    changes = [word for change in settings["changes"] for word in ("-S", change)]
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder) / "project"
        _run(["git", "clone", "--quiet", str(ROOT), str(project)], ROOT)
        _run([sys.executable, "-m", "lib.preset", settings["preset"], *changes], project)
        _run([sys.executable, "-m", "dvc", "config", "--local", "cache.dir", str(Path(folder) / "cache")], project)
        found = once(lambda: _run(command, project))
    return {**found, "memory": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024}


def _run(command: list[str], folder: Path) -> None:
    """To its end: what interrupts this process reaches the command too, which ends its own trainings."""
    own = {name: value for name, value in os.environ.items() if name not in THREADS}
    own["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), own.get("PATH", os.defpath)])
    try:
        process = subprocess.Popen(command, cwd=folder, env=own, stdout=sys.stderr)
    except FileNotFoundError:
        raise UserError(f"the whole pipeline needs {command[0]}, which is not there; install it") from None
    try:
        status = process.wait()
    except BaseException:
        process.wait()
        raise
    if status:
        raise UserError(f"{' '.join(command[1:4])} ended with status {status}; what went wrong is above")
