"""Where an output comes from: ``python -m lib trace metrics/joint.json``.

Follows dvc.lock, which git keeps, from the file back through the stages that made it: parameters, code and data, each
by its checksum. What is not as dvc.lock records it is an error.
"""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

from lib.params.spec import load_yaml
from lib.report.show import say
from lib.runtime.errors import UserError
from lib.runtime.files import overlap, read_about

LOCK = Path("dvc.lock")


def trace(path: str, root: Path = Path()) -> list[str]:
    """Lines that tell the history of one output of the pipeline.

    A UserError says that no stage wrote it, or that it or one of its sources is not what dvc.lock records.
    """
    if not (root / LOCK).is_file():
        raise UserError(f"{LOCK} does not exist: no stage has run; dvc repro")
    stages = load_yaml(root / LOCK)["stages"]
    names = _writers(stages, path)
    if not names:
        how = "name an output as dvc.yaml has it, for example metrics/simclr.json"
        raise UserError(f"{LOCK} knows no stage that wrote {path}; {how}")
    lines = []
    for name in names:  # grows by the stages before
        stage = stages[name]
        lines.append(f"{name}: {stage['cmd']}")
        for written in stage.get("outs", []):
            file = root / written["path"]
            # one that is only in DVC's cache may be absent
            if file.is_file() and hashlib.md5(file.read_bytes()).hexdigest() != written["md5"]:
                why = "it was changed by hand, or the stage's run was not finished: dvc repro"
                raise UserError(f"{written['path']} is not what {name} wrote by {LOCK}; {why}")
            lines += [f"  wrote {written['path']}  md5 {written['md5']}", *_about(file)]
        for dep in stage.get("deps", []):
            lines.append(f"  read  {dep['path']}  md5 {dep['md5']}")
            names += [writer for writer in _writers(stages, dep["path"]) if writer not in names]
        for values in stage.get("params", {}).values():
            lines += [f"  {key} = {json.dumps(value)}" for key, value in sorted(values.items())]
    return lines


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
    say("\n".join(trace(parser.parse_args(arguments).path)))
