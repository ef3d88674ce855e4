"""What a Willshaw memory recalls of a variant's binary codes: ``python -m lib.report.willshaw kwta``.

Reads the codes of the test images, which the stage embed has written, and writes plots/willshaw/<variant>.csv
and .png: learned codes beside random ones of the same size, and the theory of random codes (docs/methods.md, 12).
"""

import argparse
import sys
from pathlib import Path

import pandas
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from lib.evaluate.codes import is_binary, k_winners, pattern_entropy, unused, usage_entropy
from lib.evaluate.willshaw import capacity
from lib.report.figures import COLORS, DASHES, MARKERS, save_figure
from lib.runtime.errors import UserError
from lib.runtime.files import read_arrays, write_table
from lib.runtime.seeds import generator

SEED = 0
COUNTS = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
HALF = 0.5  # of the active units: the cue of the capacity curve
MIDDLE = 200  # codes in the memory that the cues are varied with
KINDS = {"learned": "codes of test images", "random": "random codes"}
CUES = {"part": "rest missing", "noise": "rest wrong"}


def read_codes(variant: str, root: Path = Path(".")) -> tuple[str, Tensor]:
    """The name of the first latent that is a binary code, and its codes float32 [M, D].

    Raises:
        UserError: no latent of the variant is one.
    """
    arrays = read_arrays(root / "data/embeddings" / f"{variant}.npz")
    names = arrays["latents"].tolist()
    for name in names:
        rows = torch.from_numpy(arrays[name])
        if is_binary(rows):
            return name, rows
    raise UserError(
        f"variant {variant} has no binary code among its latents ({', '.join(names)}); allowed: a variant "
        "whose code has 0 and 1 and as many 1 in each row; choose another"
    )


def recalls(codes: Tensor) -> pandas.DataFrame:
    """One row for each kind of code, number stored, cue and share of the cue: what `measure` returns."""
    units, active = codes.shape[1], int(codes[0].sum())
    lots = torch.rand(codes.shape, generator=generator(SEED, "random codes"))
    counts = [count for count in COUNTS if count < len(codes)] + [len(codes)] * (len(codes) <= COUNTS[-1])
    rows = []
    for kind, stored in (("learned", codes), ("random", k_winners(lots, active))):
        found = capacity(stored, counts, "part", [HALF], SEED)
        for cue in CUES:
            found += capacity(stored, [min(MIDDLE, len(codes))], cue, list(SHARES), SEED)
        rows += [{"codes": kind, "units": units, "active": active, **row} for row in found]
    return pandas.DataFrame(rows).drop_duplicates(ignore_index=True)


def recall_figure(table: pandas.DataFrame, heading: str) -> Figure:
    """Left: wrong units by the number stored. Right: what comes back by the share of the cue."""
    figure = Figure(figsize=(11, 5))
    left, right = figure.subplots(1, 2)
    active = int(table.active[0])
    kept = max(1, round(HALF * active))
    half = table[(table.cue == "part") & (table.share == kept / active)]
    for kind, rows in half.groupby("codes"):
        _line(left, rows, "stored", "spurious", kind, "part", KINDS[kind])
    theory = half[half.codes == "random"].sort_values("stored")
    left.plot(theory.stored, theory.expected, color="0.35", linestyle=":", linewidth=1.8, label="theory, random codes")
    left.set(xscale="log", xlabel="stored codes", ylabel="wrong units recalled, by code")
    left.set_yscale("symlog", linthresh=1)
    left.set_ylim(0, 1.3 * max(1.0, half.spurious.max(), half.expected.max()))
    for axis in (left.xaxis, left.yaxis):
        axis.set_major_formatter("{x:,g}")
        axis.set_minor_formatter("")
    left.set_title(f"cue: {kept} of the {active} active units", loc="left")
    stored = min(MIDDLE, int(table.stored.max()))
    varied = table[table.stored == stored]
    for (kind, cue), rows in varied.groupby(["codes", "cue"]):
        _line(right, rows, "share", "winners", kind, cue, f"{KINDS[kind]}, {CUES[cue]}")
    right.set(xlabel="share of the code's units in the cue", ylabel="share of the code recalled", ylim=(0, 1.03))
    right.set_title(f"{stored} codes stored, the k most excited units", loc="left")
    for panel in (left, right):
        panel.grid(alpha=0.25)
        panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, fontsize=8.5, handlelength=3)
    figure.suptitle(heading, x=0.01, ha="left", fontsize=11)
    return figure


def _line(panel: Axes, rows: pandas.DataFrame, across: str, up: str, kind: str, cue: str, label: str) -> None:
    """Colour and marker tell the codes apart, dashes the cues."""
    number, rows = list(KINDS).index(kind), rows.sort_values(across)
    panel.plot(
        rows[across],
        rows[up],
        label=label,
        color=COLORS[number],
        marker=MARKERS[number],
        markersize=4.5,
        linestyle=DASHES[list(CUES).index(cue)],
        linewidth=1.8,
    )


def report(variant: str, root: Path = Path(".")) -> list[str]:
    """Write table and picture of one variant; returns lines that say what is in them."""
    name, codes = read_codes(variant, root)
    units, active = codes.shape[1], int(codes[0].sum())
    table, target = recalls(codes), root / "plots/willshaw"
    write_table(target / f"{variant}.csv", table)
    heading = f"{variant} · {name}: Willshaw memory of {units} units, {active} active"
    save_figure(target / f"{variant}.png", recall_figure, table, heading)
    return [
        f"{variant}, latent {name}: {len(codes):,} test images, {units} units, {active} active",
        f"usage entropy {usage_entropy(codes):.3f} of 1, pattern entropy {pattern_entropy(codes):.2f} bits of "
        f"{torch.tensor(float(len(codes))).log2():.2f}, {100 * unused(codes):.1f} % of the units unused",
        f"written: {target / variant}.csv, {target / variant}.png",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m lib.report.willshaw", description="Recall of a variant's codes.")
    parser.add_argument("variant", help="one whose main latent is a binary code, for example kwta")
    try:
        print("\n".join(report(parser.parse_args().variant)))
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
