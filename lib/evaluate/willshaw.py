"""The Willshaw memory: binary codes in a binary matrix, recalled from a part of themselves (docs/methods.md, 12).

Legend: M stored codes of D units, k active in each; Q cues, k_c active in each.
"""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from lib.evaluate.codes import k_winners
from lib.runtime.chunks import chunks
from lib.runtime.seeds import generator

SEED = 0
COUNTS = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)  # of stored codes, recalled from half of their units
MIDDLE = 200  # codes in the memory whose cues are varied, in steps of a tenth of the active units


@dataclass(frozen=True)
class Recall:
    """How well a memory of ``stored`` codes answers cues that hold ``share`` of a code's active units.

    ``completion``: share of the stored code's units that came back, and ``spurious``: how many others did, when all
    units answer that every unit of the cue excites. ``expected``: what theory says of ``spurious`` for random codes, of
    cues without wrong units.
    ``winners``: the share that came back among the k most excited units. ``found``: percent of cues for which these
    overlap with the code that was meant more than with any other stored one. ``density``: share of ones in the matrix.
    """

    stored: int
    cue: str
    share: float
    completion: float
    spurious: float
    expected: float | None
    winners: float
    found: float
    density: float


def store(codes: Tensor) -> Tensor:
    """The matrix W_uv = 1 where some code has both u and v active: codes [M, D] -> float32 [D, D] of 0 and 1."""
    return (codes.float().T @ codes.float() > 0).float()


def excitation(weights: Tensor, cues: Tensor) -> Tensor:
    """How many of a cue's active units are connected with each unit: cues [Q, D] -> [Q, D]."""
    return cues.float() @ weights


def recall(weights: Tensor, cues: Tensor) -> Tensor:
    """Units that every active unit of the cue excites: cues [Q, D] -> 0 and 1 [Q, D].

    No stored unit is missed, but of a cue with wrong units this recalls too little; see `recall_winners`.
    """
    return (excitation(weights, cues) == cues.float().sum(1, keepdim=True)).float()


def recall_winners(weights: Tensor, cues: Tensor, count: int) -> Tensor:
    """The ``count`` units that the cue excites most, ties by the cue's own units, then in order: [Q, D]."""
    return k_winners(excitation(weights, cues) + 0.5 * cues.float(), count)


def partial_cues(codes: Tensor, count: int, stream: torch.Generator) -> Tensor:
    """``count`` of each code's active units, drawn evenly: [Q, D] -> [Q, D]."""
    return k_winners(torch.rand(codes.shape, generator=stream).where(codes > 0, -1.0), count)


def noisy_cues(codes: Tensor, wrong: int, stream: torch.Generator) -> Tensor:
    """Each code with ``wrong`` of its active units, at most D - k, replaced by inactive ones, drawn evenly: [Q, D]."""
    active = int(codes[0].sum())
    return partial_cues(codes, active - wrong, stream) + partial_cues(1 - codes.float(), wrong, stream)


def overlap(first: Tensor, second: Tensor) -> Tensor:
    """Active units that two codes share, row by row: [Q, D] twice -> [Q]."""
    return (first.float() * second.float()).sum(1)


def expected_spurious(units: int, active: int, stored: int, cue: int) -> float:
    """Wrongly recalled units for random codes: (D - k) (1 - (1 - k^2 / D^2)^M)^k_c (Willshaw et al. 1969).

    It takes the ones of the matrix for independent of each other, which makes it too small for few codes.
    """
    return (units - active) * (1 - (1 - (active / units) ** 2) ** stored) ** cue


def measure(codes: Tensor, cue: str, kept: int, seed: int) -> Recall:
    """Store codes [M, D] and recall each from a cue that holds ``kept`` of its active units.

    ``cue``: ``part`` (the others are missing) or ``noise`` (the others are replaced by wrong ones).
    """
    units, active = codes.shape[1], int(codes[0].sum())
    stream = generator(seed, f"cue {cue}", len(codes), kept)
    cues = partial_cues(codes, kept, stream) if cue == "part" else noisy_cues(codes, active - kept, stream)
    weights = store(codes)
    answer, winners = recall(weights, cues), recall_winners(weights, cues, active)
    right = overlap(answer, codes)
    return Recall(
        stored=len(codes),
        cue=cue,
        share=kept / active,
        completion=(right.mean() / active).item(),
        spurious=(answer.sum(1) - right).mean().item(),
        expected=expected_spurious(units, active, len(codes), kept) if cue == "part" else None,
        winners=(overlap(winners, codes).mean() / active).item(),
        found=_found(winners, codes),
        density=weights.mean().item(),
    )


def _found(answers: Tensor, codes: Tensor) -> float:
    """Percent of answers [M, D] whose own code [M, D] is nearer than every other; a tie does not count."""
    hits = 0
    for part in chunks(len(codes), len(codes)):
        shared = answers[part] @ codes.float().T  # [m, M]
        own = shared.diagonal(part.start).clone()
        shared.diagonal(part.start).fill_(-1)
        hits += int((own > shared.amax(1)).sum())
    return 100.0 * hits / len(codes)


def capacity(codes: Tensor, counts: list[int], cue: str, kept: list[int], seed: int) -> list[dict[str, object]]:
    """`measure` of the first codes of a fixed random order, for each number of ``counts`` and ``kept`` units."""
    order = torch.randperm(len(codes), generator=generator(seed, "stored codes"))
    return [asdict(measure(codes[order[:count]], cue, units, seed)) for count in counts for units in kept]


def recalls(codes: Tensor) -> list[dict[str, object]]:
    """One row for each kind of code and measurement; ``varied``: the ``number`` stored or the units in the ``cue``.

    Learned codes [M, D] stand beside random ones of the same size.
    """
    units, active = codes.shape[1], int(codes[0].sum())
    draws = torch.rand(codes.shape, generator=generator(SEED, "random codes"))
    counts = sorted({min(count, len(codes)) for count in COUNTS})
    fewest = max(1, 2 * active - units)  # a cue's wrong units are among the inactive ones
    kept = sorted({max(fewest, round(tenth * active / 10)) for tenth in range(1, 11)})
    plan = [("number", counts, "part", [max(1, round(active / 2))])]
    plan += [("cue", [min(MIDDLE, len(codes))], cue, kept) for cue in ("part", "noise")]
    return [
        {"codes": kind, "units": units, "active": active, "varied": varied, **row}
        for kind, stored in (("learned", codes), ("random", k_winners(draws, active)))
        for varied, numbers, cue, cue_units in plan
        for row in capacity(stored, numbers, cue, cue_units, SEED)
    ]
