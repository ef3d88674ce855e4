"""The cosine triplet loss on codes (docs/methods.md, 12), and which rows of a batch make a triplet.

Legend: R rows of D units; rows of one group (two views of an image, or one class) belong together.
"""

import torch
from torch import Tensor

from lib.losses.code_contrast import cosines


def hinge(positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    """max(0, cos(a, n) - cos(a, p) + margin), element by element."""
    return (negative - positive + margin).relu()


def triplet(codes: Tensor, groups: Tensor, margin: float, mining: str) -> Tensor:
    """Every row is an anchor once; mean of its hinge over the rows that have a triplet, 0 where none has.

    The positive is drawn among the other rows of its group. What is drawn comes from torch's global generator.

    Args:
        codes: [R, D], not all zero in any row.
        groups: int64 [R].
        mining: how the negative is chosen among the rows of other groups: ``random``, or ``semi_hard``, the
            most similar of those that are less similar than the positive, by less than the margin.
    """
    similarity = cosines(codes)  # [R, R]
    same = groups[:, None] == groups
    partners = same & ~torch.eye(len(codes), dtype=torch.bool, device=codes.device)
    positive = _picked(similarity, _drawn(partners))
    if mining == "random":
        candidates, preference = ~same, torch.rand_like(similarity)
    else:
        candidates = semi_hard(similarity.detach(), positive.detach(), ~same, margin)
        preference = similarity.detach()
    negative = _picked(similarity, preference.where(candidates, -torch.inf).argmax(1))
    valid = partners.any(1) & candidates.any(1)
    return (hinge(positive, negative, margin) * valid).sum() / valid.sum().clamp(min=1)


def semi_hard(similarity: Tensor, positive: Tensor, others: Tensor, margin: float) -> Tensor:
    """Which of ``others``, bool [R, R], are semi-hard: p - margin < s < p, of positives p [R] and similarities s."""
    positive = positive[:, None]
    return others & (similarity < positive) & (similarity > positive - margin)


def _drawn(allowed: Tensor) -> Tensor:
    """For each row of a mask [R, R] one of its columns, int64 [R], drawn evenly; any where there is none."""
    return torch.rand(allowed.shape, device=allowed.device).where(allowed, -1.0).argmax(1)


def _picked(similarity: Tensor, columns: Tensor) -> Tensor:
    return similarity.gather(1, columns[:, None])[:, 0]
