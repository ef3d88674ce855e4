"""Fine-tuning: the whole network and a linear layer trained together on labelled images.

The layer starts as the fitted probe, which keeps the features from being bent by a random layer (Kumar et al. 2022,
"Fine-tuning can distort pretrained features"). Adam, a rate that falls to zero along a cosine, crops and flips; the
last epoch counts, so the test images choose nothing.
"""

import copy
import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from lib.data.store import ImageData
from lib.evaluate.batches import augmented_batches, train
from lib.evaluate.features import extract, one_latent
from lib.evaluate.probe import Probe
from lib.methods.base import Method
from lib.params.evaluation import Linear
from lib.params.pretraining import Pretraining
from lib.runtime.machine import Machine, autocast
from lib.runtime.progress import EpochLines


def finetuned_logits(
    method: Method, latent: str, probe: Probe, data: ImageData, params: Pretraining, linear: Linear, machine: Machine,
    label: str = "",
) -> Tensor:  # fmt: skip
    """Logits [M, C] of the test images from a copy of ``method`` trained on all training images of ``data``.

    The layer reads ``latent``, one of `latent_names`. Crops, flips and seed are those of the pretraining ``params``.
    """
    network = copy.deepcopy(method).to(machine.device).to(memory_format=torch.channels_last).requires_grad_(True)
    network.allow_end_to_end_gradient()
    weight, bias = (nn.Parameter(values.to(machine.device)) for values in probe.folded())

    def logits(inputs: Tensor) -> Tensor:
        with autocast(machine):
            latents = network.latents(inputs)
        return one_latent({name: values.float() for name, values in latents.items()}, latent) @ weight + bias

    optimizer = torch.optim.Adam([*network.parameters(), weight, bias], lr=linear.finetune_lr)
    epochs, batch_size = linear.finetune_epochs, linear.finetune_batch_size
    steps = epochs * math.ceil(len(data.train_images) / batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    config = replace(params.augment, crop_pixels=0, jitter=0.0, grayscale=0.0, blur=0.0, solarize=0.0)
    images = data.train_images, data.train_labels, data.mean, data.std
    batches = augmented_batches(images, config, machine.device, batch_size, params.seed, "finetune")
    lines = EpochLines(f"{label or f'{params.variant}: {latent}'}, fine-tuning", epochs)
    for epoch, loss in train(network, logits, optimizer, batches, epochs, after_step=schedule.step):
        lines.epoch(epoch, loss=loss)
    features = one_latent(extract(network, data.test_images, data.mean, data.std, machine), latent)
    return (features @ weight.cpu() + bias.cpu()).detach()
