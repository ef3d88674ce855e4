"""Learning curves of classifiers that start from different filters, and the filters themselves."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy
from matplotlib.figure import Figure

from lib.report.figures import draw_line, look

ACROSS = 16  # filters in a line


def transfer_figure(rows: Sequence[dict[str, Any]], variant: str) -> Figure:
    """Validation accuracy by epoch; ``rows`` have arm, epoch and validation_top1 in percent."""
    figure = Figure(figsize=(8, 4.5))
    axes = figure.subplots()
    for number, arm in enumerate(dict.fromkeys(row["arm"] for row in rows)):
        points = [(row["epoch"], row["validation_top1"]) for row in rows if row["arm"] == arm]
        epochs, accuracies = zip(*points)
        draw_line(axes, epochs, accuracies, look(number), arm)
    axes.set_title(f"Classifiers by their first layer ({variant})", loc="left")
    axes.set_xlabel("epoch")
    axes.set_ylabel("accuracy on validation images, %")
    axes.legend(loc="lower right", handlelength=3.5)
    return figure


def filters_figure(filters: Mapping[str, numpy.ndarray], variant: str) -> Figure:
    """Every filter [F, 3, k, k] as a color image, each on its own scale, the largest weights first; a sheet for each
    of ``filters``, by whose they are."""
    sheets = {name: _sheet(weights) for name, weights in filters.items()}
    inches = sum(0.6 + 8 * sheet.shape[0] / sheet.shape[1] for sheet in sheets.values())
    figure = Figure(figsize=(8, inches))
    for axes, (name, sheet) in zip(figure.subplots(len(sheets), squeeze=False)[:, 0], sheets.items()):
        axes.imshow(sheet, interpolation="nearest")
        axes.set_axis_off()
        title = f"{len(filters[name])} filters, {name} ({variant})"
        legend = "largest weight first; gray is zero, each on its own scale"
        axes.set_title(f"{title}\n{legend}", loc="left", fontsize=9)
    return figure


def _sheet(weights: numpy.ndarray) -> numpy.ndarray:
    order = numpy.argsort(-numpy.abs(weights).reshape(len(weights), -1).max(1), kind="stable")
    lines = -(-len(weights) // ACROSS)
    size = weights.shape[-1] + 1
    sheet = numpy.ones((lines * size + 1, ACROSS * size + 1, 3))
    for place, number in enumerate(order):
        top, left = place // ACROSS * size + 1, place % ACROSS * size + 1
        filter_ = weights[number].transpose(1, 2, 0)
        largest = numpy.abs(filter_).max() or 1.0
        sheet[top : top + size - 1, left : left + size - 1] = 0.5 + filter_ / (2 * largest)
    return sheet
