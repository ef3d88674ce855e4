"""The distance between the two views of a whole batch, as the study ran it (docs/methods.md, 2)."""

from torch import Tensor

EPSILON = 1e-12


def frobenius_distance(first: Tensor, second: Tensor) -> Tensor:
    """||first - second||_F: one root over the sum of squares of the whole batch, not a mean over images.

    It grows with the root of the batch size, and its gradient has the norm 1 for each view however near the
    views are. ``EPSILON`` inside the root keeps the gradient finite where they coincide; it moves the
    value by less than 1e-6.

    Args:
        first, second: the two views' rows, [N, D] each.
    """
    difference = first.float() - second.float()
    return (difference.square().sum() + EPSILON).sqrt()
