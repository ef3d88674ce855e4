"""The plane of concept bits against episode bits, the dose of a term, and in a sentence what the plane says."""

from typing import Any

import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.report.charts import left_out, looks
from lib.report.compare import baseline
from lib.report.figures import POINT
from lib.report.records import BITS, KINDS, Groups
from lib.report.tables import main_rows

CROWD = 12  # points that one panel tells apart
AXES = {"concept_bits": "concept bits: of which class", "episode_bits": "episode bits: which image"}
DOSED = {"top1": "probe top-1, %", "episode_bits": "episode bits", "concept_bits": "concept bits"}


def plane_table(groups: Groups, table: pandas.DataFrame) -> pandas.DataFrame:
    """A row per group of `lib.report.tables.summary`: the main latent's bits, probe and dose with their deviations, and
    the group's kind and color."""
    rows = main_rows(table).dropna(subset=["group"])
    kinds = {name: members[0].kind for name, members in groups.items()}
    colors = {name: style["color"] for name, style in looks(groups).items()}
    columns = [f"{key}{suffix}" for key in (*reversed(BITS), "top1", "dose") for suffix in ("", "_sd")]
    rows = rows[["group", *columns, "n"]].astype({"n": int})
    return rows.assign(kind=rows["group"].map(kinds), color=rows["group"].map(colors))


def dose_table(groups: Groups, plane: pandas.DataFrame) -> pandas.DataFrame:
    """The rows of `plane_table` that have a dose, and the baseline at 0; empty where none has."""
    dosed = plane[plane["dose"].notna()]
    zero = plane[plane["group"].isin([record.variant for record in baseline(groups)[:1]])].assign(dose=0.0)
    return pandas.concat([zero, dosed]).sort_values("dose", kind="stable") if len(dosed) else dosed


def plane_figure(groups: Groups, plane: pandas.DataFrame) -> Figure:
    """A point for each row of `plane_table`, ± one standard deviation over seeds; the legend follows their height.

    The best ceiling and the best floor have their names beside them. Where points are many, a second panel shows those
    that trained without labels alone.
    """
    if plane["concept_bits"].isna().all():
        return left_out("The plane of bits")
    many, compared = len(plane) > CROWD, plane[plane["kind"] == KINDS[1]]
    figure = Figure(figsize=(10, 6.4) if many else (7.6, 5))
    panels = figure.subplots(1, 1 + many, squeeze=False)[0]
    for panel, rows in zip(panels, (plane, compared)):
        _draw_points(panel, groups, rows.sort_values("episode_bits", ascending=False), *AXES)
        panel.set(xlabel=AXES["concept_bits"], ylabel=AXES["episode_bits"])
    whole = panels[0]
    ends = plane.loc[plane.groupby("kind")["top1"].idxmax()]
    for row in ends[ends["kind"] != KINDS[1]].itertuples():
        whole.annotate(row.group, (row.concept_bits, row.episode_bits), (6, 6), textcoords="offset points", fontsize=9)
    for limits, axis in ((whole.get_xlim, whole.set_xlim), (whole.get_ylim, whole.set_ylim)):
        low, high = min(0, limits()[0]), limits()[1]
        axis(low, high + 0.03 * (high - low))  # points that lie together leave no margin on an axis from zero
    whole.set_title("What a latent tells of a degraded image", loc="left")
    place: dict[str, Any] = {"loc": "outside right upper", "fontsize": 9}
    if many:
        panels[1].set_title(KINDS[1], loc="left")
        place = {"loc": "outside lower center", "fontsize": 8, "ncols": 6, "columnspacing": 1}
    figure.legend(*whole.get_legend_handles_labels(), handletextpad=0.2, **place)
    return figure


def dose_figure(groups: Groups, dosed: pandas.DataFrame) -> Figure:
    """Probe and bits by the dose of a group's term, of `dose_table`."""
    figure = Figure(figsize=(9, 3.6))
    for axes, (key, name) in zip(figure.subplots(1, len(DOSED)), DOSED.items()):
        axes.plot(dosed["dose"], dosed[key], color="0.75", linewidth=1.2, zorder=1)
        _draw_points(axes, groups, dosed, "dose", key)
        axes.set(xlabel="dose λ, %: push < 0 < pull", ylabel=name)
        axes.margins(0.15)
        (low, high), least = axes.get_ylim(), 5 if key == "top1" else 0.5  # what is less apart looks near
        room = max(0, least - (high - low)) / 2
        axes.set_ylim(low - room, min(high + room, 101) if key == "top1" else high + room)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, handletextpad=0.2)
    return figure


def _draw_points(axes: Axes, groups: Groups, rows: pandas.DataFrame, x: str, y: str) -> None:
    styles = looks(groups)
    for _, row in rows.iterrows():
        bars = {f"{axis}err": row[f"{key}_sd"] for axis, key in zip("xy", (x, y)) if pandas.notna(row[f"{key}_sd"])}
        label = row["group"] + (f" ({row['n']})" if rows["n"].max() > 1 else "")
        axes.errorbar(row[x], row[y], label=label, **bars, **{**styles[row["group"]], **POINT, "linestyle": ""})
    axes.grid(alpha=0.25)


def plane_sentence(table: pandas.DataFrame) -> str:
    """What the plane of `lib.report.tables.summary` says: who tells most of either kind, and where the floor lies."""
    rows = main_rows(table).dropna(subset=["group", *BITS])
    if rows.empty:
        return ""
    episode, concept = (rows.iloc[rows[key].argmax()] for key in BITS)
    said = f"Which image a degraded one was, {episode['group']} tells best ({episode['episode_bits']:.2f} bits)"
    if episode["group"] == concept["group"]:
        said += f", and its class too ({concept['concept_bits']:.2f} bits)"
    else:
        bits = f"{concept['concept_bits']:.2f} bits, and {concept['episode_bits']:.2f} of the image"
        said += f"; its class, {concept['group']} ({bits})"
    for _, floor in rows[rows["epochs"] == 0][:1].iterrows():
        said += f"; {floor['group']}, which did not train, {floor['episode_bits']:.2f} and {floor['concept_bits']:.2f}"
    seeds = "" if rows["n"].max() > 1 else " One seed each: a small difference may be the seed's."
    return f"{said}.{seeds}"
