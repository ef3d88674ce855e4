"""MoCo's contrast of a query with its key and a queue of older keys (docs/methods.md, 8).

Legend: N queries of D features, K keys in the queue.
"""

import torch
from torch import Tensor


def queue_contrast(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Each query must find its key among the keys of the queue; other rows of the batch do not count.

    Args:
        queries: unit rows [N, D].
        keys: unit rows [N, D], row i the positive of query i; constants, through which no gradient passes.
        queue: unit rows [K, D] of earlier steps, none of this one; constants.
        temperature: divides the cosines.

    Returns:
        The mean of -log softmax at the positive, which is in the denominator, in nats.
    """
    queries = _wide(queries)
    keys, queue = (rows.detach().to(queries.dtype) for rows in (keys, queue))
    with torch.autocast(queries.device.type, enabled=False):
        positive = (queries * keys).sum(1, keepdim=True) / temperature  # [N, 1]
        negative = (queries / temperature) @ queue.T  # [N, K]
        return (torch.cat([positive, negative], 1).logsumexp(1) - positive[:, 0]).mean()


def _wide(rows: Tensor) -> Tensor:
    """In fp32 at least."""
    return rows if rows.dtype == torch.float64 else rows.float()
