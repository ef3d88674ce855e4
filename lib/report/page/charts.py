"""The page's charts, drawn by Bokeh from `lib.report.tables.summary` and the curves of training."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy
import pandas
from bokeh.models import BooleanFilter, CDSView, ColumnDataSource, FactorRange, HoverTool, Legend, Whisker
from bokeh.plotting import figure
from bokeh.transform import factor_cmap, factor_mark
from matplotlib.transforms import Bbox

from lib.report import figures
from lib.report.charts import looks
from lib.report.figures import COLORS
from lib.report.plane import dose_table, plane_table
from lib.report.records import BITS, KINDS, UNLABELED, Groups, mean_curve, objectives, ranked
from lib.report.tables import best_first, measures, with_deviation

MARKERS = ("circle", "square", "triangle", "diamond", "inverted_triangle", "plus", "x")  # of lib.report.figures
DASHES = ("solid", "dashed", "dotted", "dashdot")
MARKER_OF, DASH_OF = dict(zip(figures.MARKERS, MARKERS)), dict(zip(figures.DASHES, DASHES))
GRAY = "#767676"  # legible on a light ground and on a dark one
LINES = 6  # curves that one panel tells apart; more are gray, and named where the pointer is
LOOKS = {"top1": (COLORS[0], "circle"), "knn": (COLORS[5], "square"), "study_top1": (COLORS[4], "triangle")}
KIND_LOOKS = dict(zip(KINDS, ((COLORS[1], "square"), (COLORS[0], "circle"), (GRAY, "triangle"))))
BIT_NAMES = dict(zip(BITS, ("episode bits", "concept bits")))
FORMS = {"dose": "+.1f"}
LABEL_ROOM = (520, 380)  # pixels of a plane that has room for its labels wherever it has more


def plot(title: str, height: int, **settings: Any) -> figure:
    """An empty chart without a background, as wide as its place on the page; the wheel scrolls until it is asked to."""
    tools = "pan,wheel_zoom,box_zoom,reset,save"
    empty = figure(title=title, height=height, sizing_mode="stretch_width", tools=tools, active_drag=None, **settings)
    empty.background_fill_color = empty.border_fill_color = empty.outline_line_color = None
    empty.toolbar.logo, empty.toolbar.autohide = None, True
    return empty


def legend(chart: figure, columns: int) -> None:
    """Move the chart's legend below it, where it covers no point; a click on an entry hides what it names."""
    for each in chart.select(Legend):
        each.click_policy, each.ncols, each.location = "hide", columns, "left"
        each.border_line_color = each.background_fill_color = None
        chart.add_layout(each, "below")


def draw(chart: figure, rows: pandas.DataFrame, x: str, y: str, name: str, look: tuple[str, str]) -> Any:
    """Points of `summary` with their deviation over seeds, and their numbers where the pointer is; Bokeh's renderer."""
    numbers = [key for key in (x, y) if key != "model"]
    data = {"model": rows["model"], "text": [_text(row, numbers, name) for _, row in rows.iterrows()]}
    for key in numbers:
        deviation = rows[f"{key}_sd"]
        data |= {key: rows[key], f"{key}_low": rows[key] - deviation, f"{key}_high": rows[key] + deviation}
    source, (color, marker) = ColumnDataSource(data), look
    points = chart.scatter(x, y, source=source, color=color, marker=marker, size=9, legend_label=name)
    for key, base, dimension in ((x, y, "width"), (y, x, "height")):
        if key in numbers:
            ends = {"lower": f"{key}_low", "upper": f"{key}_high", "base": base}
            chart.add_layout(Whisker(source=source, dimension=dimension, line_color=color, level="underlay", **ends))
    chart.add_tools(HoverTool(renderers=[points], tooltips="@model: @text"))
    return points


def _text(row: pandas.Series, keys: Sequence[str], name: str) -> str:
    names = {"dose": "dose λ", **BIT_NAMES}
    return ", ".join(f"{names.get(key, name)} {with_deviation(row, key, FORMS.get(key, '.2f'))}" for key in keys)


