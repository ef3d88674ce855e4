"""What ``dvc repro`` would run after a change, why, and about how long: ``python -m lib plan -S gamma=0.1``.

The changed parameters are resolved in memory and held against the variants' JSON of the last run; DVC's own status adds
what changed in code and data. Nothing is written.
"""

import argparse
import csv
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from lib.params.experiment import Experiment, parse_experiment
from lib.params.spec import PARAMS_FILE, load_yaml, read_yaml
from lib.preset import add_settings, differences, with_settings
from lib.runtime.dvc import ask_dvc, locked_stages
from lib.runtime.errors import UserError, clipped
from lib.runtime.files import overlap, read_json
from lib.runtime.progress import duration
from lib.runtime.stage import CHARTS, times_folder

TIMES = times_folder()


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
    stages = []
    for name, entry in pipeline["stages"].items():
        keys: Any = [""]
        if "foreach" in entry:
            path = entry["foreach"].strip("${}")
            try:
                keys = reduce(getitem, path.split("."), params)
            except (KeyError, TypeError):
                raise UserError(f"params.yaml has no {path}, which dvc.yaml reads; add it, empty if need be") from None
            entry = entry["do"]
        for key in keys:
            slots = {"key": key, "item": key, "images_path": str(params.get("images_path", ""))}
            deps, read = (_filled(entry.get(kind, []), slots) for kind in ("deps", "params"))
            outs = [path for kind in ("outs", "metrics", "plots") for path in _filled(entry.get(kind, []), slots)]
            stages.append(Stage(f"{name}@{key}" if key else name, deps, outs, read))
    return stages


def _filled(entries: list[Any], slots: Mapping[str, str]) -> list[str]:
    """The paths or keys of one list of dvc.yaml, whose entries may have options."""
    paths = [next(iter(entry)) if isinstance(entry, Mapping) else entry for entry in entries]
    return [re.sub(r"\$\{(\w+)\}", lambda slot: slots[slot[1]], path) for path in paths]


def plan(raw: dict[str, Any], experiment: Experiment) -> tuple[list[Stage], list[str]]:
    """The stages that ``dvc repro`` would run with a loaded params.yaml, in its order; and the variants that stay."""
    from lib.resolve import VARIANTS, resolve  # with torch, for which `lib.repro` would wait too

    variants, stages = resolve(experiment), stages_of(load_yaml(Path("dvc.yaml")), raw)
    recorded = locked_stages()
    status = ask_dvc("status")
    for number, stage in enumerate(stages):
        if stage.name not in recorded:
            stage.why.append("has not run yet")
        else:
            stage.why += _changed_params(stage, recorded[stage.name], raw)
            stage.why += _from_status(status.get(stage.name, []), stages)
        if stage.name.startswith("pretrain@") and stage.name in recorded:
            path = VARIANTS / f"{stage.variant}.json"
            stage.why += _changed_json(read_json(path) if path.is_file() else {}, variants[stage.variant])
        moved = [other for other in stages[:number] if other.why or other.after]
        read = {other.name for other in moved for out in other.outs if any(overlap(dep, out) for dep in stage.deps)}
        read.discard("resolve")  # a variant's JSON tells by itself whether it moves the stages that read it
        if any(Path(out) in CHARTS for out in stage.outs):
            read.add("resolve")  # which removes them
        stage.after = [other.name for other in moved if other.name in read]
    running = [stage for stage in stages if stage.why or stage.after]
    trained = {stage.variant for stage in running if stage.name.startswith("pretrain@")}
    return running, [name for name in variants if name not in trained]


def _from_status(found: list[Any], stages: list[Stage]) -> list[str]:
    """DVC's words about code, data and outputs; parameters, and what earlier stages write, are looked at apart."""
    made = {str(PARAMS_FILE), *(path for stage in stages for path in stage.outs)}
    lines = [words for words in found if isinstance(words, str)]
    for changes in (words for words in found if not isinstance(words, str)):
        deps = changes.get("changed deps", {}).items()
        lines += [f"{path} {state}" for path, state in deps if not any(overlap(path, out) for out in made)]
        lines += [f"{path} {state}" for path, state in changes.get("changed outs", {}).items()]
    return lines


def _changed_params(stage: Stage, recorded: Mapping[str, Any], raw: Mapping[str, Any]) -> list[str]:
    """What the stage's parameters were in its last run and are now; of a variant's block its JSON tells more."""
    before = recorded.get("params", {}).get(str(PARAMS_FILE), {})
    if str(PARAMS_FILE) in stage.params:
        return differences(before, raw)
    keys = [key for key in stage.params if not key.startswith("variants.")]
    return differences(*({key: params[key] for key in keys if key in params} for params in (before, raw)))


def _changed_json(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """``gamma 0.01 -> 0.1``, ``lib/methods/simclr.py changed``."""
    old, new = before.get("code", {}), after["code"]
    code = [f"{path} changed" for path in {**old, **new} if old.get(path) != new.get(path)]
    return differences({**before, "code": {}}, {**after, "code": {}}) + code


def seconds(stage: Stage, epochs: Mapping[str, int]) -> float | None:
    """About how long: a pretraining by the epochs of its last run on this machine, another stage by its last run, or
    by the same stage of another variant. None: not known, or the note is damaged, which is not worth an end."""
    try:
        return _seconds(stage, epochs)
    except (UserError, ValueError, KeyError, TypeError, csv.Error):
        return None


def _seconds(stage: Stage, epochs: Mapping[str, int]) -> float | None:
    if stage.name.startswith("pretrain@") and epochs[stage.variant]:
        curve = TIMES / f"{stage.variant}.csv"
        rows = list(csv.DictReader(curve.read_text().splitlines())) if curve.is_file() else []
        times = [float(row["seconds"]) for row in rows if row.get("seconds")]
        return sum(times) / len(times) * epochs[stage.variant] if times else None
    like = [TIMES / f"{stage.name}.json", *sorted(TIMES.glob(f"{stage.name.partition('@')[0]}@*.json"))]
    path = next((path for path in like if path.is_file()), None)
    return float(read_json(path)["seconds"]) if path else None


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m lib plan", description="Say what dvc repro would run, and why.")
    add_settings(parser, "a change that is not yet made")
    settings = parser.parse_args(arguments).settings
    raw = load_yaml(PARAMS_FILE)
    if settings:
        raw = read_yaml(with_settings(PARAMS_FILE.read_text(), settings), "params.yaml")
    experiment = parse_experiment(raw)
    running, staying = plan(raw, experiment)
    if not running:
        print("nothing to do")
        return
    epochs = {name: params.epochs for name, params in experiment.variants.items()}
    times = [seconds(stage, epochs) for stage in running]
    width, room = max(len(stage.name) for stage in running), shutil.get_terminal_size((100, 24)).columns
    for stage, time in zip(running, times, strict=True):
        why = "; ".join(stage.why) or f"after {', '.join(stage.after)}"
        about = "?" if time is None else duration(time)
        print(f"{stage.name:{width}}  {about:>8}  {clipped(why, max(30, room - width - 12))}")
    known = [time for time in times if time is not None]
    total = f", about {duration(sum(known))} one after another" if known else ""
    unknown = f"; how long {len(times) - len(known)} of them take is not known yet" if len(known) < len(times) else ""
    print(f"{len(running)} stages may run{total}{unknown}; what DVC has from an earlier run is restored instead.")
    print(f"trained already: {', '.join(staying)}" if staying else "every variant trains")
