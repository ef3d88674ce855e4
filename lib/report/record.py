"""Keep a finished run: ``python -m lib record NAME --title "..." --about "..."``.

Copies results.csv, params.yaml and the pictures to docs/results/NAME with a page that shows them, and puts the accuracy
table and chart into README.md between two markers, where it has them.
"""

import argparse
import re
import shutil
import subprocess
from pathlib import Path, PureWindowsPath

from lib.params.experiment import read_experiment
from lib.report.show import say
from lib.report.tables import LEGEND, accuracy_columns, main_rows, markdown_table, read_results, summary
from lib.runtime.dvc import ask_dvc
from lib.runtime.errors import UserError
from lib.runtime.files import size, write_text

RECORDS = Path("docs/results")
BEGIN, END = "<!-- record: begin -->", "<!-- record: end -->"
RESULTS, PAGE = "metrics/results.csv", "metrics/results.md"
PICTURES = {
    "plots/accuracy.png": "Accuracy on the test images",
    "plots/curves.png": "Loss and kNN accuracy on the validation images while training",
    "plots/confusion.png": "Confusion of the probe on the test images",
    "plots/tsne/overview.png": "t-SNE of the same test images: an illustration, not evidence",
}
LARGEST = 400_000  # bytes of a picture that git keeps for ever


def write_record(name: str, title: str, about: str, root: Path = Path(), notes: str = "") -> list[str]:
    """Copy the run in ``root`` to docs/results/``name``; returns lines that say what was done.

    ``notes``: Markdown that the page has before its tables. Refused before the first write: a ``name`` that is no plain
    folder name, a run that is not finished, code that differs from the commit or has none, an absolute ``images_path``.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UserError(f"{name!r} is not a usable name; allowed: letters, digits, ., _ and -, as in 2026-01-31-digits")
    commit = _commit(root)
    _require_finished(root)
    folder = root / RECORDS / name
    kept = [picture for picture in PICTURES if (root / picture).stat().st_size <= LARGEST]
    lines = [f"left out, larger than {size(LARGEST)}: {picture}" for picture in PICTURES if picture not in kept]
    folder.mkdir(parents=True, exist_ok=True)
    for source in ("params.yaml", RESULTS, *kept):
        shutil.copyfile(root / source, folder / Path(source).name)
    made = (
        f"Made with the code of commit {commit} (the last that changed lib, stages or dvc.yaml). "
        "Settings: [params.yaml](params.yaml); all numbers: [results.csv](results.csv)."
    )
    tables = (root / PAGE).read_text().removeprefix("# ").replace(f"../{LEGEND}", f"../../../{LEGEND}").strip()
    shown = "\n\n".join(f"![{PICTURES[picture]}]({Path(picture).name})" for picture in kept)
    parts = [f"# {title}", about, made, notes.strip(), tables, "## Pictures", shown]
    write_text(folder / "README.md", "\n\n".join(part for part in parts if part) + "\n")
    return [*lines, f"written: {folder}", _write_block(root, name, title, about)]


def _require_finished(root: Path) -> None:
    for path in (RESULTS, PAGE, *PICTURES):
        if not (root / path).is_file():
            raise UserError(f"{path} does not exist; a record needs a finished run: dvc repro")
    experiment = read_experiment(root / "params.yaml")
    images = experiment.dataset.images_path
    if Path(images).expanduser().is_absolute() or PureWindowsPath(images).is_absolute():
        why = "images_path is absolute, and a record must not name one machine's folders"
        how = "put a link beside params.yaml, set images_path to its name and run dvc repro"
        raise UserError(f"params.yaml: {why}; {how}")
    if set(read_results(root / RESULTS)["variant"]) != set(experiment.variants):
        raise UserError(f"{RESULTS} has other variants than params.yaml; a record needs a finished run: dvc repro")
    if changed := ask_dvc("status", root=root):
        stages = ", ".join(list(changed)[:5])
        raise UserError(f"params.yaml, code or data are not those of the results ({stages} would run); dvc repro first")


def _write_block(root: Path, name: str, title: str, about: str) -> str:
    """The main latents' accuracies into README.md between its markers."""
    readme = root / "README.md"
    text = readme.read_text() if readme.is_file() else ""
    begin, end = text.find(BEGIN), text.find(END)
    if not 0 <= begin < end:
        return f"README.md has no {BEGIN} and {END} for a table to stand between: left as it is"
    table = summary(read_results(root / RESULTS))
    place, picture = f"{RECORDS.as_posix()}/{name}", next(iter(PICTURES))
    block = (
        f"\n**{title}.** {about}\n\n{markdown_table(main_rows(table), accuracy_columns(table))}\n\n"
        f"![{PICTURES[picture]}]({place}/{Path(picture).name})\n\n"
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
    parser = argparse.ArgumentParser(prog="python -m lib record", description="Keep the run under docs/results.")
    parser.add_argument("name", help="folder, for example 2026-01-31-digits")
    parser.add_argument("--title", required=True)
    parser.add_argument("--about", required=True, help="what was run, on what, and what to beware of")
    parser.add_argument("--notes", type=Path, help="a file of Markdown for the record's page: what was found")
    options = parser.parse_args(arguments)
    if options.notes and not options.notes.is_file():
        raise UserError(f"{options.notes} does not exist; --notes is a file of Markdown")
    notes = options.notes.read_text() if options.notes else ""
    say("\n".join(write_record(options.name, options.title, options.about, notes=notes)))
