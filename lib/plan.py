"""What ``dvc repro`` would run after a change, why, and about how long: ``python -m lib plan -S gamma=0.1``.

The changed parameters are resolved in memory and held against the variants' JSON of the last run; DVC's own status adds
what changed in code and data. Nothing is written.
"""

import argparse
import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib.params.experiment import parse_experiment
from lib.params.spec import PARAMS_FILE, load_yaml, read_yaml
from lib.preset import differences, with_settings
from lib.resolve import VARIANTS, resolve
from lib.runtime.errors import UserError
from lib.runtime.files import read_json
from lib.runtime.progress import duration

TIMES = Path(os.environ.get("DVC_ROOT", ".")) / ".times"  # of this machine, by stage; git-ignored


@dataclass
class Stage:
    """One stage of dvc.yaml with its slots filled. ``why``: what changed in it; ``after``: the stages that move it."""

    name: str
    deps: list[str]
    outs: list[str]
    params: list[str]
    why: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)

    @property
    def variant(self) -> str:
        return self.name.partition("@")[2]


def stages_of(pipeline: Mapping[str, Any], params: Mapping[str, Any]) -> list[Stage]:
    """The stages of a loaded dvc.yaml in its order, those of variants spelled out."""
    found = []
    for name, entry in pipeline["stages"].items():
        keys = [""]
        if "foreach" in entry:
            value: Any = params
            for part in entry["foreach"].strip("${}").split("."):
                value = value[part]
            keys, entry = list(value), entry["do"]
        for key in keys:
            slots = {"key": key, "item": key, "images_path": str(params.get("images_path", ""))}

            def paths(kind: str, entry: Any = entry, slots: dict[str, str] = slots) -> list[str]:
                each = [next(iter(one)) if isinstance(one, Mapping) else one for one in entry.get(kind, [])]
                return [re.sub(r"\$\{(\w+)\}", lambda slot: slots[slot[1]], path) for path in each]

            outs = [path for kind in ("outs", "metrics", "plots") for path in paths(kind)]
            found.append(Stage(f"{name}@{key}" if key else name, paths("deps"), outs, paths("params")))
    return found


def plan(settings: list[str]) -> tuple[list[Stage], list[str]]:
    """The stages that ``dvc repro`` would run with ``settings``, in its order; and the variants that stay.

    Raises:
        UserError: a bad setting or params.yaml, or DVC cannot read the project.
    """
    raw = read_yaml(with_settings(PARAMS_FILE.read_text(), settings), "params.yaml")
    experiment = parse_experiment(raw)
    variants, stages = resolve(experiment), stages_of(load_yaml(Path("dvc.yaml")), raw)
    recorded = load_yaml(Path("dvc.lock"))["stages"] if Path("dvc.lock").is_file() else {}
    status = _dvc_status()
    for number, stage in enumerate(stages):
        if stage.name not in recorded:
            stage.why.append("has not run yet")
        else:
            stage.why += _changed_params(stage, recorded[stage.name], raw)
            stage.why += _from_status(status.get(stage.name, []), stages)
        if stage.name.startswith("pretrain@") and stage.name in recorded:
            stage.why = [line for line in stage.why if str(VARIANTS) not in line]
            path = VARIANTS / f"{stage.variant}.json"
            stage.why += _changed_json(read_json(path) if path.is_file() else {}, variants[stage.variant])
        exact = {"resolve"} if stage.name.startswith("pretrain@") else set()  # its JSON tells whether it moves this one
        stage.after = [
            other.name
            for other in stages[:number]
            if (other.why or other.after) and other.name not in exact and _feeds(other, stage)
        ]
    running = [stage for stage in stages if stage.why or stage.after]
    trained = {stage.variant for stage in running if stage.name.startswith("pretrain@")}
    return running, [name for name in variants if name not in trained]


def _dvc_status() -> dict[str, list[Any]]:
    """What DVC finds changed since the last run, by stage."""
    done = subprocess.run([sys.executable, "-m", "dvc", "status", "--json"], capture_output=True, text=True)
    if done.returncode:
        raise UserError(" ".join(done.stderr.split()).removeprefix("ERROR: ") or "dvc status failed")
    return json.loads(done.stdout[done.stdout.index("{") :])


