"""Several stages at once: the scheduler on small commands, the shares of the machine, then DVC on a toy pipeline."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from lib import shares as module_of_shares
from lib import side_by_side
from lib.errors import UserError
from lib.forecast import Fate, Step
from lib.shares import Share, divided, job_count, shares
from lib.side_by_side import Crew, Job, jobs_for
from tests.examples import study_params
from tests.toy_project import ToyProject

NOTHING = Share((), ())
BEGUN: list[subprocess.Popen] = []  # ended after each test, also a failed one
# Notes its start and end in files of the folder; `meet` waits for another to be at work.
WORK = """
import os, pathlib, signal, sys, time
name, word = sys.argv[1:]
pathlib.Path(name + ".start").write_text(repr(time.time()))
print(name, "at work", flush=True)
if word == "stubborn":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
if word == "deaf":
    signal.signal(signal.SIGINT, signal.SIG_IGN), signal.signal(signal.SIGTERM, signal.SIG_IGN)
if word in ("sleep", "stubborn", "deaf"):
    pathlib.Path(name + ".pid").write_text(str(os.getpid()))
    time.sleep(600)
if word == "busy" and not pathlib.Path("free").exists():
    pathlib.Path("free").touch()
    sys.exit("'x' is busy, it is being blocked by:")
if word == "cores":
    pathlib.Path(name + ".cores").write_text(repr(sorted(os.sched_getaffinity(0))))
give_up = time.time() + 300
while word == "meet" and len(list(pathlib.Path().glob("*.start"))) < 2 and time.time() < give_up:
    time.sleep(0.01)
