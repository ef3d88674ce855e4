"""The verdict in four pictures, each as wide as a printed page; ``found`` is `lib.evaluate.verdict.judge`'s record."""

from collections.abc import Iterable, Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.params.verdict import Rule
from lib.report.figures import COLORS, DASHES, MARKERS

WIDTH = 7.0  # inches
STUDY = {"push, first version": -0.32, "pull, as run": 0.14}  # the study's own doses lambda (docs/study.md)
DODGE = 0.06  # of the distance of two ranks, so that intervals stand side by side
BLUE, ORANGE, GREEN, PINK, AMBER, SKY, BLACK = COLORS
ARMS = (ORANGE, GREEN, PINK, AMBER, SKY)

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
    controls = {numbers.oracle: (AMBER, "^"), numbers.supervised: (SKY, "v")}
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


def _title(found: Found, text: str) -> str:
    return text if found["state"] == "complete" else f"{text}: {found['state']}"


def plane_figure(found: Found, rule: Rule, pixels: Found | None) -> Figure:
    """Concept against episode bits with intervals over seeds; the frontier of temperature as a line."""
    figure = Figure(figsize=(WIDTH, 4.4))
    axes = figure.subplots()
    line = _drawn(found, rule.frontier, "c", "e")
    points = [(found["arms"][arm]["c"]["mean"], found["arms"][arm]["e"]["mean"]) for arm in line]
    if points:
        axes.plot(*zip(*points), color=BLUE, linewidth=1.5, alpha=0.6, zorder=1, label="frontier of temperature")
    rest = [arm for arm in rule.arms if arm not in line]
    for arm in [*line, *_drawn(found, rest, "c", "e")]:
        c, e = found["arms"][arm]["c"], found["arms"][arm]["e"]
        style = {**look(arm, rule), "linestyle": "", "markersize": 6.5, "elinewidth": 1.3, "capsize": 2}
        axes.errorbar(c["mean"], e["mean"], _errors([e]), _errors([c]), label=_label(found, arm), **style)
    if pixels:
        at = pixels["concept_bits"], pixels["episode_bits"]
        axes.plot(*at, color="0.5", marker="D", linestyle="", markersize=6, label="8x8 pixels")
    axes.set_xlabel("concept bits c")
    axes.set_ylabel("episode bits e")
    axes.set_title(_title(found, "Concepts against episodes"), loc="left")
    axes.grid(alpha=0.25)
    _legend(axes, "right")
    return figure


def _legend(axes: Axes, where: str) -> None:
    """Names of arms and, in brackets, their seeds, outside of the axes."""
    place: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
    if where == "below":
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.2), "ncols": 2, "columnspacing": 1.2}
    axes.legend(fontsize=8, handlelength=2.6, title="arm (seeds)", title_fontsize=8, **place)


