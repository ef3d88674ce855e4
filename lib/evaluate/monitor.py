"""Nearest neighbors on the validation split while a method trains; no choice is made from it."""

from collections.abc import Callable

from torch import Tensor

from lib.data.store import ImageData
from lib.evaluate.features import extract
from lib.evaluate.knn import knn_scores
from lib.evaluate.scores import accuracy
from lib.methods.base import Method
from lib.params.pretraining import Pretraining
from lib.runtime.machine import Machine


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
