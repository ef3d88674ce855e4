"""One measure of each variant by the number that a sweep has changed."""

from matplotlib.figure import Figure

from lib.report.figures import draw_line, look

WIDE = 20  # times the least positive value, from which on an axis is logarithmic


def sweep_figure(key: str, measure: str, series: dict[str, list[tuple[float, float]]]) -> Figure:
    """``series``: by variant the pairs of parameter and measure, by rising parameter."""
    figure = Figure(figsize=(7.5, 4.2))
    panel = figure.subplots()
    for number, (name, points) in enumerate(series.items()):
        draw_line(panel, [value for value, _ in points], [found for _, found in points], look(number), name)
    values = sorted({value for points in series.values() for value, _ in points})
    positive = [value for value in values if value > 0]
    if positive and max(positive) > WIDE * min(positive):
        panel.set_xscale("log") if len(positive) == len(values) else panel.set_xscale("symlog", linthresh=min(positive))
    panel.set_xticks(values, [f"{value:g}" for value in values])
    panel.minorticks_off()
    panel.set(xlabel=key, ylabel=measure)
    figure.legend(loc="outside right upper", fontsize=8)
    return figure
