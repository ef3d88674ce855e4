"""All variants' results: the tables and pictures that the stage ``results`` writes."""

from pathlib import Path
from typing import Any

import pandas

from lib.params.experiment import Experiment
from lib.report import charts, plane, tables
from lib.report.figures import save_figure
from lib.report.figures_tsne import overview_figure
from lib.report.records import Groups, ranked, read_record, replicates
from lib.runtime.files import read_arrays, write_table, write_text
from lib.runtime.progress import StepProgress


def write_results(experiment: Experiment, root: Path = Path()) -> None:
    """metrics/results.{csv,md}, plots/{plane,curves,accuracy,confusion}.{csv,png}, plots/dose/ and
    plots/tsne/overview.png; plots/dose/dose.png only where a variant has a dose."""
    records = [read_record(variant, root) for variant in experiment.variants]
    groups = replicates(records)
    frame = tables.result_rows(records)
    table = tables.latent_rows(tables.summary(frame))  # pictures would not hold projections too
    write_table(root / "metrics/results.csv", frame)
    write_text(root / "metrics/results.md", tables.markdown(frame))
    plots = root / "plots"
    write_table(plots / "curves.csv", tables.curves_table(groups))
    points = plane.plane_table(groups, table)
    dosed = plane.dose_table(groups, points)
    colors = dict(zip(points["group"], points["color"]))
    write_table(plots / "plane.csv", points.round(4))
    write_table(plots / "dose/dose.csv", dosed.round(4))
    write_table(plots / "accuracy.csv", tables.accuracy_table(table, groups, colors))
    write_table(plots / "confusion.csv", tables.confusion_table(groups))
    # a 2-D embedding has no mean: of replicates the first is shown
    embedded = {name: read_arrays(root / f"data/tsne/{name}.npz") for name in ranked(groups)}
    found = {**pictures(groups, table), "tsne/overview": (overview_figure, embedded)}
    (plots / "dose/dose.png").unlink(missing_ok=True)
    if len(dosed):
        found["dose/dose"] = (plane.dose_figure, groups, dosed)
    with StepProgress("pictures", len(found)) as progress:
        for name, drawing in found.items():
            save_figure(plots / f"{name}.png", *drawing)
            progress.advance()


def pictures(groups: Groups, table: pandas.DataFrame) -> dict[str, tuple[Any, ...]]:
    """What draws each picture of all variants, and of what; ``table``: `tables.summary` without projections."""
    return {
        "plane": (plane.plane_figure, groups, plane.plane_table(groups, table)),
        "accuracy": (charts.accuracy_figure, groups, table),
        "curves": (charts.curves_figure, groups),
        "confusion": (charts.confusion_figure, groups),
    }
