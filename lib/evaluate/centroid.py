"""The nearest class centroid, the readout with which EmbedderSDR scores its codes (docs/methods.md, 12).

Legend: M latents of the bank (training images) and N queries (test images), D units, K classes.
"""

import torch
from torch import Tensor
from torch.nn import functional

from lib.evaluate.codes import k_winners, pattern_entropy, unused, usage_entropy
from lib.evaluate.scores import accuracy


def centroids(latents: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Mean latent of each class: [M, D], labels int64 [M] -> float32 [K, D]; 0 for a class without images."""
    sums = torch.zeros(classes, latents.shape[1]).index_add_(0, labels, latents.float())
    return sums / torch.bincount(labels, minlength=classes).clamp(min=1)[:, None]


def centroid_logits(bank: Tensor, labels: Tensor, queries: Tensor, classes: int, count: int = 0) -> Tensor:
    """Cosine of queries [N, D] with the centroid of each class in ``bank`` [M, D]: [N, K]; 0 for a class with none.

    With ``count`` above 0 the centroids are made codes again, of their ``count`` most frequent units.
    """
    means = centroids(bank, labels, classes)
    if count:
        means = k_winners(means, count) * (means.sum(1, keepdim=True) != 0)
    return functional.normalize(queries.float(), dim=1) @ functional.normalize(means, dim=1).T


def code_numbers(bank: Tensor, labels: Tensor, codes: Tensor, own: Tensor, classes: int) -> dict[str, float]:
    """What is said of binary codes [N, D] of classes ``own`` [N] beside the accuracies; shares in percent.

    ``centroid`` and ``centroid_code``: images whose nearest centroid is their class's, of means and of means made
    codes again; ``active`` units of each code; ``unused``: units that none of them uses.
    """
    active = int(codes[0].sum())
    near, near_code = (centroid_logits(bank, labels, codes, classes, count) for count in (0, active))
    return {
        "centroid": accuracy(near, own),
        "centroid_code": accuracy(near_code, own),
        "active": active,
        "usage_entropy": usage_entropy(codes),
        "pattern_entropy": pattern_entropy(codes),
        "unused": 100 * unused(codes),
    }
