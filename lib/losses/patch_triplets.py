"""Triplets of patches: near those of the same image, far from those of others (docs/methods.md, 13).

Legend: B images with P patches each, embeddings of D numbers; A = B P (P - 1) / 2 pairs (anchor, positive),
each unordered pair once, its first patch the anchor.
"""

import torch
from torch import Tensor
from torch.nn.functional import embedding

from lib.runtime.chunks import chunks


def patch_triplets(patches: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """One semi-hard negative for each pair of patches of an image, chosen at random.

    With squared Euclidean distances d, a negative n of another image is semi-hard for the pair (a, p) if
    d(a, p) < d(a, n) < d(a, p) + margin. A pair without one does not count. Randomness comes from torch's
    global generator.

    Args:
        patches: [B, P, D].

    Returns:
        The mean over the chosen triples of d(a, p) - d(a, n) + margin, and the share of pairs that have one.
        0 with a zero gradient where there is none, as where all patches are equal: no negative is then farther
        than the positive.
    """
    patches = patches if patches.dtype == torch.float64 else patches.float()
    count, each, _ = patches.shape
    first, second = torch.triu_indices(each, each, 1, device=patches.device)
    distances = squared_distances(patches.flatten(0, 1))  # [B P, B P]
    rows = torch.arange(count, device=patches.device)[:, None] * each
    anchors, positives = (rows + first).flatten(), (rows + second).flatten()
    near = _picked(distances, anchors, positives)  # [A]
    parts = [
        semi_hard(distances.detach()[anchors[part]], near.detach()[part], anchors[part] // each, each, margin)
        for part in chunks(len(anchors), len(distances))
    ]  # A x B P numbers are never held at once
    chosen, found = map(torch.cat, zip(*parts))
    losses = hinge(near, _picked(distances, anchors, chosen), margin)
    return (losses * found).sum() / found.sum().clamp(min=1), found.float().mean()


def hinge(near: Tensor, far: Tensor, margin: float) -> Tensor:
    """max(0, d(a, p) - d(a, n) + margin) of distances, element by element; all three equal: the margin."""
    return (near - far + margin).relu()


def squared_distances(rows: Tensor) -> Tensor:
    """[N, N] of rows [N, D], not below 0."""
    with torch.autocast(rows.device.type, enabled=False):
        length = rows.square().sum(1)
        return (length[:, None] + length - 2 * rows @ rows.T).clamp(min=0)


def semi_hard(distances: Tensor, near: Tensor, images: Tensor, each: int, margin: float) -> tuple[Tensor, Tensor]:
    """A random semi-hard negative of every pair.

    Args:
        distances: [A, B P], of the pairs' anchors to all patches.
        near: [A], of the anchors to their positives.
        images: int64 [A], the image of each pair.
        each: patches of an image, which follow one another.

    Returns:
        The patch [A], and whether there is one [A].
    """
    owner = torch.arange(distances.shape[1], device=distances.device) // each
    allowed = (distances > near[:, None]) & (distances < near[:, None] + margin) & (owner != images[:, None])
    ticket = torch.rand(distances.shape, device=distances.device).masked_fill_(~allowed, -1)
    best, chosen = ticket.max(1)
    return chosen, best >= 0


def _picked(values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``values[rows, columns]``, whose gradients add up in one order whatever the number of threads.

    Here they are 0 or all alike, so that any order would do; the rule is kept so that it can be tested for all.
    """
    return embedding(rows * values.shape[1] + columns, values.view(-1, 1))[:, 0]