def accuracy_chart(groups: Groups, table: pandas.DataFrame) -> figure:
    """Every measure of every latent with its deviation over seeds, best first; chance, and the floor of each kind."""
    rows = best_first(table, groups)
    names = FactorRange(factors=rows["model"].tolist()[::-1])
    chance = 100 / table["classes"].max()
    title = f"Accuracy on the test images, % (chance: {chance:.3g}, the dotted line where it is near)"
    chart = plot(title, 150 + 22 * len(rows), y_range=names)
    chart.vspan(x=[chance], color=GRAY, line_dash="dotted", line_width=2)
    shown = [
        draw(chart, rows[rows[key].notna()], key, "model", name, LOOKS[key]) for key, name in measures(table).items()
    ]
    floors = rows[rows["floor_top1"].notna()]
    if len(floors):
        where = {"x": floors["floor_top1"].tolist(), "y": floors["model"].tolist()}
        look = {"marker": "x", "color": GRAY, "size": 9, "line_width": 2}
        shown.append(chart.scatter(**where, **look, legend_label="untrained encoder of its kind"))
    chart.x_range.renderers = shown  # not down to chance, where all are far above it
    legend(chart, 3)
    return chart


def plane_chart(groups: Groups, table: pandas.DataFrame) -> figure:
    """Concept bits against episode bits of every latent; as many names as there is room for, best first."""
    x, y = reversed(BITS)
    rows = best_first(table.dropna(subset=[x, y]), groups)
    names = {"x_axis_label": BIT_NAMES[x], "y_axis_label": BIT_NAMES[y]}
    chart = plot("What a latent tells of which image, and of its class", 480, **names)
    kinds = rows["group"].map({name: members[0].kind for name, members in groups.items()})
    for kind, look in KIND_LOOKS.items():
        if (kinds == kind).any():
            draw(chart, rows[kinds == kind], x, y, kind, look)
    labels = ColumnDataSource(place_labels(rows[[x, y]].to_numpy(), rows["model"].tolist()).to_dict("list"))
    chart.text("x", "y", "text", source=labels, x_offset="dx", y_offset="dy", text_align="align",
               text_baseline="middle", text_font_size="12px")  # fmt: skip
    legend(chart, 3)
    return chart


def place_labels(points: numpy.ndarray, names: Sequence[str]) -> pandas.DataFrame:
    """Where the names of points [N, 2] can stand, right, left, above or below them, without covering another's."""
    room = numpy.array(LABEL_ROOM)
    pixels = (points - points.min(0)) / numpy.where(numpy.ptp(points, 0), numpy.ptp(points, 0), 1) * room
    taken, placed = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in pixels], []
    for (x, y), at, name in zip(pixels, points, names):
        half = 3.5 * len(name)  # of its width
        for dx, dy, align in ((8, 0, "left"), (-8, 0, "right"), (0, -13, "center"), (0, 13, "center")):
            middle = x + dx + half * numpy.sign(dx)
            box = Bbox.from_bounds(middle - half, y - dy - 7, 2 * half, 14)
            if box.x1 < room[0] + 20 and not box.count_overlaps(taken):
                taken.append(box)
                placed.append((*at, name, dx, dy, align))
                break
    return pandas.DataFrame(placed, columns=["x", "y", "text", "dx", "dy", "align"])


def dose_charts(groups: Groups, table: pandas.DataFrame) -> list[figure]:
    """Accuracy and bits by the dose of the term, beside SimCLR without one; none where no variant has a dose."""
    main = plane_table(groups, table)
    rows = dose_table(groups, main)
    rows = rows.assign(model=rows["group"])
    if rows.empty:
        return []
    charts = []
    names = {"top1": measures(table).get("top1", ""), **BIT_NAMES}
    for (key, name), color, marker in zip(names.items(), COLORS, MARKERS):
        if main[key].isna().all():  # without labels
            continue
        # as high as all variants differ, so that a difference is seen for what it is
        low, high = main[key].min(), main[key].max()
        room = 0.05 * (high - low) or 1.0
        scale = {"y_range": (low - room, high + room), "x_axis_label": "dose λ, % of the pull of NT-Xent"}
        chart = plot(name[0].upper() + name[1:], 300, **scale)
        chart.line(rows["dose"], rows[key], color=color, alpha=0.4)
        draw(chart, rows, "dose", key, name, (color, marker))
        chart.legend.visible = False
        charts.append(chart)
    return charts


