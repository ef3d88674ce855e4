"""The project's own pipeline with toy commands: same stages, parameters and outputs, a few milliseconds each.

The inputs are the same too, but for the library files that are the same for all variants: fewer to hash and record.

A stage writes a digest of its inputs (lines that begin with # left out) and of params.yaml, so a run whose inputs
changed writes something new, and a comment changes nothing. It notes when it ran, and on which processors, in .toy/.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from lib.params.spec import load_yaml
from tests.examples import ROOT, study_params

VARIANTS = tuple(study_params()["variants"])[:2]  # fewer stages, less waiting
COPIED = ("lib", "stages", "presets", ".gitignore", ".dvcignore", ".dvc/config")
TOY = """
import hashlib, json, os, sys, time
from pathlib import Path

stage, start = os.environ["DVC_STAGE"], time.time()
log = Path(".toy", f"{stage}-{os.getpid()}.json")
log.parent.mkdir(exist_ok=True)
about = {"stage": stage, "start": start, "cores": sorted(os.sched_getaffinity(0)),
         "pid": os.getpid()}
log.write_text(json.dumps(about))
print(f"{stage} at work", flush=True)
time.sleep(float(os.environ.get("TOY_SECONDS", "0")))
while "TOY_HOLD" in os.environ and not Path(os.environ["TOY_HOLD"]).exists():
    time.sleep(0.05)
group, meet = stage.partition("@")[0], int(os.environ.get("TOY_MEET", "1"))
while group == "pretrain" and len(list(log.parent.glob("pretrain@*.json"))) < meet:
    if time.time() > start + 300:
        sys.exit("nobody came")
    time.sleep(0.05)
if stage in os.environ.get("TOY_FAIL", "").split():
    sys.exit("this toy fails")
cut = sys.argv.index("--")
digest = hashlib.sha256(stage.encode() + Path("params.yaml").read_bytes())
for name in sys.argv[cut + 1:]:
    path = Path(name)
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(b"".join(line for line in file.read_bytes().splitlines(True) if not line.startswith(b"#")))
for name in sys.argv[1:cut]:
    path = Path(name) if Path(name).suffix else Path(name, "picture.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    table = path.parent.name == "curves"
    path.write_text(f"epoch,seconds,device\\n1,2.0,{digest.hexdigest()}\\n2,4.0,toy\\n" if table
                    else json.dumps({"digest": digest.hexdigest()}))
log.write_text(json.dumps({**about, "end": time.time()}))
"""


class ToyProject:
    """A git and DVC repository in ``folder``."""

    def __init__(self, folder: Path, variants: tuple[str, ...] = VARIANTS, stages: tuple[str, ...] = ()) -> None:
        self.folder = folder
        for name in COPIED:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, target)
        (folder / ".gitignore").write_text((ROOT / ".gitignore").read_text() + "/.toy/\n")
        (folder / "toy.py").write_text(TOY)
        params = study_params()
        params["variants"] = {name: params["variants"][name] for name in variants}
        self.write("params.yaml", params)
        self.write("dvc.yaml", toy_pipeline(stages))
        names = {
            f"GIT_{role}_{field}": value
            for role in ("AUTHOR", "COMMITTER")
            for field, value in (("NAME", "Test"), ("EMAIL", "test@example.org"))
        }
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = {
            **os.environ,
            **names,
            "PATH": path,
            "DVC_NO_ANALYTICS": "1",
            "ENGRAM_DEVICE": "cpu",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        for name in ("PYTHONPATH", "ENGRAM_THREADS", "ENGRAM_PROCESSES", "CUDA_VISIBLE_DEVICES"):
            self.environment.pop(name, None)
        self.run("git", "init", "--quiet")
        self.commit()

    def write(self, name: str, value: Any) -> None:
        (self.folder / name).write_text(yaml.safe_dump(value, sort_keys=False))

    def params(self) -> dict[str, Any]:
        return load_yaml(self.folder / "params.yaml")

    def commit(self) -> None:
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--allow-empty", "-m", "a state")

    def run(self, *command: str, status: int = 0, **environment: str) -> str:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env={**self.environment, **environment},
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=1800,
        )
        assert done.returncode == status, f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-4000:]}"
        return done.stdout

    def repro(self) -> tuple[set[str], set[str]]:
        """Run the pipeline; the names of the stages that ran, and of those that the run cache restored."""
        output = self.run("dvc", "repro")
        ran, restored = (set(re.findall(words, output)) for words in ("Running stage '(.+)'", "Stage '(.+)' is cached"))
        return ran, restored

    def logs(self) -> list[dict[str, Any]]:
        """What the stages' commands noted so far, in the order of their start."""
        notes = [json.loads(text) for path in (self.folder / ".toy").glob("*.json") if (text := path.read_text())]
        return sorted(notes, key=lambda note: note["start"])


def toy_pipeline(stages: tuple[str, ...]) -> dict[str, Any]:
    """dvc.yaml with other commands, and only ``stages`` where there are any."""
    pipeline = load_yaml(ROOT / "dvc.yaml")
    pipeline["stages"] = {name: stage for name, stage in pipeline["stages"].items() if name in stages or not stages}
    for stage in pipeline["stages"].values():
        body = stage.get("do", stage)
        entries = [entry for kind in ("outs", "metrics", "plots") for entry in body.get(kind, [])]
        outs = [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]
        body["deps"] = [dep for dep in body["deps"] if dep.startswith(("data/", "plots/")) or "${" in dep]
        body["deps"] = body["deps"] or ["toy.py"]
        body["cmd"] = " ".join(["python -I -S toy.py", *outs, "--", *body["deps"]])
    del pipeline["plots"]
    return pipeline
