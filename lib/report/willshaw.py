"""What a Willshaw memory recalls of a variant's binary codes: ``python -m lib willshaw kwta``.

Reads the codes of the test images, which the stage embed has written, and writes plots/willshaw/<variant>.csv
and .png: learned codes beside random ones of the same size, and the theory of random codes (docs/methods.md, 12).
"""

import argparse
from pathlib import Path
from typing import Any

import pandas
import torch
from matplotlib.figure import Figure
from torch import Tensor

from lib.evaluate.codes import is_binary, k_winners, pattern_entropy, unused, usage_entropy
from lib.evaluate.willshaw import capacity
from lib.report.figures import COLORS, save_figure
from lib.runtime.errors import UserError
from lib.runtime.files import read_arrays, write_table
from lib.runtime.seeds import generator

SEED = 0
COUNTS = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)  # of stored codes, recalled from half of their units
MIDDLE = 200  # codes in the memory whose cues are varied, in steps of a tenth of the active units
LOOK: Any = {"learned": {"color": COLORS[0], "marker": "o"}, "random": {"color": COLORS[1], "marker": "s"}}
CUES = {"part": ("rest missing", "-"), "noise": ("rest wrong", "--")}


def read_codes(variant: str) -> tuple[str, Tensor]:
    """The name of the first latent that is a binary code, and its codes float32 [M, D]; refused if none is."""
    arrays = read_arrays(Path("data/embeddings") / f"{variant}.npz")
    names = arrays["latents"].tolist()
    for name in names:
        if is_binary(codes := torch.from_numpy(arrays[name])):
            return name, codes
    allowed = "a variant whose code has 0 and 1 and as many 1 in each row, for example kwta"
    raise UserError(f"variant {variant} has no binary code among its latents ({', '.join(names)}); allowed: {allowed}")


def recalls(codes: Tensor) -> pandas.DataFrame:
    """One row for each kind of code and measurement; ``varied``: the ``number`` stored or the units in the ``cue``."""
    units, active = codes.shape[1], int(codes[0].sum())
    draws = torch.rand(codes.shape, generator=generator(SEED, "random codes"))
    counts = sorted({min(count, len(codes)) for count in COUNTS})
    fewest = max(1, 2 * active - units)  # a cue's wrong units are among the inactive ones
    kept = sorted({max(fewest, round(tenth * active / 10)) for tenth in range(1, 11)})
    plan = [("number", counts, "part", [max(1, round(active / 2))])]
    plan += [("cue", [min(MIDDLE, len(codes))], cue, kept) for cue in CUES]
    return pandas.DataFrame(
        {"codes": kind, "units": units, "active": active, "varied": varied, **row}
        for kind, stored in (("learned", codes), ("random", k_winners(draws, active)))
        for varied, numbers, cue, cue_units in plan
        for row in capacity(stored, numbers, cue, cue_units, SEED)
    )


def recall_figure(table: pandas.DataFrame, heading: str) -> Figure:
    """Left: wrong units by the number stored. Right: what comes back by the share of the cue."""
    figure = Figure(figsize=(11, 5))
    left, right = figure.subplots(1, 2)
    by_number, by_cue = (table[table.varied == name] for name in ("number", "cue"))
    for kind, look in LOOK.items():
        rows = by_number[by_number.codes == kind]
        left.plot(rows.stored, rows.spurious, label=f"{kind} codes", **look)
        for cue, (name, dash) in CUES.items():
            rows = by_cue[(by_cue.codes == kind) & (by_cue.cue == cue)]
            right.plot(rows.share, rows.winners, label=f"{kind} codes, {name}", linestyle=dash, **look)
    theory = by_number[by_number.codes == "random"]
    left.plot(theory.stored, theory.expected, ":", color="0.35", label="theory, random codes")
    left.set_yscale("symlog", linthresh=1)
    left.set(xscale="log", xlabel="stored codes", ylabel="wrong units recalled, by code", ylim=(0, None))
    for axis in (left.xaxis, left.yaxis):
        axis.set_major_formatter("{x:,g}")
    left.set_title(f"cue: {by_number.share.iloc[0]:.0%} of the active units", loc="left")
    right.set(xlabel="share of the code's units in the cue", ylabel="share of the code recalled", ylim=(0, 1.03))
    right.set_title(f"{by_cue.stored.iloc[0]} codes stored, the k most excited units", loc="left")
    for panel in (left, right):
        panel.grid(alpha=0.25)
        panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
    figure.suptitle(heading, x=0.01, ha="left")
    return figure


def main(arguments: list[str]) -> None:
    """Write table and picture of one variant, and print what is in them."""
    parser = argparse.ArgumentParser(prog="python -m lib willshaw", description="Recall of a variant's binary codes.")
    parser.add_argument("variant", help="one with a latent that is a binary code, for example kwta")
    variant = parser.parse_args(arguments).variant
    name, codes = read_codes(variant)
    units, active, target = codes.shape[1], int(codes[0].sum()), Path("plots/willshaw") / variant
    table = recalls(codes)
    write_table(target.with_suffix(".csv"), table)
    heading = f"{variant} · {name}: Willshaw memory of {units} units, {active} active"
    save_figure(target.with_suffix(".png"), recall_figure, table, heading)
    print(
        f"{variant}, latent {name}: {len(codes):,} test images, {units} units, {active} active\n"
        f"usage entropy {usage_entropy(codes):.3f} of 1, pattern entropy {pattern_entropy(codes):.2f} bits, "
        f"{100 * unused(codes):.1f} % of the units unused\nwritten: {target}.csv, {target}.png"
    )
