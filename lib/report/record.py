"""Keep results: ``python -m lib record NAME --title "..." --about "..."``.

docs/results/NAME receives one small file for each finished variant, and from all of these results.csv, pictures and a
page that shows them. Variants may so come from several machines over several days, and further seeds of them from the
record of a verdict. Once none is missing, the accuracy table and the first picture go into README.md between two
markers, where it has them.
"""

import argparse
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

import pandas

from lib.params.experiment import Experiment, read_experiment
from lib.params.spec import PARAMS_FILE
from lib.report.figures import save_figure
from lib.report.further_seeds import further_seeds
from lib.report.records import Record, read_record, replicates, require_same
from lib.report.results import pictures
from lib.report.show import say
from lib.report.tables import (
    LEGEND,
    accuracy_columns,
    latent_rows,
    main_rows,
    markdown,
    markdown_table,
    result_rows,
    summary,
)
from lib.runtime.dvc import ask_dvc
from lib.runtime.errors import UserError
from lib.runtime.files import read_json, size, write_json, write_table, write_text

RECORDS = Path("docs/results")
BEGIN, END = "<!-- record: begin -->", "<!-- record: end -->"
PICTURES = {
    "accuracy": "Accuracy on the test images",
    "plane": "What each latent tells of a degraded image: of which image it was, and of which class",
    "curves": "Loss and kNN accuracy on the validation images while training",
    "confusion": "Confusion of the probe on the test images",
}
LARGEST = 400_000  # bytes of a picture that git keeps for ever
SHARED = ("download", "resolve")  # the stages that those of a variant read
CODE = "code"  # of a run's file: the commit
FROM = "from"  # of a further seed's file, in place of the commit: the record of the verdict
READ = ("pretrain", "linear", "memory")  # the stages of a variant whose outputs `read_record` reads


def write_record(
    name: str, title: str, about: str, root: Path = Path(), notes: str = "", seeds_from: str | None = None
) -> list[str]:
    """Keep what is finished in ``root`` in docs/results/``name``; returns lines that say what was done.

    ``notes``: Markdown that the page has before its tables. ``seeds_from``: a verdict's record (`further_seeds`).
    Refused before the first write: a name that is no plain folder name, nothing finished, code that differs from the
    commit or has none, an absolute ``images_path``, another params.yaml, other images or other numbers than the record
    has.
    """
    for each in (name, seeds_from or name):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", each):
            allowed = "letters, digits, ., _ and -, as in 2026-01-31-digits"
            raise UserError(f"{each!r} is not a usable name; allowed: {allowed}")
    commit, experiment, folder = _commit(root), read_experiment(root / PARAMS_FILE), root / RECORDS / name
    _require_anywhere(experiment)
    if (kept := folder / PARAMS_FILE).is_file() and kept.read_text() != (root / PARAMS_FILE).read_text():
        raise UserError(f"{RECORDS / name} is a record of another params.yaml; take that one, or name another record")
    new = {variant: read_record(variant, root).as_json() | {CODE: commit} for variant in _finished(experiment, root)}
    runs = _runs(folder, new, experiment)
    records = [_from_json(variant, run, folder) for variant, run in runs.items()]
    if seeds_from:
        further = further_seeds(records, root / RECORDS / seeds_from, experiment)
        runs |= {record.variant: record.as_json() | {FROM: seeds_from} for record in further}
        records += further
    if len(images := {record.data: record.variant for record in records}) > 1:
        raise UserError(f"runs of different images: {', '.join(images.values())}; a record needs one data set")
    frame = result_rows(records)
    missing = ", ".join(variant for variant in experiment.variants if variant not in runs)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(root / PARAMS_FILE, kept)
    for variant, run in runs.items():
        write_json(folder / f"runs/{variant}.json", run)
    waiting = f"**Not finished yet**: {missing}." if missing else ""
    lines = _write_pages(folder, records, frame, [f"# {title}", about, waiting, _made(runs), notes.strip()])
    lines.append(f"written: {folder}, with {len(new)} of its {len(runs)} runs from here")
    if missing:
        return [*lines, f"README.md is left as it is until these are finished, too: {missing}"]
    return [*lines, _write_block(root, name, title, about, summary(frame))]


