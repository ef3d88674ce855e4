"""The plan against what DVC then runs, on the project's pipeline with toy commands.

The tests of the first part share one project and run in order: each starts where the one before it ended.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lib.durations import Estimate, estimates
from lib.forecast import Fate, Step
from lib.plan import as_json, make_plan, reasons, total
from lib.preset import overlay, parse_settings
from lib.runtime.stage import TIMES_FOLDER
from tests.examples import ROOT, study_params
from tests.toy_project import VARIANTS, ToyProject

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:dvc")
PER_VARIANT = ("pretrain", "linear", "embed", "tsne")
LAST = {"overview", "results"}


def each(*groups: str, variants: tuple[str, ...] = VARIANTS) -> set[str]:
    return {f"{group}@{variant}" for group in groups for variant in variants}


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> ToyProject:
    return ToyProject(tmp_path_factory.mktemp("toy"))


@pytest.fixture(autouse=True)
def in_toy(toy, monkeypatch):
    monkeypatch.chdir(toy.folder)
    for name in ("DVC_ROOT", "DVC_STAGE"):
        monkeypatch.delenv(name, raising=False)


def planned(*settings: str, targets: tuple[str, ...] = ()) -> dict[str, Fate]:
    return {step.stage: step.fate for step in make_plan(list(settings), list(targets))[0]}


def running(plan: dict[str, Fate]) -> set[str]:
    """What runs when no stage's inputs come out the same: a toy writes something new whenever its inputs changed."""
    return {stage for stage, fate in plan.items() if fate != Fate.RESTORED}


def change(*settings: str) -> None:
    text, changes = overlay(Path("params.yaml").read_text(), parse_settings(list(settings)))
    assert changes
    Path("params.yaml").write_text(text)


def files() -> dict[str, tuple[int, bytes]]:
    """Every file of the project with its time and content, DVC's scratch files aside."""
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes())
        for path in Path().rglob("*")
        if path.is_file() and not path.is_relative_to(".dvc/tmp")
    }


def test_before_the_first_run_everything_runs_and_after_it_nothing(toy):
    plan = planned()
    assert set(plan.values()) == {Fate.RUNS}
    assert toy.repro() == (set(plan), set())
    assert planned() == {}
    assert toy.run("python", "-m", "lib.plan") == "nothing to do\n"
    toy.commit()


CHANGES = {
    ("gamma=0.1",): each(*PER_VARIANT, variants=("joint",)) | LAST,
    ("tsne.perplexity=6.0",): each("tsne") | {"overview"},
    ("linear.epochs=2",): each("linear") | {"results"},
    ("batch_size=64",): each(*PER_VARIANT) | LAST,
}
RUNS = [("gamma=0.1",), ("tsne.perplexity=6.0", "linear.epochs=2"), ("batch_size=64",)]  # two at once to save time


@pytest.mark.parametrize("settings", CHANGES)
def test_what_a_change_reruns(settings):
    assert set(planned(*settings)) == CHANGES[settings]


@pytest.mark.parametrize("settings", RUNS)
def test_a_change_not_yet_made_reruns_what_is_planned_and_the_plan_touches_no_file(toy, settings):
    before = files()
    plan = planned(*settings)
    assert files() == before
    assert running(plan) == set(plan) == set().union(*(CHANGES[setting,] for setting in settings))
    change(*settings)
    assert planned() == plan  # the same change, made
    assert toy.repro() == (running(plan), set())


def test_the_plan_says_what_is_certain_and_what_depends():
    steps = {step.stage: step for step in make_plan(["gamma=0.5", "tsne.points=100"], [])[0]}
    assert steps["pretrain@joint"].fate == Fate.RUNS and steps["pretrain@joint"].why == ("gamma 0.1 -> 0.5",)
    assert steps["linear@joint"].fate == Fate.DEPENDS and steps["linear@joint"].causes == ("pretrain@joint",)
    assert steps["tsne@simclr"].fate == Fate.RUNS and steps["tsne@simclr"].why == ("tsne.points 5000 -> 100",)
    assert steps["tsne@joint"].fate == Fate.RUNS_OR_RESTORED
    assert reasons(steps["tsne@joint"]) == "tsne.points 5000 -> 100, after embed@joint"
    assert reasons(steps["overview"]) == "after tsne (2)"
    assert planned("gamma=0.5", targets=("tsne@simclr",)) == {}
    assert set(planned("gamma=0.5", targets=("pretrain", "embed@joint"))) == {"pretrain@joint", "embed@joint"}


