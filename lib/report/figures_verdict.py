"""The verdict in four pictures, each as wide as a printed page; ``found`` is `lib.verdict.judge.judge`'s record."""

from collections.abc import Iterable, Mapping
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
LEGEND: Any = {"handlelength": 2.6, "title": "arm (seeds)", "title_fontsize": 8}
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


def _drawn(found: Found, arms: Iterable[str], *measures: str) -> list[str]:
    """Of ``arms`` those that have all measures."""
    return [arm for arm in arms if all(found["arms"][arm].get(name, {}).get("mean") is not None for name in measures)]


def _errors(intervals: list[Found]) -> list[list[float]]:
    """Below and above the means, zero where there is no interval, as errorbar takes them."""
    below = [each["mean"] - (each["mean"] if each["low"] is None else each["low"]) for each in intervals]
    above = [(each["mean"] if each["high"] is None else each["high"]) - each["mean"] for each in intervals]
    return [below, above]


def _label(found: Found, arm: str, measure: str = "e") -> str:
    return f"{arm} ({found['arms'][arm][measure]['n']})"


def plane_figure(found: Found, rule: Rule, pixels: Found | None) -> Figure:
    """Concept against episode bits with intervals over seeds: all arms, and once more those about the frontier."""
    figure = Figure(figsize=(WIDTH, 5.0))
    whole, near = figure.subplots(1, 2)
    line = _drawn(found, rule.frontier, "c", "e")
    everything = [*line, *_drawn(found, [arm for arm in rule.arms if arm not in line], "c", "e")]
    for axes, arms in ((whole, everything), (near, [arm for arm in everything if arm in (*line, *rule.hypotheses)])):
        ends = [found["arms"][arm] for arm in line]
        label = "frontier of temperature"
        axes.plot([end["c"]["mean"] for end in ends], [end["e"]["mean"] for end in ends], FRONTIER, lw=1.5, label=label)
        for arm in arms:
            c, e = found["arms"][arm]["c"], found["arms"][arm]["e"]
            style = {**POINT, **look(arm, rule), "linestyle": ""}
            axes.errorbar(c["mean"], e["mean"], _errors([e]), _errors([c]), label=_label(found, arm), **style)
        axes.set_xlabel("concept bits c")
        axes.grid(alpha=0.25)
    if pixels:
        at = pixels["concept_bits"], pixels["episode_bits"]
        whole.plot(*at, color="0.5", marker="D", linestyle="", markersize=6, label="8x8 pixels")
    whole.set_ylabel("episode bits e")
    _titles(figure, found, "Concepts against episodes", whole, "all arms", near, "about the frontier")
    handles, names = whole.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize=8, **LEGEND)
    return figure


def _titles(figure: Figure, found: Found, title: str, left: Axes, over_left: str, right: Axes, over_right: str) -> None:
    """A heading, with the verdict's state where it is not complete, and a smaller one over each panel."""
    text = title if found["state"] == "complete" else f"{title}: {found['state']}"
    figure.suptitle(text, x=0.01, ha="left", fontsize=10, fontweight="bold")
    for axes, over in ((left, over_left), (right, over_right)):
        axes.set_title(over, loc="left", fontsize=9, fontweight="normal")


def _legend_below(axes: Axes) -> None:
    handles, names = axes.get_legend_handles_labels()
    if handles:
        place: Any = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.2), "ncols": 2, "columnspacing": 1.2}
        axes.legend(handles, names, fontsize=8, **place, **LEGEND)


