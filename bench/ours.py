"""This project's arms: the pipeline's own functions, called as its stages call them."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import yaml

from bench.images import CLASSES, image_data, latents
from bench.timing import once, steady
from lib.core.trainer import Pretrainer
from lib.data.store import ImageData
from lib.evaluate.features import extract
from lib.evaluate.knn import knn_scores
from lib.evaluate.probe import fit_probe
from lib.evaluate.tsne import embed_plane
from lib.losses import ntxent
from lib.methods import build_method
from lib.methods.base import Method, l2_normalize
from lib.params.check import check_params
from lib.params.evaluation import Knn, Linear, Tsne
from lib.params.pretraining import Pretraining, pretraining_params
from lib.params.spec import Loader
from lib.preset import BASE, PRESETS_FOLDER, overlay, parse_settings, read_preset
from lib.runtime.machine import Machine
from lib.runtime.seeds import generator

OWN = "variants.simclr."  # keys of the variant that stands for all
VARIANT = {"method": "simclr", "watch": {"loss": "ntxent", "term": "ntxent", "part": "methods/base", "number": "seed"}}


def preset_params(preset: str, changes: list[str]) -> Pretraining:
    """SimCLR with a preset and ``key=value`` changes, whatever params.yaml holds now.

    Raises:
        UserError: a key or a value that params.yaml does not allow.
    """
    text = (PRESETS_FOLDER / f"{BASE}.yaml").read_text()  # names every key that a preset may touch
    others = {key for key in read_preset(preset) if key.startswith("variants.") and not key.startswith(OWN)}
    chosen = {key: source for key, source in read_preset(preset).items() if key not in others}
    text, _ = overlay(text, {**chosen, **parse_settings(changes)})
    raw = yaml.load(text, Loader)
    raw["variants"] = {"simclr": {**raw["variants"]["simclr"], **VARIANT}}
    check_params(raw)
    return pretraining_params(raw, "simclr")


def new_trainer(params: Pretraining, data: ImageData, machine: Machine) -> Pretrainer:
    """A trainer as the pretrain stage makes it."""
    torch.manual_seed(generator(params.seed, "initial weights").initial_seed())
    return Pretrainer(build_method(params), data, params, machine)


def positions(trainer: Pretrainer, epochs: Iterable[int] | None = None) -> Iterator[tuple[int, int, torch.Tensor]]:
    """(epoch, step, indices) as the training loop goes through them: of ``epochs``, else of all, for ever."""
    for epoch in itertools.count() if epochs is None else epochs:
        for step, indices in enumerate(trainer.order(epoch)):
            yield epoch, step, indices


def study_params(settings: dict[str, Any]) -> Pretraining:
    """The study's settings with one row's encoder and batch."""
    return preset_params(BASE, [f"encoder={settings['encoder']}", f"batch_size={settings['batch']}"])


def data(settings: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """Both views of a batch, from uint8 on."""
    trainer = _trainer(settings, machine)
    place = positions(trainer)

    def work() -> None:
        epoch, step, indices = next(place)
        trainer.views(trainer.draws(epoch, step), indices, trainer.rows)

    return steady(work, settings)


def step(settings: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """The training step whole: views, forward, loss, backward, optimizer."""
    trainer = _trainer(settings, machine)
    place = positions(trainer)
    return {**steady(lambda: trainer.step(*next(place)), settings), "precision": machine.precision}


def nt_xent(settings: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """The loss and its gradient, in tiles."""
    first, second = pairs_of_rows(settings["rows"])
    return steady(lambda: ntxent.nt_xent(first, second, 0.5).backward(), settings)


def nt_xent_once(settings: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """The same, a single time."""
    first, second = pairs_of_rows(settings["rows"])
    return once(lambda: ntxent.nt_xent(first, second, 0.5).backward())


def large_batch(settings: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """One step of a batch that is taken in parts; its memory is what is asked for."""
    changes = [
        f"{key}={value}"
        for key, value in (
            ("encoder", settings["encoder"]),
            ("batch_size", settings["batch"]),
            ("micro_batch_size", settings["micro_batch_size"]),
        )
    ]
    trainer = new_trainer(preset_params(BASE, changes), _images(settings), machine)
    place = positions(trainer)
    return {**once(lambda: trainer.step(*next(place))), "precision": machine.precision}


def pairs_of_rows(count: int) -> list[torch.Tensor]:
    """Two views [count / 2, 128] of random unit rows, which want a gradient."""
    rows = torch.randn(2, count // 2, 128, generator=torch.Generator().manual_seed(0))
    return [l2_normalize(view).requires_grad_() for view in rows]


def embed(settings: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """Latents of all images; nearest neighbours of the test images among the training images."""
    pictures, method = _images(settings), _method(settings)
    knn = Knn()
    _warm(method, pictures, machine)

    def work() -> None:
        train, test = _features(method, pictures, machine)
        knn_scores(train, pictures.train_labels, test, min(knn.k, len(train)), knn.temperature, CLASSES)

    return {**once(work), "precision": machine.precision}


def probe(settings: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """The linear probe whole: latents of all images, the grid of settings, the chosen one again, test scores."""
    pictures, method = _images(settings), _method(settings)
    linear = Linear()
    _warm(method, pictures, machine)

    def work() -> None:
        train, test = _features(method, pictures, machine)
        fitted = fit_probe(
            train,
            pictures.train_labels,
            pictures.fitting,
            pictures.validation,
            CLASSES,
            epochs=linear.epochs,
            batch_size=linear.batch_size,
            seed=0,
        )
        fitted.scores(test)

    return {**once(work), "precision": machine.precision}


def tsne(settings: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """A plane of latents, on one thread so that two runs agree."""
    features, tsne = latents(settings["points"], settings["width"]), Tsne(iterations=settings["iterations"])
    embed_plane(features[:100], Tsne(iterations=250))  # imports what it needs
    return once(lambda: embed_plane(features, tsne))


def _trainer(settings: dict[str, Any], machine: Machine) -> Pretrainer:
    return new_trainer(study_params(settings), _images(settings), machine)


def _images(settings: dict[str, Any]) -> ImageData:
    return image_data(settings["train"], settings["test"])


def _method(settings: dict[str, Any]) -> Method:
    """An untrained method: the weights do not change the time."""
    return build_method(study_params(settings)).to(memory_format=torch.channels_last)


def _warm(method: Method, pictures: ImageData, machine: Machine) -> None:
    extract(method, pictures.train_images[:1024], pictures.mean, pictures.std, machine)


def _features(method: Method, pictures: ImageData, machine: Machine) -> tuple[torch.Tensor, torch.Tensor]:
    """[N, D] and [M, D] of the training and the test images."""
    return tuple(
        extract(method, images, pictures.mean, pictures.std, machine)["h"]
        for images in (pictures.train_images, pictures.test_images)
    )
