"""DVC's experiments by what they change, with one measure per variant: ``python -m lib experiments``.

``dvc exp show`` has a column for every parameter and every number; this has those that differ, in `WIDTH` characters.
``--picture sweep.png`` draws the measure by the number that a sweep has changed.
"""

import argparse
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.params.spec import PARAMS_FILE
from lib.preset import flat
from lib.report.show import say
from lib.runtime.dvc import ask_dvc
from lib.runtime.errors import UserError, clipped

WIDTH = 100  # characters
MEASURES = {
    "top1": "probe top-1, %",
    "knn": "kNN top-1, %",
    "episode_bits": "episode bits",
    "concept_bits": "concept bits",
}
FILES = {name: f"metrics/{'memory/' if 'bits' in name else ''}{{}}.json" for name in MEASURES}


@dataclass(frozen=True)
class Row:
    """One state of the project: its parameters, what they ``changed`` of the last commit's, the measure by variant."""

    name: str
    changed: str
    values: dict[str, float]
    params: dict[str, Any]


def rows_of(shown: list[dict[str, Any]], measure: str) -> list[Row]:
    """From what ``dvc exp show --json`` prints: the last commit, the workspace where it is none of the others, the
    commit's experiments."""
    workspace, commit = shown[:2]
    runs = [(run["name"], run["revs"][0]) for run in commit["experiments"] or ()]
    before = _params(commit)
    named = [("last commit", commit), ("workspace", workspace), *((name or run["rev"][:7], run) for name, run in runs)]
    rows = []
    for name, revision in named:
        after = _params(revision)
        changed = [f"{key}={value}" for key, value in after.items() if before.get(key, after) != value]
        changed += [f"no {key}" for key in before if after and key not in after]
        metrics = (revision["data"] or {}).get("metrics", {})
        values: dict[str, float] = {}
        for variant in dict.fromkeys(key.split(".")[1] for key in after if key.startswith("variants.")):
            numbers = metrics.get(FILES[measure].format(variant), {}).get("data") or {}
            values |= {variant: numbers[measure]} if measure in numbers else {}
        rows.append(Row(name, ", ".join(changed) or ("" if revision["data"] else "did not end"), values, after))
    commit_row, here, *others = rows
    same = any((here.params, here.values) == (row.params, row.values) for row in (commit_row, *others))
    return [commit_row, *others] if same else rows


def swept(rows: list[Row]) -> tuple[str, dict[float, Row]]:
    """The one number that differs between commit and experiments, and these by it; each value once, the latest of it.

    A variant's own number that a run lacks is the shared one there. A UserError says that there is no such number, or
    more than one. DVC lists the newest experiment first.
    """
    runs = [row for row in rows if row.values and row.name != "workspace"]
    runs[1:] = reversed(runs[1:])

    def value(row: Row, key: str) -> Any:
        shared = key.split(".", 2)[2] if key.startswith("variants.") else key
        return row.params.get(key, row.params.get(shared))

    keys = dict.fromkeys(key for row in runs for key in row.params)
    varied = [key for key in keys if len({str(value(row, key)) for row in runs}) > 1]
    numbers = [type(value(row, key)) in (int, float) for key in varied for row in runs]
    if len(varied) != 1 or not all(numbers):
        needs = "a picture needs experiments that differ in one number of params.yaml"
        raise UserError(f"{needs}; these differ in {', '.join(varied) or 'none'}")
    by_value = {value(row, varied[0]): row for row in runs}
    return varied[0], dict(sorted(by_value.items()))


