"""The measurements as a page of tables, and the arithmetic of its numbers."""

import statistics
from collections.abc import Sequence
from typing import Any

from bench.plan import SECTIONS, name_of

Values = Sequence[float | None]  # one for each repetition; None where nothing was measured
Record = dict[str, Any]
ABOUT = (
    "Written by `make bench` ([docs/speed.md](../docs/speed.md)). A ratio is the other's time divided by Engram's, "
    "within each repetition, in which all arms run in turn, each in a process of its own that warms up first: the "
    "median, and in brackets the lowest and the highest of several. Memory is the most that the main process held, "
    "Python and torch included; on a GPU, that its tensors held. Pictures are random pixels in CIFAR-10's sizes, but "
    "for the time to accuracy."
)
STEP = (
    "Views, forward pass of each view, loss, backward pass, optimizer; the same encoder for all. Engram computes in "
    "the machine's precision, the others in fp32 as they come (on a GPU: tf32)."
)
NOTES = {
    "step": STEP,
    "large": STEP,
    "data": "From uint8 pictures in memory to normalized fp32 views, the same augmentation for all.",
    "loss": "Loss and gradient of 2N random embeddings of 128 features. Engram holds the matrix of all pairs only "
    "where it is small.",
    "embed": "One pass over all images without augmentation, and the 200 nearest neighbors of 10,000 test images.",
    "accuracy": "Seconds of training until the validation kNN (cosine, k 200, temperature 0.1) is reached, looked at "
    "twice an epoch; evaluations are not counted. One training each. Engram trains with preset `cpu` over 4 epochs at "
    "a constant rate of 0.002, which was chosen on the images that judge the race; the recipe runs as it comes.",
}


def document(results: dict[str, Record]) -> str:
    """The page in Markdown, from what was measured of each section."""
    parts = ["# Benchmark", ABOUT]
    for section in SECTIONS:
        parts += _section(section, results[section]) if section in results else []
    return "\n\n".join(parts) + "\n"


def ratios(ours: Values, other: Values) -> list[float | None]:
    """How many times as long the other took, within each repetition."""
    return [None if a is None or b is None else b / a for a, b in zip(ours, other, strict=True)]


def spread(values: Values, scale: float = 1.0) -> str:
    """The median, with the lowest and the highest of several; empty where nothing was measured."""
    there = [scale * value for value in values if value is not None]
    if not there:
        return ""
    shown = _three(statistics.median(there))
    return f"{shown} ({_three(min(there))} to {_three(max(there))})" if len(there) > 1 else shown


def _three(value: float) -> str:
    """Three digits, and whole numbers from a hundred on."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _section(section: str, found: Record) -> list[str]:
    facts = [f"- {found['date']}, commit {found['commit']}; load before the start: {found['load']}"]
    facts += [f"- {found[key]}" for key in ("machine", "versions", "about") if found.get(key)]
    parts = [f"## {SECTIONS[section]}", NOTES[section], "\n".join(facts)]
    if not found["quiet"]:
        parts.append("**The machine was not quiet: do not rely on these numbers.**")
    return [*parts, *(_table(row) for row in found["rows"])]


def _table(row: Record) -> str:
    """One comparison, an arm a line."""
    columns = ["", "time", *(["images/s"] if row["images"] else []), "ratio", "memory, MiB"]
    lines = [f"### {row['name']}", "", _line(columns), _line(["---", *["---:"] * (len(columns) - 1)])]
    first, *_ = row["runs"]
    own, notes = _seconds(row["runs"][first]), []
    for arm, runs in row["runs"].items():
        seconds = _seconds(runs)
        known = [value for value in seconds if value is not None]
        unit, scale = ("ms", 1e3) if known and statistics.median(known) < 1 else ("s", 1.0)
        cells = [f"{spread(seconds, scale)} {unit}" if known else "not reached" if "note" in runs[0] else "failed"]
        if row["images"]:
            cells.append(spread([None if value is None else row["images"] / value for value in seconds]))
        cells.append("1" if arm == first else spread(ratios(own, seconds)))
        lines.append(_line([name_of(arm), *cells, f"{max(run.get('memory', 0) for run in runs):.0f}"]))
        notes += [f"{name_of(arm)}: {run['note']}." for run in runs if "note" in run]
    return "\n".join([*lines, *(["", " ".join(notes)] if notes else [])])


def _seconds(runs: list[Record]) -> list[float | None]:
    return [run.get("seconds") for run in runs]


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
