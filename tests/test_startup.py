"""Commands answer ``--help`` in less than a second, before they load anything large."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from lib.__main__ import COMMANDS as COMMANDS_OF_LIB

ROOT = Path(__file__).parents[1]
LARGE = {"torch", "torchvision", "pandas", "sklearn", "scipy", "numpy", "matplotlib", "PIL", "dvc", "rich"}
COMMANDS = [(f"stages.{path.stem}",) for path in sorted((ROOT / "stages").glob("[a-z]*.py")) if path.stem != "lib"]
READ_LATER = {"experiments", "explore", "plan", "prune", "record", "repro", "show", "trace", "verdict", "willshaw"}
COMMANDS += [("lib",), *(("lib", command) for command in COMMANDS_OF_LIB if command not in READ_LATER)]
RUN = """
import runpy, sys
module, sys.argv = sys.argv[1], ["command", *sys.argv[2:], "--help"]
try:
    runpy.run_module(module, run_name="__main__")
except SystemExit as end:
    status = end.code
print("loaded:", *sys.modules, file=sys.stderr)
sys.exit(status)
"""


def loaded(module: str, *command: str) -> set[str]:
    """The large packages that a command has loaded when it has said how it is used."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, module, *command], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and "usage:" in done.stdout, done.stderr
    return LARGE & set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_loads_nothing_large_and_takes_less_than_a_second(command):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert loaded(*command) == set()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Of one processor, however busy it is.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


@pytest.mark.parametrize("command", COMMANDS_OF_LIB)
def test_every_command_says_how_it_is_used(command):
    done = subprocess.run(
        [sys.executable, "-m", "lib", command, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and done.stdout.startswith(f"usage: python -m lib {command}"), done.stderr
