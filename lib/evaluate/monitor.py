"""What is measured on the validation split while a method trains; no choice is made from it."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

from lib.core.loop import Monitor
from lib.data.store import ImageData
from lib.evaluate.features import BATCH, embed_views, extract
from lib.evaluate.knn import knn_scores
from lib.evaluate.scores import accuracy
from lib.methods.base import Method
from lib.params.pretraining import Pretraining
from lib.runtime.machine import Machine
from lib.runtime.seeds import generator
from lib.views.augment import augment, draw, normalize

MOST = 2000  # images that are compared with each other
SEED = 0  # fixed: the same views after every epoch


def data_monitor(data: ImageData, params: Pretraining, machine: Machine) -> Monitor:
    """kNN where there are labels, else what needs none."""
    if not data.classes:
        columns = {"effective_rank": "effective rank {:.1f}", "other_view": "other view's reciprocal rank {:.1f} %"}
        return Monitor(columns, views_monitor(data, params, machine))
    knn = knn_monitor(data, params, machine)
    return Monitor({"knn": "validation kNN {:.2f} %"}, lambda method: {"knn": knn(method)})


def knn_monitor(data: ImageData, params: Pretraining, machine: Machine) -> Callable[[Method], float]:
    """A function method -> kNN accuracy of its main latent, in percent, of the validation among the fitting images.

    With fewer images than ``monitor.k`` all of them vote.
    """
    bank, queries = data.fitting, data.validation
    k, temperature = min(params.monitor.k, len(bank)), params.monitor.temperature
    labels = data.train_labels[bank].to(machine.device)

    def monitor(method: Method) -> float:
        def main_latent(images: Tensor) -> Tensor:
            latents = extract(method, data.train_images[images], data.mean, data.std, machine)
            return next(iter(latents.values())).to(machine.device)

        scores = knn_scores(main_latent(bank), labels, main_latent(queries), k, temperature, len(data.classes))
        return accuracy(scores.cpu(), data.train_labels[queries])

    return monitor


def views_monitor(data: ImageData, params: Pretraining, machine: Machine) -> Callable[[Method], dict[str, float]]:
    """A function method -> `effective_rank` of its main latent, and `reciprocal_rank` in percent: how well a view's
    latent finds that of the other view of the same image, among at most `MOST` validation images."""
    order = torch.randperm(len(data.validation), generator=generator(SEED, "monitor images"))
    images = data.train_images[data.validation[order[:MOST]]]
    mean, std = data.mean.to(machine.device), data.std.to(machine.device)

    def views(number: int) -> Iterator[Tensor]:
        stream = generator(SEED, "monitor views", number)
        drawn = draw(params.recipes[number], stream, len(images), *images.shape[2:])
        for rows in torch.arange(len(images)).split(BATCH):
            yield augment(images[rows].to(machine.device), drawn.rows(rows).to(machine.device), mean, std)

    def monitor(method: Method) -> dict[str, float]:
        def main_latent(batches: Iterable[Tensor]) -> Tensor:
            return next(iter(embed_views(method, batches, len(images), machine, project=False)["latents"].values()))

        clean = main_latent(normalize(part.to(machine.device), mean, std) for part in images.split(BATCH))
        found = reciprocal_rank(main_latent(views(0)), main_latent(views(1)))
        return {"effective_rank": effective_rank(clean), "other_view": 100 * found}

    return monitor


def effective_rank(latents: Tensor) -> float:
    """exp of the entropy of the singular values' shares (Roy & Vetterli 2007; RankMe, Garrido 2023) of [N, D].

    1 where all latents have one direction, at most the smaller of N and D; not centered.
    """
    values = torch.linalg.svdvals(latents.double())
    return torch.special.entr(values / values.sum().clamp(min=1e-300)).sum().exp().item()


def reciprocal_rank(first: Tensor, second: Tensor) -> float:
    """Mean of 1 / rank of each image's own row of ``second`` [N, D] by its cosine with the row of ``first`` [N, D].

    Rows that tie share their ranks: latents that are all equal find nothing.
    """
    similarity = functional.normalize(first) @ functional.normalize(second).T  # [N, N]
    own = similarity.diagonal()[:, None]
    ties = (similarity == own).sum(1) - 1
    return (1 / (1 + (similarity > own).sum(1) + ties / 2)).mean().item()
