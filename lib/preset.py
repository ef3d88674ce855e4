"""Presets are complete params.yaml files: ``python -m lib preset cpu`` copies one and says what differs.

``-S key=value`` sets further values, as DVC's option of that name does; comments stay.
"""

import argparse
import io
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from lib.params.experiment import parse_experiment
from lib.params.spec import PARAMS_FILE, load_yaml, nearest, read_yaml
from lib.runtime.errors import UserError, shown
from lib.runtime.files import write_bytes, write_text

FOLDER = Path("presets")
BACKUP = "params.yaml.bak"  # and .bak1 and so on, git-ignored: what a preset replaced, if it was no preset itself


def presets() -> dict[str, str]:
    """The text of each by its name; its first line says what it is for."""
    return {path.stem: path.read_text() for path in sorted(FOLDER.glob("*.yaml"))}


def with_settings(text: str, settings: list[str]) -> str:
    """The text of a params.yaml with ``key=value`` settings; keys are dotted and must be there, values are YAML."""
    if not settings:
        return text
    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, 4096
    params = yaml.load(text)
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not key or not equals:
            raise UserError(f"setting {shown(setting)} is not understood; write key=value, for example -S epochs=5")
        *blocks, last = key.split(".")
        block: Any = params
        for name in blocks:
            block = block.get(name) if isinstance(block, Mapping) else None
        if not isinstance(block, Mapping) or (last not in block and blocks[:1] != ["variants"]):
            known = [name for name, _ in flat(params)]
            raise UserError(f"params.yaml has no key {key}{nearest(key, known)}; it is in none of {', '.join(params)}")
        new = read_yaml(value, f"the value of {key}")
        if isinstance(block.get(last), Mapping) and not isinstance(new, Mapping):
            raise UserError(f"{key} is a block of {', '.join(map(str, block[last])) or 'none'}; set one of its keys")
        block[last] = new  # type: ignore[index]
    written = io.StringIO()
    yaml.dump(params, written)
    return written.getvalue()


def flat(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """``("optimizer.lr", 0.001)`` for every value that is no block."""
    for key, value in params.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """``"gamma 0.01 -> 0.1"`` for every value that differs, ``"x.y removed"``, ``"x.y added, 3"``."""
    before, after = dict(flat(old)), dict(flat(new))
    lines = [f"{key} {before[key]} -> {after[key]}" for key in before if key in after and before[key] != after[key]]
    lines += [f"{key} removed" for key in before if key not in after]
    return lines + [f"{key} added, {after[key]}" for key in after if key not in before]


def apply_preset(name: str, settings: list[str], params: Path = PARAMS_FILE) -> list[str]:
    """Write the preset with ``settings`` to ``params``, unless one is refused; returns what is said about it."""
    known = presets()
    if name not in known:
        raise UserError(f"there is no preset {shown(name)}; presets: {', '.join(known)}")
    text = with_settings(known[name], settings)
    raw = read_yaml(text, "params.yaml")
    parse_experiment(raw)
    before = params.read_bytes() if params.is_file() else b""
    try:
        lines = differences(load_yaml(params), raw) if before else []
    except UserError as error:  # what is replaced may be broken
        lines = [str(error)]
    if before and before not in (text.encode(), *(each.encode() for each in known.values())):
        lines.append(f"the params.yaml before, which was no preset, is kept as {_keep(before, params.parent)}")
    write_text(params, text)
    return lines or ["no change"]


def _keep(content: bytes, folder: Path) -> str:
    """The name of the first free backup, or of one that holds the same."""
    path = next(
        path
        for number in count()
        if not (path := folder / f"{BACKUP}{number or ''}").exists() or path.read_bytes() == content
    )
    write_bytes(path, lambda file: file.write(content))
    return path.name


def add_settings(parser: argparse.ArgumentParser, about: str) -> None:
    parser.add_argument("-S", dest="settings", metavar="key=value", action="append", default=[], help=about)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m lib preset", description="Copy a preset to params.yaml.")
    parser.add_argument("name", nargs="?", help="without one, the presets are listed")
    add_settings(parser, "one more value; may be repeated")
    chosen = parser.parse_args(arguments)
    if chosen.name is None:
        print("\n".join(f"{name:8}{text.splitlines()[0].lstrip('# ')}" for name, text in presets().items()))
    else:
        print("\n".join(apply_preset(chosen.name, chosen.settings)))
