"""What DVC says of the pipeline."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from lib.runtime.errors import UserError


def ask_dvc(*command: str, root: Path = Path()) -> Any:
    """What a command of DVC's answers with ``--json`` in the folder ``root``."""
    run = [sys.executable, "-m", "dvc", *command, "--json"]
    done = subprocess.run(run, cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise UserError(" ".join(done.stderr.split()).removeprefix("ERROR: ") or f"dvc {' '.join(command)} failed")
    return json.loads(done.stdout.splitlines()[-1])  # what comes before it is said to people
