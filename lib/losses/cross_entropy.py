"""Cross entropy of class scores, for the supervised ceiling."""

from torch import Tensor
from torch.nn import functional


def cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """Mean of -log softmax at the label, in nats.

    Args:
        scores: logits [N, C]; a softmax before them would be a second one.
        labels: int64 [N].
    """
    return functional.cross_entropy(scores.float(), labels)
