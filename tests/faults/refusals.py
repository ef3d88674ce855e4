"""What the fault tests hold every bad input to: it is refused in one line, or what became of it is stated."""

from collections.abc import Callable
from typing import Any

import pytest

from lib.runtime.errors import UserError
from tests.faults.count import told, tried

LONGEST_LINE = 1_000  # characters: nobody reads more


def refused(call: Callable[[], Any], *words: str) -> str:
    """The one line in which ``call`` is refused; it holds every one of ``words``."""
    tried("inputs")
    with pytest.raises(UserError) as caught:
        call()
    line = str(caught.value)
    assert line and "\n" not in line and line.isprintable() and len(line) <= LONGEST_LINE, line
    for word in words:
        assert word in line, f"{word!r} is not in {line!r}"
    tried("refused")
    told(line)
    return line


def attempt(call: Callable[[], Any]) -> Any:
    """What ``call`` returns, or None where it is refused in one line; any other error is the test's failure."""
    tried("inputs")
    try:
        return call()
    except UserError as error:
        assert "\n" not in str(error)
        tried("refused")
        told(str(error))
        return None


def converted(call: Callable[[], Any]) -> Any:
    """What ``call`` returns; the caller checks that the conversion is stated."""
    tried("inputs")
    result = call()
    tried("converted")
    return result