time.sleep(0.05)
pathlib.Path(name + ".end").write_text(repr(time.time()))
sys.exit(word == "fail")
"""


@pytest.fixture(autouse=True)
def clean(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("DEVICE", "THREADS", "PROCESSES"):
        monkeypatch.delenv(f"ENGRAM_{name}", raising=False)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setattr(side_by_side, "DVC_REPRO", (sys.executable, "-c", WORK))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # tests run in the background may be deaf to it
    yield
    signal.signal(signal.SIGINT, before)
    for child in BEGUN:
        if child.poll() is None:
            child.terminate()  # it ends its own children
            child.wait(timeout=120)
    BEGUN.clear()


def job(name: str, word: str = "quick", after: tuple[str, ...] = (), height: int = 0, whole: bool = False) -> Job:
    return Job(name, name, (name, word), frozenset(after), height, whole)


def crew(*jobs: Job, places: int = 2) -> Crew:
    found = Crew(jobs, [NOTHING] * places)
    found.run()
    return found


def spans() -> dict[str, tuple[float, float]]:
    return {path.stem: (float(path.with_suffix(".start").read_text()), float(path.read_text()))
            for path in Path().glob("*.end")}


def most_at_once(found: dict[str, tuple[float, float]]) -> int:
    return max(sum(start <= moment < end for start, end in found.values()) for moment, _ in found.values())


# The scheduler.

def test_as_many_at_once_as_there_are_places_and_never_more():
    crew(*(job(name, "meet") for name in "abcde"))
    assert spans().keys() == set("abcde") and most_at_once(spans()) == 2


def test_a_job_starts_when_those_before_it_have_ended():
    crew(job("c", after=("b",)), job("b", after=("a",)), job("a"), places=3)
    found = spans()
    assert found["a"][1] <= found["b"][0] and found["b"][1] <= found["c"][0]


def test_the_longest_row_starts_first():
    crew(job("short", height=1), job("long", height=4), places=1)
    assert spans()["long"][1] <= spans()["short"][0]


def test_a_failure_leaves_out_what_depends_on_it_and_nothing_else(capfd):
    done = crew(job("a", "fail"), job("b", after=("a",)), job("c", after=("b",)), job("x"), job("y", after=("x",)))
    assert done.failed == ["a"] and done.skipped == ["b", "c"] and done.stopped is None
    assert spans().keys() == {"a", "x", "y"}
    lines = capfd.readouterr().out.splitlines()
    assert "a | a at work" in lines and "a | a failed" in lines
    with pytest.raises(UserError, match="a failed.*b, c did not run"):
        side_by_side._refuse_unfinished(done)


def test_a_job_that_meets_another_dvc_process_tries_again(monkeypatch, capfd):
    monkeypatch.setattr(side_by_side, "BUSY_WAIT", 0.1)
    done = crew(job("a", "busy"), job("b", after=("a",)))
    assert not done.failed and spans().keys() == {"a", "b"}
    assert "another dvc process is at work on a" in capfd.readouterr().out


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no processor affinity on this system")
def test_a_job_is_held_to_its_cores_and_one_for_all_variants_is_not():
    own = sorted(os.sched_getaffinity(0))
    found = Crew([job("a", "cores"), job("all", "cores", whole=True)], [Share((own[-1],), ())])
    found.run()
    assert Path("a.cores").read_text() == repr(own[-1:]) and Path("all.cores").read_text() == repr(own)
    assert sorted(os.sched_getaffinity(0)) == own


def begin(*command: str, **options: object) -> subprocess.Popen:
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    BEGUN.append(child)
    return child


def interrupted(words: dict[str, str], *signals: signal.Signals, patience: float,
                deaf: bool) -> tuple[subprocess.Popen, list[int]]:
    """Run a crew in a process of its own, signal it when all are at work; it, and the jobs' process ids."""
    code = ("import signal, sys; sys.path.insert(0, {root!r})\n"
            "from lib import side_by_side as module\n"
            "from lib.shares import Share\n"
            "module.DVC_REPRO = (sys.executable, '-c', {work!r})\n"
            "module.PATIENCE = ((signal.SIGINT, {patience}), (signal.SIGTERM, {patience}))\n"
            "jobs = [module.Job(name, name, (name, word)) for name, word in {words!r}.items()]\n"
            "crew = module.Crew(jobs, [Share((), ())] * (len(jobs) - 1))\n"
            "crew.run()\n"
            "module._refuse_unfinished(crew)\n")
    root = str(Path(side_by_side.__file__).parents[1])
    if deaf:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    child = begin(sys.executable, "-c", code.format(root=root, work=WORK, patience=patience, words=words))
    deadline = time.time() + 300
    while len(list(Path().glob("*.pid"))) < len(words) - 1:
        assert time.time() < deadline and child.poll() is None
        time.sleep(0.02)
    time.sleep(0.3)
    for number in signals:
        child.send_signal(number)
        time.sleep(0.3)
    child.wait(timeout=300)
    return child, [int(path.read_text() or 0) for path in Path().glob("*.pid")]


@pytest.mark.parametrize("words, signals, patience, deaf", [
    (["sleep", "sleep"], [signal.SIGINT], 600.0, False),
    (["sleep", "sleep"], [signal.SIGTERM], 600.0, False),
    (["sleep", "sleep"], [signal.SIGTERM], 600.0, True),
    (["sleep", "stubborn"], [signal.SIGINT], 0.3, False),
    (["sleep", "deaf"], [signal.SIGINT], 0.3, False),
    (["sleep", "deaf"], [signal.SIGINT, signal.SIGINT], 600.0, False),
])
def test_a_signal_ends_every_child_and_starts_no_other(words, signals, patience, deaf):
    child, pids = interrupted({**dict(zip("abc", words)), "last": "quick"}, *signals, patience=patience, deaf=deaf)
    assert child.returncode == 128 + signals[0]
    assert child.stdout.read().splitlines()[-1].startswith("interrupted; give the same command again")
    assert not Path("last.start").exists()
    assert not [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]


# What is run.

def step(name: str, fate: Fate = Fate.RUNS, after: tuple[str, ...] = ()) -> Step:
    return Step(name, fate, (), (), after, {}, {})


