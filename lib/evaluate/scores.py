"""Measures of class scores against labels."""

from torch import Tensor


def accuracy(scores: Tensor, labels: Tensor, k: int = 1) -> float:
    """Percent of the rows of ``scores`` [N, C] whose label is among the ``k``, at most C, highest."""
    best = scores.topk(min(k, scores.shape[1]), dim=1).indices  # [N, k]
    return 100.0 * (best == labels[:, None]).any(1).double().mean().item()
