"""Lay a small file of settings, a preset, onto params.yaml: ``python -m lib.preset demo -S epochs=5``.

A preset may hold whole variants, with their method, that params.yaml lacks: they are added to its end, and
another preset takes them out again unless they were changed meanwhile.

Every preset starts from ``study``, which names each key that any preset touches: the result does not
depend on the preset that was there before. Only the text of a changed value is replaced. Comments,
order and everything else keep their bytes, so that a preset and back again leaves no difference.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lib.params.check import check_params
from lib.params.spec import PARAMS_FILE, Loader, read_yaml, read_yaml_text
from lib.runtime.errors import UserError, shown
from lib.runtime.files import write_text

PRESETS_FOLDER = Path("presets")
BASE = "study"
INDENT = 2  # spaces before the name of a variant


@dataclass(frozen=True)
class Block:
    """A variant's value and the lines where it stands: ``text[start:end]``."""

    value: Any
    start: int
    end: int


@dataclass(frozen=True)
class Scalar:
    """A value and where its text stands: ``text[start:end]``."""

    source: str
    value: Any
    start: int
    end: int


def scalars(text: str, where: str) -> dict[str, Scalar]:
    """Every scalar of a YAML text by dotted key, in the text's order; ``where`` names it in errors."""
    if not isinstance(read_yaml(text, where), dict):
        raise UserError(f"{where} must hold keys and values; write one key: value a line")
    return dict(_walk(yaml.compose(text, Loader=Loader), text, "", where))


def preset_names(folder: Path = PRESETS_FOLDER) -> list[str]:
    return sorted(path.stem for path in Path(folder).glob("*.yaml"))


def read_preset(name: str, folder: Path = PRESETS_FOLDER) -> dict[str, str]:
    """Dotted keys and the text of their values."""
    names = preset_names(folder)
    if name not in names:
        raise UserError(f"there is no preset {shown(name)}; presets: {', '.join(names)}")
    path = Path(folder) / f"{name}.yaml"
    return {key: scalar.source for key, scalar in scalars(read_yaml_text(path), str(path)).items()}


def parse_settings(settings: list[str]) -> dict[str, str]:
    """``["optimizer.lr=0.01"]`` as dotted keys and the text of their values."""
    found = {}
    for setting in settings:
        key, equals, source = setting.partition("=")
        if not key or not equals:
            raise UserError(f"setting {shown(setting)} is not understood; write key=value, for example -S epochs=5")
        found[key] = source.strip() or '""'
    return found


def overlay(text: str, settings: dict[str, str]) -> tuple[str, list[str]]:
    """``text`` of params.yaml with other values, and one line ``key: old -> new`` for each that differs.

    Raises:
        UserError: a key that params.yaml does not have, or a value that is not a plain one.
    """
    current = scalars(text, "params.yaml")
    for key, source in settings.items():
        if key not in current:
            raise UserError(f"params.yaml has no key {key}; keys there: {', '.join(_neighbours(key, current))}")
        if not _is_scalar(source):
            raise UserError(
                f"the value of {key} is {shown(source)}; allowed: one number or text, "
                "or a list of them in brackets, in double quotes where it holds a special character"
            )
    changes, pieces, position = [], [], 0
    for key, old in current.items():
        if key in settings and not _same(old.value, _value(settings[key])):
            changes.append(f"{key}: {old.source or 'nothing'} -> {settings[key]}")
            pieces += [text[position : old.start], "" if old.source else " ", settings[key]]
            position = old.end
    return "".join([*pieces, text[position:]]), changes


def apply_preset(
    name: str, settings: list[str], params: Path = PARAMS_FILE, folder: Path = PRESETS_FOLDER
) -> list[str]:
    """Write the preset, then ``settings``, into ``params``; returns one line for each change.

    A preset's value for a variant that ``params`` no longer has is left out, with a line that says so.
    The result is checked as a whole first: a UserError leaves the file as it was.
    """
    before = read_yaml_text(params)
    scalars(before, "params.yaml")  # refuses what cannot be read
    preset = {**read_preset(BASE, folder), **read_preset(name, folder)}
    text, lines = _exchange_variants(before, name, Path(folder))
    present = _variants(scalars(text, "params.yaml"))
    absent = {key: variant for key in preset if (variant := _variant(key)) not in {None, *present}}
    wanted = {key: source for key, source in preset.items() if key not in absent}
    after, changes = overlay(text, {**wanted, **parse_settings(settings)})
    check_params(read_yaml(after, "params.yaml"))
    if after != before:
        write_text(params, after)
    return (
        lines + changes + [f"{key}: left out, params.yaml has no variant {variant}" for key, variant in absent.items()]
    )


def _exchange_variants(text: str, name: str, folder: Path) -> tuple[str, list[str]]:
    """``text`` with the whole variants of preset ``name`` and without those of the others; a line for each."""
    lines, wanted = [], whole_variants(folder, name)
    if not blocks(text, "params.yaml"):
        raise UserError("params.yaml: variants is missing or empty; write at least one variant below it")
    indents = {text[block.start :].index(variant) for variant, block in blocks(text, "params.yaml").items()}
    if wanted and indents != {INDENT}:
        raise UserError(
            f"params.yaml: the variants are not indented by {INDENT} spaces, as those that preset {name} "
            f"adds are; indent them by {INDENT}"
        )
    for other in preset_names(folder):
        for variant, (_, value) in whole_variants(folder, other).items():
            found = blocks(text, "params.yaml").get(variant)
            if found is None or variant in wanted:
                continue
            if found.value == value and len(blocks(text, "params.yaml")) > 1:
                text = text[: found.start] + text[found.end :]
                lines.append(f"variants.{variant}: removed, preset {other} adds it")
            else:
                lines.append(f"variants.{variant}: kept, it is not as preset {other} adds it")
    for variant, (source, _) in wanted.items():
        present = blocks(text, "params.yaml")
        if variant not in present:
            end = max(block.end for block in present.values())
            source = source if text[end - 1] == "\n" else "\n" + source  # the file ends there, without a line end
            text = text[:end] + source + text[end:]
            lines.append(f"variants.{variant}: added")
    return text, lines


