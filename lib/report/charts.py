"""Curves, accuracies and confusions as pictures, each at most a page tall."""

import math
from collections.abc import Sequence
from typing import Any

import numpy
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.report.figures import GRAY, draw_line, grid, look, readable
from lib.report.records import (
    KINDS,
    UNLABELED,
    Groups,
    confusion_counts,
    mean_curve,
    objectives,
    percent_of_actual,
    ranked,
)
from lib.report.tables import best_first, measures, with_deviation

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

    Losses share an axis only within a family: one method, one main part; a total holds its term, too. Gray behind them
    are the others; a band is one standard deviation over seeds to each side, a dotted line the best untrained encoder.
    """
    order = ranked(groups)
    trained = {name: members for name, members in order.items() if members[0].pretraining.epochs}
    families, styles = objectives(trained), looks(groups)
    monitor = "knn" if next(iter(groups.values()))[0].classes else "other_view"
    losses, monitored = (
        {name: mean_curve(members, column) for name, members in order.items()} for column in ("loss", monitor)
    )
    methods = [method for method, *_ in families]
    panels_of = [
        (method if methods.count(method) == 1 else ", ".join(shown), family, shown)
        for method, family in zip(methods, families.values())
        for shown in (family[start : start + LINES] for start in range(0, len(family), LINES))
    ]
    # one pair of panels in a row where there are few, else two, so that twelve pairs fit on a page
    across = 1 if len(panels_of) <= 3 else 2
    down = max(1, -(-len(panels_of) // across))
    figure = Figure(figsize=(9 * across - 4 * (across - 1), min(PAGE, 0.4 + 2.4 * down)))
    panels = figure.subplots(down, 2 * across, squeeze=False)
    floor = max((monitored[name]["mean"].max() for name in order if name not in trained), default=math.nan)
    for number, (title, family, shown) in enumerate(panels_of):
        loss, knn = panels[number // across, 2 * (number % across) :][:2]
        _draw_curves(loss, {name: losses[name] for name in family}, shown, styles)
        _draw_curves(knn, {name: monitored[name] for name in trained}, shown, styles)
        if math.isfinite(floor):
            knn.axhline(floor, color="0.35", linestyle=":", linewidth=1.2, label="untrained")
        # accuracies can be compared across panels, losses of different objectives cannot
        knn.sharey(panels[0, 1])
        knn.sharex(panels[0, 0])
        loss.sharex(panels[0, 0])
        loss.set_title(f"{title}: loss", loc="left")
        knn.set_title(UNLABELED.get(monitor, "kNN on validation images, %"), loc="left")
        knn.legend(handlelength=3.5, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    for panel in panels.ravel()[2 * len(panels_of) :]:
        panel.remove()
    figure.supxlabel("epoch" if trained else "no variant was trained", fontsize=10)
    return figure


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
    """Every measure of every latent as a point with its deviation over seeds, and each row's floor; lines at chance and
    at the best probe of an encoder that was trained with labels.

    ``table`` is `lib.report.tables.summary`. Where not all latents fit on a page, the main ones are shown.
    """
    if not table["classes"].max():
        return left_out("Accuracies")
    rows = _accuracy_rows(groups, table)
    figure = Figure(figsize=(9, 1.4 + ROW * len(rows)))
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
    _draw_bounds(axes, rows, groups, 100 / table["classes"].max())
    axes.set_yticks(rows.index, rows["model"])
    for tick, heading in zip(axes.get_yticklabels(), rows["top1"].isna()):
        tick.set_fontweight("bold" if heading else "normal")
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(alpha=0.25)
    axes.set_xlabel("accuracy on test images, %")
    figure.legend(loc="outside upper center", ncols=3, fontsize=9)
    return figure


def _draw_bounds(axes: Axes, rows: pandas.DataFrame, groups: Groups, chance: float) -> None:
    line: dict[str, Any] = {"color": "0.35", "linewidth": 1.2, "zorder": 1}
    with_labels = [name for name, members in groups.items() if members[0].kind == KINDS[0]]
    ceiling = rows.loc[rows["group"].isin(with_labels), "top1"].max()
    if math.isfinite(ceiling):
        axes.axvline(ceiling, linestyle="--", label="best probe of those with labels", **line)
    floors = rows["floor_top1"].dropna()
    if len(floors):
        label = "probe of the untrained encoder of its kind"
        axes.plot(floors, floors.index, "|", color=GRAY, markersize=10, label=label)
    low, high = axes.get_xlim()
    far = low - chance > 2 * (high - low)  # the points would lie on each other
    axes.axvline(chance, linestyle=":", label=f"chance ({chance:.3g} %{', far to the left' if far else ''})", **line)
    if far:
        axes.set_xlim(low, high)


def _accuracy_rows(groups: Groups, table: pandas.DataFrame) -> pandas.DataFrame:
    """The rows of the chart, best first; a heading, a row without numbers, where the kind changes."""
    rows = best_first(table.dropna(subset="group"), groups)
    if len(rows) * ROW > PAGE - 2:  # less than a page: a heading takes a row too
        rows = rows.drop_duplicates("group")
    kinds = rows["group"].map({name: members[0].kind for name, members in groups.items()})
    parts = [(pandas.DataFrame({"model": [kind]}), part) for kind, part in rows.groupby(kinds, sort=False)]
    return pandas.concat([each for pair in parts for each in pair], ignore_index=True)


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
