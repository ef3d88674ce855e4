"""Few labels: the probe, or fine-tuning, of the main latent on stratified draws of the training labels.

A draw is all that is labelled: the probe's strength is chosen within it. Draws are the same for all variants, and a
smaller share of one is a part of a larger.
"""

from dataclasses import replace
from typing import Any

import numpy
import torch
from torch import Tensor

from lib.data.split import VALIDATION_SHARE, stratified
from lib.data.store import ImageData
from lib.evaluate.finetune import finetuned_logits
from lib.evaluate.probe import fit_probe
from lib.evaluate.scores import accuracy
from lib.methods.base import Method
from lib.params.evaluation import LABEL_DRAWS, Linear
from lib.params.pretraining import Pretraining
from lib.runtime.machine import Machine


def label_draw(data: ImageData, share: float, number: int) -> tuple[Tensor, ImageData]:
    """Sorted indices [n] of a share of each class's training images, and the data with these alone labelled."""
    rows = stratified(data.train_labels.numpy(), share, f"labels {number}")
    labels = data.train_labels[rows]
    validation = torch.from_numpy(stratified(labels.numpy(), VALIDATION_SHARE, f"validation of labels {number}"))
    images = data.train_images[torch.from_numpy(rows)]
    return torch.from_numpy(rows), replace(data, train_images=images, train_labels=labels, validation=validation)


def few_labels(
    method: Method, latent: str, train: Tensor, test: Tensor, data: ImageData, params: Pretraining, linear: Linear,
    machine: Machine,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """By each share below 1 of ``linear.labels``: images, top-1 in percent of each draw, their mean and deviation.

    ``latent`` is one of `latent_names`, of which train [N, D] and test [M, D] are the features.
    """
    found = {}
    for share in sorted(share for share in linear.labels if share < 1):
        draws = []
        for number in range(LABEL_DRAWS):
            rows, few = label_draw(data, share, number)
            label = f"{params.variant}: {latent}, {100 * share:.4g} % of the labels, draw {number + 1}"
            features, labels = train[rows].to(machine.device), few.train_labels.to(machine.device)
            split = few.fitting.to(machine.device), few.validation.to(machine.device)
            probe = fit_probe(features, labels, *split, len(data.classes), f"{label}, probe")
            if linear.mode == "finetune":
                logits = finetuned_logits(method, latent, probe, few, params, linear, machine, label)
            else:
                logits = probe.logits(test.to(machine.device)).cpu()
            draws.append(round(accuracy(logits, data.test_labels), 2))
        mean, sd = numpy.mean(draws), numpy.std(draws, ddof=1)
        found[f"{share:.4g}"] = {"images": len(rows), "draws": draws, "top1": round(mean, 2), "sd": round(sd, 2)}
    return found
