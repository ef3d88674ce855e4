"""The Makefile, with stand-ins for python and dvc that write down what they are asked: nothing is installed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STARTS = f"#!{sys.executable}\nimport os, sys, time, pathlib\nasked = sys.argv[1:]\n"
NOTE = "open(os.environ['ASKED'], 'a').write(pathlib.Path(sys.argv[0]).name + ' ' + ' '.join(asked) + '\\n')\n"
PASS = "os.execv(sys.executable, [sys.executable, *asked])"
PYTHON = f"""{STARTS}
if asked[0] == "-c":
    {PASS}
{NOTE}
if asked[:2] == ["-m", "venv"]:
    os.makedirs(asked[2] + "/bin", exist_ok=True)
    pathlib.Path(asked[2], "bin/python").write_text(open(__file__).read())
    os.chmod(asked[2] + "/bin/python", 0o755)
"""
OLD = PYTHON.replace("asked = ", 'sys.version_info, sys.version = (3, 10, 4), "3.10.4 (main)"; asked = ')
OLD = OLD.replace(PASS, "exec(asked[1])")
WITHOUT_PIP = PYTHON.replace(NOTE, 'sys.exit("pip" in asked)\n')
DVC = STARTS + NOTE
NAMES = ("dual", "joint", "simclr")
TRAINING = """
if "-s" in asked:
    where = os.environ.get("CUDA_VISIBLE_DEVICES") or "core" + ",".join(map(str, os.sched_getaffinity(0)))
    pathlib.Path(asked[-1]).write_text(where + " " + os.environ["ENGRAM_THREADS"] + f" {os.getpid()}")
    os.replace(asked[-1], "started/" + asked[-1])
"""
TOGETHER = """
    for _ in range(2000):
        if len(os.listdir("started")) >= WANTED:
            sys.exit()
        time.sleep(0.01)
    sys.exit(1)