def curve_charts(groups: Groups) -> list[figure]:
    """kNN and embedding std of all trained variants, then the loss, of which each family has a panel of its own."""
    trained = {name: members for name, members in ranked(groups).items() if members[0].pretraining.epochs}
    panels = [
        ("kNN on the validation images, %", "knn", trained),
        (UNLABELED["other_view"], "other_view", trained),
        ("Embedding std (0: collapsed)", "embedding_std", trained),
    ]
    for objective, names in objectives(trained).items():
        panels.append((f"Loss: {', '.join(objective)}", "loss", {name: groups[name] for name in names}))
    styles = looks(groups)
    return [chart for panel in panels for chart in _curves(*panel, styles)]


def _curves(title: str, column: str, groups: Groups, styles: dict[str, dict[str, Any]]) -> Iterator[figure]:
    """One panel, or none where no curve has the column; a band is one standard deviation over seeds to each side."""
    curves = {name: mean_curve(members, column).reset_index() for name, members in groups.items()}
    curves = {name: curve for name, curve in curves.items() if len(curve)}
    if not curves:
        return
    chart, lines = plot(title, 340, x_axis_label="epoch"), []
    if column == "embedding_std":
        chart.y_range.start = 0
    for number, (name, curve) in enumerate(curves.items()):
        source, told = ColumnDataSource(curve.assign(name=name).to_dict("list")), number < LINES
        style = styles[name]
        look: dict[str, Any] = {"color": style["color"] if told else GRAY, "source": source}
        named = {"legend_label": name} if told else {}
        dash = DASH_OF[style["linestyle"]] if told else "solid"
        lines.append(chart.line("epoch", "mean", line_width=2 if told else 1, line_dash=dash, **look, **named))
        if told:
            chart.scatter("epoch", "mean", marker=MARKER_OF[style["marker"]], size=6, **look, **named)
            band = {"y1": curve["mean"] - curve["std"], "y2": curve["mean"] + curve["std"]}
            chart.varea(x=curve["epoch"], **band, color=look["color"], alpha=0.15, **named)
    chart.add_tools(HoverTool(renderers=lines, tooltips="@name: @mean{0.00} at epoch @epoch", line_policy="nearest"))
    legend(chart, 3)
    yield chart


def explorer_charts(classes: list[dict[str, str]], count: int) -> list[figure]:
    """The explorer's two charts, of one source without points as yet: page.js fills in the latents that are chosen."""
    names, colors, markers = ([each[key] for each in classes] for key in ("name", "color", "marker"))
    columns = ("x0", "y0", "x1", "y1")
    source = ColumnDataSource({column: [] for column in (*columns, "class")}, name="points")
    rings = ColumnDataSource({column: [] for column in (*columns, "marker", "size")}, name="rings")
    view = CDSView(filter=BooleanFilter(name="classes"))
    look = {"color": factor_cmap("class", colors, names), "marker": factor_mark("class", markers, names)}
    both = []
    for side in "01":
        chart = figure(sizing_mode="stretch_width", aspect_ratio=1, x_range=(-0.03, 1.03), y_range=(-0.03, 1.03),
                       tools="pan,wheel_zoom,box_select,lasso_select,hover,reset", active_drag="lasso_select",
                       toolbar_location="above", name=f"plane{side}")  # fmt: skip
        chart.axis.visible, chart.grid.visible = False, False
        chart.background_fill_color = chart.border_fill_color = None
        chart.outline_line_color = GRAY
        chart.toolbar.logo = None
        chart.hover.tooltips = None
        points = chart.scatter(f"x{side}", f"y{side}", source=source, view=view, size=9 if count <= 1000 else 5,
                               line_color=None, fill_alpha=0.8, nonselection_fill_alpha=0.08, **look)  # fmt: skip
        chart.hover.renderers = [points]
        ring = {"fill_color": None, "line_color": "black", "line_width": 2}
        chart.scatter(f"x{side}", f"y{side}", source=rings, marker="marker", size="size", **ring)
        both.append(chart)
    return both
