"""What the machine can do, and what a training step asks of it."""

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.images import SIZE
from bench.ours import study_params
from bench.timing import steady
from lib.methods import build_method
from lib.runtime.machine import Machine


def measure(settings: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """FLOP/s of square matrix products, the best over ``sizes``; bf16 where our own arms compute in it.

    On a GPU also in tf32, in which cuDNN computes fp32 convolutions unless it is told not to.
    """
    names = {"fp32": torch.float32} | ({"bf16": torch.bfloat16} if machine.precision == "bf16" else {})
    found = {name: _best(kind, settings, machine.device) for name, kind in names.items()}
    if machine.device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        found["tf32"] = _best(torch.float32, settings, machine.device)
    return found


def _best(kind: torch.dtype, settings: dict[str, Any], device: str) -> float:
    return max(_rate(size, kind, settings, device) for size in settings["sizes"])


def _rate(size: int, kind: torch.dtype, settings: dict[str, Any], device: str) -> float:
    first, second = (torch.randn(size, size).to(device, kind) for _ in range(2))
    out = torch.empty(size, size, dtype=kind, device=device)
    return 2 * size**3 / steady(lambda: torch.mm(first, second, out=out), settings)["seconds"]


def flops(settings: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """FLOPs of one step's convolutions and matrix products, forward and backward of both views; nothing is run.

    Encoder and projector count; the loss, thousands of times smaller, does not.
    """
    with torch.device("meta"):
        method = build_method(study_params(settings)).train()
        views = [torch.empty(settings["batch"], 3, SIZE, SIZE) for _ in range(method.views)]
    with FlopCounterMode(display=False) as counter:
        sum(values.sum() for values in method.embed(views).values()).backward()
    return {"flops": counter.get_total_flops()}
