"""Curves, accuracies and confusions as pictures, each at most a page tall."""

import math
from collections.abc import Sequence
from typing import Any

import numpy
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.report.figures import GRAY, draw_line, grid, look, readable
from lib.report.records import UNLABELED, Groups, Record, confusion_counts, percent_of_actual, ranked
from lib.report.tables import measures, with_deviation

SHAPES = {"top1": ("o", "full"), "knn": ("s", "none"), "study_top1": ("^", "none")}  # marker and filling of a measure
LINES = 5  # curves that one panel tells apart
PAGE = 11.5  # inches
ROW = 0.2  # inches of a row of the accuracy chart
CONFUSION_LABELS = 20  # with more classes their names would overlap


def looks(groups: Groups) -> dict[str, dict[str, Any]]:
    """One color, marker and dash for each group in every picture, by their order in params.yaml: results change none.

    Untrained encoders are gray and take no color from the others.
    """
    trained = [name for name, members in groups.items() if members[0].pretraining.epochs]
    floors = [name for name in groups if name not in trained]
    gray = {name: look(number) | {"color": GRAY} for number, name in enumerate(floors)}
    return {name: look(number) for number, name in enumerate(trained)} | gray


def curves_figure(groups: Groups) -> Figure:
    """Training loss and kNN accuracy on the validation images (without labels the other view's rank), by epoch: two
    panels for up to `LINES` of a family.

    Losses share an axis only within a family, whose objective is one. Gray behind them are the others; a band is one
    standard deviation over seeds to each side, a dotted line the best untrained encoder.
    """
    curves = {name: _mean_curve(members) for name, members in ranked(groups).items()}
    trained = [name for name in curves if groups[name][0].pretraining.epochs]
    styles = looks(groups)
    panels_of = _families({name: groups[name][0] for name in trained})
    # one pair of panels in a row where there are few, else two, so that twelve pairs fit on a page
    across = 1 if len(panels_of) <= 3 else 2
    down = max(1, -(-len(panels_of) // across))
    figure = Figure(figsize=(9 * across - 4 * (across - 1), min(PAGE, 0.4 + 2.4 * down)))
    panels = figure.subplots(down, 2 * across, squeeze=False)
    floor = max((curves[name]["monitor"]["mean"].max() for name in curves if name not in trained), default=math.nan)
    labeled = bool(next(iter(groups.values()))[0].classes)
    for number, (title, family, shown) in enumerate(panels_of):
        loss, knn = panels[number // across, 2 * (number % across) :][:2]
        for panel, column, behind in ((loss, "loss", family), (knn, "monitor", trained)):
            _draw_curves(panel, {name: curves[name][column] for name in behind}, shown, styles)
        if math.isfinite(floor):
            knn.axhline(floor, color="0.35", linestyle=":", linewidth=1.2, label="untrained")
        # accuracies can be compared across panels, losses of different objectives cannot
        knn.sharey(panels[0, 1])
        knn.sharex(panels[0, 0])
        loss.sharex(panels[0, 0])
        loss.set_title(f"{title}: loss", loc="left")
        knn.set_title("kNN on validation images, %" if labeled else UNLABELED["other_view"], loc="left")
        knn.legend(handlelength=3.5, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    for panel in panels.ravel()[2 * len(panels_of) :]:
        panel.remove()
    figure.supxlabel("epoch" if trained else "no variant was trained", fontsize=10)
    return figure


def _mean_curve(members: Sequence[Record]) -> dict[str, pandas.DataFrame]:
    """Mean and standard deviation over seeds of the loss and of what was monitored, by epoch, where they are."""
    epochs = pandas.concat([record.curve for record in members]).groupby("epoch")
    columns = {"loss": "loss", "monitor": "knn" if members[0].classes else "other_view"}
    return {name: epochs[column].agg(["mean", "std"]).dropna(subset=["mean"]) for name, column in columns.items()}


def _families(firsts: dict[str, Record]) -> list[tuple[str, list[str], list[str]]]:
    """Title, names of a whole family, and those of it to show together; the family of the best comes first."""
    families: dict[tuple[str, ...], list[str]] = {}
    for name, record in firsts.items():
        # one method with another loss, or with another first part of it, is another objective
        params, first_part = record.pretraining, record.curve.columns[2]
        families.setdefault((params.method, str(params.options.get("loss")), first_part), []).append(name)
    methods = [method for method, *_ in families]
    parts = []
    for (method, *_), family in families.items():
        for start in range(0, len(family), LINES):
            shown = family[start : start + LINES]
            parts.append((method if methods.count(method) == 1 else ", ".join(shown), family, shown))
    return parts


def _draw_curves(panel: Axes, curves: dict[str, pandas.DataFrame], shown: Sequence[str], styles: dict) -> None:
    for name, curve in curves.items():
        if name not in shown:
            panel.plot(curve["mean"], color="0.85", linewidth=1, zorder=1)
    for name in shown:
        mean, deviation = curves[name]["mean"], curves[name]["std"]
        draw_line(panel, mean.index, mean, styles[name], name)
        band = {"color": styles[name]["color"], "alpha": 0.2, "linewidth": 0}
        panel.fill_between(mean.index, mean - deviation, mean + deviation, **band)


def accuracy_figure(groups: Groups, table: pandas.DataFrame) -> Figure:
    """Every measure of every latent as a point with its deviation over seeds, and a line at chance.

    ``table`` is `lib.report.tables.summary`. Where not all latents fit on a page, the main ones are shown.
    """
    if not table["classes"].max():
        return left_out("Accuracies")
    rows = _accuracy_rows(groups, table)
    figure = Figure(figsize=(9, 1.2 + ROW * len(rows)))
    axes = figure.subplots()
    styles = looks(groups)
    for key, name in measures(table).items():
        marker, filling = SHAPES[key]
        shape: dict[str, Any] = {"marker": marker, "fillstyle": filling, "markersize": 5.5, "linestyle": ""}
        for y, (_, row) in enumerate(rows.iterrows()):
            if pandas.isna(row[key]):
                continue
            deviation, color = numpy.nan_to_num(row[f"{key}_sd"]), styles[row["group"]]["color"]
            axes.errorbar(row[key], y, xerr=deviation, color=color, elinewidth=1.5, **shape)
        axes.plot([], [], color="0.25", label=name, **shape)  # for the legend
    beside: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "va": "center", "fontsize": 8}
    for place, row in rows[rows["top1"].notna()].iterrows():
        axes.annotate(with_deviation(row, "top1", ".1f"), (1.01, place), **beside)
    chance = 100 / table["classes"].max()
    axes.axvline(chance, color="0.35", linestyle=":", linewidth=1.2, label=f"chance ({chance:.3g} %)")
    axes.set_yticks(rows.index, rows["model"])
    for tick, heading in zip(axes.get_yticklabels(), rows["top1"].isna()):
        tick.set_fontweight("bold" if heading else "normal")
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(alpha=0.25)
    axes.set_xlabel("accuracy on test images, %")
    figure.legend(loc="outside upper center", ncols=4, fontsize=9)
    return figure


def _accuracy_rows(groups: Groups, table: pandas.DataFrame) -> pandas.DataFrame:
    """The rows of the chart, best first; a heading, a row without numbers, where the kind changes."""
    # a heading takes a row too, so a page is a little less than full
    every = table["group"].count() * ROW <= PAGE - 2
    parts, kind = [], ""
    for name, members in ranked(groups).items():
        if members[0].kind != kind:
            kind = members[0].kind
            parts.append(pandas.DataFrame({"model": [kind]}))
        latents = table[table["group"] == name]
        parts.append(latents if every else latents[:1])
    return pandas.concat(parts, ignore_index=True)


def confusion_figure(groups: Groups) -> Figure:
    """One matrix per group, best first: percent of each actual class that the main latent's probe calls what."""
    groups = ranked(groups)
    names = readable(next(iter(groups.values()))[0].classes)
    if not names:
        return left_out("The confusion of classes")
    down, columns = grid(len(groups), in_one_line=3)
    side = min(4.2, 12 / columns, (PAGE - 1) / down)
    figure = Figure(figsize=(1.6 + side * columns, 0.7 + side * down))
    panels = figure.subplots(down, columns, squeeze=False)
    for number, (panel, (name, members)) in enumerate(zip(panels.flat, groups.items())):
        percent = percent_of_actual(confusion_counts(members))
        image = panel.imshow(percent, cmap="Blues", vmin=0, vmax=100)
        panel.set_title(name, loc="left", fontsize=10 if columns < 4 else 8)
        panel.spines[:].set_visible(False)
        # names stand at the outer edges, numbers in cells that have room for them
        legible = len(names) <= CONFUSION_LABELS
        left, bottom = legible and not number % columns, legible and number // columns == down - 1
        panel.set_xticks(range(len(names)) if bottom else (), names if bottom else (), rotation=90)
        panel.set_yticks(range(len(names)) if left else (), names if left else ())
        panel.tick_params(labelsize=min(9, 28 * side / max(10, len(names))))
        for row, column in zip(*numpy.nonzero(percent >= 0.5)) if legible and side > 2.5 else ():
            color, size = "white" if percent[row, column] > 55 else "0.15", min(8, 18 * side / len(names))
            panel.text(column, row, f"{percent[row, column]:.0f}", ha="center", va="center", fontsize=size, color=color)
    for panel in panels.flat[len(groups) :]:
        panel.set_visible(False)
    figure.supxlabel("predicted", fontsize=10)
    figure.supylabel("actual", fontsize=10)
    figure.colorbar(image, ax=panels[:, -1].tolist(), shrink=0.6, label="% of the actual class")
    return figure


def left_out(what: str) -> Figure:
    figure = Figure(figsize=(6, 1))
    figure.text(0.5, 0.5, f"{what}: left out, because the images have no labels", ha="center", va="center")
    return figure
