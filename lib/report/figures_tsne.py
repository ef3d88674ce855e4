"""Scatter pictures of two-dimensional embeddings, colored by class."""

import colorsys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lib.report.figures import grid, readable, save_figure

# Petroff 2021, "Accessible color sequences for data visualization", ten colors: told apart under the common
# color vision deficiencies.
TEN_COLORS = (
    *("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"),
    *("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"),
)
GOLDEN_RATIO = 0.618034
LIGHTNESSES = (0.45, 0.62, 0.3)
LEGEND_CLASSES = 20  # no eye tells more colors apart
INK_POINTS = 30_000.0  # summed marker area in square points that fills a panel of 6 inches without clogging it
BESIDE = ("labels", "indices", "classes")  # what a file of embeddings holds beside latents
MOST_PANELS = 12  # with more latents than this the overview shows the main ones
OVERVIEW_POINTS = 1000


def class_colors(count: int) -> list[str]:
    """Hex colors for ``count`` classes: ten safe ones, then hues that turn by the golden ratio."""
    colors = list(TEN_COLORS[:count])
    for index in range(count - len(colors)):
        rgb = colorsys.hls_to_rgb(index * GOLDEN_RATIO % 1, LIGHTNESSES[index % len(LIGHTNESSES)], 0.65)
        colors.append("#" + "".join(f"{round(255 * part):02x}" for part in rgb))
    return colors


def scatter(axes: Axes, coordinates: numpy.ndarray, labels: numpy.ndarray, classes: Sequence[str]) -> None:
    """Draw points [N, 2] with labels [N] in the order given, without ticks, at equal scale on both axes.

    Without classes, where labels are -1, all points have one color.
    """
    colors = numpy.array(class_colors(max(1, len(classes))))
    inches = min(axes.get_window_extent().size) / axes.figure.dpi
    size = numpy.clip(INK_POINTS * (inches / 6) ** 2 / max(1, len(labels)), 1.0, 40.0)
    axes.scatter(coordinates[:, 0], coordinates[:, 1], c=colors[labels], s=size, linewidths=0, alpha=0.8)
    axes.set(xticks=[], yticks=[], aspect="equal", adjustable="datalim")
    axes.margins(0.03)
    axes.spines[:].set(visible=True, color="#cccccc")


def remarks(coordinates: numpy.ndarray, classes: Sequence[str]) -> str:
    """What a title has to add: a collapsed latent (points [N, 2] all at one place), a legend left out."""
    collapsed = "" if numpy.ptp(coordinates, axis=0).any() else " - collapsed: all rows equal"
    return collapsed + (f" ({len(classes)} classes, no legend)" if len(classes) > LEGEND_CLASSES else "")


def class_legend(figure: Figure, classes: Sequence[str], **place: Any) -> None:
    """Add a legend of 1 to `LEGEND_CLASSES` class names; ``place`` goes to the figure's ``legend``."""
    if not 0 < len(classes) <= LEGEND_CLASSES:
        return
    marks = [
        Line2D([], [], linestyle="", marker="o", markersize=7, color=color, label=name)
        for color, name in zip(class_colors(len(classes)), readable(classes))
    ]
    figure.legend(handles=marks, handletextpad=0.2, **place)


def draw_tsne(
    path: Path, coordinates: numpy.ndarray, labels: numpy.ndarray, classes: Sequence[str], title: str
) -> None:
    """Write a PNG of points [N, 2] colored by labels [N], with the class names beside it."""
    save_figure(path, _tsne_figure, coordinates, labels, classes, title)


def _tsne_figure(coordinates: numpy.ndarray, labels: numpy.ndarray, classes: Sequence[str], title: str) -> Figure:
    beside = 0.65 + 0.085 * max(map(len, readable(classes))) if 0 < len(classes) <= LEGEND_CLASSES else 0.15
    figure = Figure(figsize=(6.2 + beside, 6.5), dpi=150)
    axes = figure.subplots()
    scatter(axes, coordinates, labels, classes)
    class_legend(figure, classes, loc="outside right center")
    heading = title + remarks(coordinates, classes)
    axes.set_title(heading, loc="left", fontsize=12 if len(heading) <= 75 else 9, fontweight="normal")
    return figure


def overview_figure(maps: Mapping[str, Mapping[str, numpy.ndarray]]) -> Figure:
    """One panel for each latent of each variant, of the same points; ``maps``: arrays of a t-SNE file by variant.

    Where there are more than `MOST_PANELS`, each variant has its main latent alone.
    """
    latents = {variant: [name for name in arrays if name not in BESIDE] for variant, arrays in maps.items()}
    every = sum(map(len, latents.values())) <= MOST_PANELS
    shown = [(variant, name) for variant, names in latents.items() for name in (names if every else names[:1])]
    down, columns = grid(len(shown))
    side = min(4.0, 10.5 / columns)
    figure = Figure(figsize=(1.6 + side * columns, 0.4 + side * down))
    panels = figure.subplots(down, columns, squeeze=False).ravel()
    for panel, (variant, name) in zip(panels, shown):
        arrays = maps[variant]
        classes = arrays["classes"].tolist()
        scatter(panel, arrays[name][:OVERVIEW_POINTS], arrays["labels"][:OVERVIEW_POINTS], classes)
        label = variant if len(latents[variant]) == 1 else f"{variant} · {name}"
        panel.set_title(label, loc="left", fontsize=10 if columns < 4 else 8)
        panel.text(0.02, 0.97, remarks(arrays[name], ()).strip(" -"), transform=panel.transAxes, va="top")
    for panel in panels[len(shown) :]:
        panel.set_visible(False)
    class_legend(figure, classes, loc="outside right upper", fontsize=9)
    figure.suptitle(remarks(numpy.eye(2), classes).strip(" ()"), fontsize=10)
    return figure
