"""Commands answer ``--help`` before they load anything large."""

import subprocess
import sys

import pytest

from tests.examples import ROOT

LARGE = ("torch", "torchvision", "pandas", "sklearn", "scipy", "numpy", "matplotlib", "PIL", "dvc", "rich")
COMMANDS = [f"stages.{path.stem}" for path in sorted((ROOT / "stages").glob("*.py"))] + [
    "lib.preset",
    "lib.plan",
    "lib.side_by_side",
]
RUN = """
import runpy, sys
sys.argv = ["command", *sys.argv[1:]]
try:
    runpy.run_module({module!r}, run_name="__main__")
except SystemExit as end:
    status = end.code
print("loaded:", *({large} & sys.modules.keys()), file=sys.stderr)
sys.exit(status)
"""


def loaded(module: str, *arguments: str) -> set[str]:
    """The large packages that a command has loaded by its end."""
    code = RUN.format(module=module, large=set(LARGE))
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout
    return set(done.stderr.splitlines()[-1].split()[1:])


@pytest.mark.parametrize("module", COMMANDS)
def test_help_loads_nothing_large(module):
    assert loaded(module, "--help") == set()


def test_a_large_import_would_be_noticed(tmp_path, monkeypatch):
    (tmp_path / "heavy.py").write_text("import argparse\nimport numpy\nargparse.ArgumentParser().parse_args()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert loaded("heavy", "--help") == {"numpy"}
