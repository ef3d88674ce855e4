"""The arithmetic of the report: plain numbers in, plain numbers out."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

Values = Sequence[float | None]  # one for each repetition; None where nothing was measured


@dataclass(frozen=True)
class Spread:
    """The median of ``count`` values, the lowest and the highest."""

    median: float
    low: float
    high: float
    count: int


def spread(values: Values) -> Spread | None:
    """Of the values that there are; None without any."""
    there = [value for value in values if value is not None]
    return Spread(statistics.median(there), min(there), max(there), len(there)) if there else None


def ratios(ours: Values, peer: Values) -> list[float | None]:
    """How many times as long the peer took, within each repetition."""
    return [None if own is None or other is None else other / own for own, other in zip(ours, peer, strict=True)]


def fractions(flops: float | None, seconds: Values, ceiling: Values) -> list[float | None]:
    """The share of the ceiling, in FLOP/s, that ``flops`` in ``seconds`` reach, within each repetition."""
    return [
        None if flops is None or spent is None or most is None else flops / spent / most
        for spent, most in zip(seconds, ceiling, strict=True)
    ]


def verdict(found: Spread | None, target: float | None) -> str:
    """Met if the median reaches the target. Empty without a target."""
    if target is None:
        return ""
    if found is None:
        return "not measured"
    return "met" if found.median >= target else "missed"


@dataclass(frozen=True)
class Race:
    """Time to accuracy, as a ratio; ``bound`` if the peer was stopped before the goal: the ratio is at least this."""

    ratio: float | None
    bound: bool


def race(ours: float | None, peer: float | None, peer_trained: float) -> Race:
    """From seconds to the goal, None for an arm that never reached it; ``peer_trained``: the peer's in all."""
    if ours is None:
        return Race(None, False)
    return Race(peer_trained / ours, True) if peer is None else Race(peer / ours, False)


def race_verdict(found: Race, target: float) -> str:
    """A bound can meet a target but not miss it; our arm never reaching the goal is a miss."""
    if found.ratio is None:
        return "missed"
    if found.ratio >= target:
        return "met"
    return "undecided" if found.bound else "missed"
