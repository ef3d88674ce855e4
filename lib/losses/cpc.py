"""Scores of predicted codes of patches, the patches that they are held against, and InfoNCE (docs/methods.md, 9).

The score of a prediction for a patch is their plain product, neither normalized nor divided by a temperature.

B images, P places in each, D features, n negatives of each prediction. Where the places are those of several
distances, one after the other, ``parts`` is how many each has: all are scored at once, and each has its own mean.
"""

from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import embedding

from lib.runtime.chunks import chunks
from lib.runtime.seeds import send


def true_scores(predicted: Tensor, codes: Tensor) -> Tensor:
    """Of each prediction for the patch that it is about: [B, P, D] each -> [B, P]."""
    return (_wide(predicted) * _wide(codes)).sum(2)


def false_scores(predicted: Tensor, codes: Tensor, draws: Tensor) -> Tensor:
    """Of each prediction for the n patches ``draws`` [B, P, n], numbered as in codes [B * P, D]: -> [B, P, n].

    The n codes of every prediction are laid out for it, B * P * n * D numbers in all, and some places at a time, so
    that what is at hand fits into a cache. The gradients of a code add up in one order, where those of ``rows[draws]``
    add up in the order in which threads come by.
    """
    rows, wide = _wide(codes).flatten(0, 1), _wide(predicted)
    images, places, count = draws.shape
    parts = chunks(places, images * count * rows.shape[1])
    return torch.cat([(embedding(draws[:, part], rows) @ wide[:, part, :, None])[:, :, :, 0] for part in parts], 1)


def any_place(codes: Tensor, count: int, parts: tuple[int, ...] = ()) -> Tensor:
    """``count`` patches for each of [B, P, D], int64 [B, P, count]: at any place of any other image, each as likely.

    Drawn with replacement, on the CPU from torch's global generator, so that every device sees the same. The image
    itself is left out, and with it the true patch. With ``parts``, at any place of the same part.
    """
    images, places = codes.shape[:2]
    drawn, start = [], 0
    for size in parts or (places,):
        other = _others(images, (images, size, count))
        drawn.append(other * places + start + torch.randint(size, other.shape))
        start += size
    return send(torch.cat(drawn, 1), codes.device)


def same_place(codes: Tensor, count: int, parts: tuple[int, ...] = ()) -> Tensor:
    """As `any_place`, but of ``count`` other images, the same for all places of a part, the patch at the very place."""
    images, places = codes.shape[:2]
    other = torch.cat([_others(images, (images, 1, count)).expand(-1, size, -1) for size in parts or (places,)], 1)
    return send(other * places + torch.arange(places)[None, :, None], codes.device)


def info_nce(true: Tensor, false: Tensor, parts: tuple[int, ...] = ()) -> Tensor:
    """Mean of -log softmax at the true patch, in nats, [] or of each part [K]; all scores equal: log(1 + n).

    Args:
        true: scores [B, P] of the true patches.
        false: scores [B, P, n] of the others; the true one is in the denominator beside them.
    """
    return means(torch.cat([true[:, :, None], false], 2).logsumexp(2) - true, parts).mean(0)


def means(values: Tensor, parts: tuple[int, ...] = ()) -> Tensor:
    """Of values [B, P] over the places: [B], or [B, K] over those of each part."""
    return values @ _averages(parts, values.dtype, values.device) if parts else values.mean(1)


@cache
def _averages(parts: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """[P, K]: what each place counts in the mean of each part."""
    owner = torch.repeat_interleave(torch.arange(len(parts)), torch.tensor(parts))
    return send((owner[:, None] == torch.arange(len(parts))) / torch.tensor(parts, dtype=dtype), device)


def _others(images: int, shape: tuple[int, ...]) -> Tensor:
    """For each row b of ``shape`` [B, ...] numbers of images other than b, each as likely."""
    own = torch.arange(images).view(-1, *[1] * (len(shape) - 1))
    return (own + torch.randint(1, images, shape)) % images


def _wide(rows: Tensor) -> Tensor:
    """In fp32 at least."""
    return rows if rows.dtype == torch.float64 else rows.float()
