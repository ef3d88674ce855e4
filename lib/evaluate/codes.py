"""Measures of binary codes: how evenly their units are used, and whether they are codes at all.

Legend: M codes of D units, k of them active. Entropies are in bits.
"""

import math

import torch
from torch import Tensor


def is_binary(latents: Tensor) -> bool:
    """Whether latents [M, D] are 0 and 1 with as many ones in every row, at least one and not D."""
    active = latents.sum(1)
    even = bool((active == active[0]).all() and 0 < active[0] < latents.shape[1])
    return even and bool(((latents == 0) | (latents == 1)).all())


def usage_entropy(codes: Tensor) -> float:
    """Mean over the units of the entropy of being active, as a share of its largest value: codes [M, D] -> 0..1.

    0 where all codes are the same, which is collapse; 1 where each unit is active in k / D of them. How units depend on
    each other it does not tell.
    """
    usage = codes.double().mean(0)  # [D]
    return (_coin_entropy(usage).mean() / _coin_entropy(usage.mean())).item()


def pattern_entropy(codes: Tensor) -> float:
    """Entropy of the codes as whole patterns, in bits; log2 M where all M differ, 0 where all are the same."""
    counts = torch.unique(codes, dim=0, return_counts=True)[1].double()
    return (torch.special.entr(counts / len(codes)).sum() / math.log(2)).item() + 0.0  # and not -0


def unused(codes: Tensor) -> float:
    """Share of the units that no code uses."""
    return (codes.sum(0) == 0).double().mean().item()


def k_winners(scores: Tensor, count: int) -> Tensor:
    """float32 [M, D]: 1 at the ``count`` largest entries of each row; of those that tie the first ones win."""
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :count]
    return torch.zeros(scores.shape, device=scores.device).scatter_(1, order, 1.0)


def _coin_entropy(share: Tensor) -> Tensor:
    return (torch.special.entr(share) + torch.special.entr(1 - share)) / math.log(2)
