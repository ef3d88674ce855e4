"""The one exception that a user is meant to read, how it quotes what the user gave, and where that is printed."""

import os
import reprlib
import sys
from typing import Any


def printable(text: str) -> str:
    """Text in which a character that does not print, or that would steer a terminal, is escaped."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def clipped(text: str, width: int) -> str:
    """At most ``width`` characters of a text: its beginning and its end."""
    return text if len(text) <= width else f"{text[: width // 3]}…{text[width // 3 + 1 - width :]}"


class UserError(Exception):
    """Something that the user can mend. One line: what is wrong, where, what is allowed, what to do.

    A name that was quoted may hold characters that would end the line or that do not print: they are escaped.
    """

    def __init__(self, text: str) -> None:
        super().__init__(printable(text))


class _Short(reprlib.Repr):
    """repr() of bounded length, also of what repr() cannot do: whole numbers of thousands of digits."""

    def repr_int(self, value: int, level: int) -> str:
        digits = int(value.bit_length() * 0.30103) + 1
        return repr(value) if digits <= 40 else f"a number of about {digits:,} digits"


_SHORT = _Short()
_SHORT.maxstring = _SHORT.maxother = 120
_SHORT.maxlevel = 2


def one_line(error: Exception) -> str:
    """What a library's error says."""
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__


def print_anywhere() -> None:
    """Let print() work where standard output is closed, or a pipe that lacks most characters."""
    if sys.stdout is None:  # closed before the start
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # for as long as the process
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def shown(value: Any) -> str:
    """``value`` as an error quotes it: its repr(), shortened in the middle where it is long or deep."""
    return _SHORT.repr(value)
