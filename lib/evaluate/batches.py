"""Training a classifier on augmented minibatches: what the study's protocol, fine-tuning and transfer share."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from lib.params.pretraining import Augment
from lib.runtime.seeds import generator
from lib.views.augment import augment, draw

Data = tuple[Tensor, Tensor, Tensor, Tensor]  # images uint8 [N, 3, S, S], labels [N], mean [3], std [3]
Batches = Callable[[int], Iterator[tuple[Tensor, Tensor]]]


def augmented_batches(data: Data, config: Augment, device: str, batch_size: int, seed: int, purpose: str) -> Batches:
    """A function epoch -> its batches in an order of its own: float32 [B, 3, S, S], channels last, and labels [B].

    All is drawn from (seed, purpose, epoch, step). A last batch of one image, which BatchNorm cannot take, is left out.
    """
    images, labels, mean, std = (tensor.to(device) for tensor in data)

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(images), generator=generator(seed, f"{purpose} order", epoch)).to(device)
        for step, rows in enumerate(order.split(batch_size)):
            if len(rows) == 1 and step > 0:
                return
            parameters = draw(config, generator(seed, purpose, epoch, step), len(rows), *images.shape[2:])
            inputs = augment(images[rows], parameters, mean, std)
            yield inputs.contiguous(memory_format=torch.channels_last), labels[rows]

    return batches


def train(
    network: nn.Module,
    logits: Callable[[Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    epochs: int,
    loss: Callable[[Tensor, Tensor], Tensor] = functional.cross_entropy,
    after_step: Callable[[], None] = lambda: None,
) -> Iterator[tuple[int, float]]:
    """Yield each epoch, from 1, when it has ended, with the mean loss of an image; ``logits`` takes inputs."""
    for epoch in range(1, epochs + 1):
        network.train()
        total, count = torch.zeros(()), 0
        for inputs, labels in batches(epoch):
            value = loss(logits(inputs), labels)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            after_step()
            total = total.to(value.device) + value.detach() * len(labels)  # the host waits at an epoch's end alone
            count += len(labels)
        yield epoch, total.item() / count
