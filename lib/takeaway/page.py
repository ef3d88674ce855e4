"""The memory card as a page: card.md with one picture, card.png, and card.json, which holds every number."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
from matplotlib.figure import Figure

from lib.report.figures import COLORS, save_figure
from lib.runtime.files import size, write_json, write_text

CUES = {
    "trained": "crop, color, gray",
    "occlusion_25": "25 % hidden",
    "occlusion_50": "50 % hidden",
    "rotation_15": "turned by 15°",
    "shift_4": "moved by 4 pixels",
    "noise_0.1": "noise of 0.1",
}
# of an encoder filled and joined, of pixels hollow and dashed
QUESTIONS = {"episode_bits": ("episode bits", COLORS[0], "o"), "concept_bits": ("concept bits", COLORS[1], "s")}
OF_RANKS = {"trained": (COLORS[2], "^"), "occlusion_25": (COLORS[3], "D")}
DODGE = {"episode_bits": -0.13, "concept_bits": 0.13}  # rows apart, so that points of equal bits are both seen
PIXELS: Any = {"linestyle": "--", "markerfacecolor": "white", "linewidth": 1.2}
PAGE = """\
# Memory card: {name}

{headline}

{pictures}. {cued} of {test} test images are cues, each among {gallery}{of_class}; {stored} images are stored.
{duplicates} test images were left out as near-duplicates.

![Bits by cue, by how much is hidden and by how alike the competitors look](card.png)

{tables}

- **Episode bits**: what the features tell of *which* image{of_class} a degraded image was.{concept}
- **8x8 pixels** are the same memory of the images themselves, reduced: a landmark, neither floor nor goal.
- **Look-alikes**: bits on whether the cue's own image or one other was meant, by how alike the pixels of the two are;
  rank 1 is the most alike. Features that separate similar images lose little towards rank 1.
- Bits depend on how many images there are: compare cards of the same images, in one size.

