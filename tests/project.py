"""A copy of the project in a git repository of its own, with a tiny experiment; for tests that run dvc."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from tests.examples import ROOT

TINY = ("epochs=1", "image_size=16", "batch_size=128", "monitor.every=1", "monitor.k=5", "linear.study_epochs=1",
        "knn.k=5", "memory.draws=1", "tsne.points=60", "tsne.perplexity=5.0", "tsne.iterations=250")  # fmt: skip
NOT_RUN = ("docs/results", "bench")
LIMIT = 600  # seconds for one command: a hang is an error


def write_lock(stages: dict[str, tuple[list[str], list[str]]]) -> None:
    """dvc.lock of stages that have just read and written these files, by their names."""

    def known(paths: list[str]) -> list[dict[str, str]]:
        return [{"path": path, "md5": hashlib.md5(Path(path).read_bytes()).hexdigest()} for path in paths]

    entries = {stage: {"deps": known(read), "outs": known(written)} for stage, (read, written) in stages.items()}
    Path("dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": entries}))


class Project:
    """``variants`` are kept of the preset demo, with the ``TINY`` settings and more."""

    def __init__(self, folder: Path, variants: tuple[str, ...], *settings: str) -> None:
        self.folder, self.settings = folder, (*TINY, *settings)
        listed = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True, capture_output=True, check=True
        ).stdout.splitlines()
        for name in listed:
            output = Path(name).parts[0] in ("metrics", "plots") and Path(name).name != "README.md"
            if (ROOT / name).is_file() and not output and name != "dvc.lock" and not name.startswith(NOT_RUN):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name)
        names = {
            f"GIT_{role}_{field}": value
            for role in ("AUTHOR", "COMMITTER")
            for field, value in (("NAME", "Test"), ("EMAIL", "test@example.org"))
        }
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = {
            **{key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "DVC_ROOT", "DVC_STAGE")},
            **names, "PATH": path, "PYTHONDONTWRITEBYTECODE": "1", "ENGRAM_THREADS": "1", "OMP_NUM_THREADS": "1",
            "DVC_NO_ANALYTICS": "1",
        }  # fmt: skip
        self.run("git", "init", "--quiet")
        self.keep(*variants)
        self.preset()
        self.commit("tiny")

    def run(self, *command: str, status: int | None = 0, **more: str) -> str:
        """A command's output; ``status`` None for any, ``more`` of the environment."""
        done = subprocess.run(
            command, cwd=self.folder, env={**self.environment, **more}, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=LIMIT,
        )  # fmt: skip
        if status is not None:
            assert done.returncode == status, f"{' '.join(command)}: {done.returncode}\n{done.stdout[-4000:]}"
        return done.stdout

    def keep(self, *variants: str) -> None:
        """Leave only these variants in the preset demo."""
        path = self.folder / "presets/demo.yaml"
        text = path.read_text()
        start, end = text.index("variants:\n"), text.index("\nlinear:")
        blocks = re.findall(r"^  (\w+):\n((?:    .*\n)+)", text[start:end], flags=re.MULTILINE)
        kept = "".join(f"  {name}:\n{body}" for name, body in blocks if name in variants)
        path.write_text(f"{text[:start]}variants:\n{kept}{text[end:]}")

    def preset(self, *settings: str) -> None:
        given = [part for setting in (*self.settings, *settings) for part in ("-S", setting)]
        self.run("python", "-m", "lib", "preset", "demo", *given)

    def add(self, *lines: str) -> None:
        """Add a variant's lines at the end of the block of variants of params.yaml."""
        path = self.folder / "params.yaml"
        text = path.read_text()
        end = text.index("\nlinear:")
        path.write_text(text[:end].rstrip("\n") + "\n" + "".join(f"  {line}\n" for line in lines) + text[end:])

    def commit(self, message: str) -> None:
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "-m", message)

    def repro(self, *arguments: str) -> set[str]:
        """Run the pipeline; the names of the stages whose command ran."""
        return ran(self.run("dvc", "repro", *arguments))


def ran(output: str) -> set[str]:
    return set(re.findall(r"Running stage '([^']+)'", output))


def of(variant: str) -> set[str]:
    return {f"{stage}@{variant}" for stage in ("pretrain", "linear", "memory", "embed", "tsne")}
