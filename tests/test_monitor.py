"""The kNN accuracy shown while training: validation images among the other training images."""

import dataclasses

import torch
from torch import nn

from lib.evaluate.monitor import knn_monitor
from lib.params.pretraining import Monitor
from tests.examples import CPU, images
from tests.examples import tiny_params as pretraining


class Pixels(nn.Module):
    """Latents are the pixels; a second latent is noise that must not be scored."""

    def latents(self, views: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"pixels": views.flatten(1), "noise": torch.ones(len(views), 2)}


def monitored(data, k: int) -> float:
    return knn_monitor(data, dataclasses.replace(pretraining(), monitor=Monitor(k=k)), CPU)(Pixels())


def test_a_validation_image_is_no_neighbor_of_its_own():
    data = images(count=64, classes=2)
    labels, pixels = data.train_labels.clone(), data.train_images.clone()
    for row in data.validation.tolist():  # the image after it looks the same and has the other label
        pixels[row] = pixels[row + 1]
        labels[row] = 1 - labels[row + 1]
    data = dataclasses.replace(data, train_images=pixels, train_labels=labels)
    assert monitored(data, k=1) == 0.0
    labels[data.validation] = labels[data.validation + 1]
    assert monitored(data, k=1) == 100.0


def test_a_small_set_of_images_lets_all_of_them_vote():
    data = images(count=64, classes=2)
    assert monitored(data, k=500) == monitored(data, k=len(data.fitting))
