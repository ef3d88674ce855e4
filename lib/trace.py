"""Where an output comes from: ``python -m lib trace metrics/joint.json``.

Follows dvc.lock, which git keeps, from the file back through the stages that made it: eight lines that sum it up, and
with ``--all`` parameters, code and data, each by its checksum. An output that is not as dvc.lock records it is an
error; whether code and data still are, ``dvc status`` says.
"""

import argparse
import csv
import json
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lib.params.spec import PARAMS_FILE, read_yaml
from lib.preset import differences, presets
from lib.report.show import say
from lib.report.tables import distinct
from lib.runtime.dvc import LOCK, ask_dvc, locked_stages
from lib.runtime.errors import UserError
from lib.runtime.files import md5, overlap, read_about, read_json
from lib.runtime.progress import duration
from lib.runtime.stage import times_folder

ENCODER = re.compile(r"data/encoders/\w+\.safetensors")


def trace(path: str, root: Path = Path()) -> list[str]:
    """Lines that tell the history of one output of the pipeline.

    A UserError says that no stage wrote it, or that it or an output before it is not what dvc.lock records.
    """
    if not (root / LOCK).is_file():
        raise UserError(f"{LOCK} does not exist: no stage has run; dvc repro")
    stages = locked_stages(root)
    names = _behind(stages, path)
    outs = [root / out["path"] for name in names for out in stages[name].get("outs", [])]
    lost = not (root / path).exists() and any(out.exists() and (root / path).is_relative_to(out) for out in outs)
    if not names or lost:
        how = "name an output as dvc.yaml has it, for example metrics/simclr.json"
        raise UserError(f"{LOCK} knows no stage that wrote {path}; {how}")
    lines = []
    for name in names:
        stage = stages[name]
        lines.append(f"{name}: {stage['cmd']}")
        for written in stage.get("outs", []):
            file = root / written["path"]
            # one that is only in DVC's cache may be absent
            if file.exists() and md5(file) != written["md5"]:
                why = "it was changed by hand, or the stage's run was not finished: dvc repro"
                raise UserError(f"{written['path']} is not what {name} wrote by {LOCK}; {why}")
            lines += [f"  wrote {written['path']}  md5 {written['md5']}", *_about(file)]
        for dep in stage.get("deps", []):
            lines.append(f"  read  {dep['path']}  md5 {dep['md5']}")
        for values in stage.get("params", {}).values():
            lines += [f"  {key} = {json.dumps(value)}" for key, value in sorted(values.items())]
    return lines


def as_locked(stage: str, paths: Iterable[Path]) -> bool:
    """Whether files are, byte by byte, what ``stage`` read and wrote in the run of it that dvc.lock has."""
    entry = locked_stages().get(stage, {})
    known = {each["path"]: each["md5"] for each in (*entry.get("deps", ()), *entry.get("outs", ()))}
    return all(path.is_file() and md5(path) == known.get(path.as_posix()) for path in paths)


def require_locked(stage: str, written: Path, *read: Path) -> None:
    """A UserError says that by dvc.lock ``stage`` did not write a file from the others."""
    if not as_locked(stage, (written, *read)):
        how = f"by the checksums in dvc.lock; dvc repro {stage}"
        raise UserError(f"{written} was not written from {' and '.join(map(str, read))}, {how}")


def in_short(path: str, root: Path = Path()) -> list[str]:
    """What a file is, of which data, network, training and settings, when and where; whether this code made it."""
    stages = locked_stages(root)
    names, writers = _behind(stages, path), _writers(stages, path)
    encoders = [root / out["path"] for name in names for out in stages[name]["outs"] if ENCODER.fullmatch(out["path"])]
    abouts = [read_about(file) for file in sorted(encoders) if file.is_file()]
    trained = [about["pretraining"] | {"encoder": about.get("encoder", "of another version")} for about in abouts]
    recorded = stages.get("resolve", {}).get("params", {}).get(str(PARAMS_FILE), {})
    images = root / "data/images.safetensors"
    data = read_about(images) if images.is_file() else {"dataset": recorded.get("dataset"), "checksum": "not here"}
    facts = {
        path: _numbers(root / path) or f"written by {', '.join(writers)}",
        "data": f"{data['dataset']}, sha256 {data['checksum'][:12]}",
        **{key: distinct(values[key] for values in trained) or "none" for key in ("encoder", "epochs", "seed")},
        "settings": _settings(recorded),
        "code": _code(root, names),
        "run": _run(root, writers[0]),
    }
    return [f"{key:{max(map(len, facts))}}  {value}" for key, value in facts.items()]