Features: {width} numbers. The encoder saw pixels in 0..1 less ({mean}), over ({std}). Cues: SimCLR's augmentation
(crops from 8 % of the area, flips, colors, gray), {draws} draws of each, and five that it does not have.{protocol}
Measured with torch {torch}; all numbers are in card.json. sha256 of pixels and labels: `{checksum}`.
"""
CONCEPT = """
- **Concept bits**: what they tell of its *class*, by the stored images of each."""
PROTOCOL = """
Probe: logistic regression on standardized features, its L2 strength chosen on a tenth of the training images. kNN: the
{k} nearest in cosine. Both are of the test images, which were read once."""
FRESH = "**Freshly initialized weights (seed 0), not trained ones**: a floor for those of the same network."
FILES = ("card.md", "card.png", "card.json")


def write_card(folder: Path, found: Mapping[str, Any]) -> list[str]:
    """Write what `lib.takeaway.card.card` found as three files; returns lines: weights, numbers, what was written."""
    write_json(folder / "card.json", found)
    save_figure(folder / "card.png", card_figure, found)
    write_text(folder / "card.md", page(found))
    written = [f"written: {folder / name}, {size((folder / name).stat().st_size)}" for name in FILES]
    return [headline(found), "", *tables(found).splitlines(), *written]


def headline(found: Mapping[str, Any]) -> str:
    """Whether the weights are trained ones, and whose."""
    return FRESH if found["encoder"]["fresh"] else f"{(said := found['encoder']['weights'])[:1].upper()}{said[1:]}."


def page(found: Mapping[str, Any]) -> str:
    encoder, data, sizes = found["encoder"], found["data"], [*dict.fromkeys(found["gallery"].values())]
    side, scores = data["image_size"], found["scores"]
    kinds = f"{len(data['classes'])} classes" if scores else "without classes: no probe, no kNN, no concept bits"
    return PAGE.format(
        name=encoder["name"],
        headline=headline(found),
        pictures=f"Images: {data['source']}, {side} x {side} pixels, {kinds}",
        **found["images"],
        gallery=" to ".join(map(str, sizes)),
        duplicates=sum(found["near_duplicates"].values()),
        tables=tables(found),
        of_class=" of its class" if scores else "",
        concept=CONCEPT if scores else "",
        protocol=PROTOCOL.format(**scores) if scores else "",
        width=encoder["width"],
        mean=", ".join(f"{value:.4g}" for value in encoder["mean"]),
        std=", ".join(f"{value:.4g}" for value in encoder["std"]),
        draws=found["draws"],
        torch=found["measured_with"]["torch"],
        checksum=data["checksum"],
    )


def tables(found: Mapping[str, Any]) -> str:
    """Accuracies in a line, and a Markdown table of bits by cue: of the encoder and of 8x8 pixels."""
    scores, records, asked = found["scores"], (found["memory"], found["pixels"]), questions(found)
    lines = []
    if scores:
        accuracies = f"Probe top-1 {scores['top1']:.1f} %, kNN top-1 {scores['knn']:.1f} %"
        lines += [f"{accuracies}, where chance is {scores['chance']:g} %.", ""]
    if "recall21" in records[0]["cues"]["trained"]:
        own, pixels = (record["cues"]["trained"]["recall21"] for record in records)
        nearer = f"Nearer to their own image than to its 20 nearest look-alikes: {own:.1%} of the cues"
        lines += [f"{nearer} (8x8 pixels {pixels:.1%}, chance 4.8 %).", ""]
    heads = [head for name, *_ in asked.values() for head in (name, "8x8 pixels")]
    lines += [f"| cue | {' | '.join(heads)} |", "|---|" + "---:|" * len(heads)]
    for kind, words in CUES.items():
        values = [f"{round(record['cues'][kind][key], 2) + 0:.2f}" for key in asked for record in records]
        lines.append(f"| {words} | {' | '.join(values)} |")
    most = [f"{found['possible'][key]:.2f}" for key in asked for _ in records]
    return "\n".join([*lines, f"| all there are | {' | '.join(most)} |"])


def questions(found: Mapping[str, Any]) -> dict[str, tuple[str, str, str]]:
    """Name, color and marker of each that could be asked: without classes there are no concept bits."""
    return {key: look for key, look in QUESTIONS.items() if key == "episode_bits" or found["scores"]}


def card_figure(found: Mapping[str, Any]) -> Figure:
    """Bits by cue, a row for each kind; by how much is hidden; on one competitor, by how alike it looks."""
    figure = Figure(figsize=(13, 4.4))
    by_cue, curve, look_alikes = panels = figure.subplots(1, 3)
    rows = numpy.arange(len(CUES))
    for record, whose, style in ((found["memory"], "", {}), (found["pixels"], ", 8x8 pixels", PIXELS)):
        for key, (name, color, marker) in questions(found).items():
            look = {"color": color, "marker": marker, "label": f"{name}{whose}", **style}
            by_cue.plot([record["cues"][kind][key] for kind in CUES], rows + DODGE[key], **look | {"linestyle": ""})
            curve.plot(*([point[what] for point in record["occlusion"]] for what in ("percent", key)), **look)
        for kind, (color, marker) in OF_RANKS.items():
            gains, look = record["cues"][kind]["gain_by_rank"], {"label": f"{CUES[kind]}{whose}", **style}
            look_alikes.plot([*gains], [*gains.values()], color=color, marker=marker, **look)
    by_cue.set(xlabel="bits", yticks=rows, yticklabels=CUES.values(), ylim=(len(CUES) - 0.5, -0.5))
    by_cue.axvline(0, color="0.35", linewidth=0.8)
    for key, (_, color, _) in questions(found).items():
        curve.axhline(found["possible"][key], color=color, linestyle=":", linewidth=1)
    curve.set(xlabel="percent of the image hidden", ylabel="bits (dotted: all there are)")
    look_alikes.set(xlabel="rank of the competitor, from the most alike", ylabel="bits (of 1)")
    for panel in (curve, look_alikes):
        panel.set_ylim(min(0, panel.get_ylim()[0]), None)
    for panel, title in zip(panels, ("By cue", "Partial cue", "Look-alikes")):
        panel.set_title(title, loc="left")
        panel.grid(alpha=0.25)
        panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, fontsize=8)
    figure.suptitle("{name}, {weights}".format(**found["encoder"]), x=0.01, ha="left")
    return figure
