"""One measure of each variant by the number that a sweep has changed."""

from collections.abc import Collection, Mapping, Sequence

import numpy
from matplotlib.figure import Figure

from lib.report.figures import GRAY, POINT, look

WIDE = 20  # times the least positive value, from which on an axis is logarithmic


def sweep_figure(
    key: str, measure: str, series: Mapping[str, Sequence[tuple[float, Sequence[float]]]], untrained: Collection[str]
) -> Figure:
    """``series``: by variant the pairs of the number and one value for each seed, drawn as mean ± standard deviation.

    Colors are those of all charts: by the order of trained variants, gray for the others.
    """
    figure = Figure(figsize=(8, 4.4))
    panel = figure.subplots()
    for number, (name, points) in enumerate(sorted(series.items(), key=lambda each: each[0] in untrained)):
        style = look(number) | ({"color": GRAY} if name in untrained else {})
        spread = [float(numpy.std(found, ddof=1)) if len(found) > 1 else 0.0 for _, found in points]
        means = [float(numpy.mean(found)) for _, found in points]
        panel.errorbar([x for x, _ in points], means, spread, label=name, **POINT, **style)
    values = sorted({value for points in series.values() for value, _ in points})
    positive = [value for value in values if value > 0]
    if positive and max(positive) > WIDE * min(positive):
        panel.set_xscale("log") if len(positive) == len(values) else panel.set_xscale("symlog", linthresh=min(positive))
    panel.set_xticks(values, [f"{value:g}" for value in values])
    panel.minorticks_off()
    panel.grid(alpha=0.25)
    panel.set(xlabel=key, ylabel=measure)
    figure.legend(loc="outside lower center", fontsize=8, ncols=4)
    return figure
