"""BYOL's distance between directions (docs/methods.md, 7)."""

import torch
from torch import Tensor
from torch.nn import functional


def direction_distance(predictions: Tensor, targets: Tensor) -> Tensor:
    """Mean squared distance of rows scaled to length one, 2 - 2 cos: 0 if parallel, 2 if orthogonal, 4 if opposed.

    Args:
        predictions: raw rows [N, D].
        targets: raw rows [N, D]; constants, through which no gradient passes.
    """
    found, wanted = (functional.normalize(_wide(rows), dim=1) for rows in (predictions, targets.detach()))
    return (found - wanted).square().sum(1).mean()


def _wide(rows: Tensor) -> Tensor:
    """In fp32 at least."""
    return rows if rows.dtype == torch.float64 else rows.float()
