"""Curves, accuracies and confusions as pictures."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from lib.report.plot_tables import accuracy_table, confusion_counts
from lib.report.records import Record
from lib.runtime.files import write_bytes

# Okabe and Ito's colors, told apart with any color vision, without the yellow that fades on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.2, 1.2, 1.2)))
SHADES = {
    "probe top-1": "#0072B2",
    "fine-tuned top-1": "#0072B2",
    "kNN top-1": "#56B4E9",
    "best top-1, study's protocol": "#E69F00",
}
MARKED = 25  # markers on a long line
INSIDE = 4  # with more variants the legend would cover the curves
WIDE = 20  # times the smallest loss
CONFUSION_LABELS = 20  # with more classes their names would overlap

STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.constrained_layout.use": True,
    "legend.frameon": False,
    "text.parse_math": False,
}  # a dollar sign in a class name is a dollar sign


def save_figure(path: Path, draw: Callable[..., Figure], *arguments: Any) -> None:
    """Draw and write a PNG whose bytes depend on its content alone."""
    with matplotlib.rc_context(STYLE):
        figure = draw(*arguments)
        write_bytes(path, lambda file: figure.savefig(file, format="png", dpi=130, metadata={"Software": None}))


def curves_figure(records: Sequence[Record]) -> Figure:
    """Training loss and kNN accuracy on the validation split, by epoch.

    A variant has a color, a marker and a dash of its own. Losses are totals, which objectives do not share.
    """
    figure = Figure(figsize=(10, 4))
    panels = figure.subplots(1, 2, sharex=True)
    for number, record in enumerate(records):
        for panel, column in zip(panels, ("loss", "knn")):
            points = record.curve.dropna(subset=[column])
            panel.plot(
                points["epoch"],
                points[column],
                label=record.variant,
                linewidth=1.8,
                markersize=4.5,
                markevery=max(1, len(points) // MARKED),
                color=COLORS[number % len(COLORS)],
                marker=MARKERS[number % len(MARKERS)],
                linestyle=DASHES[number % len(DASHES)],
            )
    weighted = any(record.pretraining["gamma"] is not None for record in records)
    words = (
        ("training loss", f"total loss{' (with its gamma term)' if weighted else ''}"),
        ("kNN on validation images", "kNN top-1, %"),
    )
    for panel, (title, value) in zip(panels, words):
        panel.set_title(title, loc="left")
        panel.set_xlabel("epoch")
        panel.set_ylabel(value)
        panel.grid(alpha=0.25)
        panel.xaxis.get_major_locator().set_params(integer=True)
    if len(records) <= INSIDE:
        panels[0].legend(handlelength=3.5)
        return figure
    lowest, highest = (
        pick(line.get_ydata()[index] for line in panels[0].lines if len(line.get_ydata()) for index in (0, -1))
        for pick in (min, max)
    )
    if lowest > 0 and highest > WIDE * lowest:
        panels[0].set_yscale("log")  # on one scale the largest objective would flatten all others
        panels[0].yaxis.set_major_formatter("{x:g}")  # the usual one writes formulas, which `STYLE` shows as text
    figure.set_size_inches(12.5, max(4.0, 0.9 + 0.22 * len(records)))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", handlelength=3.5)
    return figure


def accuracy_figure(records: Sequence[Record]) -> Figure:
    """Bars of every measure for every model and latent, from zero, with a line at chance."""
    table = accuracy_table(records)
    models = list(dict.fromkeys(table["model"]))
    measures = [measure for measure in SHADES if measure in set(table["measure"])]
    figure = Figure(figsize=(9, 1.3 + 0.2 * len(models) * (len(measures) + 0.7)))
    axes = figure.subplots()
    height = 0.84 / len(measures)
    for number, measure in enumerate(measures):
        rows = table[table["measure"] == measure]
        places = [models.index(model) + (number - (len(measures) - 1) / 2) * height for model in rows["model"]]
        bars = axes.barh(places, rows["value"], height=height * 0.92, color=SHADES[measure], label=measure)
        axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
    chance = 100 / len(records[0].classes)
    axes.axvline(chance, color="0.35", linestyle=":", linewidth=1.2, label=f"chance ({chance:.3g} %)")
    axes.set_yticks(range(len(models)), models)
    axes.set_ylim(len(models) - 0.4, -0.6)
    axes.set_xlim(0, 106)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("accuracy on test images, %")
    figure.legend(loc="outside upper center", ncols=4, fontsize=9)
    return figure


def confusion_figure(records: Sequence[Record]) -> Figure:
    """One matrix per variant: percent of each actual class that the main latent's probe calls what."""
    names = records[0].classes
    legible = len(names) <= CONFUSION_LABELS
    columns = min(3 if len(records) <= 9 else 4, len(records))
    lines = -(-len(records) // columns)
    figure = Figure(figsize=(1 + 4.6 * columns, 5.0 * lines))
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for panel, record in zip(panels, records):
        counts = confusion_counts(record)
        percent = 100 * counts / counts.sum(1, keepdims=True).clip(1)
        image = panel.imshow(percent, cmap="Blues", vmin=0, vmax=100)
        panel.set_title(record.label(record.main), loc="left")
        panel.set_xlabel("predicted")
        panel.spines[:].set_visible(False)
        if legible:
            panel.set_xticks(range(len(names)), names, rotation=90)
            panel.set_yticks(range(len(names)), names)
            _write_cells(panel, percent)
    for panel in panels[len(records) :]:
        panel.remove()
    for panel in panels[: len(records) : columns]:
        panel.set_ylabel("actual")
    figure.colorbar(image, ax=panels[:columns], shrink=0.7, label="% of the actual class")
    return figure


def _write_cells(panel: Any, percent: Any) -> None:
    for (row, column), value in _cells(percent):
        panel.text(
            column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color="white" if value > 55 else "0.15"
        )


def _cells(percent: Any) -> list[tuple[tuple[int, int], float]]:
    """The cells that round to at least one percent."""
    return [
        ((row, column), value) for row, line in enumerate(percent) for column, value in enumerate(line) if value >= 0.5
    ]
