"""A method alone: without params.yaml, images of a data set and the training core."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lib.methods import build_method
from lib.methods.base import DataFacts, Method
from lib.params.pretraining import Augment, Monitor, Optimizer, Pretraining


def small(method: str, encoder: str = "small", size: int = 16, augment: dict[str, Any] | None = None, **options: Any):
    """The parameters of a variant that is named as its method."""
    blocks = Optimizer(), Augment(**{"jitter": 0.0, "grayscale": 0.0, **(augment or {})}), Monitor()
    return Pretraining(method, method, options, size, encoder, 16, 0, 2, 0, None, *blocks)


def built(method: str, **changes: Any) -> Method:
    """The same weights in every call."""
    torch.manual_seed(0)
    return build_method(small(method, **changes))


def facts(count: int = 64, classes: int = 2) -> DataFacts:
    return DataFacts(torch.full((3,), 0.4), torch.full((3,), 0.2), count, classes, 16)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def natural(count: int, size: int, seed: int = 0) -> Tensor:
    """Random images [B, 3, S, S] in 0..1 with the statistics of photographs as far as patches of them are concerned:
    smooth (amplitudes fall as frequency^-1.5), mostly gray, each of a contrast of its own (log-normal)."""
    noise = normal(count, 3, size, size, seed=seed)
    noise = 3**0.5 * noise.mean(1, keepdim=True) + 0.3 * noise
    line = torch.fft.fftfreq(size)
    frequency = (line[:, None].square() + line.square()).sqrt().clamp(min=1 / size)
    smooth = torch.fft.ifft2(torch.fft.fft2(noise) / frequency**1.5).real
    contrast = (0.5 * normal(count, 1, 1, 1, seed=seed + 1)).exp()
    return (0.47 + 0.22 * contrast * smooth / smooth.std()).clamp(0, 1)


def normalized(images: Tensor) -> tuple[Tensor, DataFacts]:
    """Images [B, 3, S, S] by their own mean and std [3], as a training has them, and these."""
    mean, std = images.mean((0, 2, 3)), images.std((0, 2, 3))
    return (images - mean[:, None, None]) / std[:, None, None], DataFacts(mean, std, len(images), 2, len(images))


@dataclass
class Training:
    """Steps of one method by Adam, without augmentation."""

    method: Method
    lr: float = 1e-3
    steps: int = 8
    done: int = 0
    optimizer: torch.optim.Adam = field(init=False)

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.Adam(self.method.parameters(), self.lr)

    def step(self, *views: Tensor, **needed: Tensor) -> float:
        """The loss before the step on views [B, 3, S, S], with the ``needed`` indices or labels."""
        torch.manual_seed(self.done)
        total, _ = self.method.loss({**self.method.embed(list(views)), **needed})
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()
        self.method.after_step(self.done, self.steps)
        self.done += 1
        return total.item()

    def resumed(self, fresh: Method) -> "Training":
        """The same training with everything in new objects, as a checkpoint brings it back."""
        fresh.load_state_dict({name: value.clone() for name, value in self.method.state_dict().items()})
        again = replace(self, method=fresh)
        again.optimizer.load_state_dict(self.optimizer.state_dict())
        return again