def dose_figure(found: Found, rule: Rule) -> Figure:
    """e and probe against lambda; only the arms at the baseline's temperature lie on this axis."""
    figure = Figure(figsize=(WIDTH, 3.4))
    others = {*rule.frontier} - {rule.numbers.baseline}
    arms = [arm for arm in _drawn(found, rule.arms, "lambda") if arm not in others]
    names = {"e": "episode bits e", "top1": "probe top-1, %"}
    for axes, (measure, name) in zip(figure.subplots(1, 2), names.items()):
        arms = _drawn(found, arms, measure)
        doses = {arm: found["arms"][arm]["lambda"]["mean"] for arm in arms}
        means = [found["arms"][arm][measure]["mean"] for arm in sorted(arms, key=doses.__getitem__)]
        axes.plot(sorted(doses.values()), means, color="0.75", linewidth=1.2, zorder=1)
        for arm in arms:
            interval = found["arms"][arm][measure]
            style = {**look(arm, rule), "linestyle": "", "markersize": 6.5, "elinewidth": 1.3, "capsize": 2}
            axes.errorbar(doses[arm], interval["mean"], _errors([interval]), label=_label(found, arm), **style)
        for text, dose in STUDY.items():
            axes.axvline(dose, color="0.35", linestyle=":", linewidth=1.2, zorder=0)
            beside = {"xytext": (-3, 3), "textcoords": "offset points", "rotation": 90, "fontsize": 7.5}
            at = (dose, 0.0)
            axes.annotate(f"study: {text}", at, xycoords=axes.get_xaxis_transform(), ha="right", color="0.35", **beside)
        axes.set_xlim(-0.55, 0.55)
        axes.set_xlabel("lambda: push < 0 < pull")
        axes.set_ylabel(name)
        axes.margins(y=0.15)
        axes.grid(alpha=0.25)
    axes.legend(fontsize=8, title="arm (seeds)", title_fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.suptitle(_title(found, "Dose of the term"), x=0.01, ha="left", fontsize=10, fontweight="bold")
    return figure


def ranks_figure(found: Found, rule: Rule) -> Figure:
    """Gain of episode bits over the baseline by the competitor's rank among the look-alikes, nearest first."""
    left = [*rule.hypotheses]
    right = [arm for arm in found["differences"] if arm in rule.frontier or arm in rule.controls]
    ranks = [name for name in found["arms"][rule.numbers.baseline] if name.startswith("rank ")]
    figure = Figure(figsize=(WIDTH, 3.9))
    panels = figure.subplots(1, 2)
    for axes, arms, title in zip(panels, (left, right), ("hypotheses", "temperature and controls")):
        for number, arm in enumerate(arms):
            by_rank = [(place, found["differences"][arm][rank]) for place, rank in enumerate(ranks)]
            by_rank = [(place, each) for place, each in by_rank if each["mean"] is not None]
            shift = DODGE * (number - (len(arms) - 1) / 2)
            intervals = [each for _, each in by_rank]
            means, places = [each["mean"] for each in intervals], [place + shift for place, _ in by_rank]
            n = max((each["n"] for each in intervals), default=0)
            style = {**look(arm, rule), "markersize": 4.5, "linewidth": 1.3, "elinewidth": 1.1, "capsize": 2}
            axes.errorbar(places, means, _errors(intervals), label=f"{arm} ({n})", **style)
        axes.axhline(0, color="0.35", linestyle=":", linewidth=1.2)
        axes.set_xticks(range(len(ranks)), [rank.removeprefix("rank ") for rank in ranks])
        axes.set_title(title, loc="left", fontsize=9, fontweight="normal")
        axes.grid(alpha=0.25)
        _legend(axes, "below")
    panels[0].set_ylabel(f"gain over {rule.numbers.baseline}, bits")
    figure.supxlabel("rank of the competitor, nearest look-alike first", fontsize=9)
    figure.suptitle(_title(found, "Gain by look-alike"), x=0.01, ha="left", fontsize=10, fontweight="bold")
    return figure


def completion_figure(found: Found, rule: Rule, pixels: Found | None) -> Figure:
    """e against the occluded share of the cue."""
    baseline = rule.numbers.baseline
    left = [baseline, *rule.hypotheses]
    right = [arm for arm in rule.arms if arm not in rule.hypotheses]
    shares = [name for name in found["arms"][baseline] if name.startswith("occluded ")]
    figure = Figure(figsize=(WIDTH, 4.2))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, arms, title in zip(panels, (left, right), ("hypotheses", "temperature, controls, landmarks")):
        for arm in _drawn(found, arms, *shares) if shares else ():
            intervals = [found["arms"][arm][share] for share in shares]
            x = [float(share.removeprefix("occluded ")) for share in shares]
            style = {**look(arm, rule), "markersize": 4.5, "linewidth": 1.3, "elinewidth": 1.1, "capsize": 2}
            means = [each["mean"] for each in intervals]
            axes.errorbar(x, means, _errors(intervals), label=_label(found, arm, shares[0]), **style)
        if pixels and "occlusion" in pixels and axes is panels[1]:
            curve = pixels["occlusion"]
            style = {"color": "0.5", "marker": "D", "markersize": 4, "linewidth": 1, "linestyle": "--"}
            axes.plot(curve["share"], curve["episode_bits"], label="8x8 pixels", **style)
        axes.set_title(title, loc="left", fontsize=9, fontweight="normal")
        axes.grid(alpha=0.25)
        _legend(axes, "below")
    panels[0].set_ylabel("episode bits e")
    figure.supxlabel("occluded share of the cue, %", fontsize=9)
    figure.suptitle(_title(found, "Completion"), x=0.01, ha="left", fontsize=10, fontweight="bold")
    return figure
