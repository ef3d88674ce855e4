"""Reading params.yaml and turning its blocks into frozen dataclasses, with errors of one line.

A dataclass field made with `param` carries its default and what is allowed. `parse` fills the dataclass from a
mapping and refuses unknown keys, wrong types and values out of range.
"""

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any, TypeVar

import yaml

from lib.runtime.errors import UserError, shown

PARAMS_FILE = Path("params.yaml")
MERGE = "tag:yaml.org,2002:merge"  # of the key <<
LARGEST_WHOLE = 2**31 - 1
LONGEST_KEY = 60  # characters that an error repeats
SMALLEST, LARGEST = 1e-37, 1e37  # sizes of numbers that single precision holds
TYPES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
NUMBERS = tuple[float, ...]
T = TypeVar("T")


class Loader(yaml.SafeLoader):
    """YAML as DVC writes it: 1e-4 is a number (YAML 1.2), where PyYAML would read a string.

    A key may not come twice, where PyYAML would take the last, nor be ``<<``, which can grow without bound.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen or key.tag == MERGE:
                problem = "is not understood" if key.tag == MERGE else "occurs twice"
                raise _error(f"key {shown(key.value)} {problem}", key)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError):  # a date of month 13, a number of 5,000 digits
            raise _error(f"{shown(node.value)} is not the {node.tag.rpartition(':')[2]} it looks like", node) from None


def _error(problem: str, node: yaml.Node) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def load_yaml(path: Path, may_be_empty: bool = False) -> dict[str, Any]:
    """The mapping in a YAML file. Tags that would build Python objects are refused."""
    try:
        raw = read_yaml(path.read_bytes(), str(path))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; run from the repository's folder") from None
    if raw is None and may_be_empty:
        return {}
    if not isinstance(raw, dict):
        raise UserError(f"{path} must hold keys and values; it holds {type(raw).__name__}; write one key: value a line")
    return raw


def read_yaml(text: str | bytes, where: str) -> Any:
    """The value of a YAML text; ``where`` names it in errors.

    Refused: a tag that is not plain YAML's, a key that comes twice, text that looks like a date or number and is none.
    """
    try:
        return yaml.load(text, Loader=Loader)
    except RecursionError:
        reason = "its blocks or lists are nested too deep"
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # ValueError: \UFFFFFFFF, which is no character
        problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
        place = f" in line {mark.line + 1}, column {mark.column + 1}" if problem and mark else ""
        reason = " ".join(str(problem or error).split()) + place
    raise UserError(f"{where} is not valid YAML: {reason}; mend that place")


def param(
    default: Any = dataclasses.MISSING,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: Sequence[str] | None = None,
) -> Any:
    """A field with what it allows: ``low <= value <= high``, ``value > above``, or one of ``choices``."""
    return dataclasses.field(default=default, metadata={"low": low, "high": high, "above": above, "choices": choices})


def parse(kind: type[T], raw: Any, where: str = "", also: Sequence[str] = ()) -> T:
    """Fill dataclass ``kind`` from the mapping ``raw``; ``where`` is its place in params.yaml.

    ``also`` are keys that may be there and are read elsewhere. Refused: an unknown or missing key, a wrong type, a
    value that is not allowed.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    known = [*fields, *also]
    if not isinstance(raw, Mapping):
        raise not_allowed(where, shown(raw), f"a block of keys and values ({', '.join(sorted(known))})")
    for key in raw:
        if key not in known:
            raise unknown_key(key, known, where)
    values = {}
    for name, field in fields.items():
        if name in raw:
            values[name] = _value(field, raw[name], join(where, name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UserError(f"params.yaml: {join(where, name)} is missing; allowed: {_allowed(field)}; add it")
    return kind(**values)


def not_allowed(key: str, value: Any, allowed: str) -> UserError:
    return UserError(f"params.yaml: {key} is {value}; allowed: {allowed}")


def unknown_key(key: Any, known: Iterable[str], where: str = "") -> UserError:
    known = sorted(known)
    unknown = f"unknown key {join(where, key)}{nearest(key, known)}"
    return UserError(f"params.yaml: {unknown}; allowed here: {', '.join(known)}; rename or remove it")


def nearest(word: Any, known: Iterable[str]) -> str:
    """``(did you mean gamma?)`` of the known word that is most like ``word``; empty where none is."""
    close = difflib.get_close_matches(str(word)[:LONGEST_KEY], list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def join(where: str, key: Any) -> str:
    """A key of params.yaml with its blocks, in quotes where it is no plain word."""
    name = key if isinstance(key, str) and re.fullmatch(r"[\w.-]+", key) and len(key) <= LONGEST_KEY else shown(key)
    return f"{where}.{name}" if where else name


def _value(field: dataclasses.Field, raw: Any, where: str) -> Any:
    """``raw`` as the field's type, if it is of that type, as the field allows, and can be computed with."""
    kind: Any = field.type
    rule, bound = field.metadata, ""
    if dataclasses.is_dataclass(kind):
        return parse(kind, raw, where)  # type: ignore[arg-type]
    if kind == NUMBERS:
        if not isinstance(raw, list) or not raw or len(set(map(str, raw))) < len(raw):
            raise not_allowed(where, shown(raw), _allowed(field))
        each = copy(field)
        each.type = float
        return tuple(_value(each, item, where) for item in raw)
    if isinstance(raw, (int, float) if kind is float else kind) and (kind is bool or not isinstance(raw, bool)):
        if kind is int and abs(raw) > LARGEST_WHOLE:
            bound = f" (and at most {LARGEST_WHOLE:,})"
        elif kind is float and raw and not SMALLEST <= abs(raw) <= LARGEST:
            bound = f" (of a size from {SMALLEST:g} to {LARGEST:g})"
        elif (
            (rule["low"] is None or raw >= rule["low"])
            and (rule["high"] is None or raw <= rule["high"])
            and (rule["above"] is None or raw > rule["above"])
            and (rule["choices"] is None or raw in rule["choices"])
        ):
            return kind(raw)
    raise not_allowed(where, shown(raw), _allowed(field) + bound)


def _allowed(field: dataclasses.Field) -> str:
    """What a field takes, in words."""
    kind: Any = field.type
    rule = field.metadata
    if dataclasses.is_dataclass(kind):
        return "a block of " + ", ".join(inner.name for inner in dataclasses.fields(kind))
    if rule["choices"] is not None:
        return ", ".join(repr(choice) for choice in rule["choices"])
    words = {"above": "above", "low": "at least", "high": "at most"}
    shape = "," if kind is int else "g"
    bounds = [f"{word} {rule[name]:{shape}}" for name, word in words.items() if rule[name] is not None]
    name = "a list, each once, of numbers" if kind == NUMBERS else TYPES[kind]
    return " ".join([name, " and ".join(bounds)]).strip()
