"""A finished run becomes a page under docs/results and a block of the README."""

import subprocess

import pytest

from lib.errors import UserError
from lib.report.record import BEGIN, COPIED, END, write_record


@pytest.fixture
def run(tmp_path):
    for path in COPIED:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(path)
    (tmp_path / "metrics/results.md").write_text("# Results\n\nPercent.\n\n| a |\n| --- |\n| 1 |\n\n## How\n\n- so\n")
    (tmp_path / "README.md").write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/code.py").write_text("value = 1\n")
    for command in (["init", "-q"], ["add", "lib"], ["-c", "user.name=T", "-c", "user.email=t@example.org",
                                                     "commit", "-q", "-m", "x"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return tmp_path


def test_a_record_holds_the_run_and_the_readme_shows_it(run):
    for _ in range(2):  # writing it again changes nothing
        folder = write_record("2026-01-31-test", "A title", "What it is.", run)
        page, readme = (folder / "README.md").read_text(), (run / "README.md").read_text()
        assert page.startswith("# A title\n\nWhat it is.\n\nMade with the code of commit ")
        assert "- so" in page and "| 1 |" in page
        assert readme.startswith(f"before\n{BEGIN}\n**A title.** What it is.\n") and readme.endswith(f"{END}\nafter\n")
        assert "| 1 |" in readme and "old" not in readme and "- so" not in readme
    names = {path.name for path in folder.iterdir()}
    assert {"params.yaml", "dvc.lock", "results.csv", "overview.png", "README.md"} <= names


def test_an_unfinished_run_is_refused(run):
    (run / "dvc.lock").unlink()
    with pytest.raises(UserError, match="dvc.lock does not exist"):
        write_record("x", "t", "a", run)
    assert not (run / "docs").exists()


def test_code_that_is_not_committed_is_refused(run):
    (run / "lib/code.py").write_text("value = 2\n")
    with pytest.raises(UserError, match="lib/code.py differs from the last commit"):
        write_record("x", "t", "a", run)
    assert not (run / "docs").exists()
