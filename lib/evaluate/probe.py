"""The linear probe: multinomial logistic regression on frozen, standardized features.

A grid of learning rates and weight decays is trained at once as one wide layer.

P settings of the grid, N images, B images of a minibatch, D features, C classes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.evaluate.progress import Lines
from lib.evaluate.scores import accuracy
from lib.runtime.seeds import generator

LEARNING_RATES = (1e-3, 1e-2)
WEIGHT_DECAYS = (1e-5, 1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 3e-1)
BETAS = (0.9, 0.999)
EPSILON = 1e-8
SMALLEST_STD = 1e-6


@dataclass(frozen=True)
class Setting:
    """Adam's peak rate, and the factor of half the squared weights in the loss (the bias is free)."""

    lr: float
    weight_decay: float


GRID = tuple(Setting(lr, decay) for lr in LEARNING_RATES for decay in WEIGHT_DECAYS)


@dataclass(frozen=True)
class Probe:
    """A fitted probe: mean [D], std [D], weight [D, C], bias [C], its setting, validation top-1 in percent."""

    mean: Tensor
    std: Tensor
    weight: Tensor
    bias: Tensor
    setting: Setting
    validation_top1: float

    def scores(self, features: Tensor) -> Tensor:
        """Logits [N, C] of raw features [N, D]."""
        return (features - self.mean) / self.std @ self.weight + self.bias

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight [D, C] and bias [C] of the same layer on raw features."""
        weight = self.weight / self.std[:, None]
        return weight, self.bias - self.mean @ weight


def fit_probe(
    features: Tensor,
    labels: Tensor,
    fitting: Tensor,
    validation: Tensor,
    classes: int,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    label: str = "probe",
    grid: Sequence[Setting] = GRID,
) -> Probe:
    """Choose the setting by validation top-1, then fit it again on fitting and validation images together.

    Of equally good settings the one with the strongest weight decay wins, then the lowest rate.

    Shape:
        features [N, D], labels [N], fitting and validation: indices into the N
    """
    mean, std = _moments(features[fitting])
    inputs = (features - mean) / std
    weights, biases = fit_grid(
        inputs[fitting],
        labels[fitting],
        classes,
        grid,
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        label=f"{label}, {len(grid)} settings",
    )
    top1 = [accuracy(inputs[validation] @ weight + bias, labels[validation]) for weight, bias in zip(weights, biases)]
    chosen = max(range(len(grid)), key=lambda i: (top1[i], grid[i].weight_decay, -grid[i].lr))
    del inputs  # as large as the features: two copies of a wide network's are too many
    both = torch.cat([fitting, validation]).sort().values
    mean, std = _moments(features[both])
    weights, biases = fit_grid(
        (features[both] - mean) / std,
        labels[both],
        classes,
        [grid[chosen]],
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        label=f"{label}, the chosen setting",
    )
    return Probe(mean, std, weights[0], biases[0], grid[chosen], top1[chosen])


def fit_grid(
    inputs: Tensor,
    labels: Tensor,
    classes: int,
    grid: Sequence[Setting],
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    label: str = "probe",
) -> tuple[Tensor, Tensor]:
    """Fit every setting at once, from zero, with Adam and a rate that falls to zero along a cosine.

    All settings see the same minibatches; none influences another.

    Shape:
        inputs [N, D], labels [N] -> weights [P, D, C], biases [P, C]
    """
    count, width = inputs.shape
    columns = len(grid) * classes
    lr, decay = (
        inputs.new_tensor([getattr(setting, name) for setting in grid]).repeat_interleave(classes)
        for name in ("lr", "weight_decay")
    )  # [P * C]
    weight, bias = _Adam(inputs.new_zeros(width, columns)), _Adam(inputs.new_zeros(columns))
    batches = math.ceil(count / batch_size)
    lines = Lines(label, epochs)
    for epoch in range(epochs):
        order = torch.randperm(count, generator=generator(seed, "probe", epoch)).to(inputs.device)
        for step, rows in enumerate(order.split(batch_size), start=epoch * batches):
            batch, targets = inputs[rows], labels[rows]
            residual = torch.addmm(bias.value, batch, weight.value).view(-1, len(grid), classes).softmax(2)
            residual[torch.arange(len(rows), device=rows.device), :, targets] -= 1
            residual = residual.view(-1, columns) / len(rows)  # [B, P * C]
            rate = lr * (0.5 + 0.5 * math.cos(math.pi * step / (epochs * batches)))
            weight.move(batch.T @ residual + decay * weight.value, rate)
            bias.move(residual.sum(0), rate)
        lines.epoch(epoch + 1)
    return weight.value.view(width, len(grid), classes).transpose(0, 1), bias.value.view(len(grid), classes)


class _Adam:
    """A tensor moved by Adam (Kingma and Ba 2015) with one rate for each entry of its last axis."""

    def __init__(self, value: Tensor) -> None:
        self.value = value
        self.first = torch.zeros_like(value)
        self.second = torch.zeros_like(value)
        self.steps = 0

    def move(self, gradient: Tensor, rate: Tensor) -> None:
        self.steps += 1
        self.first.lerp_(gradient, 1 - BETAS[0])
        self.second.lerp_(gradient.square(), 1 - BETAS[1])
        scale = (self.second / (1 - BETAS[1] ** self.steps)).sqrt_().add_(EPSILON)
        self.value -= rate / (1 - BETAS[0] ** self.steps) * self.first / scale


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every feature; a constant feature has deviation 1."""
    std, mean = torch.std_mean(features, dim=0, correction=0)
    return mean, torch.where(std < SMALLEST_STD, torch.ones_like(std), std)
