"""A finished run becomes a page under docs/results and a block of the README."""

import shutil
import subprocess

import pytest

from lib.report.record import BEGIN, COPIED, END, LOCK, write_record
from lib.runtime.errors import UserError

PARAMS = "dataset: images\nimages_path: pictures\nvariants:\n  simclr: {}\n  dual: {}\n"
PLANES = ("simclr/h.png", "dual/upper.png", "dual/lower.png")
OWN = ("metrics/{}.json", "data/scores/{}.json", "data/scores/{}.npz", "data/tsne/{}.npz")  # files of each variant
TRANSFER = (
    "metrics/transfer/dual.json",
    "plots/transfer/dual.csv",
    "plots/transfer/dual.png",
    "plots/filters/dual.png",
)


def git(folder, *command):
    subprocess.run(["git", "-c", "user.name=T", "-c", "user.email=t@example.org", *command], cwd=folder, check=True)


def tree(folder) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".git" not in path.parts
    }


@pytest.fixture
def run(tmp_path):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/code.py").write_text("value = 1\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "lib")
    git(tmp_path, "commit", "-q", "-m", "x")
    own = [path.format(variant) for path in OWN for variant in ("simclr", "dual")]
    for path in (*COPIED, LOCK, *own, *(f"plots/tsne/{plane}" for plane in PLANES)):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(path)
    (tmp_path / "params.yaml").write_text(PARAMS)
    (tmp_path / "metrics/results.md").write_text("# Results\n\nPercent.\n\n| a |\n| --- |\n| 1 |\n\n## How\n\n- so\n")
    (tmp_path / "README.md").write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    return tmp_path


def refused(run, words, name="x"):
    before = tree(run)
    with pytest.raises(UserError, match=words) as refusal:
        write_record(name, "t", "a", run)
    assert "\n" not in str(refusal.value) and tree(run) == before


def test_a_record_holds_the_run_and_the_readme_shows_it(run):
    folder = write_record("2026-01-31-test", "A title", "What it is.", run)
    page, readme = (folder / "README.md").read_text(), (run / "README.md").read_text()
    assert page.startswith("# A title\n\nWhat it is.\n\nMade with the code of commit ")
    assert " (the last that changed lib, stages or dvc.yaml). Settings: " in page
    assert "- so" in page and "| 1 |" in page and "[dual · lower](tsne/dual/lower.png)" in page
    assert readme.startswith(f"before\n{BEGIN}\n**A title.** What it is.\n") and readme.endswith(f"{END}\nafter\n")
    assert "| 1 |" in readme and "old" not in readme and "- so" not in readme
    assert set(tree(folder)) == {
        "README.md",
        "params.yaml",
        "dvc.lock",
        "results.csv",
        "curves.csv",
        "curves.png",
        "accuracy.png",
        "confusion.png",
        "overview.png",
        *(path.format(name).removeprefix("data/") for path in OWN for name in ("simclr", "dual")),
        *(f"tsne/{p}" for p in PLANES),
    }
    assert (folder / "tsne/dual/lower.png").read_text() == "plots/tsne/dual/lower.png"


def test_the_readme_shows_a_long_table_without_its_other_latents(run):
    rows = [f"| m{number} | 1 | 2 | 3 |" for number in range(25)] + [f"| m1 · l{n} | - | - | 3 |" for n in range(9)]
    rows += ["| m2 · main | 1 | 2 | 3 |"]
    text = "# Results\n\nPercent.\n\n| a | b | c | d |\n| --- | --- | --- | --- |\n" + "\n".join(rows)
    (run / "metrics/results.md").write_text(f"{text}\n\n## How\n\n- so\n")
    folder, readme = write_record("x", "t", "a", run), (run / "README.md").read_text()
    assert "m1 · l8" in (folder / "README.md").read_text() and "m1 · l" not in readme and "| m24 | 1" in readme
    assert "How to read each column, 9 other latents, the runs" in readme and "m2 · main" in readme
    (run / "metrics/results.md").write_text(f"{text}\n\n## How\n\n- so\n".replace("| 1 | 2 |", "| - | - |"))
    write_record("x", "t", "a", run)
    assert "m1 · l8" in (run / "README.md").read_text()  # without the study's protocol no latent is the main one


def test_many_planes_are_kept_as_numbers_and_in_one_picture(run):
    for number in range(12):
        (run / f"plots/tsne/dual/more{number}.png").write_text("plane")
    folder = write_record("x", "t", "a", run)
    assert not list(folder.rglob("tsne/*/*.png")) and (folder / "tsne/dual.npz").exists()
    assert "by itself" not in (folder / "README.md").read_text() and (folder / "overview.png").exists()


def test_writing_it_again_changes_nothing(run):
    write_record("x", "A title", "What it is.", run)
    before = tree(run)
    write_record("x", "A title", "What it is.", run)
    assert tree(run) == before


@pytest.mark.parametrize("name", ["a/b", "..", ".", "", "a\\b", "/tmp", ".hidden"])
def test_a_name_that_is_no_plain_folder_is_refused(run, name):
    refused(run, "is not a usable name", name)


@pytest.mark.parametrize("path", ["/data/mine.zip", "~/mine", "C:\\\\mine"])
def test_an_absolute_images_path_is_refused(run, path):
    (run / "params.yaml").write_text(PARAMS.replace("pictures", f'"{path}"'))
    refused(run, "images_path is absolute.*put a link beside params.yaml")


@pytest.mark.parametrize("text", ["no markers", f"{BEGIN} only", f"{END} {BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
def test_markers_are_checked_before_anything_is_written(run, text):
    (run / "README.md").write_text(text)
    refused(run, "lacks the markers")


def test_outside_a_repository_or_without_a_commit_is_one_line(run):
    shutil.rmtree(run / ".git")
    (run / ".git").write_text("gitdir: nowhere\n")
    refused(run, "no git repository with commits")
    (run / ".git").unlink()
    git(run, "init", "-q")
    (run / ".git/info/exclude").write_text("*\n")
    refused(run, "no git repository with commits")


def test_a_run_without_dvc_says_so_and_has_its_notes(run):
    (run / LOCK).unlink()
    page = (write_record("x", "t", "a", run, notes="## Found\n\nThis.\n", by_dvc=False) / "README.md").read_text()
    assert "without DVC, so there is no dvc.lock" in page and "\n\n## Found\n\nThis.\n\nPercent." in page
    assert "This." not in (run / "README.md").read_text() and not (run / "docs/results/x/dvc.lock").exists()


def test_classifiers_from_filters_are_kept_where_the_run_asked_for_them(run):
    for path in TRANSFER:
        (run / path).parent.mkdir(parents=True, exist_ok=True)
        (run / path).write_text(path)
    assert not (write_record("x", "t", "a", run) / "transfer").exists()
    (run / "params.yaml").write_text(PARAMS + "transfer:\n  variants: [dual]\n")
    folder = write_record("x", "t", "a", run)
    assert (folder / "transfer/dual-filters.png").read_text() == TRANSFER[-1]
    assert "![dual](transfer/dual.png)" in (folder / "README.md").read_text()
    (run / TRANSFER[1]).unlink()
    refused(run, "plots/transfer/dual.csv does not exist")


@pytest.mark.parametrize("path", ["plots/tsne/dual", "metrics/dual.json", "data/scores/dual.npz"])
def test_a_variant_that_lacks_files_is_refused(run, path):
    shutil.rmtree(run / path) if (run / path).is_dir() else (run / path).unlink()
    refused(run, f"{path}.* does not exist")


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
