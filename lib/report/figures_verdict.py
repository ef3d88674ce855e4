"""The verdict in four pictures, each as wide as a printed page; ``found`` is `lib.verdict.judge.judge`'s record."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.params.verdict import Rule
from lib.report.figures import COLORS, DASHES, MARKERS, POINT

WIDTH = 7.0  # inches
STUDY = {"study, first": -0.32, "study, as run": 0.14}  # the study's own doses lambda (docs/study.md)
DODGE = 0.06  # of the distance of two ranks, so that intervals stand side by side
BLUE, ORANGE, GREEN, PINK, AMBER, SKY, BLACK = COLORS
ARMS = (ORANGE, GREEN, PINK, AMBER, SKY)
FRONTIER = "#7fb8d8"  # a paler blue, behind the points
CURVE: Any = {"markersize": 4.5, "linewidth": 1.3, "elinewidth": 1.1, "capsize": 2}
LEGEND: Any = {"handlelength": 2.6, "title": "arm (seeds)", "title_fontsize": 8, "fontsize": 8}
BELOW: Any = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.2), "ncols": 2, "columnspacing": 1.2}
PIXELS: Any = {"color": "0.5", "marker": "D", "label": "8x8 pixels"}
ABOVE: Any = {"fontsize": 7.5, "ha": "center", "va": "bottom", "color": "0.35"}

Found = Mapping[str, Any]


def look(arm: str, rule: Rule) -> dict[str, Any]:
    """Color, marker and dash by the arm's role: black baseline, blue frontier, gray landmarks."""
    numbers, others = rule.numbers, [name for name in rule.frontier if name != rule.numbers.baseline]
    if arm == numbers.baseline:
        return {"color": BLACK, "marker": "o", "linestyle": "-"}
    if arm in rule.hypotheses:
        number = rule.hypotheses.index(arm)
        return {"color": ARMS[number % len(ARMS)], "marker": MARKERS[1 + number], "linestyle": DASHES[(1 + number) % 4]}
    if arm in others:
        number = others.index(arm)
        return {"color": BLUE, "marker": ("<", ">", "p", "h")[number % 4], "linestyle": DASHES[1 + number % 3]}
    controls = {numbers.oracle: (AMBER, "P"), numbers.supervised: (SKY, "v")}
    color, marker = controls.get(arm, ("0.5", "X" if arm in rule.landmarks else "*"))
    return {"color": color, "marker": marker, "linestyle": "-"}


def _panels(found: Found, title: str, over: tuple[str, str], x: str, height: float, **axes: Any) -> tuple[Figure, Any]:
    """Two panels with headings, and the verdict's state above them where it is not complete."""
    figure = Figure(figsize=(WIDTH, height))
    panels = figure.subplots(1, 2, **axes)
    text = title if found["state"] == "complete" else f"{title}: {found['state']}"
    figure.suptitle(text, x=0.01, ha="left", fontsize=10, fontweight="bold")
    for panel, heading in zip(panels, over):
        panel.set_title(heading, loc="left", fontsize=9, fontweight="normal")
        panel.set_xlabel(x)
        panel.grid(alpha=0.25)
    return figure, panels


def _drawn(found: Found, arms: Iterable[str], *measures: str) -> list[str]:
    """Of ``arms`` those that have all measures."""
    return [arm for arm in arms if all(found["arms"][arm].get(name, {}).get("mean") is not None for name in measures)]


def _errors(intervals: Sequence[Found]) -> list[list[float]]:
    """Below and above the means, zero where there is no interval, as errorbar takes them."""
    ends = (("low", -1), ("high", 1))
    return [[0 if each[end] is None else sign * (each[end] - each["mean"]) for each in intervals] for end, sign in ends]


def _draw(axes: Axes, x: Sequence[float], intervals: Sequence[Found], label: str, style: Mapping[str, Any]) -> None:
    axes.errorbar(x, [each["mean"] for each in intervals], _errors(intervals), label=label, **style)


def plane_figure(found: Found, rule: Rule, pixels: Found | None) -> Figure:
    """Concept against episode bits with intervals over seeds: all arms, and once more those about the frontier."""
    headings = ("all arms", "about the frontier")
    figure, (whole, near) = _panels(found, "Concepts against episodes", headings, "concept bits c", 5.0)
    line = _drawn(found, rule.frontier, "c", "e")
    everything = [*line, *_drawn(found, [arm for arm in rule.arms if arm not in line], "c", "e")]
    for axes, arms in ((whole, everything), (near, [arm for arm in everything if arm in (*line, *rule.hypotheses)])):
        ends = [found["arms"][arm] for arm in line]
        label = "frontier of temperature"
        axes.plot([end["c"]["mean"] for end in ends], [end["e"]["mean"] for end in ends], FRONTIER, lw=1.5, label=label)
        for arm in arms:
            c, e = found["arms"][arm]["c"], found["arms"][arm]["e"]
            style = {**POINT, **look(arm, rule), "linestyle": "", "xerr": _errors([c])}
            _draw(axes, [c["mean"]], [e], f"{arm} ({e['n']})", style)
    if pixels:
        whole.plot(pixels["concept_bits"], pixels["episode_bits"], linestyle="", markersize=6, **PIXELS)
    whole.set_ylabel("episode bits e")
    figure.legend(*whole.get_legend_handles_labels(), loc="outside lower center", ncols=3, **LEGEND)
    return figure


