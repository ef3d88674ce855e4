"""Commands answer ``--help`` in less than a second, before they load anything large."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from lib.__main__ import COMMANDS

ROOT = Path(__file__).parents[1]
LARGE = {"torch", "torchvision", "pandas", "sklearn", "scipy", "numpy", "matplotlib", "PIL", "dvc", "rich"}
STAGES = sorted(path.stem for path in (ROOT / "stages").glob("[a-z]*.py") if path.stem != "lib")
READ_LATER = {"experiments", "plan", "prune", "record", "repro", "show", "trace", "willshaw"}
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


@pytest.mark.parametrize("module", ["lib", *(f"stages.{name}" for name in STAGES), *COMMANDS])
def test_help_says_how_a_command_is_used_loads_nothing_large_and_takes_less_than_a_second(module):
    command = ["lib", module] if module in COMMANDS else [module]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", RUN, *command], cwd=ROOT, capture_output=True, text=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    usage = f"usage: python -m lib {module}" if module in COMMANDS else "usage:"
    assert done.returncode == 0 and usage in done.stdout, done.stderr
    if module not in READ_LATER:
        assert not LARGE & set(done.stderr.splitlines()[-1].split())
        # Of one processor, however busy it is.
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


def test_a_python_without_the_packages_says_where_they_are():
    bare = [sys.executable, "-S", "-m", "lib", "plan"]  # -S: without site-packages
    done = subprocess.run(bare, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "") and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: this Python has no ") and ". .venv/bin/activate" in done.stderr