def _numbers(path: Path) -> str:
    """The numbers of a file of metrics."""
    values = read_json(path).items() if path.suffix == ".json" and path.is_file() else ()
    return ", ".join(f"{key} {value:g}" for key, value in values if isinstance(value, int | float))


def _settings(recorded: dict[str, Any]) -> str:
    """What the recorded params.yaml has other than the preset that is most like it."""
    each = {name: differences(read_yaml(text, name), recorded) for name, text in presets().items()}
    name = min(each, key=lambda name: len(each[name]))
    return f"preset {name}" + (f", but {'; '.join(each[name])}" if each[name] else "")


def _code(root: Path, names: list[str]) -> str:
    """The commit that is checked out, and where the code that the stages ran differs from it."""

    def git(*arguments: str) -> str:
        command = ["git", *arguments, "--", "lib", "stages", "dvc.yaml"]
        return subprocess.run(command, cwd=root, capture_output=True, text=True).stdout

    last, changed = git("log", "-1", "--format=commit %h of %cs"), git("status", "--porcelain")
    here = (last.strip() or "of no commit") + (", and changes that no commit has" if changed else "")
    try:
        status = ask_dvc("status", *names)
    except UserError:
        return f"{here}; whether the file is of it, DVC cannot tell: dvc.yaml has other stages"
    deps = [words.get("changed deps", {}) for found in status.values() for words in found if isinstance(words, dict)]
    since = sorted({path for paths in deps for path in paths if path.startswith(("lib/", "stages/"))})
    return f"{here}; the file is of other code in {', '.join(since)}" if since else here


def _run(root: Path, stage: str) -> str:
    """When, for how long and on which device a stage last ran, as far as this machine knows. The file may be older:
    what DVC takes from its cache runs nothing."""
    note = times_folder() / f"{stage}.json"
    if not note.is_file():
        return "not on this machine"
    times, curve = read_json(note), times_folder() / f"{stage.partition('@')[2]}.csv"
    devices = [row["device"] for row in csv.DictReader(curve.open())] if curve.is_file() else []
    trained = f"; training on {devices[-1]}" if devices else ""
    return f"the stage last ran here {times['ended'].replace('T', ' ')}, {duration(times['seconds'])}{trained}"


def _behind(stages: dict[str, Any], path: str) -> list[str]:
    """The stages that wrote ``path``, then those before them."""
    names = _writers(stages, path)
    for name in names:  # grows
        for dep in stages[name].get("deps", []):
            names += [writer for writer in _writers(stages, dep["path"]) if writer not in names]
    return names


def _writers(stages: dict[str, Any], path: str) -> list[str]:
    """The stages that wrote ``path``, the folder that it is in, or something in it."""
    outs = {name: [out["path"] for out in stage.get("outs", [])] for name, stage in stages.items()}
    return [name for name, paths in outs.items() if any(overlap(path, out) for out in paths)]


def _about(path: Path) -> list[str]:
    """What a tensor file says of itself: data, versions, and what its training read."""
    if path.suffix != ".safetensors" or not path.is_file():
        return []
    about = read_about(path)
    data = about.get("data", about)
    lines = [f"  data: {data.get('dataset')}, checksum {data.get('checksum')}"]
    return lines + [f"  {key}: {json.dumps(about[key])}" for key in ("versions", "pretraining") if key in about]


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m lib trace", description="Where an output comes from.")
    parser.add_argument("path", help="an output of the pipeline, for example metrics/joint.json")
    parser.add_argument("--all", action="store_true", help="every stage's parameters, code and data by checksum")
    chosen = parser.parse_args(arguments)
    whole = trace(chosen.path)  # which checks that files are as recorded, also where little of it is shown
    say("\n".join(whole if chosen.all else [*in_short(chosen.path), "each stage, file and checksum: --all"]))
