"""What a Willshaw memory recalls of a variant's binary codes: ``python -m lib willshaw kwta``.

Reads what the stage memory has measured and writes plots/willshaw/<variant>.csv and .png: learned codes beside random
ones of the same size, and the theory of random codes (docs/methods.md, 12).
"""

import argparse
from pathlib import Path
from typing import Any

import pandas
from matplotlib.figure import Figure

from lib.report.figures import COLORS, save_figure
from lib.runtime.errors import UserError
from lib.runtime.files import read_json, write_table

LOOK: Any = {"learned": {"color": COLORS[0], "marker": "o"}, "random": {"color": COLORS[1], "marker": "s"}}
CUES = {"part": ("rest missing", "-"), "noise": ("rest wrong", "--")}


def read_recalls(variant: str) -> tuple[str, pandas.DataFrame]:
    """The name of the first latent that is a binary code, and what was recalled; refused if none is."""
    latents = read_json(Path("data/memory") / f"{variant}.json")["latents"]
    for name, record in latents.items():
        if "willshaw" in record:
            return name, pandas.DataFrame(record["willshaw"])
    allowed = "a variant whose code has 0 and 1 and as many 1 in each row, for example kwta"
    raise UserError(
        f"variant {variant} has no binary code among its latents ({', '.join(latents)}); allowed: {allowed}"
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
    name, table = read_recalls(variant)
    units, active, target = table.units[0], table.active[0], Path("plots/willshaw") / variant
    write_table(target.with_suffix(".csv"), table)
    heading = f"{variant} · {name}: Willshaw memory of {units} units, {active} active"
    save_figure(target.with_suffix(".png"), recall_figure, table, heading)
    print(
        f"{variant}, latent {name}: {table.stored.max():,} test images, {units} units, {active} active\n"
        f"written: {target}.csv, {target}.png"
    )
