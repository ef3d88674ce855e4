"""Scatter pictures of two-dimensional embeddings, colored by class."""

import colorsys
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lib.runtime.files import write_bytes

# Petroff 2021, "Accessible color sequences for data visualization", ten colors: told apart under the common
# color vision deficiencies.
TEN_COLORS = (
    "#3f90da",
    "#ffa90e",
    "#bd1f01",
    "#94a4a2",
    "#832db6",
    "#a96b59",
    "#e76300",
    "#b9ac70",
    "#717581",
    "#92dadd",
)
GOLDEN_RATIO = 0.618034
LIGHTNESSES = (0.45, 0.62, 0.3)
LEGEND_CLASSES = 20  # no eye tells more colors apart
INK_POINTS = 30_000.0  # summed marker area in square points that fills a panel of 6 inches without clogging it
DOTS_PER_INCH = 150


def class_colors(count: int) -> list[str]:
    """Hex colors for ``count`` classes: ten safe ones, then hues that turn by the golden ratio."""
    colors = list(TEN_COLORS[:count])
    for index in range(count - len(colors)):
        rgb = colorsys.hls_to_rgb(index * GOLDEN_RATIO % 1, LIGHTNESSES[index % len(LIGHTNESSES)], 0.65)
        colors.append("#" + "".join(f"{round(255 * part):02x}" for part in rgb))
    return colors


def scatter(axes: Axes, coordinates: numpy.ndarray, labels: numpy.ndarray, classes: Sequence[str]) -> None:
    """Draw points [N, 2] with labels [N] in the order given, without ticks, at equal scale on both axes."""
    colors = numpy.array(class_colors(len(classes)))
    inches = min(axes.get_window_extent().size) / axes.figure.dpi
    size = numpy.clip(INK_POINTS * (inches / 6) ** 2 / max(1, len(labels)), 1.0, 40.0)
    axes.scatter(*coordinates.T, c=colors[labels], s=size, linewidths=0, alpha=0.8)
    axes.set(xticks=[], yticks=[], aspect="equal", adjustable="datalim")
    axes.margins(0.03)
    for spine in axes.spines.values():
        spine.set_color("#cccccc")


def remarks(coordinates: numpy.ndarray, classes: Sequence[str]) -> str:
    """What a title has to add: a collapsed latent (points [N, 2] all at one place), a legend left out."""
    collapsed = not numpy.ptp(coordinates, axis=0).any()
    return (" - collapsed: all rows equal" if collapsed else "") + legend_remark(classes)


def legend_remark(classes: Sequence[str]) -> str:
    return f" ({len(classes)} classes, no legend)" if len(classes) > LEGEND_CLASSES else ""


def class_legend(figure: Figure, classes: Sequence[str], **place) -> None:
    """Add a legend of class names to the figure; ``place`` goes to its ``legend``.

    With more than `LEGEND_CLASSES` there is none.
    """
    if len(classes) > LEGEND_CLASSES:
        return
    marks = [
        Line2D([], [], linestyle="", marker="o", markersize=7, color=color, label=name)
        for color, name in zip(class_colors(len(classes)), classes)
    ]
    figure.legend(handles=marks, frameon=False, handletextpad=0.2, **place)


def draw_tsne(
    path: Path, coordinates: numpy.ndarray, labels: numpy.ndarray, classes: Sequence[str], title: str
) -> None:
    """Write a PNG of points [N, 2] colored by labels [N], with the class names beside it.

    Names and title are shown letter by letter, also a dollar sign, which could start a formula.
    """
    longest = max(len(name) for name in classes)
    beside = 0.65 + 0.085 * longest if len(classes) <= LEGEND_CLASSES else 0.15
    with matplotlib.rc_context({"text.parse_math": False}):
        figure = Figure(figsize=(6.2 + beside, 6.5), dpi=DOTS_PER_INCH)
        axes = figure.add_axes((0.1 / (6.2 + beside), 0.1 / 6.5, 6.0 / (6.2 + beside), 6.0 / 6.5))
        scatter(axes, coordinates, labels, classes)
        class_legend(figure, classes, loc="center left", bbox_to_anchor=(6.15 / (6.2 + beside), 0.47), fontsize=10)
        heading = title + remarks(coordinates, classes)
        figure.text(0.1 / (6.2 + beside), 6.2 / 6.5, heading, fontsize=12 if len(heading) <= 75 else 9, va="bottom")
        write_bytes(path, lambda file: figure.savefig(file, format="png"))
