"""All variants' t-SNE pictures side by side."""

from collections.abc import Mapping
from pathlib import Path

import numpy
from matplotlib.figure import Figure

from lib.report.figures_tsne import class_legend, legend_remark, remarks, scatter
from lib.runtime.files import read_arrays

BESIDE = ("labels", "indices", "classes")
COLUMNS = 4


def read_maps(variant: str, root: Path = Path(".")) -> dict[str, numpy.ndarray]:
    """The arrays of a variant's t-SNE: coordinates [P, 2] by latent, labels [P], classes."""
    return read_arrays(root / f"data/tsne/{variant}.npz")


def overview_figure(maps: Mapping[str, Mapping[str, numpy.ndarray]]) -> Figure:
    """One panel for each latent of each variant, of the same points; ``maps`` by variant."""
    shown = [(variant, name) for variant, arrays in maps.items() for name in arrays if name not in BESIDE]
    columns = min(COLUMNS, len(shown))
    lines = -(-len(shown) // columns)
    figure = Figure(figsize=(1.6 + 4.0 * columns, 0.4 + 4.0 * lines))
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for panel, (variant, name) in zip(panels, shown):
        arrays = maps[variant]
        classes = arrays["classes"].tolist()
        panel.spines[:].set_visible(True)
        scatter(panel, arrays[name], arrays["labels"], classes)
        panel.set_title(f"{variant} · {name}", loc="left")
        panel.text(0.02, 0.97, remarks(arrays[name], ()).strip(" -"), transform=panel.transAxes, va="top", fontsize=10)
    for panel in panels[len(shown) :]:
        panel.set_visible(False)
    class_legend(figure, classes, loc="outside right upper", fontsize=9)
    if note := legend_remark(classes):
        figure.suptitle(note.strip(" ()"), fontsize=10)
    return figure
