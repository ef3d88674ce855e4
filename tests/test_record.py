"""A finished run becomes a page under docs/results and a block of the README."""

import subprocess

import pytest

from lib.report.record import BEGIN, END, PICTURES, write_record
from lib.report.records import read_record
from lib.runtime.files import read_json, write_json, write_text
from tests.faults.refusals import refused
from tests.report_runs import write_run

PARAMS = """\
dataset: images
images_path: pictures
variants:
  simclr: {method: simclr}
  again: {method: simclr, seed: 1}
  dual: {method: simclr}
"""


def git(folder, *command):
    subprocess.run(["git", "-c", "user.name=T", "-c", "user.email=t@example.org", *command], cwd=folder, check=True)


def tree(folder) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".git" not in path.parts
    }


RUN = {"dataset": "images", "study": 0}
HALVES = {"latents": ("upper", "lower"), "options": {"latents": "halves"}}
WRITTEN = {"README.md", "results.csv", "params.yaml"} | {f"{name}.png" for name in PICTURES}


@pytest.fixture
def unfinished(monkeypatch) -> dict[str, list]:
    """What DVC says of stages that it would run."""
    status: dict[str, list] = {}
    monkeypatch.setattr("lib.report.record.ask_dvc", lambda *_, root: status)
    return status


@pytest.fixture
def run(tmp_path, unfinished):
    for name, settings in {"simclr": {}, "again": {"seed": 1}, "dual": {"seed": 2, **HALVES}}.items():
        write_run(tmp_path, name, **RUN, **settings)
    write_text(tmp_path / "params.yaml", PARAMS)
    write_text(tmp_path / "README.md", f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_text(tmp_path / "lib/code.py", "value = 1\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "lib")
    git(tmp_path, "commit", "-q", "-m", "x")
    return tmp_path


def test_a_record_is_a_page_with_numbers_settings_and_pictures_and_the_readmes_table(run):
    lines = write_record("2026-01-31-test", "A title", "What it is.", run, notes="## Found\n\nThis.\n")
    folder = run / "docs/results/2026-01-31-test"
    assert set(tree(folder)) == WRITTEN | {f"runs/{name}.json" for name in ("simclr", "again", "dual")}
    page, readme = (folder / "README.md").read_text(), (run / "README.md").read_text()
    assert page.startswith("# A title\n\nWhat it is.\n\nMade with the code of commit ")
    assert "\n\n## Found\n\nThis.\n\nimages (folder mine): encoder small; " in page
    assert "](../../../docs/reading-the-table.md)" in page and "| dual · lower | 1 | " in page
    assert readme.startswith(f"before\n{BEGIN}\n**A title.** What it is.\n") and readme.endswith(f"{END}\nafter\n")
    assert "| simclr | 2 | " in readme and "| dual · upper | 1 | " in readme and "±" in readme
    assert "old" not in readme and "dual · lower" not in readme and "2026-01-31-test/accuracy.png)" in readme
    assert lines[-1] == "written: the table in README.md"
    before = tree(run)
    write_record("2026-01-31-test", "A title", "What it is.", run, notes="## Found\n\nThis.\n")
    assert tree(run) == before, "again, nothing changes"


def test_the_readmes_table_leaves_floors_to_the_rows_that_have_them(run):
    for name, settings in {"simclr": {}, "again": {"seed": 1}, "dual": {"seed": 2, **HALVES}}.items():
        write_run(run, name, **settings)  # of CIFAR-10, for which there are published rows
    write_run(run, "floor", epochs=0, wrong=0.6)
    write_text(run / "params.yaml", f"{PARAMS}  floor: {{method: simclr, epochs: 0}}\n")
    write_record("x", "t", "a", run)
    page, readme = (run / "docs/results/x/README.md").read_text(), (run / "README.md").read_text()
    assert "| floor | 1 | " in page and "| floor |" not in readme
    assert "| simclr | 2 | " in readme and "| simclr (published) | " in readme


def test_a_record_from_several_machines_is_that_of_one(run, unfinished):
    text = (run / "README.md").read_text()
    write_record("whole", "t", "a", run)
    whole, readme = tree(run / "docs/results/whole"), (run / "README.md").read_text()
    write_text(run / "README.md", text)
    for waits in ("again", "dual"), ("simclr", "dual"):
        unfinished |= {f"linear@{name}": [] for name in waits}
        *_, first, last = write_record("parts", "t", "a", run)
        unfinished.clear()
        assert last.startswith("README.md is left as it is until ") and last.endswith("dual")
    assert first.endswith("parts, with 1 of its 2 runs from here")
    page, table = ((run / "docs/results/parts" / name).read_text() for name in ("README.md", "results.csv"))
    assert "**Not finished yet**: dual.\n" in page and "| simclr | 2 | " in page and "dual" not in table
    assert (run / "README.md").read_text() == text
    unfinished |= {"memory@simclr": [], "pretrain@again": [], "tsne@dual": [], "results": []}
    write_record("parts", "t", "a", run)
    assert tree(run / "docs/results/parts") == whole
    assert (run / "README.md").read_text() == readme.replace("whole", "parts") != text


def test_a_record_keeps_the_numbers_parameters_and_images_that_it_has(run, unfinished):
    write_record("x", "t", "a", run)
    before = tree(run)
    write_run(run, "again", **RUN, seed=1, wrong=0.5)
    refused(lambda: write_record("x", "t", "a", run), "x/runs/again.json is another run of this variant; keep one")
    write_run(run, "again", **RUN, seed=1)
    (run / "docs/results/x/runs/dual.json").unlink()
    write_run(run, "dual", **RUN, seed=2, **HALVES, checksum="other")
    refused(lambda: write_record("x", "t", "a", run), "runs of different images: ", "; a record needs one data set")
    write_run(run, "dual", **RUN, seed=2, **HALVES)
    write_record("x", "t", "a", run)
    assert tree(run) == before
    write_text(run / "params.yaml", f"{PARAMS}# more\n")
    refused(lambda: write_record("x", "t", "a", run), "docs/results/x is a record of another params.yaml; take that")


PARTS = ("variant", "pretraining", "kind", "rows", "classes", "confusion", "curve", "data", "code")


@pytest.mark.parametrize("key", PARTS)
def test_a_runs_file_of_another_version_is_refused_before_anything_is_written(run, unfinished, key):
    write_record("x", "t", "a", run)
    path = run / "docs/results/x/runs/dual.json"
    stored = read_json(path)
    unfinished["pretrain@dual"] = []
    for spoiled in ({key: None}, {key: 3}, {key: []}, {key: {}}, None):
        write_json(path, {**stored, **spoiled} if spoiled else {name: stored[name] for name in stored if name != key})
        before = tree(run)
        refused(lambda: write_record("x", "t", "a", run), "x/runs/dual.json is damaged or of another version")
        assert tree(run) == before


@pytest.mark.parametrize("text", ["no markers", f"{BEGIN} only", f"{END} {BEGIN}"])
def test_a_readme_without_markers_and_a_large_picture_are_left_out_and_named(run, text, monkeypatch):
    write_text(run / "README.md", text)
    write_record("x", "t", "a", run)
    largest = max((run / f"docs/results/x/{name}.png").stat().st_size for name in PICTURES)
    monkeypatch.setattr("lib.report.record.LARGEST", largest - 1)
    first, *_, last = write_record("x", "t", "a", run)
    gone = first.split()[-1]
    assert first.startswith("left out, larger than ") and "left as it is" in last
    assert (run / "README.md").read_text() == text and not (run / "docs/results/x" / gone).exists()
    assert gone not in (run / "docs/results/x/README.md").read_text()


@pytest.fixture
def verdict(run):
    """The record of a verdict with runs of the seeds 1 and 5 of simclr, and one of other options."""
    folder = run / "docs/results/verdict"
    write_text(folder / "params.yaml", PARAMS)
    known, bits = read_record("simclr", run), {"episode_bits": 5.5, "concept_bits": 1.5}
    for name, seed, own in (("simclr_s1", 1, {}), ("simclr_s5", 5, {}), ("joint_s5", 5, {"options": {"term": "pull"}})):
        params = known.pretraining.as_json() | {"variant": name, "seed": seed} | own
        numbers = {"top1": 71.0, "knn": 61.0, "z": {"top1": 51.0, "knn": 41.0}, "memory": {**bits, "z": bits}}
        stored = {"name": name, "pretraining": params, "data": known.data, "lambda": None, **numbers}
        write_json(folder / f"runs/{name}.json", stored)
    return folder


def test_runs_of_a_verdict_are_further_seeds_of_a_variant_and_stay_in_the_record(run, verdict):
    write_record("x", "t", "a", run, seeds_from="verdict")
    folder = run / "docs/results/x"
    names = {path.stem for path in (folder / "runs").iterdir()}
    assert names == {"simclr", "again", "dual", "simclr_s5"}, "seed 1 is that of again"
    own = [read_record(name, run).rows[0] for name in ("simclr", "again")]
    mean = (own[0]["top1"] + own[1]["top1"] + 71) / 3
    page = (folder / "README.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith("| simclr | 3 | "))
    header = next(line for line in page.splitlines() if line.startswith("| Model | n | "))
    cells = dict(zip(header.split(" | "), row.split(" | ")))
    assert cells["Probe top-1"].startswith(f"{mean:.2f} ± ") and cells["Episode bits"].startswith(f"{16.5 / 3:.2f} ± ")
    assert cells["Validation top-1"] == "-", "no mean of two seeds in a row of three"
    assert "Further seeds, without validation, curves and confusion: `simclr_s5`, which are runs of [verdict](" in page
    before = tree(run)
    for again in ("verdict", None):
        write_record("x", "t", "a", run, seeds_from=again)
        assert tree(run) == before


def test_runs_that_were_measured_otherwise_or_are_damaged_are_no_further_seeds(run, verdict):
    def other(words, seeds_from="verdict"):
        before = tree(run)
        refused(lambda: write_record("x", "t", "a", run, seeds_from=seeds_from), words)
        assert tree(run) == before

    other("'../verdict' is not a usable name", "../verdict")
    other("docs/results/gone/params.yaml", "gone")
    for block, text in {"memory": "{draws: 2}", "augment": "{flip: 0.1}", "knn": "{k: 7}"}.items():
        write_text(verdict / "params.yaml", f"{PARAMS}{block}: {text}\n")
        other(f"verdict was measured with another block {block} than params.yaml has; leave it out")
    write_text(verdict / "params.yaml", PARAMS)
    stored = read_json(verdict / "runs/simclr_s5.json")
    write_json(verdict / "runs/simclr_s5.json", {**stored, "data": "other"})
    other("runs of different images: ")
    without = [{name: stored[name] for name in stored if name != key} for key in ("memory", "top1", "data")]
    for spoiled in (*without, {**stored, "pretraining": "?"}):
        write_json(verdict / "runs/simclr_s5.json", spoiled)
        other("runs/simclr_s5.json is of another version (")


def absolute(path):
    return lambda run, _: write_text(run / "params.yaml", PARAMS.replace("pictures", f'"{path}"'))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        *((absolute(path), "images_path is absolute, and ") for path in ("/mine.zip", "~/mine", "C:\\\\mine")),
        *(
            (lambda _, status, stage=stage: status.update({stage: []}), f"have changed ({stage} would run); dvc repro")
            for stage in ("download", "resolve")
        ),
        (
            lambda _, status: status.update({f"pretrain@{name}": [] for name in ("simclr", "again", "dual")}),
            "no variant is finished; dvc repro first",
        ),
        (lambda run, _: write_text(run / "lib/code.py", "value = 2\n"), "lib/code.py differs from the last commit"),
        (lambda run, _: (run / ".git/HEAD").unlink(), "no git repository with commits"),
    ],
)
def test_what_is_not_finished_committed_and_free_of_one_machine_is_refused(run, unfinished, spoil, words):
    spoil(run, unfinished)
    before = tree(run)
    refused(lambda: write_record("x", "t", "a", run), words)
    for name in ("a/b", "..", ".", "", "a\\b", "/tmp", ".hidden"):
        refused(lambda: write_record(name, "t", "a", run), "is not a usable name")
    assert tree(run) == before
