"""Adam, SGD and LARS over a method's parameters. Weight decay is L2, added to the gradient, in all three.

An optimizer whose attribute ``found_inf`` holds a tensor of 1 changes nothing in its step, and the host
need not know: torch's fused optimizers read it on the device, LARS does the same.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lib.params.pretraining import Optimizer


def build_optimizer(module: nn.Module, params: Optimizer, factors: Mapping[str, float]) -> torch.optim.Optimizer:
    """The optimizer that ``params.name`` asks for; ``params.momentum`` is Adam's beta1.

    ``factors``, by the name of a child of ``module``, are what `set_rate` multiplies the learning rate of the child's
    parameters by; others' is as it is.
    """
    by_factor: dict[float, list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            by_factor.setdefault(factors.get(name.partition(".")[0], 1.0), []).append(parameter)
    learning = [{"params": parameters, "factor": factor} for factor, parameters in by_factor.items()]
    common: Any = {"lr": params.lr, "weight_decay": params.weight_decay}
    if params.name == "adam":
        return torch.optim.Adam(learning, betas=(params.momentum, 0.999), fused=True, **common)
    if params.name == "sgd":
        return torch.optim.SGD(learning, momentum=params.momentum, fused=True, **common)
    if params.name == "lars":
        return LARS(learning, momentum=params.momentum, trust=params.trust, **common)
    raise ValueError(f"no optimizer {params.name!r}")


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["factor"] * rate


def laid_out(gradient: Tensor, weight: Tensor) -> Tensor:
    """The gradient in the memory format of its weight, which fused optimizers ask for."""
    return gradient if gradient.stride() == weight.stride() else torch.empty_like(weight).copy_(gradient)


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling (You, Gitman and Ginsburg 2017).

    A weight of two or more dimensions moves by lr * trust * ||w|| / ||g + decay w|| times the momentum
    sum of its scaled gradients; biases and BatchNorm parameters (one dimension) are neither scaled nor decayed. A
    ratio is not clipped at 1, as solo-learn's is.
    """

    def __init__(self, parameters, lr: float, momentum: float, weight_decay: float, trust: float) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, group)

    def _update(self, weight: Tensor, group: dict) -> None:
        gradient = weight.grad
        if weight.ndim > 1:
            gradient = gradient + group["weight_decay"] * weight
            size, length = weight.norm(), gradient.norm()
            ratio = torch.where((size > 0) & (length > 0), group["trust"] * size / length, torch.ones_like(size))
            gradient = gradient * ratio
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        moved = group["momentum"] * state["momentum_buffer"] + gradient
        still = getattr(self, "found_inf", torch.zeros((), device=weight.device)) > 0
        state["momentum_buffer"].copy_(torch.where(still, state["momentum_buffer"], moved))
        weight.copy_(torch.where(still, weight, weight - group["lr"] * moved))
