"""What a row is compared with: plain SimCLR of the same seed, and the untrained encoder of its own kind."""

from collections.abc import Sequence
from typing import Any

import numpy

from lib.report.records import Groups, Record

CONFIDENCE = 0.9


def baseline(groups: Groups) -> Sequence[Record]:
    """The first group of SimCLR that was trained without a term and without labels, or none."""
    for members in groups.values():
        params = members[0].pretraining
        usual = {"term": "none", "negatives": "all"}.items()
        if params.method == "simclr" and params.epochs and all(params.options.get(*each) == each[1] for each in usual):
            return members
    return ()


def delta(record: Record, row: dict[str, Any], simclr: Sequence[Record]) -> float | None:
    """Probe top-1 of a latent minus that of the main latent of `baseline` trained with the same seed, in points."""
    theirs = {other.pretraining.seed: other.rows[0]["top1"] for other in simclr}
    if row["space"] != "latent" or record in simclr or record.pretraining.seed not in theirs or row["top1"] is None:
        return None
    return row["top1"] - theirs[record.pretraining.seed]


def floor(record: Record, row: dict[str, Any], groups: Groups) -> float | None:
    """Mean probe top-1 of an untrained encoder that is alike but for its training; None where there is none.

    It comes from the same network, whatever the method, and has the same latents by name: what `both` joins depends on
    them. An untrained encoder has no floor, nor has a projection.
    """
    if not record.pretraining.epochs or row["space"] != "latent" or row["top1"] is None:
        return None
    number, names = record.rows.index(row), _latents(record)
    for members in groups.values():
        untrained = [member for member in members if not member.pretraining.epochs and member.network == record.network]
        alike = [member.rows[number] for member in untrained if _latents(member) == names]
        if alike and alike[0]["width"] == row["width"]:
            return float(numpy.mean([other["top1"] for other in alike]))
    return None


def _latents(record: Record) -> list[str]:
    return [row["latent"] for row in record.rows if row["space"] == "latent"]
