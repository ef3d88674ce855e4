"""How much the study's term pulls, on one scale for both of its versions (docs/methods.md, 2)."""

import pandas

from lib.params.pretraining import Pretraining


def relative_pull(term: str, gamma: float, batch_size: int, temperature: float, distance: float) -> float | None:
    """lambda, in percent: the term's pull on a pair's cosine, as a share of the pull of NT-Xent's positive.

    With N images, temperature t and D the distance ||Z_a - Z_b||_F of a batch, gamma D (``pull``) acts on each cosine
    as gamma N t / D of the 1 / t of NT-Xent, - gamma log D (``push``) as - gamma N t / D^2. None for another term.
    """
    strength = 100 * gamma * batch_size * temperature
    if term == "pull":
        return strength / distance
    return -strength / distance**2 if term == "push" else None


def term_dose(params: Pretraining, curve: pandas.DataFrame) -> float | None:
    """`relative_pull` at the mean distance of the last epoch; None without training or without such a term.

    With two latents the term acts on pairs that NT-Xent does not see, and is no share of its pull.
    """
    term, halves = params.options.get("term", "none"), params.options.get("latents") == "halves"
    if not params.epochs or params.gamma is None or term == "none" or halves:
        return None
    distance = curve["distance"].iloc[-1]
    return relative_pull(term, params.gamma, params.batch_size, params.options["temperature"], distance)
