"""``python -m lib repro``: DVC's words about stages, numbered; its errors; none of its hints."""

import os
import shutil
import subprocess
import sys

from tests.examples import ROOT

STAGES = """\
stages:
  download: {cmd: echo a picture | tee picture, outs: [picture: {cache: false}]}
  resolve: {cmd: echo resolved, deps: [picture]}
  results: {cmd: exit 3, deps: [picture]}
"""


def test_a_run_counts_its_stages_and_keeps_errors_and_what_stages_print(tmp_path):
    shutil.copy(ROOT / "presets/demo.yaml", tmp_path / "params.yaml")
    (tmp_path / "dvc.yaml").write_text(STAGES)
    (tmp_path / ".times").mkdir()
    (tmp_path / ".times/results.json").write_text('{"seconds": 7.2}')
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DVC_NO_ANALYTICS": "1"}

    def run(*command: str) -> tuple[int, list[str]]:
        settings = {"cwd": tmp_path, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        done = subprocess.run([sys.executable, "-m", *command], text=True, timeout=120, **settings)
        return done.returncode, done.stdout.splitlines()

    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    assert run("dvc", "init", "-q")[0] == 0
    status, lines = run("lib", "repro")
    stages = ["[1 of 3] download runs", "a picture", "[2 of 3] resolve runs", "resolved"]
    assert lines[:5] == [*stages, "[3 of 3] results runs, about 7 s"]
    assert status == 255 and lines[5].startswith("ERROR: failed to reproduce 'results'")
    assert not any("lock file" in line or line.startswith(">") or not line for line in lines)
    assert run("lib", "repro")[1][0] == "[1 of 3] download didn't change, skipping"
