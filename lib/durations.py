"""How long stages will take, from what earlier runs took: ``python -m lib.plan`` shows it.

A pretraining is measured by the seconds of its curve, plots/curves/<variant>.csv, epoch by epoch: they hold however
often it was interrupted, and git keeps them; nearest neighbours and checkpoints between epochs come on top. Every
other stage, and a pretraining of 0 epochs, is measured by its last run on this machine, which
``lib.runtime.stage`` notes in .times/. A stage that never ran is taken to need as long as the same stage of other variants.
"""

import csv
import hashlib
import io
import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.forecast import Step
from lib.params.pretraining import pretraining_params
from lib.runtime.errors import UserError
from lib.runtime.files import read_json
from lib.runtime.stage import SIZES, TIMES_FOLDER

CURVES = Path("plots/curves")


@dataclass(frozen=True)
class Estimate:
    """``seconds`` is None where nothing comparable was recorded; ``source`` says where they are from, or why not."""

    seconds: float | None
    source: str


def estimates(steps: Iterable[Step], raw: dict[str, Any]) -> dict[str, Estimate]:
    """By stage, for the parameters ``raw``."""
    steps = list(steps)
    own = {step.stage: _curve_estimate(step, raw) or _noted_estimate(step, raw) for step in steps}
    return {step.stage: own[step.stage] or _like_others(step, steps, own, raw) for step in steps}


def _curve_estimate(step: Step, raw: dict[str, Any]) -> Estimate | None:
    """From the seconds of the stage's curve, if it writes one, scaled to the epochs wanted."""
    found = next(((path, digest) for path, digest in step.outputs.items() if Path(path).parent == CURVES), None)
    if found is None:
        return None
    path, digest = found
    text, of_last_run = _curve_text(path, digest)
    rows = [row for row in csv.DictReader(io.StringIO(text)) if _seconds(row) is not None]
    if not rows:
        return None
    if of_last_run and (other := _other_sizes(step.recorded, raw)):
        return Estimate(None, f"{path} was recorded with {other}")
    per_epoch = sum(map(_seconds, rows)) / len(rows)
    state = "" if of_last_run else " of a run not finished"
    device = rows[-1].get("device") or "device unknown"
    source = f"{path}: {per_epoch:.3g} s an epoch over {len(rows)}{state} ({device})"
    return Estimate(per_epoch * _epochs(step, raw), source)


def _epochs(step: Step, raw: dict[str, Any]) -> int:
    """Of the stage's variant, which may have its own."""
    return pretraining_params(raw, step.key).epochs


def _curve_text(path: str, digest: str | None) -> tuple[str, bool]:
    """The curve, and whether it is the one of the run in dvc.lock; from git where DVC has removed it for a new run."""
    file = Path(path).read_bytes() if Path(path).is_file() else b""
    if _md5(file) == digest:
        return file.decode(), True
    committed = subprocess.run(["git", "show", f"HEAD:./{path}"], capture_output=True).stdout
    if _md5(committed) == digest:
        return committed.decode(), True
    return file.decode(errors="replace"), False


def _noted_estimate(step: Step, raw: dict[str, Any]) -> Estimate | None:
    """What the stage's last run on this machine took; a pretraining's may be the end of one that was interrupted."""
    if any(Path(path).parent == CURVES for path in step.outputs) and _epochs(step, raw):
        return None
    path = Path(os.environ.get("DVC_ROOT", ".")) / TIMES_FOLDER / f"{step.stage}.json"
    try:
        note = read_json(path)
        seconds, day, sizes = float(note["seconds"]), str(note["ended"])[:10], dict(note["sizes"])
    except (UserError, KeyError, TypeError, ValueError):
        return None
    if other := _other_sizes(sizes, raw):
        return Estimate(None, f"its last run, on {day}, was with {other}")
    return Estimate(seconds, f"its last run, on {day}")


def _like_others(step: Step, steps: list[Step], own: dict[str, Estimate | None], raw: dict[str, Any]) -> Estimate:
    """The mean of the same stage's other variants; of a pretraining, for as many epochs."""

    def epochs(other: Step) -> int:
        return _epochs(other, raw) if other.group == "pretrain" else 1

    wanted = epochs(step)
    others = {
        other.key: estimate.seconds / max(1, epochs(other)) * max(1, wanted)
        for other in steps
        if other.group == step.group
        and (estimate := own[other.stage])
        and estimate.seconds is not None
        and bool(epochs(other)) == bool(wanted)
    }
    if not others:
        return Estimate(None, "no run recorded")
    return Estimate(sum(others.values()) / len(others), f"as {', '.join(map(str, others))}")


def _other_sizes(recorded: dict[str, Any], raw: dict[str, Any]) -> str:
    """``"encoder small"`` where the recorded run used another one; empty when it compares."""
    return ", ".join(f"{key} {recorded[key]}" for key in SIZES if key in recorded and recorded[key] != raw.get(key))


def _seconds(row: dict[str, str]) -> float | None:
    try:
        return float(row["seconds"])
    except (KeyError, TypeError, ValueError):
        return None


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
