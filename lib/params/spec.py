"""Reading params.yaml and turning its blocks into frozen dataclasses, with errors of one line.

A dataclass field made with `param` carries its default and what is allowed. `parse` fills the
dataclass from a mapping and refuses unknown keys, wrong types and values out of range.
"""

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from lib.runtime.errors import UserError, shown

PARAMS_FILE = Path("params.yaml")
MERGE = "tag:yaml.org,2002:merge"  # of the key <<
LARGEST_WHOLE = 2**31 - 1
LONGEST_KEY = 60  # characters that an error repeats
SMALLEST, LARGEST = 1e-37, 1e37  # sizes of numbers that single precision holds
T = TypeVar("T")


class Loader(yaml.SafeLoader):
    """YAML as DVC writes it: 1e-4 is a number (YAML 1.2), where PyYAML would read a string.

    A key may not come twice, where PyYAML would take the last, nor be ``<<``, which can grow without bound.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        found = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in found or key.tag == MERGE:
                problem = "is not understood" if key.tag == MERGE else "occurs twice"
                raise yaml.constructor.ConstructorError(None, None, f"key {shown(key.value)} {problem}", key.start_mark)
            found.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, IndexError, AttributeError):  # a date of month 13, a number of 5,000 digits
            kind = node.tag.rpartition(":")[2]
            problem = f"{shown(node.value)} is not the {kind} that it looks like"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def load_yaml(path: Path, may_be_empty: bool = False) -> dict[str, Any]:
    """The mapping in a YAML file. Tags that would build Python objects are refused."""
    raw = read_yaml(read_yaml_text(path), str(path))
    if raw is None and may_be_empty:
        return {}
    if not isinstance(raw, dict):
        raise UserError(f"{path} must hold keys and values; it holds {type(raw).__name__}; write one key: value a line")
    return raw


def read_yaml_text(path: Path) -> str:
    """The text of a YAML file, with its line ends as they are."""
    try:
        return Path(path).read_bytes().decode()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; run from the repository's folder") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; save it as UTF-8") from None


def read_yaml(text: str, where: str) -> Any:
    """The value of a YAML text; ``where`` names it in errors.

    Raises:
        UserError: not YAML, a tag that is not plain YAML's, a key that comes twice, or text that looks like a
            date or a number and is none.
    """
    try:
        return yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{where} is not valid YAML: {_reason(error)}; mend that place") from None
    except RecursionError:
        raise UserError(f"{where} is not valid YAML: its blocks or lists are nested too deep; write fewer") from None
    except (ValueError, OverflowError) as error:  # an escape such as \UFFFFFFFF, which is no character
        raise UserError(f"{where} is not valid YAML: {' '.join(str(error).split())}; mend or remove it") from None


def _reason(error: yaml.YAMLError) -> str:
    """What is wrong and where, on one line, without the text around it."""
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    if not problem:
        return " ".join(str(error).split())
    return " ".join(problem.split()) + (f" in line {mark.line + 1}, column {mark.column + 1}" if mark else "")


def param(
    default: Any = dataclasses.MISSING,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: Sequence[str] | None = None,
    words: str | None = None,
) -> Any:
    """A field with what it allows: ``low <= value <= high``, ``value > above``, or one of ``choices``.

    ``words`` say what is allowed where neither can.
    """
    allowed = {"low": low, "high": high, "above": above, "choices": choices, "words": words}
    return dataclasses.field(default=default, metadata=allowed)


def parse(kind: type[T], raw: Any, where: str = "", also: Sequence[str] = ()) -> T:
    """Fill dataclass ``kind`` from the mapping ``raw``; ``where`` is its place in params.yaml.

    ``also`` are keys that may be there and are read elsewhere.

    Raises:
        UserError: an unknown or missing key, a wrong type or a value that is not allowed.
    """
    if not isinstance(raw, Mapping):
        names = ", ".join(sorted([*(field.name for field in dataclasses.fields(kind)), *also]))
        raise UserError(f"params.yaml: {where} is {shown(raw)}; allowed: a block of keys and values ({names})")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in raw:
        if key not in fields and key not in also:
            raise unknown_key(key, [*fields, *also], where)
    values = {}
    for name, field in fields.items():
        if name in raw:
            values[name] = _value(field, raw[name], join(where, name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UserError(f"params.yaml: {join(where, name)} is missing; allowed: {_allowed(field)}; add it")
    return kind(**values)


def unknown_key(key: Any, known: Iterable[str], where: str = "") -> UserError:
    known = sorted(known)
    return UserError(
        f"params.yaml: unknown key {join(where, key)}{nearest(key, known)}; allowed here: {', '.join(known)}; "
        "rename or remove it"
    )


def nearest(word: Any, known: Iterable[str]) -> str:
    """``(did you mean gamma?)`` of the known word that is most like ``word``; empty where none is."""
    found = difflib.get_close_matches(str(word)[:LONGEST_KEY], list(known), n=1)
    return f" (did you mean {found[0]}?)" if found else ""


def _value(field: dataclasses.Field, raw: Any, where: str) -> Any:
    kind = field.type
    if dataclasses.is_dataclass(kind):
        return parse(kind, raw, where)
    accepted = {int: int, float: (int, float), str: str, bool: bool}[kind]
    if not isinstance(raw, accepted) or (isinstance(raw, bool) and kind is not bool):
        raise UserError(f"params.yaml: {where} is {shown(raw)}; allowed: {_allowed(field)}{_spelling(kind, raw)}")
    rule = field.metadata
    fits = (
        (rule["low"] is None or raw >= rule["low"])
        and (rule["high"] is None or raw <= rule["high"])
        and (rule["above"] is None or raw > rule["above"])
        and (rule["choices"] is None or raw in rule["choices"])
    )
    bound = _bound_of_computing(kind, raw) if fits else ""
    if not fits or bound:
        raise UserError(f"params.yaml: {where} is {shown(raw)}; allowed: {_allowed(field)}{bound}")
    return kind(raw)


def _spelling(kind: type, raw: Any) -> str:
    """How to write a number that has the wrong type by its spelling alone."""
    if kind in (int, float) and isinstance(raw, str) and re.fullmatch(r"[-+]?\d+\.?\d*", raw):
        return ", without quotes"
    if kind is int and isinstance(raw, float) and abs(raw) <= LARGEST_WHOLE and raw.is_integer():
        return ", without a point or exponent"
    return ""


def _bound_of_computing(kind: type, raw: Any) -> str:
    """What no key allows, whatever its rule: a number that cannot be computed with. Empty where it can."""
    if kind is int and abs(raw) > LARGEST_WHOLE:
        return f" (and at most {LARGEST_WHOLE:,})"
    if kind is float and raw and not SMALLEST <= abs(raw) <= LARGEST:
        return f" (of a size from {SMALLEST:g} to {LARGEST:g})"
    return ""


def _allowed(field: dataclasses.Field) -> str:
    rule = field.metadata
    if dataclasses.is_dataclass(field.type):
        return "a block of " + ", ".join(inner.name for inner in dataclasses.fields(field.type))
    if rule["words"] is not None:
        return rule["words"]
    if rule["choices"] is not None:
        return ", ".join(repr(choice) for choice in rule["choices"])
    kind = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}[field.type]
    bounds = []
    if rule["above"] is not None:
        bounds.append(f"above {rule['above']:g}")
    if rule["low"] is not None:
        bounds.append(f"at least {rule['low']:g}")
    if rule["high"] is not None:
        bounds.append(f"at most {rule['high']:{'g' if field.type is float else ','}}")
    return " ".join([kind, " and ".join(bounds)]).strip()


def join(where: str, key: Any) -> str:
    """A key of params.yaml with its blocks, in quotes where it is no plain word."""
    name = key if isinstance(key, str) and re.fullmatch(r"[\w.-]+", key) and len(key) <= LONGEST_KEY else shown(key)
    return f"{where}.{name}" if where else name