def dose_figure(found: Found, rule: Rule, _: Found | None) -> Figure:
    """e and probe against lambda, as differences to the baseline; only arms at its temperature lie on this axis."""
    figure, both = _panels(found, "Dose of the term", ("", ""), "lambda: push < 0 < pull", 3.6)
    numbers = rule.numbers
    others = [arm for arm in rule.arms if arm in found["differences"] and arm not in rule.frontier]
    # the bounds of the rule's words on either axis
    panels = (("e", "e of {}, bits", numbers.delta, "delta"), ("top1", "probe of {}, points", -numbers.h1_margin, "H1"))
    for axes, (measure, name, bound, label) in zip(both, panels):
        points = {
            arm: (found["arms"][arm]["lambda"]["mean"], found["differences"][arm][measure])
            for arm in _drawn(found, others, "lambda")
            if found["differences"][arm][measure]["n"]
        }
        line = sorted([(0.0, 0.0), *((dose, each["mean"]) for dose, each in points.values())])
        axes.plot(*zip(*line), color="0.75", linewidth=1.2, zorder=1)
        axes.plot(0, 0, label=numbers.baseline, **{**look(numbers.baseline, rule), "linestyle": "", "markersize": 6.5})
        for arm, (dose, each) in points.items():
            _draw(axes, [dose], [each], f"{arm} ({each['n']})", {**POINT, **look(arm, rule), "linestyle": ""})
        axes.axhline(bound, color=BLUE, linestyle=(0, (5, 1.5)), linewidth=1)
        axes.annotate(label, (0.54, bound), (0, 3), textcoords="offset points", ha="right", fontsize=8, color=BLUE)
        for text, dose in STUDY.items():
            axes.axvline(dose, color="0.35", linestyle=":", linewidth=1.2, zorder=0)
            axes.annotate(text, (dose, 1.01), xycoords=axes.get_xaxis_transform(), **ABOVE)
        axes.set_xlim(-0.55, 0.55)
        axes.margins(y=0.25)
        axes.set_ylabel(name.format(f"arm minus {numbers.baseline}"))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, **LEGEND)
    return figure


def ranks_figure(found: Found, rule: Rule, _: Found | None) -> Figure:
    """Gain of episode bits over the baseline by the competitor's rank among the look-alikes, nearest first."""
    headings = ("hypotheses", "temperature and controls")
    figure, panels = _panels(found, "Gain by look-alike", headings, "rank of the competitor", 3.9)
    others = [arm for arm in found["differences"] if arm in rule.frontier or arm in rule.controls]
    ranks = [name for name in found["arms"][rule.numbers.baseline] if name.startswith("rank ")]
    for axes, arms in zip(panels, (rule.hypotheses, others)):
        for number, arm in enumerate(arms):
            by_rank = {place: found["differences"][arm][rank] for place, rank in enumerate(ranks)}
            by_rank = {place: each for place, each in by_rank.items() if each["mean"] is not None}
            shift = DODGE * (number - (len(arms) - 1) / 2)
            n = max((each["n"] for each in by_rank.values()), default=0)
            places = [place + shift for place in by_rank]
            _draw(axes, places, [*by_rank.values()], f"{arm} ({n})", {**CURVE, **look(arm, rule)})
        axes.axhline(0, color="0.35", linestyle=":", linewidth=1.2)
        axes.set_xticks(range(len(ranks)), [rank.removeprefix("rank ") for rank in ranks])
        axes.legend(**BELOW, **LEGEND)
    panels[0].set_ylabel(f"gain over {rule.numbers.baseline}, bits")
    return figure


def completion_figure(found: Found, rule: Rule, pixels: Found | None) -> Figure:
    """e against the occluded share of the cue."""
    headings, x = ("hypotheses", "temperature, controls, landmarks"), "occluded share of the cue, %"
    figure, panels = _panels(found, "Completion", headings, x, 4.2, sharey=True)
    baseline = rule.numbers.baseline
    others = [arm for arm in rule.arms if arm not in rule.hypotheses]
    shares = [name for name in found["arms"][baseline] if name.startswith("occluded ")]
    for axes, arms in zip(panels, ([baseline, *rule.hypotheses], others)):
        for arm in _drawn(found, arms, *shares) if shares else ():
            intervals = [found["arms"][arm][share] for share in shares]
            x_of = [float(share.removeprefix("occluded ")) for share in shares]
            _draw(axes, x_of, intervals, f"{arm} ({intervals[0]['n']})", {**CURVE, **look(arm, rule)})
    if pixels and "occlusion" in pixels:
        curve = pixels["occlusion"]
        style = {"markersize": 4, "linewidth": 1, "linestyle": "--", **PIXELS}
        panels[1].plot(curve["share"], curve["episode_bits"], **style)
    for axes in panels:
        if axes.get_legend_handles_labels()[0]:
            axes.legend(**BELOW, **LEGEND)
    panels[0].set_ylabel("episode bits e")
    return figure
