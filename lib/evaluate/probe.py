"""The linear probe: multinomial logistic regression on frozen, standardized features, solved and not stepped.

For every strength s of a path, from strong to weak, full-batch L-BFGS minimizes

    mean over images of cross_entropy(W x + b, y)  +  s / 2 |W|^2        (b is free)

from the solution before. Validation chooses the strength; then the same problem is solved for fitting and validation
images together. There is no learning rate, no batch, no epoch and no seed. Binary codes are also probed as they are:
standardizing gives a unit that is rarely active a large weight.

Legend: N images, D features, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lib.evaluate.scores import accuracy
from lib.runtime.progress import StepProgress

STRENGTHS = (10.0, 1.7, 0.28, 0.046, 7.7e-3, 1.3e-3, 2.2e-4, 3.6e-5, 6e-6, 1e-6)  # a factor of 6 apart
TOLERANCE = 1e-5  # of the largest entry of the gradient, as a share of the objective at the start
MOST_STEPS = 2000  # of L-BFGS at one strength; a hundred at the weakest are usual
PER_FEATURE = 10  # images, from which on the covariance of the features is worth its cost
CONSTANT = 1e-6  # largest deviation of a feature, as a share of its mean, that counts as rounding
CHUNK = 4096  # images


@dataclass(frozen=True)
class Probe:
    """A fitted probe: mean [D], std [D] (infinite for a constant feature), weight [D, C], bias [C].

    ``at_end``: the chosen ``strength`` is the strongest or the weakest of the path. ``validation_top1``, in percent, is
    of the fit without validation images.
    """

    mean: Tensor
    std: Tensor
    weight: Tensor
    bias: Tensor
    strength: float
    at_end: bool
    validation_top1: float

    def logits(self, features: Tensor) -> Tensor:
        """[N, C] of raw features [N, D]."""
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
    label: str = "probe",
    strengths: Sequence[float] = STRENGTHS,
    standardize: bool = True,
) -> Probe:
    """Choose the strength by validation top-1, among equals by validation loss, and solve again with all images.

    Features [N, D], labels [N]; fitting and validation are indices into the N. Without ``standardize`` the features
    are taken as they are: the probe's mean is 0 and its std 1.
    """
    inputs, mean, std = _inputs(features, fitting, standardize)
    held_out, answers = (features[validation] - mean) / std, labels[validation]
    covariance = _covariance(inputs)
    weight, bias = inputs.new_zeros(classes, inputs.shape[1]), inputs.new_zeros(classes)
    strengths, merits, path = sorted(strengths, reverse=True), [], []
    with StepProgress(label, len(strengths)) as progress:
        for strength in strengths:
            weight, bias = solve(inputs, labels[fitting], strength, weight, bias, covariance)
            logits = functional.linear(held_out, weight, bias)
            merits.append((accuracy(logits, answers), -functional.cross_entropy(logits, answers).item()))
            path.append((weight, bias))
            progress.advance()
    chosen = merits.index(max(merits))
    strength, top1, at_end = strengths[chosen], merits[chosen][0], chosen in (0, len(strengths) - 1)
    end = f", an end of the path from {strengths[0]:g} to {strengths[-1]:g}" if at_end else ""
    print(f"{label}: L2 strength {strength:g}{end}; validation {top1:.2f} %", flush=True)
    # With the validation images the solution is close by, and so is the covariance.
    del inputs  # as large as the features: two copies of a wide network's are too many
    both = torch.cat([fitting, validation]).sort().values
    inputs, mean, std = _inputs(features, both, standardize)
    weight, bias = solve(inputs, labels[both], strength, *path[chosen], covariance)
    return Probe(mean, std, weight.T, bias, strength, at_end, top1)


def objective(inputs: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, strength: float) -> Tensor:
    """What the probe minimizes, float64: mean cross entropy in nats, and half the squared weights times ``strength``.

    Inputs [N, D], labels [N], bias [C]; weight is float64 [C, D]: this way round its gradient is a fast product.
    """
    logits = functional.linear(inputs, weight.to(inputs.dtype)).double() + bias  # [N, C]
    return functional.cross_entropy(logits, labels) + strength / 2 * weight.square().sum()


def solve(
    inputs: Tensor, labels: Tensor, strength: float, weight: Tensor, bias: Tensor, covariance: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The minimum of `objective`, from ``weight`` [C, D] and ``bias`` [C] on.

    ``covariance`` float64 [D, D], of these inputs or of similar ones, makes it quick and does not move the minimum.
    """
    # Where all classes are equally likely, the curvature is covariance / C + strength. In coordinates u with
    # weight = u root it is about 1 / C in the main directions, and L-BFGS needs a third of the steps. The others are
    # not stretched: once classes are separated, few images are left to curve the objective.
    back = root = None
    if covariance is not None:
        identity = torch.eye(len(covariance), dtype=torch.float64, device=inputs.device)
        back = torch.linalg.cholesky(covariance + (1 + len(bias) * strength) * identity)
        root = torch.linalg.solve_triangular(back, identity, upper=False)
    u, b = (tensor.to(torch.float64, copy=True) for tensor in (weight, bias))
    u, b = _times(u, back).requires_grad_(), b.requires_grad_()
    with torch.no_grad():  # separated classes leave little of the objective, and the tolerance has to follow
        start = objective(inputs, labels, _times(u, root), b, strength)
    optimizer = torch.optim.LBFGS(
        [u, b],
        max_iter=MOST_STEPS,
        max_eval=2 * MOST_STEPS,
        tolerance_grad=TOLERANCE,
        tolerance_change=1e-12,  # the gradient alone ends it, unless rounding does
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective(inputs, labels, _times(u, root), b, strength) / start
        loss.backward()
        return loss

    optimizer.step(closure)
    if optimizer.state[u]["n_iter"] >= MOST_STEPS:
        print(f"probe: not at the minimum after {MOST_STEPS} steps at L2 strength {strength:g}", flush=True)
    return _times(u.detach(), root).to(inputs.dtype), b.detach().to(inputs.dtype)


def _times(weight: Tensor, coordinates: Tensor | None) -> Tensor:
    return weight if coordinates is None else weight @ coordinates


def _inputs(features: Tensor, images: Tensor, standardize: bool) -> tuple[Tensor, Tensor, Tensor]:
    """A copy of some images' features, and the mean [D] and deviation [D] that it was standardized by.

    What is constant becomes 0.
    """
    inputs = features[images]
    if not standardize:
        return inputs, inputs.new_zeros(inputs.shape[1]), inputs.new_ones(inputs.shape[1])
    std, mean = torch.std_mean(inputs, dim=0, correction=0)
    std = torch.where(std <= CONSTANT * mean.abs(), torch.inf, std)
    return inputs.sub_(mean).div_(std), mean, std


def _covariance(inputs: Tensor) -> Tensor | None:
    """float64 [D, D] of inputs [N, D], or None of too few images."""
    if len(inputs) < PER_FEATURE * inputs.shape[1]:
        return None
    parts = inputs.split(CHUNK)  # sums in fp32 of so many products, added up in fp64
    mean = sum(part.double().sum(0) for part in parts) / len(inputs)  # 0 if standardized; the free bias takes up others
    return sum((part.T @ part).double() for part in parts) / len(inputs) - torch.outer(mean, mean)