def test_old_values_come_from_the_run_cache(toy):
    back = ["gamma=0.01", "tsne.perplexity=30.0", "linear.epochs=50", "batch_size=256"]
    plan = planned(*back)
    # results has uncached plain outputs, for which DVC keeps no run cache
    assert {stage for stage, fate in plan.items() if fate == Fate.RESTORED} == each(*PER_VARIANT) | {"overview"}
    assert plan["results"] == Fate.RUNS
    change(*back)
    assert toy.repro() == (running(plan), set(plan) - running(plan))


def test_restored_stages_and_running_ones_mix(toy):
    """The old gamma again, together with a perplexity that was never used with it."""
    plan = planned("gamma=0.1", "tsne.perplexity=7.0")
    assert {stage for stage, fate in plan.items() if fate == Fate.RESTORED} == each(
        "pretrain", "linear", "embed", variants=("joint",)
    )
    change("gamma=0.1", "tsne.perplexity=7.0")
    assert toy.repro() == (running(plan), set(plan) - running(plan))
    assert planned() == {}


def test_an_edited_method(toy):
    with open("lib/methods/joint.py", "a") as file:
        file.write("\nEDITED = True\n")
    plan = planned()
    assert set(plan) == each(*PER_VARIANT, variants=("joint",)) | LAST
    assert make_plan([], [])[0][0].why == ("lib/methods/joint.py changed",)
    assert toy.repro() == (running(plan), set())


def test_a_comment_reruns_no_more_than_is_planned(toy):
    with open("lib/methods/joint.py", "a") as file:
        file.write("\n# EDITED\n".lstrip("\n"))
    plan = planned()
    certain = {stage for stage, fate in plan.items() if fate == Fate.RUNS}
    assert certain == {"pretrain@joint"} and plan["tsne@joint"] == Fate.DEPENDS
    assert plan["linear@joint"] == Fate.RUNS_OR_RESTORED  # it names the method's file too
    ran, restored = toy.repro()
    assert certain <= ran <= running(plan) and not restored
    assert not ran & {"tsne@joint", "overview"}


def test_a_lost_output_is_restored(toy):
    Path("metrics/joint.json").unlink()
    assert planned() == {"linear@joint": Fate.RESTORED}
    assert make_plan([], [])[0][0].why == ("metrics/joint.json is missing",)
    assert toy.repro() == (set(), {"linear@joint"})


def test_a_new_variant(toy):
    params = toy.params()
    params["variants"]["dual"] = study_params()["variants"]["dual"]
    toy.write("params.yaml", params)
    plan = planned()
    assert set(plan) == each(*PER_VARIANT, variants=("dual",)) | LAST
    assert all(plan[stage] == Fate.RUNS for stage in plan if stage.endswith("@dual"))
    assert toy.repro() == (running(plan), set())


def test_the_command(toy):
    table = toy.run("python", "-m", "lib.plan", "-S", "gamma=0.2").splitlines()
    assert any(
        "pretrain@joint" in line and "gamma 0.1 -> 0.2" in line and "plots/curves/joint.csv" in line for line in table
    )
    assert table[-1].startswith("stages: ") and "one after another" in table[-1]
    found = json.loads(toy.run("python", "-m", "lib.plan", "-S", "gamma=0.2", "--json", "pretrain"))
    epochs = toy.params()["epochs"]
    assert {stage["stage"] for stage in found["stages"]} == {"pretrain@joint", "pretrain@dual"}
    assert found["seconds"] == 2 * 3.0 * epochs and found["without_time"] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-S", "gama=1"], "params.yaml has no key gama"),
        (["-S", "gamma=big"], "gamma is 'big'"),
        (["nosuch"], "'nosuch'"),
    ],
)
def test_errors_are_one_line(toy, arguments, words):
    output = toy.run("python", "-m", "lib.plan", *arguments, status=1)
    assert output.startswith("error: ") and output.count("\n") == 1 and words in output


def test_a_plan_does_not_wait_for_a_stage_at_work(toy):
    change("gamma=0.3")
    work = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", "-s", "pretrain@joint"],
        cwd=toy.folder,
        env={**toy.environment, "TOY_SECONDS": "60"},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        while "at work" not in work.stdout.readline():
            assert work.poll() is None
        assert planned()["pretrain@joint"] != Fate.UP_TO_DATE
    finally:
        os.killpg(work.pid, 9)
        work.communicate()


