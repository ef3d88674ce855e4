"""The kNN accuracy shown while training: validation images among the other training images."""

import dataclasses

import torch
from torch import nn

from lib.evaluate.monitor import knn_monitor
from tests.core_examples import CPU, images, pretraining


class Pixels(nn.Module):
    """Latents are the pixels; a second latent is noise that must not be scored."""

    def latents(self, views: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"pixels": views.flatten(1), "noise": torch.ones(len(views), 2)}


def test_a_validation_image_is_no_neighbour_of_its_own():
    data = images(count=64, classes=2)
    labels = data.train_labels.clone()
    pixels = data.train_images.clone()
    for row in data.validation.tolist():  # the image after it looks the same and has the other label
        pixels[row] = pixels[row + 1]
        labels[row] = 1 - labels[row + 1]
    data = dataclasses.replace(data, train_images=pixels, train_labels=labels)
    monitor = knn_monitor(data, pretraining("simclr", monitor={"k": 1}), CPU)
    assert monitor(Pixels()) == 0.0
    labels[data.validation] = labels[data.validation + 1]
    assert knn_monitor(data, pretraining("simclr", monitor={"k": 1}), CPU)(Pixels()) == 100.0


def test_a_small_set_of_images_lets_all_of_them_vote():
    data = images(count=64, classes=2)
    assert 0 <= knn_monitor(data, pretraining("simclr", monitor={"k": 500}), CPU)(Pixels()) <= 100
