"""Files are whole: written beside, synced, renamed. What the system refuses or damage is told in one line."""

import io
import os
import pickle
import signal
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file

from lib.runtime import files
from tests.faults.refusals import refused

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
WRITE = """
import sys
from pathlib import Path
from lib.runtime.errors import UserError
from lib.runtime.files import write_bytes

def fill(file):
    file.write(bytes(500_000))
    file.flush()
    print("half", flush=True)
    "wait" in sys.argv and sys.stdin.read()
    file.write(bytes(500_000))

try:
    write_bytes(Path("a.json"), fill)
except UserError as error:
    print(error)
"""
EARLIER = '{"earlier": 1}\n'
DTYPES = ["int64", "float64", "float32", "int32", "bfloat16", "float16", "int16", "int8", "uint8", "bool"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Whole or not at all


def test_a_file_is_synced_before_it_is_renamed_and_its_folder_after(tmp_path, monkeypatch):
    """Then a power failure, too, leaves the earlier file or the new one."""
    moments, sync, replace = [], os.fsync, os.replace

    def logged_sync(handle):
        moments.append(f"sync {os.path.basename(os.readlink(f'/proc/self/fd/{handle}')).split('.')[-1]}")
        sync(handle)

    def logged_replace(part, path):
        moments.append(f"rename to {path.name} of {part.stat().st_size} bytes")
        replace(part, path)

    monkeypatch.setattr(files.os, "fsync", logged_sync)
    monkeypatch.setattr(files.os, "replace", logged_replace)
    files.write_text(tmp_path / "new" / "a.txt", "text")
    assert moments == [f"sync {tmp_path.name}", "sync part", "rename to a.txt of 4 bytes", "sync new"]


def test_a_writer_that_is_killed_leaves_the_earlier_file_and_the_next_one_removes_its_part(tmp_path):
    (tmp_path / "a.json").write_text(EARLIER)
    with subprocess.Popen(
        [sys.executable, "-c", WRITE, "wait"], cwd=tmp_path, env=ENVIRONMENT, stdin=-1, stdout=-1
    ) as killed:
        assert killed.stdout.readline() == b"half\n"
        files.write_text(tmp_path / "b.json", "another file")
        assert len(names(tmp_path)) == 3  # a part that is written to is nobody's leftover
        killed.send_signal(signal.SIGKILL)
        assert killed.wait(timeout=30) == -signal.SIGKILL
    assert (tmp_path / "a.json").read_text() == EARLIER and len(names(tmp_path)) == 3
    files.write_json(tmp_path / "a.json", {"a": 2})
    assert names(tmp_path) == ["a.json", "b.json"] and files.read_json(tmp_path / "a.json") == {"a": 2}


# What the system refuses


FAULTS = {
    "full disk": ('mount -t tmpfs -o size=600k tmpfs .; cd "$PWD"; echo old > a.json', "no space left on device; free"),
    "read-only folder": (
        'echo old > a.json; mount --bind . .; mount -o remount,bind,ro .; cd "$PWD"',
        "; make the folder writable",
    ),
    "limit on a file's size": ("echo old > a.json; ulimit -f 1000", "file too large; raise the limit on a file's size"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_write_that_the_system_refuses(kind, tmp_path):
    """The file systems are the test's own: nobody else sees them."""
    fault, words = FAULTS[kind]
    own = ["unshare", "--map-root-user", "--mount"] if "mount" in fault else []
    if own and subprocess.run([*own, "true"], capture_output=True).returncode:
        pytest.skip("this system lets nobody mount file systems of their own")
    command = [*own, "sh", "-c", f'set -e; {fault}; "$0" -c "$1"; cat a.json; ls -A', sys.executable, WRITE]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, text=True, capture_output=True, timeout=60)
    assert done.returncode == 0, done
    *_, line, earlier, listing = done.stdout.splitlines()
    assert line.startswith("cannot write a.json: ") and words in line
    assert line.endswith(", then run the same command again; what was there before is kept")
    assert (earlier, listing) == ("old", "a.json")


def test_a_file_in_the_place_of_a_folder(tmp_path):
    (tmp_path / "data").write_text("a file")
    for path in (tmp_path / "data/a.json", tmp_path / "data/below/a.json"):
        refused(lambda: files.write_json(path, 1), "; move away the file that is in the place of a folder, then run ")


# What is written


def test_tensors_are_as_the_library_reads_them(tmp_path):
    path, about = tmp_path / "x.safetensors", {"name": 'é"\\', "numbers": [1, 2]}
    tensors = {
        f"{name} {rows}": torch.randint(0, 2, (rows, 3)).to(getattr(torch, name))
        for name in DTYPES
        for rows in (0, 1, 5)
    }
    tensors["scalar"] = torch.tensor(7.5, requires_grad=True)
    tensors["strided"] = torch.arange(12.0).view(3, 4).T
    tensors["channels last"] = torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)
    files.write_tensors(path, tensors, about)
    for found in (load_file(path), files.read_tensors(path)[0]):
        assert found.keys() == tensors.keys() and all(torch.equal(found[name], tensors[name]) for name in tensors)
        assert all(found[name].dtype == tensors[name].dtype for name in tensors)
    assert files.read_tensors(path)[1] == files.read_about(path) == about


def test_equal_content_gives_equal_bytes(tmp_path):
    """Tensors and records in whatever order they come; arrays keep theirs."""
    tensors = {f"t{index}": torch.full((2, index), float(index)) for index in range(9)}
    arrays, about = {name: tensor.numpy() for name, tensor in tensors.items()}, {"b": 1, "a": [1]}
    for number, order in enumerate((iter, reversed)):
        some, record = (dict(order(list(each.items()))) for each in (tensors, about))
        files.write_tensors(tmp_path / f"{number}.safetensors", some, record)
        files.write_arrays(tmp_path / f"{number}.npz", arrays)
    for kind in ("safetensors", "npz"):
        assert (tmp_path / f"0.{kind}").read_bytes() == (tmp_path / f"1.{kind}").read_bytes()


# What is read


READERS = {".npz": [files.read_arrays], ".json": [files.read_json]}
READERS[".safetensors"] = [files.read_about, files.read_tensors]
NOT_WHOLE = "is not a whole file of this pipeline; delete it and run dvc repro"


def test_a_damaged_file_is_refused_in_one_line(tmp_path):
    files.write_arrays(tmp_path / "a.npz", {"h": numpy.arange(60.0).reshape(20, 3), "latents": numpy.array(["h"])})
    files.write_tensors(tmp_path / "a.safetensors", {"x": torch.rand(10, 3)}, {"data": {"a": 1}})
    files.write_json(tmp_path / "a.json", {"a": [1, 2]})
    nested = b"[" * 200_000
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("h.npy", "no array")
    sizes = ((2**62, b""), (200_000, nested), (2, b"{}"))
    further = {".npz": [(tmp_path / "b.npz").read_bytes()], ".json": [nested, b"\xff", b"[]", b"2"]}
    further[".safetensors"] = [struct.pack("<Q", size) + content for size, content in sizes]
    for suffix, readers in READERS.items():
        path = tmp_path / f"a{suffix}"
        whole = path.read_bytes()
        for content in [*(whole[:length] for length in range(0, len(whole) - 2, 7)), *further[suffix]]:
            path.write_bytes(content)
            for reader in readers:
                refused(lambda: reader(path), NOT_WHOLE)
        path.unlink()
        refused(lambda: readers[0](path), f"a{suffix} does not exist; the stage that writes it has not run: dvc repro")


class Payload:
    """Creates the file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return open, (str(self.canary), "w")


def test_a_pickle_in_the_place_of_tensors_or_arrays_never_runs(tmp_path):
    canary = tmp_path / "canary"
    payload = Payload(canary)
    objects = numpy.array([payload], dtype=object)
    for write, careless in (
        (lambda file: pickle.dump(payload, file), pickle.load),
        (lambda file: torch.save({"x": payload}, file), lambda file: torch.load(file, weights_only=False)),
        (lambda file: numpy.save(file, objects), lambda file: numpy.load(file, allow_pickle=True)),
        (lambda file: numpy.savez(file, h=objects), lambda file: numpy.load(file, allow_pickle=True)["h"]),
    ):
        write(content := io.BytesIO())
        for suffix, readers in READERS.items():
            (tmp_path / f"a{suffix}").write_bytes(content.getvalue())
            for reader in readers:
                refused(lambda: reader(tmp_path / f"a{suffix}"), NOT_WHOLE)
        assert not canary.exists()
        content.seek(0)
        careless(content)  # the payload is armed
        canary.unlink()
    with pytest.raises(TypeError, match="Python objects"):
        files.write_arrays(tmp_path / "b.npz", {"h": objects})
