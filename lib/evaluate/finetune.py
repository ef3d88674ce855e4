"""Fine-tuning: the whole network and a linear layer trained together on labelled images.

The layer starts as the fitted probe, which keeps the features from being bent by a random layer
(Kumar et al. 2022, "Fine-tuning can distort pretrained features"). Adam, a rate that falls to zero along
a cosine, crops and flips; the last epoch counts, so the test images choose nothing.
"""

import copy
import math
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from lib.data.store import ImageData
from lib.evaluate.batches import augmented_batches
from lib.evaluate.features import extract, one_latent
from lib.evaluate.probe import Probe
from lib.evaluate.progress import Lines
from lib.params.evaluation import Linear
from lib.params.pretraining import Augment
from lib.runtime.machine import Machine, autocast


def finetuned_scores(
    method: nn.Module,
    latent: str,
    probe: Probe,
    data: ImageData,
    recipe: Augment,
    linear: Linear,
    machine: Machine,
    seed: int,
    label: str = "finetune",
) -> Tensor:
    """Logits [M, C] of the test images from a copy of ``method`` trained on all training images.

    The linear layer reads ``latent``, one of `latent_names`. Of ``recipe``, pretraining's augmentation,
    crops and flips are used. ``method`` itself is not touched.
    """
    network = copy.deepcopy(method).to(machine.device, memory_format=torch.channels_last).requires_grad_(True)
    network.allow_end_to_end_gradient()
    layer = _layer(probe).to(machine.device)
    parameters = [*network.parameters(), *layer.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=linear.finetune_lr)
    steps = linear.epochs * math.ceil(len(data.train_images) / linear.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    train = [tensor.to(machine.device) for tensor in (data.train_images, data.train_labels, data.mean, data.std)]
    recipe = replace(recipe, jitter=0.0, grayscale=0.0)
    lines = Lines(label, linear.epochs)
    for epoch in range(1, linear.epochs + 1):
        network.train()
        for inputs, targets in augmented_batches(
            *train, recipe, batch_size=linear.batch_size, seed=seed, purpose="finetune", epoch=epoch
        ):
            with autocast(machine):
                latents = network.latents(inputs)
            features = one_latent({name: values.float() for name, values in latents.items()}, latent)
            loss = functional.cross_entropy(layer(features), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        lines.epoch(epoch, loss=loss.item())
    features = one_latent(extract(network, data.test_images, data.mean, data.std, machine), latent)
    with torch.no_grad():
        return layer(features.to(machine.device)).cpu()


def _layer(probe: Probe) -> nn.Linear:
    weight, bias = probe.folded()
    layer = nn.Linear(*weight.shape)
    with torch.no_grad():
        layer.weight.copy_(weight.T)
        layer.bias.copy_(bias)
    return layer