def test_a_missing_source_is_named(toy):
    Path("toy.py").unlink()
    output = toy.run("python", "-m", "lib.plan", status=1)
    assert "download needs toy.py, which does not exist" in output and output.count("\n") == 1


# Times, without DVC.

RAW = study_params() | {"epochs": 10, "encoder": "small"}
SIMCLR = RAW["variants"]["simclr"]
RAW["variants"] |= {"new": SIMCLR, "brief": {**SIMCLR, "epochs": 2}, "random": {**SIMCLR, "epochs": 0}}
CURVE = "epoch,seconds,device\n1,2.0,toy\n2,4.0,toy\n"


def step(stage: str, outputs: dict | None = None, **recorded: object) -> Step:
    return Step(stage, Fate.RUNS, (), (), (), outputs or {}, recorded)


def curve(tmp_path: Path, monkeypatch, text: str = CURVE) -> str:
    """Write a curve; its MD5."""
    monkeypatch.chdir(tmp_path)
    Path("plots/curves").mkdir(parents=True)
    Path("plots/curves/joint.csv").write_text(text)
    return hashlib.md5(text.encode()).hexdigest()


def note(stage: str, seconds: float, **sizes: object) -> None:
    TIMES_FOLDER.mkdir(exist_ok=True)
    record = {"seconds": seconds, "ended": "2026-11-22T10:00:00+00:00", "sizes": sizes}
    (TIMES_FOLDER / f"{stage}.json").write_text(json.dumps(record))


def test_pretraining_takes_its_curves_seconds_for_the_epochs_wanted(tmp_path, monkeypatch):
    digest = curve(tmp_path, monkeypatch)
    found = estimates(
        [
            step("pretrain@joint", {"plots/curves/joint.csv": digest}, encoder="small", epochs=2),
            step("pretrain@new", {"plots/curves/new.csv": None}),
        ],
        RAW,
    )
    assert found["pretrain@joint"].seconds == 30.0
    assert found["pretrain@joint"].source == "plots/curves/joint.csv: 3 s an epoch over 2 (toy)"
    assert found["pretrain@new"] == Estimate(30.0, "as joint")


def test_a_variant_with_epochs_of_its_own_takes_their_time(tmp_path, monkeypatch):
    digest = curve(tmp_path, monkeypatch)  # 3 s an epoch
    planned = [step(f"pretrain@{name}", {f"plots/curves/{name}.csv": None}) for name in ("brief", "new", "random")]
    measured = step("pretrain@joint", {"plots/curves/joint.csv": digest})
    found = estimates([measured, *planned], RAW)
    assert [found[each.stage].seconds for each in planned] == [6.0, 30.0, None]
    Path("plots/curves/random.csv").write_text("epoch,seconds\n0,\n")  # of an encoder as it was drawn
    note("pretrain@random", 4.0, encoder="small")
    assert estimates(planned[2:], RAW)["pretrain@random"] == Estimate(4.0, "its last run, on 2026-11-22")
    note("pretrain@new", 4.0, encoder="small")  # perhaps the end of a run that was interrupted
    assert estimates(planned[1:2], RAW)["pretrain@new"].seconds is None


def test_a_curve_of_another_size_gives_no_time(tmp_path, monkeypatch):
    digest = curve(tmp_path, monkeypatch)
    found = estimates([step("pretrain@joint", {"plots/curves/joint.csv": digest}, encoder="resnet50")], RAW)
    assert found["pretrain@joint"].seconds is None and "encoder resnet50" in found["pretrain@joint"].source


def test_a_curve_that_dvc_removed_is_read_from_git(tmp_path, monkeypatch, toy):
    digest = curve(tmp_path, monkeypatch)
    for command in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "-m", "a curve"]):
        subprocess.run(["git", *command], env=toy.environment, check=True)
    Path("plots/curves/joint.csv").unlink()
    planned_step = step("pretrain@joint", {"plots/curves/joint.csv": digest})
    assert estimates([planned_step], RAW)["pretrain@joint"].seconds == 30.0
    Path("plots/curves/joint.csv").write_text("epoch,seconds,device\n1,5.0,toy\n")
    assert estimates([planned_step], RAW)["pretrain@joint"].seconds == 30.0
    other = step("pretrain@joint", {"plots/curves/joint.csv": "another"})
    assert estimates([other], RAW)["pretrain@joint"].seconds == 50.0
    assert "not finished" in estimates([other], RAW)["pretrain@joint"].source