def _made(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """Where the numbers of a page come from."""
    commits = ", ".join(sorted({run[CODE] for run in runs.values() if CODE in run}))
    made = f"Made with the code of commit {commits} (the last that changed lib, stages or dvc.yaml). "
    made += "Settings: [params.yaml](params.yaml); all numbers: [results.csv](results.csv); by variant: [runs](runs)."
    for verdict in sorted({run[FROM] for run in runs.values() if FROM in run}):
        theirs = ", ".join(f"`{variant}`" for variant, run in runs.items() if run.get(FROM) == verdict)
        made += f" Further seeds, without validation, curves and confusion: {theirs}, which are runs of "
        made += f"[{verdict}](../{verdict}/README.md)."
    return made


def _write_pages(folder: Path, records: Sequence[Record], frame: pandas.DataFrame, head: Sequence[str]) -> list[str]:
    """results.csv, pictures, and README.md, which begins with ``head``; returns what was left out."""
    groups, lines = replicates(records), []
    write_table(folder / "results.csv", frame)
    drawn = pictures(groups, latent_rows(summary(frame)))
    for name in PICTURES:
        save_figure(path := folder / f"{name}.png", *drawn[name])
        if path.stat().st_size > LARGEST:
            lines.append(f"left out, larger than {size(LARGEST)}: {path.name}")
            path.unlink()
    tables = markdown(frame).removeprefix("# ").replace(f"../{LEGEND}", f"../../../{LEGEND}").strip()
    shown = "\n\n".join(f"![{PICTURES[name]}]({name}.png)" for name in PICTURES if (folder / f"{name}.png").is_file())
    parts = [*head, tables, "## Pictures", shown]
    write_text(folder / "README.md", "\n\n".join(part for part in parts if part) + "\n")
    return lines


def _from_json(variant: str, run: Mapping[str, Any], folder: Path) -> Record:
    try:
        record = Record.from_json(run)
        result_rows([record])  # which reads all that tables do
        origin = FROM if FROM in run else CODE
        if run["variant"] != variant or not all(isinstance(run[key], str) for key in ("data", origin)):
            raise ValueError("another variant's, or without its data and code")
        return record
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder}/runs/{variant}.json is damaged or of another version ({error}); remove it") from None


def _require_anywhere(experiment: Experiment) -> None:
    images = experiment.dataset.images_path
    if Path(images).expanduser().is_absolute() or PureWindowsPath(images).is_absolute():
        why = "images_path is absolute, and a record must not name one machine's folders"
        how = "put a link beside params.yaml, set images_path to its name and run dvc repro"
        raise UserError(f"params.yaml: {why}; {how}")


def _finished(experiment: Experiment, root: Path) -> list[str]:
    """The variants whose outputs are those of params.yaml, code and data, as DVC knows them."""
    changed = ask_dvc("status", root=root)
    if stale := [stage for stage in SHARED if stage in changed]:
        raise UserError(f"params.yaml, code or data have changed ({', '.join(stale)} would run); dvc repro first")
    return [name for name in experiment.variants if not any(f"{stage}@{name}" in changed for stage in READ)]


def _runs(folder: Path, new: dict[str, dict], experiment: Experiment) -> dict[str, dict]:
    """The runs that the record has and ``new`` ones, in the order of params.yaml, others behind."""
    there = {path.stem: read_json(path) for path in sorted((folder / "runs").glob("*.json"))}
    for variant, run in new.items():
        require_same(folder / f"runs/{variant}.json", run, but=CODE)
    runs = {**new, **there}
    if not runs:
        raise UserError("no variant is finished; dvc repro first")
    order = [*experiment.variants, *runs]
    return {variant: runs[variant] for variant in sorted(runs, key=order.index)}


def _write_block(root: Path, name: str, title: str, about: str, table: pandas.DataFrame) -> str:
    """The main latents' accuracies into README.md between its markers; floors stand in the rows that they are of."""
    readme = root / "README.md"
    text = readme.read_text() if readme.is_file() else ""
    begin, end = text.find(BEGIN), text.find(END)
    if not 0 <= begin < end:
        return f"README.md has no {BEGIN} and {END} for a table to stand between: left as it is"
    rows = main_rows(table).query("epochs > 0")
    place, picture = f"{RECORDS.as_posix()}/{name}", next(iter(PICTURES))
    block = (
        f"\n**{title}.** {about}\n\n{markdown_table(rows, accuracy_columns(table))}\n\n"
        f"![{PICTURES[picture]}]({place}/{picture}.png)\n\n"
        f"[What each column means]({LEGEND}); runs, further latents, pictures: [{place}]({place}/README.md).\n"
    )
    write_text(readme, text[: begin + len(BEGIN)] + block + text[end:])
    return "written: the table in README.md"


def _commit(root: Path) -> str:
    """The last commit that changed the code that is there now."""

    def git(*arguments: str) -> str:
        command = ["git", *arguments, "--", "lib", "stages", "dvc.yaml"]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    needs = "a record needs code that can be found again"
    try:
        changed, commit = git("status", "--porcelain"), git("log", "-1", "--format=%h of %cs")
    except (OSError, subprocess.CalledProcessError):
        how = "git init, commit everything, then run dvc repro"
        raise UserError(f"this folder is no git repository with commits; {needs}: {how}") from None
    if changed or not commit:
        path = changed.split()[-1] if changed else "lib"
        raise UserError(f"{path} differs from the last commit; {needs}: commit it and run dvc repro")
    return commit


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m lib record", description="Keep what is finished under docs/results."
    )
    parser.add_argument("name", help="folder, for example 2026-01-31-digits")
    parser.add_argument("--title", required=True)
    parser.add_argument("--about", required=True, help="what was run, on what, and what to beware of")
    parser.add_argument("--notes", type=Path, help="a file of Markdown for the record's page: what was found")
    parser.add_argument(
        "--seeds-from", metavar="RECORD", help="a verdict's record whose runs are further seeds of variants"
    )
    options = parser.parse_args(arguments)
    if options.notes and not options.notes.is_file():
        raise UserError(f"{options.notes} does not exist; --notes is a file of Markdown")
    notes = options.notes.read_text() if options.notes else ""
    say("\n".join(write_record(options.name, options.title, options.about, notes=notes, seeds_from=options.seeds_from)))
