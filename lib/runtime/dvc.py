"""What DVC says of the pipeline, and what its lock file and its cache hold."""

import json
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from lib.params.spec import load_yaml
from lib.runtime.errors import UserError
from lib.runtime.files import md5

LOCK = Path("dvc.lock")


def ask_dvc(*command: str, root: Path = Path()) -> Any:
    """What a command of DVC's answers with ``--json`` in the folder ``root``."""
    run = [sys.executable, "-m", "dvc", *command, "--json"]
    done = subprocess.run(run, cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise UserError(" ".join(done.stderr.split()).removeprefix("ERROR: ") or f"dvc {' '.join(command)} failed")
    return json.loads(done.stdout.splitlines()[-1])  # what comes before it is said to people


def locked_stages(root: Path = Path()) -> dict[str, Any]:
    """What dvc.lock has of each stage that has run. DVC empties the file before it writes it anew."""
    if not (root / LOCK).is_file():
        return {}
    if not (found := load_yaml(root / LOCK, may_be_empty=True)):
        raise UserError(f"{LOCK} is empty; if DVC is running, try again when it has ended, or else dvc repro")
    stages = found.get("stages", {})
    if not isinstance(stages, dict) or not all(isinstance(entry, dict) for entry in stages.values()):
        raise UserError(f"{LOCK} is not as DVC writes it; take back the committed one, or remove it and run dvc repro")
    return stages


def cached(paths: Collection[Path], root: Path = Path()) -> set[Path]:
    """Those of some files whose content is in DVC's cache, from which it can be had again."""
    if not paths or not (root / ".dvc").is_dir():
        return set()
    from dvc.repo import Repo  # takes a second

    with Repo(root) as repo:
        return {path for path in paths if repo.cache.local.exists(md5(path))}
