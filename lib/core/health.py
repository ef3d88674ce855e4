"""What must be seen while a training runs: numbers that break, embeddings that collapse, memory that grows."""

import resource
import sys
from collections.abc import Iterable

import torch
from torch import Tensor

COLLAPSED = 0.05  # embedding_std; the mean cosine of two different images is then above 0.9975


class Guard:
    """Remembers the first step whose loss or gradient is not finite, on the device and without waiting for it.

    From that step on no update is made: the optimizers read ``found_inf``, a number that is 1 then and 0
    before. So the parameters are still those of the last good step when the host learns of it.
    """

    def __init__(self, device: str) -> None:
        self.first = torch.zeros((), dtype=torch.int64, device=device)  # 1 + the number of the step; 0: none

    def watch(self, number: int, loss: Tensor, gradients: Iterable[Tensor]) -> Tensor:
        """Look at step ``number``; returns ``found_inf``, float32 []."""
        size = torch.nn.utils.get_total_norm(gradients).to(loss.dtype)
        broken = ~torch.isfinite(loss + size)
        self.first = torch.where(broken & (self.first == 0), number + 1, self.first)
        return (self.first > 0).float()

    def broken_step(self) -> int | None:
        """The number of the first step that broke; waits for the device."""
        first = int(self.first.item())
        return first - 1 if first else None


def embedding_std(rows: Tensor) -> Tensor:
    """The collapse metric of embeddings [B, D], []: their standard deviation over their root mean square length.

    1 when they balance around zero, 0 when all are equal. Of L2-normalized embeddings its square is 1 minus the mean
    cosine of two of them (each with itself included).
    """
    power = rows.square().sum(1).mean()
    variance = (rows - rows.mean(0)).square().sum(1).mean()
    return torch.where(power > 0, variance / power, 0.0).sqrt()


def peak_memory(device: str) -> int:
    """Bytes: the most that tensors ever took on a CUDA device, or this process in memory, libraries included."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def forget_peak(device: str) -> None:
    """What was evaluated between two epochs does not count into `peak_memory`; in a process's own it stays."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