def test_stages_of_variants_and_what_they_wait_for_become_jobs():
    steps = [step("download"), step("pretrain@a", after=("download",)), step("pretrain@b", Fate.UP_TO_DATE),
             step("linear@a", Fate.DEPENDS, ("pretrain@a",)), step("tsne@a", Fate.RESTORED, ("pretrain@a",)),
             step("score@a", after=("linear@a", "tsne@a")), step("results", after=("linear@a",))]
    found = {job.name: job for job in jobs_for(steps)}
    assert found.keys() == {"download", "pretrain@a", "linear@a", "tsne@a", "score@a"}
    assert [found[name].height for name in ("download", "pretrain@a", "linear@a", "score@a")] == [4, 3, 2, 1]
    assert found["download"].whole_machine and found["download"].label == "download"
    assert not found["linear@a"].whole_machine and found["linear@a"].label == "a"
    assert jobs_for([step("results"), step("overview")]) == []


# Shares of the machine.

@pytest.mark.parametrize("items, count, expected", [
    ([0, 1, 2, 3], 2, [(0, 1), (2, 3)]),
    ([0, 1, 2, 3, 4], 3, [(0,), (1, 2), (3, 4)]),
    ([4, 7], 3, [(4,), (7,), (4,)]),
    ([], 2, [(), ()]),
])
def test_items_are_divided_evenly(items, count, expected):
    assert divided(items, count) == expected


@pytest.fixture
def cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 3, 5, 7}, raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: None, raising=False)


def gpus(monkeypatch, count: int) -> None:
    monkeypatch.setattr(module_of_shares, "_device_count", lambda: count)


def test_torch_counts_the_gpus():
    assert module_of_shares._device_count() == (torch.cuda.device_count() if torch.cuda.is_available() else 0)


def test_cores_are_shared_where_there_is_no_gpu(cores, monkeypatch):
    gpus(monkeypatch, 0)
    assert job_count() == 4
    assert shares(2) == [Share((2, 3), ()), Share((5, 7), ())]
    assert Share((2, 3), ()).words() == " on 2 cores" and Share((2,), ()).words() == " on core 2"
    assert Share((2,), ()).environment() == {} and NOTHING.words() == ""
    monkeypatch.setenv("ENGRAM_PROCESSES", "2")
    assert job_count() == 2


