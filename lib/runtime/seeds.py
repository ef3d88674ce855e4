"""Random draws as a function of named integers, never of how many numbers were drawn before; made on the CPU."""

import zlib

import numpy
import torch
from torch import Tensor


def generator(seed: int, purpose: str, *position: int) -> torch.Generator:
    """A CPU generator fixed by a seed, a purpose and a position such as (epoch, step).

    Two purposes, or two positions, give independent streams. The same arguments give the same
    stream on every machine, whatever ran before.
    """
    words = numpy.random.SeedSequence([seed, zlib.crc32(purpose.encode()), len(position), *position]).generate_state(2)
    return torch.Generator().manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)


def send(drawn: Tensor, device: torch.device | str) -> Tensor:
    """What was drawn on the CPU, to where it is used, without waiting for a GPU."""
    if torch.device(device).type == "cuda":
        drawn = drawn.pin_memory()
    return drawn.to(device, non_blocking=True)
