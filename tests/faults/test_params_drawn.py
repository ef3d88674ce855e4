"""Every key of params.yaml under drawn values: what it does not take is refused in one line that names the key.

The keys come from the typed dataclasses, those of each method's options among them: a new one cannot be forgotten.
"""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import Field, fields, is_dataclass
from datetime import date
from typing import Any

import pytest

from lib.methods import method_class, method_names, typed_options
from lib.params.evaluation import Knn, Linear, Transfer, Tsne
from lib.params.experiment import parse_experiment
from lib.params.pretraining import Augment, Dataset, Monitor, Optimizer, Shared
from lib.params.spec import NUMBERS, parse
from tests.faults.refusals import refused

BLOCKS = {"optimizer": Optimizer, "augment": Augment, "augment_second": Augment, "monitor": Monitor}
LATER = {"linear": Linear, "knn": Knn, "tsne": Tsne, "transfer": Transfer}
WORDS = ("", " ", "x", "1", "1e-3", "true", "nan", "猫", "é" * 300, "two\nlines", "a.b", "-rf", "${seed}", "$(rm x)")
ODD = (None, [], [[1]], {}, {"x": 1}, {1: {2: 3}}, date(2024, 1, 1), b"bytes")
HUGE = (2**31, -(2**63), 10**40, 10**5000)
DRAWS = 3  # of each kind of wrong value, for each key


def wrong_type(field: Field, stream: random.Random) -> Any:
    """A value of no type that the key takes."""
    others: dict[Any, tuple] = {
        int: (*WORDS, *ODD, True, False, 0.5, 3.0, math.inf),
        float: (*WORDS, *ODD, True, False),
        bool: (*WORDS, *ODD, 0, 1, 2.5),
        str: (*ODD, True, 0, 7, 2.5, *HUGE),
    }
    return stream.choice(others.get(field.type, (*WORDS, None, [], [[1]], True, 3, 0.5)))


def out_of_range(field: Field, stream: random.Random) -> list[Any]:
    """Values of the right type that the key's rule, or single precision, leaves out."""
    rule, step = field.metadata, 10 ** stream.uniform(-3, 6)
    if field.type is str and rule["choices"]:
        return [stream.choice(WORDS)]
    if field.type not in (int, float):
        return []
    if field.type is int:
        step = math.ceil(step)
    beyond = [rule["low"] - step] if rule["low"] is not None else []
    beyond += [rule["above"], rule["above"] - step] if rule["above"] is not None else []
    beyond += [rule["high"] + step] if rule["high"] is not None else []
    return [
        *beyond,
        stream.choice(HUGE if field.type is int else (1e300, -1e38, 1e-300, math.nan, math.inf, *HUGE[2:])),
    ]


def misspelled(key: str, known: set[str], stream: random.Random) -> str:
    """``key`` with a letter more, twice or gone, which no key is."""
    place = stream.randrange(len(key))
    ways = [key[:place] + letter + key[place:] for letter in ("x", key[place], "_")] + [key[:place] + key[place + 1 :]]
    return stream.choice([way for way in ways if way and way not in known])


def cases(kind: Any, known: set[str], seed: str) -> Iterator[tuple[str, Any]]:
    """Keys, right and misspelled, with values that they do not take, for every field of a dataclass."""
    stream = random.Random(seed)
    for field in fields(kind):
        for _ in range(DRAWS):
            yield field.name, wrong_type(field, stream)
            yield from ((field.name, value) for value in out_of_range(field, stream))
            yield misspelled(field.name, known, stream), stream.choice((0, "x", None))


def check(kind: Any, where: str, call: Callable[[dict[str, Any]], Any], *others: Any) -> None:
    """Each case is refused in one line that names its key, behind ``where``; ``others``: kinds whose keys are known."""
    known = {field.name for each in (kind, *others) for field in fields(each)} | {"variants", "method", *LATER}
    for key, value in cases(kind, known, where):
        line = refused(lambda: call({key: value}))
        assert line.startswith((f"params.yaml: {where}{key} is ", f"params.yaml: unknown key {where}{key}")), line


def file(top: dict[str, Any], **own: Any) -> Any:
    return parse_experiment({"variants": {"toy": {"method": "vicreg", **own}}, **top})


def test_every_key_of_the_file():
    check(Dataset, "", file, Shared)
    check(Shared, "", file, Dataset)
    for name, kind in {**BLOCKS, **LATER}.items():
        check(kind, f"{name}.", lambda own: file({name: own}))


@pytest.mark.parametrize("method", method_names())
def test_every_key_of_a_variant(method):
    def typed(own: dict[str, Any]) -> Any:
        return typed_options(file({}, **{"method": method, **own}).variants["toy"])

    options = method_class(method).Options
    assert typed({}) == options()
    check(options, "variants.toy.", typed, Shared)
    check(Shared, "variants.toy.", typed, options)
    for name, kind in BLOCKS.items():
        check(kind, f"variants.toy.{name}.", lambda own: typed({name: own}))


@pytest.mark.parametrize("kind", [Dataset, Shared, *BLOCKS.values(), *LATER.values()])
def test_what_a_key_allows_is_taken_as_its_type(kind):
    stream = random.Random(kind.__name__)
    for field in fields(kind):
        rule = field.metadata
        allowed: list[Any] = [{}] if is_dataclass(field.type) else [True, False] if field.type is bool else ["any text"]
        if field.type in (int, float):
            least = rule["low"] if rule["above"] is None else rule["above"] + 1e-3
            most = least + 1e6 if rule["high"] is None else rule["high"]
            allowed = [least, stream.uniform(math.ceil(least), most), most]
        if field.type == NUMBERS:
            allowed = [[rule["high"]], [0.1, rule["high"]]]
        for value in rule.get("choices") or allowed:
            given = field.type(value) if field.type in (int, float) else value
            taken = getattr(parse(kind, {field.name: given}), field.name)
            if field.type == NUMBERS:
                assert taken == tuple(given)
            else:
                assert type(taken) is field.type and (taken == given or is_dataclass(taken)), field.name
