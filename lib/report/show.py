"""The accuracy table in the terminal: ``python -m lib.report.show``."""

import csv
import sys
from pathlib import Path

from lib.runtime.errors import UserError

RESULTS_FILE = Path("metrics/results.csv")
COLUMNS = {
    "model": "model",
    "study_top1": "best top-1",
    "study_top5": "best top-5",
    "top1": "probe top-1",
    "top5": "probe top-5",
    "validation_top1": "val. top-1",
    "knn": "kNN",
}


def show_table(path: Path = RESULTS_FILE) -> None:
    """Print the accuracies of results.csv in percent: a rich table in a terminal, else plain columns."""
    rows = _rows(path)
    if sys.stdout.isatty():
        _show_rich(rows)
    else:
        print(plain(rows))


def plain(rows: list[list[str]]) -> str:
    """Columns aligned with spaces: names to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows)


def _rows(path: Path) -> list[list[str]]:
    if not Path(path).is_file():
        raise UserError(f"{path} does not exist; the stage that writes it has not run: dvc repro")
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = COLUMNS
    if any(row["protocol"].startswith("finetune") for row in rows):
        names = {key: name.replace("probe", "fine-tuned").replace("val.", "probe val.") for key, name in names.items()}
    return [list(names.values()), *([_cell(row[key]) for key in COLUMNS] for row in rows)]


def _cell(text: str) -> str:
    try:
        return f"{float(text):.2f}"
    except ValueError:
        return text or "-"


def _show_rich(rows: list[list[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title="accuracy in percent", title_justify="left")
    for number, name in enumerate(rows[0]):
        table.add_column(name, justify="right" if number else "left", no_wrap=not number)
    for row in rows[1:]:
        table.add_row(*row, style="dim" if row[0].endswith("(published)") else None)
    Console().print(table)


if __name__ == "__main__":
    try:
        show_table()
    except UserError as error:
        sys.exit(f"error: {error}")
