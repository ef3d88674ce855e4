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

    Its latent has the same name and width and comes from the same network, whatever the method. An untrained encoder
    has no floor, nor has a projection.
    """
    if not record.pretraining.epochs or row["space"] != "latent" or row["top1"] is None:
        return None
    for members in groups.values():
        first = members[0]
        for number, other in enumerate(first.rows if first.network == record.network else ()):
            if not first.pretraining.epochs and all(other[key] == row[key] for key in ("space", "latent", "width")):
                return float(numpy.mean([member.rows[number]["top1"] for member in members]))
    return None