def test_gpus_are_shared_and_cores_with_them(cores, monkeypatch):
    gpus(monkeypatch, 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert job_count() == 2
    assert shares(2) == [Share((2, 3), ("0",)), Share((5, 7), ("1",))]
    assert shares(2)[1].environment() == {"CUDA_VISIBLE_DEVICES": "1"}
    assert shares(2)[1].words() == " on GPU 1 and 2 cores"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-f00")
    assert [share.gpus for share in shares(2)] == [("3",), ("GPU-f00",)]
    monkeypatch.setenv("ENGRAM_PROCESSES", "2")
    assert job_count() == 1 and shares(1)[0].environment() == {"CUDA_VISIBLE_DEVICES": "3,GPU-f00"}


@pytest.mark.parametrize("device, count, pinned", [("cpu", 4, ()), ("cuda:1", 1, ()), ("cuda", 2, ("0",))])
def test_a_device_that_the_user_chose_stays(cores, monkeypatch, device, count, pinned):
    gpus(monkeypatch, 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("ENGRAM_DEVICE", device)
    assert job_count() == count and shares(2)[0].gpus == pinned


def test_threads_that_the_user_chose_stay(cores, monkeypatch):
    gpus(monkeypatch, 0)
    Path("machine.yaml").write_text("threads: 2\n")
    assert job_count() == 2 and shares(2) == [NOTHING, NOTHING]
    monkeypatch.setenv("ENGRAM_THREADS", "none")
    with pytest.raises(UserError, match="threads is 'none'"):
        job_count()


# With DVC. One project, in order.

@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> ToyProject:
    return ToyProject(tmp_path_factory.mktemp("toy"), tuple(study_params()["variants"])[:3],
                      stages=("download", "pretrain", "linear", "results"))


def command(toy: ToyProject, *arguments: str, status: int = 0, **environment: str) -> str:
    return toy.run("python", "-m", "lib.side_by_side", *arguments, status=status, **environment)


def started(toy: ToyProject, *arguments: str, **environment: str) -> subprocess.Popen:
    return begin(sys.executable, "-m", *arguments, cwd=toy.folder, env={**toy.environment, **environment})


def read_until(child: subprocess.Popen, words: str) -> None:
    while words not in (line := child.stdout.readline()):
        assert line, f"it ended before it said {words!r}"


def outputs(toy: ToyProject) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for folder in ("data", "metrics", "plots")
            for path in (toy.folder / folder).rglob("*") if path.is_file()}


def set_gamma(toy: ToyProject, value: float) -> None:
    toy.write("params.yaml", toy.params() | {"gamma": value})


def test_two_at_once_give_what_one_after_another_gives(toy):
    command(toy, "-j", "2", TOY_MEET="2")
    notes = toy.logs()
    assert most_at_once({note["stage"]: (note["start"], note["end"]) for note in notes}) == 2
    assert "up to date" in toy.run("dvc", "status")
    cores = os.sched_getaffinity(0)
    if len(cores) > 1:
        first, second = [note["cores"] for note in notes if note["stage"].startswith("pretrain")][:2]
        assert not set(first) & set(second)
    found = outputs(toy)
    toy.run("dvc", "repro", "--force")
    assert len(toy.logs()) == 2 * len(notes) and outputs(toy) == found
    assert "up to date" in command(toy) and len(toy.logs()) == 2 * len(notes)


def test_one_failing_variant_does_not_hold_the_others(toy):
    set_gamma(toy, 0.1)
    before = len(toy.logs())
    output = command(toy, "-j", "2", status=1, TOY_FAIL="pretrain@joint")
    assert output.splitlines()[-1].startswith("error: pretrain@joint failed")
    assert {note["stage"] for note in toy.logs()[before:]} == {"pretrain@joint", "pretrain@dual", "linear@dual"}


def test_an_interrupt_stops_all_and_the_same_command_goes_on(toy):
    set_gamma(toy, 0.2)
    before = len(toy.logs())
    child = started(toy, "lib.side_by_side", "-j", "2", TOY_SECONDS="600")
    for _ in range(2):
        read_until(child, "at work")
    child.send_signal(signal.SIGINT)
    assert "give the same command again" in child.communicate(timeout=300)[0]
    assert child.returncode == 130
    assert not [note["pid"] for note in toy.logs()[before:] if psutil.pid_exists(note["pid"])]
    command(toy, "-j", "2")
    assert "up to date" in toy.run("dvc", "status")


def test_a_stage_that_another_dvc_process_runs_is_waited_for(toy, tmp_path):
    set_gamma(toy, 0.3)
    free = tmp_path / "free"
    other = started(toy, "dvc", "--wait-for-lock", "repro", "-s", "pretrain@joint", TOY_HOLD=str(free))
    read_until(other, "at work")
    child = started(toy, "lib.side_by_side", "-j", "2")
    read_until(child, "another dvc process is at work on pretrain@joint")
    free.touch()
    assert other.communicate(timeout=300) and other.returncode == 0
    assert child.communicate(timeout=300) and child.returncode == 0
    assert "up to date" in toy.run("dvc", "status")


def test_errors_are_one_line(toy):
    set_gamma(toy, 0.4)
    for arguments, environment in ((["-j", "0"], {}), ([], {"ENGRAM_PROCESSES": "x"})):
        output = command(toy, *arguments, status=1, **environment)
        assert output.startswith("error: ") and output.count("\n") == 1