def dose_figure(found: Found, rule: Rule) -> Figure:
    """e and probe against lambda, as differences to the baseline; only arms at its temperature lie on this axis."""
    figure = Figure(figsize=(WIDTH, 3.6))
    numbers = rule.numbers
    others = [arm for arm in rule.arms if arm in found["differences"] and arm not in rule.frontier]
    # the bounds of the rule's words on either axis
    panels = (("e", "e of {}, bits", numbers.delta, "delta"), ("top1", "probe of {}, points", -numbers.h1_margin, "H1"))
    both = figure.subplots(1, 2)
    for axes, (measure, name, bound, label) in zip(both, panels):
        found_here = [arm for arm in _drawn(found, others, "lambda") if found["differences"][arm][measure]["n"]]
        points = {arm: (found["arms"][arm]["lambda"]["mean"], found["differences"][arm][measure]) for arm in found_here}
        line = sorted([(0.0, 0.0), *((dose, each["mean"]) for dose, each in points.values())])
        axes.plot(*zip(*line), color="0.75", linewidth=1.2, zorder=1)
        axes.plot(0, 0, label=numbers.baseline, **{**look(numbers.baseline, rule), "linestyle": "", "markersize": 6.5})
        for arm, (dose, each) in points.items():
            style = {**POINT, **look(arm, rule), "linestyle": ""}
            axes.errorbar(dose, each["mean"], _errors([each]), label=f"{arm} ({each['n']})", **style)
        axes.axhline(bound, color=BLUE, linestyle=(0, (5, 1.5)), linewidth=1)
        axes.annotate(label, (0.54, bound), (0, 3), textcoords="offset points", ha="right", fontsize=8, color=BLUE)
        for text, dose in STUDY.items():
            axes.axvline(dose, color="0.35", linestyle=":", linewidth=1.2, zorder=0)
            axes.annotate(text, (dose, 1.01), xycoords=axes.get_xaxis_transform(), **ABOVE)
        axes.set_xlim(-0.55, 0.55)
        axes.set_xlabel("lambda: push < 0 < pull")
        axes.margins(y=0.25)
        axes.grid(alpha=0.25)
        axes.set_ylabel(name.format(f"arm minus {numbers.baseline}"))
    _titles(figure, found, "Dose of the term", both[0], "", both[1], "")
    handles, names = both[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, fontsize=8, **LEGEND)
    return figure


def ranks_figure(found: Found, rule: Rule) -> Figure:
    """Gain of episode bits over the baseline by the competitor's rank among the look-alikes, nearest first."""
    left = [*rule.hypotheses]
    right = [arm for arm in found["differences"] if arm in rule.frontier or arm in rule.controls]
    ranks = [name for name in found["arms"][rule.numbers.baseline] if name.startswith("rank ")]
    figure = Figure(figsize=(WIDTH, 3.9))
    panels = figure.subplots(1, 2)
    for axes, arms in zip(panels, (left, right)):
        for number, arm in enumerate(arms):
            by_rank = [(place, found["differences"][arm][rank]) for place, rank in enumerate(ranks)]
            by_rank = [(place, each) for place, each in by_rank if each["mean"] is not None]
            shift = DODGE * (number - (len(arms) - 1) / 2)
            intervals = [each for _, each in by_rank]
            means, places = [each["mean"] for each in intervals], [place + shift for place, _ in by_rank]
            n = max((each["n"] for each in intervals), default=0)
            axes.errorbar(places, means, _errors(intervals), label=f"{arm} ({n})", **{**CURVE, **look(arm, rule)})
        axes.axhline(0, color="0.35", linestyle=":", linewidth=1.2)
        axes.set_xlabel("rank of the competitor")
        axes.set_xticks(range(len(ranks)), [rank.removeprefix("rank ") for rank in ranks])
        axes.grid(alpha=0.25)
        _legend_below(axes)
    panels[0].set_ylabel(f"gain over {rule.numbers.baseline}, bits")
    _titles(figure, found, "Gain by look-alike", panels[0], "hypotheses", panels[1], "temperature and controls")
    return figure


def completion_figure(found: Found, rule: Rule, pixels: Found | None) -> Figure:
    """e against the occluded share of the cue."""
    baseline = rule.numbers.baseline
    left = [baseline, *rule.hypotheses]
    right = [arm for arm in rule.arms if arm not in rule.hypotheses]
    shares = [name for name in found["arms"][baseline] if name.startswith("occluded ")]
    figure = Figure(figsize=(WIDTH, 4.2))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, arms in zip(panels, (left, right)):
        for arm in _drawn(found, arms, *shares) if shares else ():
            intervals = [found["arms"][arm][share] for share in shares]
            x = [float(share.removeprefix("occluded ")) for share in shares]
            means, label = [each["mean"] for each in intervals], _label(found, arm, shares[0])
            axes.errorbar(x, means, _errors(intervals), label=label, **{**CURVE, **look(arm, rule)})
        if pixels and "occlusion" in pixels and axes is panels[1]:
            curve = pixels["occlusion"]
            style = {"color": "0.5", "marker": "D", "markersize": 4, "linewidth": 1, "linestyle": "--"}
            axes.plot(curve["share"], curve["episode_bits"], label="8x8 pixels", **style)
        axes.set_xlabel("occluded share of the cue, %")
        axes.grid(alpha=0.25)
        _legend_below(axes)
    panels[0].set_ylabel("episode bits e")
    _titles(figure, found, "Completion", panels[0], "hypotheses", panels[1], "temperature, controls, landmarks")
    return figure
