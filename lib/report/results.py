"""All variants' results: the tables and pictures that the stage ``results`` writes."""

from pathlib import Path

from lib.params.experiment import Experiment
from lib.report import charts, tables
from lib.report.figures import save_figure
from lib.report.figures_tsne import overview_figure
from lib.report.records import ranked, read_record, replicates
from lib.runtime.files import read_arrays, write_table, write_text


def write_results(experiment: Experiment, root: Path = Path()) -> None:
    """metrics/results.{csv,md}, plots/{curves,accuracy,confusion}.{csv,png} and plots/tsne/overview.png."""
    records = [read_record(variant, root) for variant in experiment.variants]
    groups = replicates(records)
    frame = tables.result_rows(records)
    table = tables.latent_rows(tables.summary(frame))  # pictures would not hold projections too
    write_table(root / "metrics/results.csv", frame)
    write_text(root / "metrics/results.md", tables.markdown(frame))
    plots = root / "plots"
    write_table(plots / "curves.csv", tables.curves_table(groups))
    write_table(plots / "accuracy.csv", tables.accuracy_table(table, ranked(groups)))
    write_table(plots / "confusion.csv", tables.confusion_table(groups))
    save_figure(plots / "curves.png", charts.curves_figure, groups)
    save_figure(plots / "accuracy.png", charts.accuracy_figure, groups, table)
    save_figure(plots / "confusion.png", charts.confusion_figure, groups)
    # a plane has no mean: of replicates the first is shown
    planes = {name: read_arrays(root / f"data/tsne/{name}.npz") for name in ranked(groups)}
    save_figure(plots / "tsne/overview.png", overview_figure, planes)
