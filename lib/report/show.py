"""The accuracy table in the terminal: ``python -m lib show``."""

import argparse
import os
import shutil
import sys
import textwrap
from pathlib import Path

import pandas

from lib.report.tables import accuracy_columns, cells, read_results, summary, title

RESULTS = Path("metrics/results.csv")
HEADER = 14  # characters of a header's line
SPELLED = str.maketrans({"±": "+-", "·": "."})  # where the terminal has no such characters


def show(path: Path = RESULTS, width: int | None = None) -> str:
    """The table of results.csv as aligned text; the last columns are left out where ``width`` has no room for them."""
    frame = read_results(path)
    table = summary(frame)
    columns = accuracy_columns(table)
    columns.pop("study_top5", None)
    every, rows = len(columns), _aligned(table, columns)
    while width and len(rows[0]) > width and len(columns) > 2:
        columns.popitem()
        rows = _aligned(table, columns)
    lines = [textwrap.fill(title(frame), width or 1000), "percent of test images", "", *rows]
    if len(columns) < every:
        lines.append(f"{every - len(columns)} more in a wider terminal, or in metrics/results.md")
    return "\n".join(lines)


def _aligned(table: pandas.DataFrame, columns: dict[str, str]) -> list[str]:
    """Headers of several lines, a rule, and the rows; names to the left, numbers to the right."""
    heads = [textwrap.wrap(name, HEADER) for name in columns.values()]
    height = max(map(len, heads))
    lines = [[""] * (height - len(head)) + head for head in heads]
    rows = [*map(list, zip(*lines)), *cells(table, columns)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    text = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    return [*text[:height], "-" * len(text[0]), *text[height:]]


def say(text: str) -> None:
    """Print, whatever the encoding of the other end, and without a word if it has been closed."""
    encoding = sys.stdout.encoding or "ascii"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(SPELLED).encode(encoding, "backslashreplace").decode(encoding)
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at its end


def main(arguments: list[str]) -> None:
    about = "The accuracies of the finished run. What the columns mean: docs/reading-the-table.md"
    argparse.ArgumentParser(prog="python -m lib show", description=about).parse_args(arguments)
    say(show(width=shutil.get_terminal_size().columns if sys.stdout.isatty() else None))