"""


def script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def project(tmp_path):
    """A folder with the Makefile, in a path with a space, and a python 3.11 and dvc to call."""
    folder = tmp_path / "my project"
    (folder / ".dvc").mkdir(parents=True)
    for file in (ROOT / "Makefile", *ROOT.glob("requirements*.txt")):
        shutil.copy(file, folder)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    script(tmp_path / "python3.11", PYTHON)
    return folder


def environment(folder: Path) -> dict[str, str]:
    """As that of a new shell, also where make runs these tests."""
    outer = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "VENV", "PYTHON", "J", "S", "CUDA_VISIBLE_DEVICES", "ENGRAM_THREADS")
    kept = {name: value for name, value in os.environ.items() if name not in outer}
    return {**kept, "ASKED": str(folder / "asked.txt"), "PIP_NO_INDEX": "1"}


def make(folder: Path, *arguments: str) -> tuple[int, str]:
    """Status and everything printed."""
    python = f"PYTHON={folder.parent / 'python3.11'}"
    given = {"cwd": folder, "env": environment(folder), "text": True, "timeout": 60}
    done = subprocess.run(["make", python, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **given)
    return done.returncode, done.stdout


def asked(folder: Path) -> list[str]:
    path = folder / "asked.txt"
    return path.read_text().splitlines() if path.exists() else []


def test_an_environment_is_made_in_a_path_with_a_space_and_once(project):
    assert make(project, "install") == (0, "installing requirements.txt into .venv\n")
    assert asked(project) == [
        "python3.11 -m venv .venv",
        "python -m pip install --quiet --disable-pip-version-check -r requirements.txt",
        "python -m lib offline-plots",
    ]
    (project / ".dvc/vega.js").write_text("charts")
    assert make(project, "plan", "S=gamma=0.1 epochs=3") == (0, "")
    assert asked(project)[3:] == ["python -m lib plan -S gamma=0.1 -S epochs=3"]
    (project / "requirements.txt").write_text("torch==3\n")
    assert make(project, "install")[1] == "installing requirements.txt into .venv\n"


def test_an_old_python_is_named_in_one_sentence_before_anything_is_made(project, tmp_path):
    script(tmp_path / "python3.10", OLD)
    status, printed = make(project, "install", f"PYTHON={tmp_path / 'python3.10'}")
    first, *others = printed.splitlines()
    assert status and "Python 3.11 or newer" in first and "python3.10 is 3.10.4" in first
    assert [line[:5] for line in others] == ["make:"]
    assert not (project / ".venv").exists() and not asked(project)
    assert make(project, "install")[0] == 0 and (project / ".venv/bin/python").exists()


def test_an_environment_without_pip_is_made_anew(project):
    """What a system without ensurepip leaves."""
    script(project / ".venv/bin/python", WITHOUT_PIP)
    assert make(project, "install")[0] == 0
    assert asked(project)[0] == "python3.11 -m venv .venv"


def test_a_missing_repository_is_said_before_anything_is_installed(project):
    shutil.rmtree(project / ".git")
    status, printed = make(project, "demo")
    assert status and "run git init first" in printed.splitlines()[0]
    assert not (project / ".venv").exists() and not asked(project)


@pytest.fixture
def variants(project):
    """The project with an environment and three variants."""
    script(project / ".venv/bin/python", PYTHON)
    script(project / ".venv/bin/dvc", DVC + TRAINING)
    script(project / ".venv/bin/nvidia-smi", "#!/bin/sh\nexit 9\n")
    for name in NAMES:
        script(project / f"data/variants/{name}.json", "{}")
    (project / "started").mkdir()
    (project / ".dvc/vega.js").write_text("charts")
    return project


def started(folder: Path) -> dict[str, list[str]]:
    """By variant: where it trained, its threads, its process."""
    return {path.name.removeprefix("pretrain@"): path.read_text().split() for path in (folder / "started").iterdir()}


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def dvc(folder: Path) -> list[str]:
    return [line for line in asked(folder) if line.startswith("dvc")]


def test_variants_are_trained_side_by_side_on_a_core_each_and_the_rest_follows(variants):
    script(variants / ".venv/bin/dvc", DVC + TRAINING + TOGETHER.replace("WANTED", "3"))
    assert make(variants, "parallel", "J=3")[0] == 0
    first, *trainings, last = dvc(variants)
    assert (first, last) == ("dvc repro resolve download", "dvc repro")
    assert sorted(trainings) == [f"dvc --wait-for-lock repro -s pretrain@{name}" for name in NAMES]
    cores = sorted(os.sched_getaffinity(0))
    wanted = sorted(f"core{cores[slot % len(cores)]}" for slot in range(3)) if shutil.which("taskset") else None
    assert wanted is None or sorted(where for where, _, _ in started(variants).values()) == wanted
    assert {threads for _, threads, _ in started(variants).values()} == {"1"}


def test_each_gpu_trains_one_variant_at_a_time(variants):
    script(variants / ".venv/bin/nvidia-smi", "#!/bin/sh\necho 0\necho 1\n")
    script(variants / ".venv/bin/dvc", DVC + TRAINING + TOGETHER.replace("WANTED", "2"))
    assert make(variants, "parallel")[0] == 0
    assert {where for where, _, _ in started(variants).values()} == {"0", "1"}


def test_a_training_that_fails_leaves_the_others_alone_and_make_says_so(variants):
    script(variants / ".venv/bin/dvc", DVC + TRAINING + 'sys.exit(255 if "pretrain@dual" in asked else 0)\n')
    status, printed = make(variants, "parallel", "J=1")
    assert status and "a training failed" in printed
    assert set(started(variants)) == {*NAMES} and dvc(variants)[-1] != "dvc repro"


def test_ctrl_c_ends_every_training(variants):
    script(variants / ".venv/bin/dvc", DVC + TRAINING + "    time.sleep(60)\n")
    command = ["make", "parallel", "J=3"]
    run = subprocess.Popen(
        command, cwd=variants, env=environment(variants), start_new_session=True, stderr=subprocess.DEVNULL
    )
    wait_until(lambda: len(started(variants)) == 3)
    os.killpg(run.pid, signal.SIGINT)
    assert run.wait(timeout=20) != 0
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for _, _, pid in started(variants).values()))
    assert dvc(variants)[-1] != "dvc repro"