def _from_status(found: list[Any], stages: list[Stage]) -> list[str]:
    """DVC's words about code, data and outputs; parameters, and what earlier stages write, are looked at apart."""
    lines, made = [], {path for stage in stages for path in stage.outs}
    for each in found:
        if isinstance(each, str):
            lines.append(each)
            continue
        for path, state in each.get("changed deps", {}).items():
            if path != str(PARAMS_FILE) and not any(_overlap(path, out) for out in made):
                lines.append(f"{path} {state}")
        lines += [f"{path} {state}" for path, state in each.get("changed outs", {}).items()]
    return lines


def _changed_params(stage: Stage, recorded: Mapping[str, Any], raw: Mapping[str, Any]) -> list[str]:
    """What the stage's parameters were in its last run and are now; of a variant's block its JSON tells more."""
    before = recorded.get("params", {}).get(str(PARAMS_FILE), {})
    keys = [key for key in stage.params if not key.startswith("variants.")]
    if str(PARAMS_FILE) in keys:
        return differences(before, raw)
    return differences(
        {key: before[key] for key in keys if key in before}, {key: raw[key] for key in keys if key in raw}
    )


def _changed_json(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """``gamma 0.01 -> 0.1``, ``lib/methods/simclr.py changed``."""
    old, new = before.get("code", {}), after["code"]
    code = [f"{path} changed" for path in {**old, **new} if old.get(path) != new.get(path)]
    return differences({**before, "code": {}}, {**after, "code": {}}) + code


def _feeds(earlier: Stage, later: Stage) -> bool:
    return any(_overlap(dep, out) for dep in later.deps for out in earlier.outs)


def _overlap(path: str, other: str) -> bool:
    return Path(path).is_relative_to(other) or Path(other).is_relative_to(path)


def seconds(stage: Stage, epochs: Mapping[str, int]) -> float | None:
    """About how long: a pretraining by the epochs of its last run on this machine, another stage by its last run, or
    by the same stage of another variant."""
    if stage.name.startswith("pretrain@") and epochs[stage.variant]:
        path = TIMES / f"{stage.variant}.csv"
        rows = list(csv.DictReader(path.read_text().splitlines())) if path.is_file() else []
        times = [float(row["seconds"]) for row in rows if row.get("seconds")]
        return sum(times) / len(times) * epochs[stage.variant] if times else None
    like = [TIMES / f"{stage.name}.json", *sorted(TIMES.glob(f"{stage.name.partition('@')[0]}@*.json"))]
    found = next((path for path in like if path.is_file()), None)
    return float(read_json(found)["seconds"]) if found else None


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m lib plan", description="Say what dvc repro would run, and why.")
    parser.add_argument(
        "-S", dest="settings", metavar="key=value", action="append", default=[], help="a change that is not yet made"
    )
    settings = parser.parse_args(arguments).settings
    running, staying = plan(settings)
    if not running:
        print("nothing to do")
        return
    raw = read_yaml(with_settings(PARAMS_FILE.read_text(), settings), "params.yaml")
    epochs = {name: params.epochs for name, params in parse_experiment(raw).variants.items()}
    times = [seconds(stage, epochs) for stage in running]
    rows = [
        (stage.name, "; ".join(stage.why) or f"after {', '.join(stage.after)}", "?" if time is None else duration(time))
        for stage, time in zip(running, times, strict=True)
    ]
    width = max(len(row[0]) for row in rows)
    for name, why, about in rows:
        print(f"{name:{width}}  {about:>8}  {why if len(why) <= 90 else why[:87] + '...'}")
    known = [time for time in times if time is not None]
    total = f", about {duration(sum(known))} one after another" if known else ""
    unknown = f", without {len(times) - len(known)} that never ran here" if len(known) < len(times) else ""
    print(f"{len(rows)} stages may run{total}{unknown}; what DVC has from an earlier run is restored instead.")
    print(f"trained already: {', '.join(staying)}" if staying else "every variant trains")