def whole_variants(folder: Path, name: str) -> dict[str, tuple[str, Any]]:
    """The variants that a preset defines with their method: name -> (lines of text, value)."""
    path = folder / f"{name}.yaml"
    text = read_yaml_text(path)
    return {
        variant: (text[block.start : block.end], block.value)
        for variant, block in blocks(text, str(path)).items()
        if isinstance(block.value, dict) and "method" in block.value
    }


def blocks(text: str, where: str) -> dict[str, Block]:
    """Each variant of a YAML text in its order, with the lines from its name to the next one's or the block's end.

    Raises:
        UserError: the variants are written in braces.
    """
    top = yaml.compose(text, Loader=Loader)
    node = next((value for key, value in top.value if key.value == "variants"), None)
    if not isinstance(node, yaml.MappingNode) or not node.value:
        return {}
    if node.flow_style:
        raise UserError(f"{where}: variants is written in braces; write each variant on lines of its own below it")
    values = read_yaml(text, where)["variants"]
    return {
        str(key.value): Block(values[key.value], _line_start(text, key.start_mark.index), _line_end(text, _last(value)))
        for key, value in node.value
    }


def _last(node: yaml.Node) -> int:
    """Where the text of a value ends, without what may follow it."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        inner = node.value[-1]
        return _last(inner[1] if isinstance(inner, tuple) else inner)
    return node.end_mark.index


def _line_start(text: str, place: int) -> int:
    return text.rfind("\n", 0, place) + 1


def _line_end(text: str, place: int) -> int:
    return text.find("\n", place) + 1 or len(text)


def _variant(key: str) -> str | None:
    """``"joint"`` of ``"variants.joint.temperature"``; None for a key of no variant."""
    first, _, rest = key.partition(".")
    return rest.partition(".")[0] if first == "variants" else None


def _variants(keys: Iterable[str]) -> set[str]:
    return {variant for key in keys if (variant := _variant(key)) is not None}


def describe(name: str, folder: Path = PRESETS_FOLDER) -> str:
    """The comment at the head of a preset's file, in one line."""
    lines = read_yaml_text(Path(folder) / f"{name}.yaml").splitlines()
    head = []
    for line in lines:
        if not line.startswith("#"):
            break
        head.append(line.lstrip("# "))
    return " ".join(head)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m lib.preset", description="Lay a preset onto params.yaml.")
    parser.add_argument("name", nargs="?", help="without one, the presets are listed")
    parser.add_argument(
        "-S",
        dest="settings",
        metavar="key=value",
        action="append",
        default=[],
        help="one more setting, for example -S optimizer.lr=0.01; may be repeated",
    )
    arguments = parser.parse_args()
    try:
        if arguments.name is None:
            if arguments.settings:
                raise UserError(f"-S needs a preset before it; presets: {', '.join(preset_names())}")
            print("\n".join(f"{name:8}{describe(name)}" for name in preset_names()))
        else:
            print("\n".join(apply_preset(arguments.name, arguments.settings) or ["no change"]))
    except UserError as error:
        sys.exit(f"error: {error}")


def _walk(node: yaml.MappingNode, text: str, prefix: str, where: str) -> Iterator[tuple[str, Scalar]]:
    for key_node, value_node in node.value:
        key = prefix + str(key_node.value)
        start, end = value_node.start_mark.index, value_node.end_mark.index
        if start < key_node.end_mark.index:  # the place of the anchor, which may even lie around this one
            raise UserError(f"{where}: {key} repeats another value by an alias (*); write the value out")
        if isinstance(value_node, yaml.MappingNode):
            yield from _walk(value_node, text, key + ".", where)
        elif _is_plain(value_node):
            yield key, Scalar(text[start:end], _value(text[start:end]), start, end)


def _value(source: str) -> Any:
    return read_yaml(source, f"the value {shown(source)}")


def _is_scalar(source: str) -> bool:
    """True when all of ``source`` is one value: a ' #' in it would start a comment."""
    line = "key: " + source
    try:
        node = yaml.compose(line, Loader=Loader).value[0][1]
        _value(source)
    except (yaml.YAMLError, UserError):
        return False
    return "\n" not in source and _is_plain(node) and node.end_mark.index == len(line)


def _is_plain(node: yaml.Node) -> bool:
    """One number or text, or a list of such in brackets."""
    if isinstance(node, yaml.SequenceNode) and node.flow_style:
        return all(isinstance(item, yaml.ScalarNode) for item in node.value)
    return isinstance(node, yaml.ScalarNode)


def _neighbours(key: str, known: dict[str, Scalar]) -> list[str]:
    """The keys of the innermost block of ``key`` that exists, each once."""
    block = key.rpartition(".")[0]
    while block and not any(name.startswith(block + ".") for name in known):
        block = block.rpartition(".")[0]
    prefix = block + "." if block else ""
    return list(dict.fromkeys(prefix + name[len(prefix) :].split(".")[0] for name in known if name.startswith(prefix)))


def _same(old: Any, new: Any) -> bool:
    return old == new and isinstance(old, bool) == isinstance(new, bool)


if __name__ == "__main__":
    main()
