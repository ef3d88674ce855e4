"""The report's pictures, drawn of made-up runs."""

import statistics
from pathlib import Path

import numpy
import pandas
import pytest
from bokeh.models import Line
from matplotlib.collections import LineCollection

from lib.report import charts, tables
from lib.report.compare import floor
from lib.report.figures import COLORS, GRAY
from lib.report.figures_tsne import overview_figure
from lib.report.page.charts import curve_charts
from lib.report.records import Groups, read_record, replicates
from lib.runtime.files import read_arrays
from tests.report_runs import CLASSES, HALVES, RUNS, WRITTEN, titles, write_runs, written


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return written(tmp_path_factory.mktemp("runs"), RUNS)


@pytest.fixture(scope="module")
def groups(root) -> Groups:
    return replicates(read_record(variant, root) for variant in RUNS)


@pytest.fixture(scope="module")
def frame(root) -> pandas.DataFrame:
    return tables.read_results(root / "metrics/results.csv")


def test_losses_share_an_axis_within_a_family_and_replicates_a_band(groups):
    figure = charts.curves_figure(groups)
    assert titles(figure)[::2] == ["supervised: loss", "vicreg: loss", "simclr: loss"]
    loss = figure.axes[4]
    colored = {line.get_label(): line for line in loss.lines if line.get_color() != "0.85"}
    assert list(colored) == ["simclr", "dual"]
    curves = [record.curve.set_index("epoch")["loss"] for record in groups["simclr"]]
    assert colored["simclr"].get_ydata() == pytest.approx([statistics.mean(values) for values in zip(*curves)])
    band = loss.collections[0].get_paths()[0].get_extents()
    assert band.ymax == pytest.approx(max(statistics.mean(v) + statistics.stdev(v) for v in zip(*curves)))


def test_the_accuracy_chart_is_sorted_and_has_the_deviations(groups, frame):
    table = tables.summary(frame)
    axes = charts.accuracy_figure(groups, table).axes[0]
    first = ("trained with labels", "supervised, same views", "trained without labels", "vicreg", "simclr")
    labels = [tick.get_text() for tick in axes.get_yticklabels()]
    assert labels == [*first, *(f"dual · {name}" for name in HALVES), *("untrained",) * 2]
    bars = [lines.get_segments()[0] for lines in axes.collections if isinstance(lines, LineCollection)]
    left, right = next(bar[:, 0] for bar in bars if bar[0, 1] == 4)  # the probe of simclr, in its row
    assert right - left == pytest.approx(2 * table.iloc[0]["top1_sd"])
    floors = next(line for line in axes.lines if line.get_label() == "probe of the untrained encoder of its kind")
    told = {labels[int(y)]: x for x, y in floors.get_xydata()}
    assert told == table.dropna(subset="floor_top1").set_index("model")["floor_top1"].to_dict() and len(told) == 3


def test_the_ceiling_is_the_best_probe_with_labels_whatever_the_others_reach(tmp_path):
    labeled = {"method": "supervised", "supervised": True}
    runs = {
        "best": {**labeled, "wrong": 0.3},
        "short": {**labeled, "wrong": 0.5, "epochs": 6},
        "simclr": {"wrong": 0.1},
    }
    records = write_runs(tmp_path, runs)
    figure = charts.accuracy_figure(replicates(records), tables.summary(tables.result_rows(records)))
    drawn = {line.get_label(): set(line.get_xdata()) for line in figure.axes[0].lines}
    assert drawn["best probe of those with labels"] == {records[0].rows[0]["top1"]}


def test_a_floor_has_the_width_of_its_row(tmp_path):
    simclr, untrained = write_runs(tmp_path, {"simclr": {}, "untrained": {"epochs": 0}})
    groups = replicates([simclr, untrained])
    assert floor(simclr, simclr.rows[0], groups) == untrained.rows[0]["top1"]
    untrained.rows[0]["width"] = 256
    assert floor(simclr, simclr.rows[0], groups) is None


def test_accuracies_near_the_top_are_told_apart_and_chance_is_where_it_has_room(tmp_path, groups, frame):
    assert charts.accuracy_figure(groups, tables.summary(frame)).axes[0].get_xlim()[0] < 10
    records = write_runs(tmp_path, {"simclr": {"wrong": 0.01}})
    figure = charts.accuracy_figure(replicates(records), tables.summary(tables.result_rows(records)))
    assert figure.axes[0].get_xlim()[0] > 80
    assert "chance (10 %, far to the left)" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_group_has_one_color_in_every_picture_whatever_its_results(root, groups, frame):
    """By the order of params.yaml; what did not train is gray and takes none."""
    colors = {name: look["color"] for name, look in charts.looks(groups).items()}
    assert list(colors.values()) == [*COLORS[:4], GRAY] and list(colors)[-1] == "untrained"
    for file in ("accuracy", "plane"):
        table = pandas.read_csv(root / f"plots/{file}.csv")
        assert dict(zip(table["group"], table["color"])) == colors, file
    drawn = {line.get_label(): line.get_color() for panel in charts.curves_figure(groups).axes for line in panel.lines}
    trained = dict(list(colors.items())[:-1])
    assert {name: drawn[name] for name in trained} == trained
    for chart in curve_charts(groups):
        lines = [each for each in chart.renderers if isinstance(each.glyph, Line)]
        shown = {line.data_source.data["name"][0]: line.glyph.line_color for line in lines}
        assert shown and shown.items() <= trained.items(), chart.title.text


def test_pictures_of_25_variants_fit_on_a_page(tmp_path):
    runs = {f"joint_{number}": {"gamma": number / 100, "latents": ("h", "z", "both")} for number in range(25)}
    records = write_runs(tmp_path, runs)
    table, groups = tables.summary(tables.result_rows(records)), replicates(records)
    maps = {name: read_arrays(tmp_path / f"data/tsne/{name}.npz") for name in runs}
    figures = [charts.curves_figure(groups), charts.accuracy_figure(groups, table), charts.confusion_figure(groups)]
    assert all(figure.get_size_inches()[1] <= 12 for figure in (*figures, overview_figure(maps)))


def test_a_run_of_untrained_encoders_alone_has_its_pictures(tmp_path):
    written(tmp_path, {"untrained": {"epochs": 0, "classes": [f"class {number}" for number in range(100)]}})
    assert all((tmp_path / path).stat().st_size for path in WRITTEN)
    assert "; 0 epochs; " in (tmp_path / "metrics/results.md").read_text()


def test_the_overview_marks_what_collapsed_and_what_has_no_legend(root):
    maps = {name: read_arrays(root / f"data/tsne/{name}.npz") for name in ("simclr", "dual")}
    figure = overview_figure(maps)
    assert titles(figure) == ["simclr", *(f"dual · {name}" for name in HALVES)]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == CLASSES
    maps["dual"]["lower"] = numpy.zeros((200, 2))
    for arrays in maps.values():
        arrays["classes"] = numpy.array([f"class {number}$" for number in range(21)])
    figure = overview_figure(maps)
    said = [axes.texts[0].get_text() for axes in figure.axes if axes.get_visible()]
    assert said == ["", "", "collapsed: all rows equal", "", ""]
    assert not figure.legends and figure.get_suptitle() == "21 classes, no legend"
