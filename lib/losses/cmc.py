"""CMC's contrast of two views of an image (docs/methods.md, 11): within the batch, or against a memory bank.

Legend: N images of a batch, D features, n images of the bank, m negatives of each image. Each function is one
direction, one view's rows that look for those of the other; an objective is the sum of both.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional


def in_batch(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """Each query must find the key of its own image among all N: mean of -log softmax, in nats.

    Args:
        queries, keys: unit rows, [N, D] each; row i of both is image i. Both carry a gradient.
    """
    scores = _products(queries, keys) / temperature  # [N, N]
    return functional.cross_entropy(scores, torch.arange(len(scores), device=scores.device))


def bank_scores(queries: Tensor, bank: Tensor, own: Tensor, others: Tensor, temperature: float) -> Tensor:
    """Cosines over temperature of each query with its own row of the bank, then with its negatives: [N, 1 + m].

    The scores of all rows of the bank are computed and picked from: N n numbers instead of the N m D of the
    negatives' rows.

    Args:
        queries: unit rows [N, D].
        bank: unit rows [n, D] of the other view, without gradient.
        own, others: int64 [N] and [N, m], rows of the bank.
    """
    scores = _products(queries, bank.detach()) / temperature  # [N, n]
    return scores.gather(1, torch.cat([own[:, None], others], 1))


def softmax_error(scores: Tensor) -> Tensor:
    """Mean of -log softmax at the first column, in nats; scores [N, 1 + m]. Equal scores: log(1 + m)."""
    return (scores.logsumexp(1) - scores[:, 0]).mean()


def nce_error(scores: Tensor, normalizer: Tensor, images: int) -> Tensor:
    """Noise-contrastive estimation: is a row the image's own, or one of m drawn evenly from n? Mean over N.

    With P = exp(score) / normalizer it is -log(P / (P + m / n)) at the first column, and the sum of
    -log((m / n) / (P + m / n)) over the others. P = 1 / n everywhere: log(1 + m) + m log(1 + 1 / m).

    Args:
        scores: [N, 1 + m], of `bank_scores`.
        normalizer: [], a constant: `first_normalizer` of the first batch.
        images: n.
    """
    noise = math.log((scores.shape[1] - 1) / images)  # a plain number: a tensor of it would make the host wait
    odds = scores - normalizer.log() - noise  # log of P n / m
    return (functional.softplus(-odds[:, 0]) + functional.softplus(odds[:, 1:]).sum(1)).mean()


def first_normalizer(scores: Tensor, images: int) -> Tensor:
    """Mean of exp(score) over a batch, times the number of images: [], without gradient."""
    return scores.detach().exp().mean() * images


def _products(first: Tensor, second: Tensor) -> Tensor:
    """Row by row products [N, D] x [M, D] -> [N, M], in fp32 at least."""
    if first.dtype != torch.float64:
        first, second = first.float(), second.float()
    with torch.autocast(first.device.type, enabled=False):
        return first @ second.T
