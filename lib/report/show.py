"""The accuracy table in the terminal: ``python -m lib show``."""

import argparse
import os
import shutil
import sys
import textwrap
from pathlib import Path

import pandas

from lib.report.plane import plane_sentence
from lib.report.tables import accuracy_columns, cells, main_rows, read_results, summary, title, units

RESULTS = Path("metrics/results.csv")
HEADER, LONGER, PROSE = 8, 14, 100  # characters of a line of a header, of one of many words, of sentences in a pipe
SPELLED = str.maketrans({"±": "+-", "·": ".", "Δ": "minus", "λ": "lambda"})  # where a terminal lacks a character
UNTOLD = ("validation_top1", "study_top5")  # in metrics/results.md


def show(path: Path = RESULTS, width: int | None = None, every: bool = False, encoding: str = "utf-8") -> str:
    """What the plane of bits says, and the table of results.csv as aligned text.

    Main latents alone, unless ``every``; the last columns are left out where ``width`` has no room for them.
    """
    frame = read_results(path)
    table = summary(frame)
    shown = table if every else main_rows(table)
    columns = {key: name for key, name in accuracy_columns(shown).items() if key not in UNTOLD}
    left_out, rows = list[str](), _aligned(shown, columns, encoding)
    while width and len(rows[0]) > width and len(columns) > 2:
        left_out.insert(0, columns.popitem()[1])
        if "study_top1" not in columns:  # all that was published
            shown = shown.dropna(subset=["group"])
        rows = _aligned(shown, columns, encoding)
    more = f"{', '.join(left_out)} in a wider terminal; " if left_out else ""
    hidden = 0 if every else len(table) - len(main_rows(table))
    latents = f"{hidden} latents and projections with --all; " if hidden else ""
    said = plane_sentence(table)
    lines = [title(frame), "", *([said, ""] if said else []), units(frame), "", *rows, ""]
    lines += [f"More: {spelled(more, encoding)}{latents}all in metrics/results.md."]
    return "\n".join(line if line in rows else textwrap.fill(line, width or PROSE) for line in lines)


def _aligned(table: pandas.DataFrame, columns: dict[str, str], encoding: str) -> list[str]:
    """Headers of several lines, a rule, and the rows; names to the left, numbers to the right."""
    widths = {name: HEADER if name.count(" ") < 3 else LONGER for name in columns.values()}
    heads = [textwrap.wrap(name, width, break_long_words=False) for name, width in widths.items()]
    height = max(map(len, heads))
    lines = [[""] * (height - len(head)) + head for head in heads]
    rows = [[spelled(text, encoding) for text in row] for row in (*zip(*lines), *cells(table, columns))]
    room = [max(map(len, column)) for column in zip(*rows)]
    text = ["  ".join([row[0].ljust(room[0]), *map(str.rjust, row[1:], room[1:])]) for row in rows]
    return [*text[:height], "-" * len(text[0]), *text[height:]]


def spelled(text: str, encoding: str) -> str:
    """``text`` in characters that an encoding has."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(SPELLED).encode(encoding, "backslashreplace").decode(encoding)
    return text


def say(text: str) -> None:
    """Print, whatever the encoding of the other end, and without a word if it has been closed."""
    try:
        print(spelled(text, sys.stdout.encoding or "ascii"), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at its end


def main(arguments: list[str]) -> None:
    about = "The accuracies of the finished run. What the columns mean: docs/reading-the-table.md"
    parser = argparse.ArgumentParser(prog="python -m lib show", description=about)
    parser.add_argument("--all", action="store_true", help="further latents and projections too")
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    say(show(width=width, every=parser.parse_args(arguments).all, encoding=sys.stdout.encoding or "ascii"))