def series_of(runs: dict[float, Row]) -> dict[str, list[tuple[float, list[float]]]]:
    """By group of variants that differ in their seed alone, under the first one's name: a run's number, its values."""
    groups: dict[str, list[str]] = {}
    for name in names(runs.values()):
        start = f"variants.{name}."
        params = {key: value for row in runs.values() for key, value in row.params.items() if key.startswith(start)}
        own = {key.removeprefix(start): value for key, value in params.items() if key != f"{start}seed"}
        groups.setdefault(str(own), []).append(name)
    series: dict[str, list[tuple[float, list[float]]]] = {}
    for members in groups.values():
        found = [(x, [row.values[name] for name in members if name in row.values]) for x, row in runs.items()]
        series[members[0]] = [(x, values) for x, values in found if values]
    return series


def untrained(runs: dict[float, Row]) -> set[str]:
    return {name for row in runs.values() for name in row.values if row.params.get(f"variants.{name}.epochs") == 0}


def _params(revision: dict[str, Any]) -> dict[str, Any]:
    found = (revision["data"] or {}).get("params", {}).get(str(PARAMS_FILE), {})
    return dict(flat(found.get("data") or {}))


def table(rows: list[Row], width: int = WIDTH) -> Iterator[str]:
    """Lines of at most ``width`` characters: variants that differ as columns, in several tables if need be; then those
    whose value is one in all rows."""
    values = {name: [row.values.get(name) for row in rows] for name in names(rows)}
    equal = {name: found[0] for name, found in values.items() if len(set(found)) == 1}
    columns = {name: [_text(value) for value in found] for name, found in values.items() if name not in equal}
    changed = [clipped(row.changed, width // 3) for row in rows]
    lines = left = _beside(["experiment", *(clipped(row.name, width // 3) for row in rows)], ["changed", *changed])
    for name, texts in columns.items():
        wider = _beside(lines, [name, *texts], str.rjust)
        if lines is not left and len(wider[0]) > width:  # a further table
            yield from (*lines, "")
            wider = _beside(left, [name, *texts], str.rjust)
        lines = wider
    yield from (*(line.rstrip() for line in lines), "")
    same = ", ".join(f"{key} {_text(value)}" for key, value in equal.items())
    yield from textwrap.wrap(f"the same in all: {same}" if same else "", width)


def names(rows: Iterable[Row]) -> list[str]:
    """All variants, in order."""
    return list(dict.fromkeys(name for row in rows for name in row.values))


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _beside(left: list[str], right: list[str], place: Any = str.ljust) -> list[str]:
    """Two columns of lines, each as wide as its longest."""
    widths = max(map(len, left)), max(map(len, right))
    return [f"{one.ljust(widths[0])}  {place(other, widths[1])}" for one, other in zip(left, right)]


def main(arguments: list[str]) -> None:
    about = "What experiments changed, and one measure of each variant's main latent."
    parser = argparse.ArgumentParser(prog="python -m lib experiments", description=about)
    parser.add_argument("measure", nargs="?", choices=list(MEASURES), default="top1", help="probe top-1 unless given")
    parser.add_argument("--picture", type=Path, metavar="FILE.png", help="of a sweep: the measure by the swept number")
    chosen = parser.parse_args(arguments)
    shown = ask_dvc("exp", "show")
    if len(shown) < 2:
        how = "git commit, then dvc exp run"
        raise UserError(f"this repository has no commit, which experiments are held against; {how}")
    if chosen.picture and chosen.picture.suffix != ".png":
        raise UserError(f"--picture is {chosen.picture}; allowed: a file that ends in .png")
    rows = rows_of(shown, chosen.measure)
    if not names(rows):
        there = ", ".join(name for name in MEASURES if names(rows_of(shown, name)))
        raise UserError(f"no experiment has {chosen.measure}; {f'there are {there}' if there else 'dvc repro'}")
    say("\n".join([chosen.measure, "", *table(rows)]))
    if chosen.picture:
        from lib.report.figures import save_figure
        from lib.report.figures_sweep import sweep_figure

        key, runs = swept(rows)
        save_figure(chosen.picture, sweep_figure, key, MEASURES[chosen.measure], series_of(runs), untrained(runs))
        say(f"drawn: {chosen.picture}")
