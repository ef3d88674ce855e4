"""The nearest class centroid, the readout with which EmbedderSDR scores its codes (docs/methods.md, 12)."""

import torch
from torch import Tensor
from torch.nn import functional

from lib.evaluate.codes import k_winners, pattern_entropy, unused, usage_entropy
from lib.evaluate.scores import accuracy


def centroids(rows: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Mean row of each class: rows [M, D], labels int64 [M] -> float32 [classes, D]; 0 for a class without rows."""
    sums = torch.zeros(classes, rows.shape[1]).index_add_(0, labels, rows.float())
    return sums / torch.bincount(labels, minlength=classes).clamp(min=1)[:, None]


def centroid_scores(bank: Tensor, labels: Tensor, queries: Tensor, classes: int, count: int = 0) -> Tensor:
    """Cosine of queries [N, D] with the centroid of each class in ``bank`` [M, D]: [N, classes].

    With ``count`` above 0 the centroids are made codes again, of their ``count`` most frequent units. A class
    without rows in the bank scores 0.
    """
    means = centroids(bank, labels, classes)
    if count:
        means = k_winners(means, count) * (means.sum(1, keepdim=True) != 0)
    return functional.normalize(queries.float(), dim=1) @ functional.normalize(means, dim=1).T


def code_numbers(bank: Tensor, labels: Tensor, codes: Tensor, own: Tensor, classes: int) -> dict[str, float]:
    """What is said of binary codes beside the accuracies of any latent.

    Args:
        bank, labels: [M, D] and [M], of the training images, whose classes have the centroids.
        codes, own: [N, D] and [N], of the test images.

    Returns:
        ``centroid`` and ``centroid_code``: percent of test images whose nearest centroid is their class's, of means
        and of means made codes again; ``active`` units of each code; `usage_entropy` and `pattern_entropy` of the
        test codes; ``unused``: percent of units that none of them uses.
    """
    active = int(codes[0].sum())
    scores = [centroid_scores(bank, labels, codes, classes, count) for count in (0, active)]
    return {
        "centroid": accuracy(scores[0], own),
        "centroid_code": accuracy(scores[1], own),
        "active": active,
        "usage_entropy": usage_entropy(codes),
        "pattern_entropy": pattern_entropy(codes),
        "unused": 100 * unused(codes),
    }
