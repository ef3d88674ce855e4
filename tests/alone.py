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