@pytest.mark.parametrize("text", ["", "epoch,seconds\n1,\n", "epoch,loss\n1,2.0\n", "\x00"])
def test_a_curve_without_seconds_gives_no_time(tmp_path, monkeypatch, text):
    digest = curve(tmp_path, monkeypatch, text)
    found = estimates([step("pretrain@joint", {"plots/curves/joint.csv": digest})], RAW)
    assert found["pretrain@joint"] == Estimate(None, "no run recorded")


def test_other_stages_take_what_their_last_run_took(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    note("linear@joint", 7.0, encoder="small")
    note("embed@joint", 3.0, encoder="resnet50")
    (TIMES_FOLDER / "tsne@joint.json").write_text('{"seconds": ')
    found = estimates([step(f"{group}@joint") for group in ("linear", "embed", "tsne")] + [step("linear@dual")], RAW)
    assert found["linear@joint"] == Estimate(7.0, "its last run, on 2026-11-22")
    assert found["linear@dual"] == Estimate(7.0, "as joint")
    assert found["embed@joint"].seconds is None and "encoder resnet50" in found["embed@joint"].source
    assert found["tsne@joint"] == Estimate(None, "no run recorded")


def test_the_total_counts_what_runs_and_says_what_it_leaves_out():
    runs, restored = step("linear@joint"), Step("embed@joint", Fate.RESTORED, (), (), (), {}, {})
    times = {"linear@joint": Estimate(70.0, ""), "embed@joint": Estimate(900.0, ""), "x": Estimate(None, "")}
    assert total([runs, restored], times) == (
        "stages: 1 to run, 1 restored without running; about 70 s, one after another"
    )
    assert total([runs, step("x")], times).endswith("about 70 s, one after another, without 1 of unknown time")
    assert total([step("x")], times) == "stages: 1 to run; time not known, no comparable run is recorded"
    assert total([restored], times) == "stages: 1 restored without running"
    assert json.loads(as_json([runs, restored], times))["seconds"] == 70.0


STAGE = """
import sys, time
sys.path.insert(0, {root!r})
from lib.runtime.stage import run_stage
def main(raw):
    time.sleep(0.2)
    {body}
run_stage(main, "a stage")
"""


def run_stage_script(body: str, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    (folder / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    names = {key: value for key, value in os.environ.items() if key not in ("DVC_ROOT", "DVC_STAGE", "LOCAL_RANK")}
    return subprocess.run(
        [sys.executable, "-c", STAGE.format(root=str(ROOT), body=body)],
        cwd=folder,
        text=True,
        env={**names, **environment},
        capture_output=True,
        timeout=300,
    )


def test_a_stage_notes_its_time_at_the_root_and_only_when_it_succeeds(tmp_path):
    work, root = tmp_path / "work", tmp_path / "root"
    work.mkdir()
    done = run_stage_script("pass", work, DVC_ROOT=str(root), DVC_STAGE="linear@joint")
    assert done.returncode == 0, done.stderr
    written = json.loads((root / TIMES_FOLDER / "linear@joint.json").read_text())
    assert 0.2 <= written["seconds"] < 200 and written["sizes"].keys() == {
        "dataset",
        "images_path",
        "image_size",
        "encoder",
    }
    for body, environment in (
        ("raise KeyboardInterrupt", {"DVC_STAGE": "embed"}),
        ("raise ValueError", {"DVC_STAGE": "embed"}),
        ("pass", {}),
        ("pass", {"DVC_STAGE": "embed", "LOCAL_RANK": "1"}),
    ):
        run_stage_script(body, work, DVC_ROOT=str(root), **environment)
    assert [path.name for path in (root / TIMES_FOLDER).iterdir()] == ["linear@joint.json"]


def test_a_time_that_cannot_be_noted_fails_no_stage(tmp_path):
    (tmp_path / ".times").write_text("a file where the folder belongs")
    done = run_stage_script("pass", tmp_path, DVC_STAGE="linear@joint")
    assert done.returncode == 0 and "could not be noted" in done.stderr
