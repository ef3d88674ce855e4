"""How many faults a test run tried and what became of them, for the line at the end of the run."""

from collections import Counter
from typing import Any

SHOWN = {"inputs": "inputs tried", "refused": "refused in one line", "converted": "converted as stated"}

_counts: Counter[str] = Counter()
_lines: set[str] = set()


def tried(what: str, n: int = 1) -> None:
    """Add ``n`` to the figure ``what``: a key of `SHOWN`, or any words, which are shown as they are."""
    _counts[what] += n


def told(line: str) -> None:
    """Keep the line in which something was refused, for a person to read."""
    _lines.add(line)


def given() -> dict[str, Any]:
    """All of it as plain numbers and lists, for `add` in another process."""
    return {"counts": dict(_counts), "lines": lines()}


def add(found: dict[str, Any]) -> None:
    """Add what `given` gave in a process that ran a part of the tests."""
    _counts.update(found["counts"])
    _lines.update(found["lines"])


def lines() -> list[str]:
    """Every different line that was told, sorted."""
    return sorted(_lines)


def summary() -> str:
    """``inputs tried: 3, refused in one line: 2, ...``; empty when nothing was tried."""
    named = [what for what in SHOWN if what in _counts] + [what for what in _counts if what not in SHOWN]
    return ", ".join(f"{SHOWN.get(what, what)}: {_counts[what]:,}" for what in named)
