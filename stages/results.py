"""All variants' results in one table, with the tables and pictures of the report."""

from pathlib import Path
from typing import Any

from lib.runtime.stage import run_stage


def main(raw: dict[str, Any]) -> None:
    from lib.params.pretraining import variant_names
    from lib.report import figures, plot_tables, tables
    from lib.report.records import read_record
    from lib.runtime.files import write_table, write_text

    records = [read_record(variant) for variant in variant_names(raw)]
    metrics, plots = Path("metrics"), Path("plots")
    write_table(metrics / "results.csv", tables.result_rows(records))
    write_text(metrics / "results.md", tables.markdown(records))
    write_table(plots / "curves.csv", plot_tables.curves_table(records))
    write_table(plots / "accuracy.csv", plot_tables.accuracy_table(records))
    write_table(plots / "confusion.csv", plot_tables.confusion_table(records))
    figures.save_figure(plots / "curves.png", figures.curves_figure, records)
    figures.save_figure(plots / "accuracy.png", figures.accuracy_figure, records)
    figures.save_figure(plots / "confusion.png", figures.confusion_figure, records)


if __name__ == "__main__":
    run_stage(main, "Collect the results of all variants into tables and pictures.")
