"""This project's arms: the pipeline's own functions, called as its stages call them."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from bench.images import CLASSES, image_data, pairs
from bench.timing import once, steady
from lib.core.trainer import Pretrainer
from lib.data.store import ImageData
from lib.evaluate.features import extract
from lib.evaluate.knn import knn_scores
from lib.methods import build_method
from lib.methods.simclr import nt_xent
from lib.params.experiment import read_experiment
from lib.params.pretraining import Pretraining
from lib.runtime.machine import Machine
from lib.runtime.seeds import generator
from lib.views.augment import augment, draw


def simclr(preset: str) -> Pretraining:
    """The variant simclr of a preset, whatever params.yaml holds now."""
    return read_experiment(Path("presets") / f"{preset}.yaml").variants["simclr"]


def new_trainer(params: Pretraining, data: ImageData, machine: Machine) -> Pretrainer:
    """A trainer as the pretrain stage makes it."""
    torch.manual_seed(generator(params.seed, "initial weights").initial_seed())
    return Pretrainer(build_method(params), data, params, machine)


def steps(trainer: Pretrainer) -> Iterator[torch.Tensor]:
    """Steps as the training loop takes them, for ever: views, forward, loss, backward, optimizer."""
    for epoch in count():
        for step, indices in enumerate(trainer.order(epoch)):
            yield trainer.step(epoch, step, indices)


def step(settings: dict[str, Any], machine: Machine) -> dict[str, Any]:
    data = image_data(settings["train"], settings["test"])
    taken = steps(new_trainer(_params(settings), data, machine))
    return steady(lambda: next(taken), settings)


def data(settings: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """Both views of a batch, from uint8 on."""
    params, pictures = _params(settings), image_data(settings["train"], settings["test"])
    images, batch = pictures.train_images, params.batch_size
    parts = torch.randperm(len(images))[: len(images) // batch * batch].view(-1, batch)
    numbers = count()

    def work() -> None:
        number = next(numbers)
        for view in range(2):
            drawn = draw(params.augment, generator(0, "view", 0, number, view), batch, *images.shape[-2:])
            augment(images[parts[number % len(parts)]], drawn, pictures.mean, pictures.std)

    return steady(work, settings)


def loss(settings: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """NT-Xent and its gradient, in tiles."""
    first, second = pairs(settings["rows"])
    return steady(lambda: nt_xent(first, second, 0.5).backward(), settings)


def whole_loss(settings: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """The same from the matrix of all pairs, as it is usually written."""
    first, second = pairs(settings["rows"])
    partner = torch.arange(2 * len(first)).roll(len(first))

    def work() -> None:
        rows = torch.cat([first, second])  # [2N, D]
        similarity = rows @ rows.T / 0.5  # [2N, 2N]
        functional.cross_entropy(similarity.fill_diagonal_(-torch.inf), partner).backward()

    return steady(work, settings)


def embed(settings: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """Latents of all images; nearest neighbors of the test images among the training images."""
    pictures = image_data(settings["train"], settings["test"])
    method = build_method(_params(settings)).to(memory_format=torch.channels_last)  # untrained: the time is the same

    def features(images: torch.Tensor) -> torch.Tensor:
        return extract(method, images, pictures.mean, pictures.std, machine)["h"]

    def work() -> None:
        train, test = features(pictures.train_images), features(pictures.test_images)
        knn_scores(train, pictures.train_labels, test, min(200, len(train)), 0.1, CLASSES)

    features(pictures.train_images[:1024])  # warms up
    return once(work)


def _params(settings: dict[str, Any]) -> Pretraining:
    """The study's SimCLR with one row's encoder and batch."""
    return replace(simclr("study"), encoder=settings["encoder"], batch_size=settings["batch"])
