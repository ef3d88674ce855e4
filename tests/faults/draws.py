"""Drawn changes to params.yaml: every key by walking the file, values of every type and size, keys gone or added."""

import copy
import dataclasses
import datetime
import functools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lib.methods import method_class
from lib.params import evaluation, pretraining
from tests.examples import params_file

TYPES = (
    0,
    -1,
    1,
    2,
    7,
    0.0,
    -0.0,
    0.5,
    1.0,
    3.5,
    -0.1,
    1e30,
    -1e30,
    1e-30,
    1e300,
    5e-324,
    float("nan"),
    float("inf"),
    float("-inf"),
    "",
    " ",
    "x",
    "1",
    "0.1",
    "1e-3",
    "true",
    "null",
    "nan",
    "猫",
    "é" * 300,
    "two\nlines",
    "a.b",
    "-rf",
    "../x",
    "${seed}",
    "%s",
    True,
    False,
    None,
    [],
    [1, 2],
    [[]],
    {},
    {"x": 1},
    {1: {2: {3: 4}}},
    2**31 - 1,
    2**31,
    2**63,
    -(2**63),
    10**30,
    10**400,
    datetime.date(2024, 1, 1),
    b"bytes",
)
NAMES = (
    "x",
    "Epochs",
    "epochs ",
    "",
    "-rf",
    "a.b",
    "猫",
    "k" * 400,
    "two\nlines",
    1,
    1.5,
    None,
    True,
    "batch",
    "${seed}",
)
BLOCKS = {
    "optimizer": pretraining.Optimizer,
    "augment": pretraining.Augment,
    "monitor": pretraining.Monitor,
    "linear": evaluation.Linear,
    "knn": evaluation.Knn,
    "tsne": evaluation.Tsne,
}
Path_ = tuple  # of keys


@dataclasses.dataclass
class Case:
    """A changed params.yaml; ``changed`` are the places, ``value`` what a single change set there."""

    raw: dict[str, Any]
    changed: list[Path_]
    what: list[str]
    value: Any = None


def base() -> dict[str, Any]:
    """The study's params.yaml, made small, with every option of every variant's method written out."""
    return copy.deepcopy(_base())


@functools.cache
def _base() -> dict[str, Any]:
    raw = params_file(
        tsne={"points": 20, "perplexity": 5.0, "iterations": 250, "seed": 0},
        knn__k=5,
        linear__epochs=2,
        linear__study_epochs=1,
    )
    for block in raw["variants"].values():
        for field in dataclasses.fields(method_class(block["method"]).Options):
            block.setdefault(field.name, field.default)
    return raw


def places(block: dict[str, Any], above: Path_ = ()) -> Iterator[Path_]:
    """The place of every key, of blocks and of values."""
    for key, value in block.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from places(value, (*above, key))


def at(raw: dict[str, Any], place: Path_) -> Any:
    for key in place:
        raw = raw[key]
    return raw


def draw_case(number: int, within: tuple[str, ...] = ()) -> Case:
    """The case of a number, the same on every machine. Case ``number`` changes the place ``number`` at least.

    ``within``: the only blocks of the file that are changed; without any, all of it is.
    """
    stream = random.Random(f"params {number} {' '.join(within)}".rstrip())
    raw = base()
    every = [place for place in places(raw) if not within or place[0] in within]
    case = Case(raw, [], [])
    count = 1 if number % 3 else stream.randint(2, 4)
    for index in range(count):
        place = every[number % len(every)] if index == 0 else stream.choice(every)
        _change(case, place, stream)
    if count > 1:
        case.value = None
    return case


def _change(case: Case, place: Path_, stream: random.Random) -> None:
    try:
        block, old = at(case.raw, place[:-1]), at(case.raw, place)
    except (KeyError, TypeError, IndexError):
        return  # an earlier change took it away
    kind = stream.choices(("type", "range", "delete", "add", "copy"), (45, 35, 8, 8, 4))[0]
    if kind in ("type", "range"):
        case.value = block[place[-1]] = stream.choice(TYPES) if kind == "type" else _in_range(place, old, stream)
        case.changed.append(place)
    elif kind == "delete":
        del block[place[-1]]
        case.changed.append(place)
    elif kind == "add":
        case.value, name = stream.choice(TYPES), stream.choice(NAMES)
        block[name] = case.value
        case.changed.append((*place[:-1], name))
    else:
        name = stream.choice([*NAMES, "simclr2", "Joint_3", "9"])
        case.raw["variants"][name] = copy.deepcopy(stream.choice(list(base()["variants"].values())))
        case.changed.append(("variants", name))
    case.what.append(f"{kind} {place}")


def _in_range(place: Path_, old: Any, stream: random.Random) -> Any:
    """A value of the kind that belongs there, most of the time an allowed one."""
    choices = _choices(place)
    if choices:
        return stream.choice(choices)
    if isinstance(old, bool) or old is None or isinstance(old, (str, dict)):
        return copy.deepcopy(old)
    if isinstance(old, int):
        return stream.choice(
            (stream.randint(0, 9), stream.randint(1, 64), 8 * stream.randint(1, 8), int(10 ** stream.uniform(0, 9)))
        )
    return stream.choice(
        (stream.random(), 10 ** stream.uniform(-8, 2), float(stream.randint(0, 9)), stream.randint(0, 2))
    )


def _choices(place: Path_) -> list[str]:
    """The words that a key allows, from its type or from the names of files."""
    library = Path(pretraining.__file__).parents[1]
    files = {"encoder": "encoders", "method": "methods", "loss": "losses", "term": "losses"}
    if place[-1] in files and place[-1] != "name":
        return sorted(path.stem for path in (library / files[place[-1]]).glob("[a-z]*.py"))
    kinds = [BLOCKS[place[0]]] if place[0] in BLOCKS else [pretraining.Dataset, pretraining._Shared, pretraining.Watch]
    for field in (field for kind in kinds for field in dataclasses.fields(kind)):
        if field.name == place[-1] and field.metadata.get("choices"):
            return list(field.metadata["choices"])
    return []
