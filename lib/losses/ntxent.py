"""NT-Xent, the normalized temperature-scaled cross entropy of SimCLR (docs/methods.md, 1).

Legend: 2N rows (two views of N images) of D features, R of them in a tile.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lib.runtime.chunks import chunks

TILE = 2**22  # elements, 16 MiB in fp32: what is at hand at once, a few of these, stays small beside 65,536 rows


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Each row must find its other view among the 2N - 1 other rows of the batch.

    The 2N x 2N similarities are computed a tile at a time, in the loss and again in its gradient, and
    never held unless one tile holds them all: memory grows with N, not with its square. There is no
    second derivative.

    Args:
        first, second: unit rows of the two views, [N, D] each; row i of both is image i.
        temperature: divides the cosines.

    Returns:
        The mean over all 2N rows of -log softmax at the positive, in nats. The positive is in the
        denominator, the row itself is not. The official code returns twice this value.
    """
    rows = torch.cat([first, second])  # [2N, D]
    if rows.dtype != torch.float64:
        rows = rows.float()
    return _TiledNTXent.apply(rows, temperature)


class _TiledNTXent(torch.autograd.Function):
    """With s_ij = z_i . z_j / T and p(i) the positive of row i, the loss is mean_i(lse_i - s_ip(i)).

    Its gradient at z_i is (sum_j (P_ij + P_ji) z_j - 2 z_p(i)) / 2NT, where P_ij = exp(s_ij - lse_i)
    and P_ii = 0: s is symmetric, so that one tile holds the terms of its rows as well as of its columns. Where all
    fits into one tile it is kept for the gradient; of several each is computed again.
    """

    @staticmethod
    def forward(context: Any, rows: Tensor, temperature: float) -> Tensor:
        normalizers = torch.empty_like(rows[:, 0])  # lse, [2N]
        with torch.autocast(rows.device.type, enabled=False):
            for part in chunks(len(rows), len(rows), TILE):
                similarity = _similarity(rows, part, temperature)
                normalizers[part] = similarity.logsumexp(1)
        context.save_for_backward(rows, normalizers, similarity if len(similarity) == len(rows) else None)
        context.temperature = temperature
        return (normalizers - (rows * _partners(rows)).sum(1) / temperature).mean()

    @staticmethod
    @once_differentiable
    def backward(context: Any, slope: Tensor) -> tuple[Tensor, None]:
        rows, normalizers, whole = context.saved_tensors
        gradient = torch.empty_like(rows)
        with torch.autocast(rows.device.type, enabled=False):
            if whole is not None:
                weights = (whole - normalizers[:, None]).exp_()
                torch.mm(weights + weights.T, rows, out=gradient)
            for part in chunks(len(rows), len(rows), TILE) if whole is None else ():
                similarity = _similarity(rows, part, context.temperature)  # [R, 2N]
                weights = (similarity - normalizers[part, None]).exp_()
                weights += similarity.sub_(normalizers).exp_()
                torch.mm(weights, rows, out=gradient[part])  # [R, 2N] x [2N, D]
        gradient.sub_(_partners(rows), alpha=2)
        return gradient.mul_(slope / (len(rows) * context.temperature)), None


def _similarity(rows: Tensor, part: slice, temperature: float) -> Tensor:
    """[R, 2N]: of the rows in ``part`` to all rows, -inf to themselves."""
    similarity = (rows[part] / temperature) @ rows.T
    similarity.diagonal(part.start).fill_(-torch.inf)
    return similarity


def _partners(rows: Tensor) -> Tensor:
    """[2N, D]: at each row its positive, i -> (i + N) mod 2N."""
    return rows.roll(len(rows) // 2, 0)
