"""What every stage shares: one-line errors, exit statuses, and where the note of its time may go."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STAGE = """
import sys
from lib.runtime.errors import UserError
from lib.runtime.stage import run_stage

def main(variant):
    if variant == "wrong":
        raise UserError("gamma is no number; allowed: a number")
    if variant == "say":
        print("\\u732b\\n" * 20_000, end="")
        return
    print("started", flush=True)
    if variant == "long":
        import time
        time.sleep(60)

run_stage(main, "A stage.", per_variant=True)
assert "torch" not in sys.modules and "pandas" not in sys.modules
"""


def begin(folder: Path, variant: str, **settings: str) -> subprocess.Popen:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DVC_")}
    return subprocess.Popen(
        [sys.executable, "-c", STAGE, variant],
        cwd=folder,
        env={**kept, "PYTHONPATH": str(ROOT), **settings},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_a_refusal_is_one_line(tmp_path):
    stage = begin(tmp_path, "wrong")
    assert stage.communicate(timeout=60) == ("", "error: gamma is no number; allowed: a number\n")
    assert stage.returncode == 1


@pytest.mark.parametrize("variant", ["../simclr", "a;b", "", "1st"])
def test_a_variant_that_is_no_name_is_refused(variant, tmp_path):
    stage = begin(tmp_path, variant)
    said, error = stage.communicate(timeout=60)
    assert stage.returncode == 1 and said == "" and "is no name of a variant" in error and error.count("\n") == 1


@pytest.mark.parametrize(("sent", "word", "status"), [("INT", "interrupted", 130), ("TERM", "terminated", 143)])
def test_an_interrupt_is_one_line_and_a_status(sent, word, status, tmp_path):
    stage = begin(tmp_path, "long", DVC_STAGE="pretrain@long")
    assert stage.stdout.readline() == "started\n"
    time.sleep(0.2)
    stage.send_signal(signal.Signals[f"SIG{sent}"])
    _, error = stage.communicate(timeout=60)
    assert error.startswith(f"{word}; give the same command again") and error.count("\n") == 1
    assert stage.returncode == status and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("pretrain@simclr", "pretrain@simclr.json"),
        ("../../dvc.yaml:download", "download.json"),  # as DVC says from a subfolder
        ("dvc.yaml:../download", None),
        ("../canary", None),
        ("a@b@c", None),
        ("", None),
    ],
)
def test_text_from_the_environment_is_never_a_path(name, file, tmp_path):
    root = tmp_path / "above" / "root"
    root.mkdir(parents=True)
    stage = begin(root, "quick", DVC_STAGE=name, DVC_ROOT=str(root))
    assert stage.communicate(timeout=60) == ("started\n", "") and stage.returncode == 0
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files == ([root / ".times" / file] if file else [])
    assert not file or json.loads(files[0].read_text()).keys() == {"seconds", "ended"}


def test_a_note_that_cannot_be_written_fails_no_stage(tmp_path):
    (tmp_path / ".times").write_text("a file in its place")
    stage = begin(tmp_path, "quick", DVC_STAGE="pretrain@quick")
    assert "the time of pretrain@quick could not be noted" in stage.communicate(timeout=60)[1]
    assert stage.returncode == 0


def test_a_folder_of_outputs_that_is_a_link_is_refused_before_anything_is_computed(tmp_path):
    for name in ("data", "plots/curves"):
        root, disk = tmp_path / name.replace("/", "-"), tmp_path / "disk"
        (root / "data/pictures").parent.mkdir(parents=True)
        disk.mkdir(exist_ok=True)
        for pictures in ("pictures", "mine"):  # which hold no outputs
            (root / "data" / pictures).symlink_to(disk)
        stage = begin(root, "quick")
        assert stage.communicate(timeout=60) == ("started\n", "")
        place = root / name
        place.parent.mkdir(exist_ok=True)
        if place.exists():
            place.rename(root / "was")
        place.symlink_to(disk)
        stage = begin(root, "quick")
        said, error = stage.communicate(timeout=60)
        assert stage.returncode == 1 and said == "" and error.count("\n") == 1
        assert error.startswith(f"error: {name} is a link, behind which DVC keeps no outputs; make it a folder")


def test_a_stage_run_as_a_file_says_how_it_is_run():
    for command, meant in ((["download.py"], "download"), (["pretrain.py", "simclr"], "pretrain simclr")):
        done = subprocess.run(
            [sys.executable, ROOT / "stages" / command[0], *command[1:]], capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"error: stages run as modules: python -m stages.{meant}\n"


def test_a_pipe_that_lacks_characters_gets_escapes_and_one_that_is_closed_ends_the_stage_in_a_line(tmp_path):
    stage = begin(tmp_path, "say", PYTHONIOENCODING="ascii")
    assert stage.communicate(timeout=60) == ("\\u732b\n" * 20_000, "") and stage.returncode == 0
    stage = begin(tmp_path, "say")
    stage.stdout.close()
    stage.wait(timeout=60)
    assert stage.stderr.read() == "stopped: what read the output has ended; give the same command again\n"
    assert stage.returncode == 141
