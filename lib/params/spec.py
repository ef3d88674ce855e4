"""Reading params.yaml and turning its blocks into frozen dataclasses, with errors of one line.

A dataclass field made with `param` carries its default and what is allowed. `parse` fills the
dataclass from a mapping and refuses unknown keys, wrong types and values out of range.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from lib.errors import UserError

PARAMS_FILE = Path("params.yaml")
T = TypeVar("T")


class Loader(yaml.SafeLoader):
    """YAML as DVC writes it: 1e-4 is a number (YAML 1.2), where PyYAML would read a string."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def load_yaml(path: Path, may_be_empty: bool = False) -> dict[str, Any]:
    """The mapping in a YAML file. Tags that would build Python objects are refused."""
    try:
        raw = yaml.load(Path(path).read_text(), Loader=Loader)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; run from the repository's folder") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; save it as UTF-8") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if raw is None and may_be_empty:
        return {}
    if not isinstance(raw, dict):
        raise UserError(f"{path} must hold keys and values; it holds {type(raw).__name__}")
    return raw


def param(default: Any = dataclasses.MISSING, *, low: float | None = None, high: float | None = None,
          above: float | None = None, choices: Sequence[str] | None = None) -> Any:
    """A field with what it allows: ``low <= value <= high``, ``value > above``, or one of ``choices``."""
    allowed = {"low": low, "high": high, "above": above, "choices": choices}
    return dataclasses.field(default=default, metadata=allowed)


def parse(kind: type[T], raw: Any, where: str = "") -> T:
    """Fill dataclass ``kind`` from the mapping ``raw``; ``where`` is its place in params.yaml.

    Raises:
        UserError: an unknown or missing key, a wrong type or a value that is not allowed.
    """
    if not isinstance(raw, Mapping):
        raise UserError(f"params.yaml: {where} must be a block of keys and values, not {raw!r}")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in raw:
        if key not in fields:
            raise UserError(f"params.yaml: unknown key {_join(where, key)}; allowed here: {', '.join(sorted(fields))}")
    values = {}
    for name, field in fields.items():
        if name in raw:
            values[name] = _value(field, raw[name], _join(where, name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UserError(f"params.yaml: {_join(where, name)} is missing; allowed: {_allowed(field)}")
    return kind(**values)


def _value(field: dataclasses.Field, raw: Any, where: str) -> Any:
    kind = field.type
    if dataclasses.is_dataclass(kind):
        return parse(kind, raw, where)
    accepted = {int: int, float: (int, float), str: str, bool: bool}[kind]
    if not isinstance(raw, accepted) or (isinstance(raw, bool) and kind is not bool):
        raise UserError(f"params.yaml: {where} is {raw!r}; allowed: {_allowed(field)}")
    rule = field.metadata
    fits = (
        (kind is not float or math.isfinite(raw))
        and (rule["low"] is None or raw >= rule["low"])
        and (rule["high"] is None or raw <= rule["high"])
        and (rule["above"] is None or raw > rule["above"])
        and (rule["choices"] is None or raw in rule["choices"])
    )
    if not fits:
        raise UserError(f"params.yaml: {where} is {raw!r}; allowed: {_allowed(field)}")
    return kind(raw)


def _allowed(field: dataclasses.Field) -> str:
    rule = field.metadata
    if dataclasses.is_dataclass(field.type):
        return "a block of " + ", ".join(inner.name for inner in dataclasses.fields(field.type))
    if rule["choices"] is not None:
        return ", ".join(repr(choice) for choice in rule["choices"])
    kind = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}[field.type]
    bounds = []
    if rule["above"] is not None:
        bounds.append(f"above {rule['above']:g}")
    if rule["low"] is not None:
        bounds.append(f"at least {rule['low']:g}")
    if rule["high"] is not None:
        bounds.append(f"at most {rule['high']:g}")
    return " ".join([kind, " and ".join(bounds)]).strip()


def _join(where: str, key: Any) -> str:
    return f"{where}.{key}" if where else str(key)
