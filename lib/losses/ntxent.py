"""NT-Xent, the normalised temperature-scaled cross entropy of SimCLR (docs/methods.md, 1)."""

import torch
from torch import Tensor
from torch.nn import functional


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Each row must find its other view among the 2N - 1 other rows of the batch.

    Args:
        first, second: unit rows of the two views, [N, D] each; row i of both is image i.
        temperature: divides the cosines.

    Returns:
        The mean over all 2N rows of -log softmax at the positive, in nats. The positive is in the
        denominator, the row itself is not. The official code returns twice this value.
    """
    count = len(first)
    rows = torch.cat([first, second]).float()  # [2N, D]
    with torch.autocast(rows.device.type, enabled=False):
        logits = rows @ rows.T / temperature  # [2N, 2N]
        logits = logits.masked_fill(torch.eye(2 * count, dtype=torch.bool, device=rows.device), -torch.inf)
        partner = torch.arange(2 * count, device=rows.device).roll(count)  # i -> (i + N) mod 2N
        return functional.cross_entropy(logits, partner)
