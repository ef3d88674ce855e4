"""What the tests hold every bad input to: it is refused in one line that can be read."""

from collections.abc import Callable
from typing import Any

import pytest

from lib.runtime.errors import UserError

LONGEST_LINE = 1_000  # characters: nobody reads more


def refused(call: Callable[[], Any], *words: str) -> str:
    """The one line in which ``call`` is refused; it holds every one of ``words``."""
    with pytest.raises(UserError) as caught:
        call()
    line = str(caught.value)
    assert line and line.isprintable() and len(line) <= LONGEST_LINE, line
    for word in words:
        assert word in line, f"{word!r} is not in {line!r}"
    return line
