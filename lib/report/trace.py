"""Where a metrics file comes from: ``python -m lib.report.trace metrics/joint.json``.

Follows dvc.lock, which git keeps, from the file back through the stages that made it: every parameter,
every code file and the data, each by its checksum. What is not as dvc.lock records it is an error.
"""

import argparse
import hashlib
import sys
from pathlib import Path
from typing import Any

from lib.params.spec import load_yaml
from lib.runtime.errors import UserError
from lib.runtime.files import read_about

LOCK = Path("dvc.lock")


def trace(path: str, root: Path = Path(".")) -> list[str]:
    """Lines that tell the history of one output of the pipeline.

    Raises:
        UserError: no stage wrote the file, or it or its encoder is not what dvc.lock records.
    """
    if not (root / LOCK).is_file():
        raise UserError(f"{LOCK} does not exist: no stage has run; dvc repro")
    stages = load_yaml(root / LOCK)["stages"]
    lines, names = [], [_writer(stages, path)]
    for name in names:
        stage = stages[name]
        for written in stage.get("outs", []):
            _require_same(root / written["path"], written, name)
        lines += _lines(name, stage)
        lines += [line for written in stage.get("outs", []) for line in _record(root / written["path"])]
        sources = {_source(stages, dep["path"]) for dep in stage.get("deps", [])} - {None}
        names += sorted(sources - set(names))
    return lines


def _writer(stages: dict[str, Any], path: str) -> str:
    writer = _source(stages, path)
    if writer is None:
        raise UserError(
            f"{LOCK} knows no stage that wrote {path}; "
            "name an output as dvc.yaml has it, for example metrics/simclr.json"
        )
    return writer


def _source(stages: dict[str, Any], path: str) -> str | None:
    """The stage that wrote ``path``."""
    return next(
        (name for name, stage in stages.items() if path in (written["path"] for written in stage.get("outs", []))), None
    )


def _require_same(path: Path, written: dict[str, Any], stage: str) -> None:
    """A file that is here must be the recorded one; one that is only in DVC's cache may be absent."""
    if path.is_file() and hashlib.md5(path.read_bytes()).hexdigest() != written["md5"]:
        raise UserError(
            f"{written['path']} is not what {stage} wrote by {LOCK}; "
            "it was changed by hand, or the stage's run was not finished: dvc repro"
        )


def _lines(name: str, stage: dict[str, Any]) -> list[str]:
    lines = [f"{name}: {stage['cmd']}"]
    lines += [f"  wrote {written['path']}  md5 {written['md5']}" for written in stage.get("outs", [])]
    lines += [f"  read  {dep['path']}  md5 {dep['md5']}" for dep in stage.get("deps", [])]
    for values in stage.get("params", {}).values():
        lines += [f"  {key} = {value}" for key, value in sorted(values.items())]
    return lines


def _record(path: Path) -> list[str]:
    """What a tensor file says of itself."""
    if path.suffix != ".safetensors" or not path.is_file():
        return []
    about = read_about(path)
    data = about.get("data", about)
    found = {
        "data": f"{data.get('dataset')}, checksum {data.get('checksum')}",
        "versions": ", ".join(f"{name} {value}" for name, value in about.get("versions", {}).items()),
    }
    return [f"  {key}: {value}" for key, value in found.items() if value]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m lib.report.trace", description="Where an output comes from.")
    parser.add_argument("path", help="an output of the pipeline, for example metrics/joint.json")
    try:
        print("\n".join(trace(parser.parse_args().path)))
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
