"""Everything that the linear stage measures of one trained method, as numbers and one record."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from lib.data.store import ImageData
from lib.evaluate import study
from lib.evaluate.centroid import code_numbers
from lib.evaluate.codes import is_binary
from lib.evaluate.features import extract, latent_names, one_latent
from lib.evaluate.finetune import finetuned_scores
from lib.evaluate.knn import knn_scores
from lib.evaluate.probe import GRID, LEARNING_RATES, WEIGHT_DECAYS, fit_probe
from lib.evaluate.scores import accuracy
from lib.params.evaluation import Knn, Linear
from lib.params.pretraining import Augment
from lib.runtime.errors import UserError
from lib.runtime.files import write_arrays, write_json
from lib.runtime.machine import Machine

METRICS = ("top1", "top5", "knn")
CODE_METRICS = ("centroid", "usage_entropy")  # of a latent that is a binary code


@dataclass(frozen=True)
class Evaluation:
    """``metrics``: percent, rounded; the entropy of a code's use is a share. ``record``: what tables and pictures read.
    ``predictions``: [M] by latent."""

    metrics: dict[str, Any]
    record: dict[str, Any]
    predictions: dict[str, Tensor]


@dataclass(frozen=True)
class _Task:
    """What every latent is evaluated with."""

    method: nn.Module
    data: ImageData
    linear: Linear
    knn: Knn
    machine: Machine
    seed: int
    recipe: Augment
    variant: str


def evaluate(
    method: nn.Module, about: dict[str, Any], data: ImageData, linear: Linear, knn: Knn, machine: Machine
) -> Evaluation:
    """Probe (or fine-tune), nearest neighbours and the study's protocol; ``method`` is left as it is.

    ``about`` is the record kept with the trained method; its seed and its augmentation are used here too.

    Raises:
        UserError: ``knn.k`` is larger than the fitting split.
    """
    if knn.k > len(data.fitting):
        raise UserError(
            f"params.yaml: knn.k is {knn.k}; allowed: at most {len(data.fitting)}, the images of the fitting split"
        )
    seed = about["pretraining"]["seed"]
    recipe = replace(Augment(**about["pretraining"]["augment"]), crop_pixels=0)  # patches are for pretraining alone
    task = _Task(method, data, linear, knn, machine, seed, recipe, about["variant"])
    print(
        f"{task.variant}: features of {len(data.train_images)} training and {len(data.test_images)} test images",
        flush=True,
    )
    train, test = (
        extract(method, images, data.mean, data.std, machine) for images in (data.train_images, data.test_images)
    )
    latents, predictions = {}, {}
    for name in latent_names(train, method.halves):
        latents[name], predictions[name] = _latent(task, name, one_latent(train, name), one_latent(test, name))
    del train, test
    own = None
    if linear.study_epochs:
        own = study.study_protocol(
            method, data, recipe, linear.study_epochs, machine, seed, f"{task.variant}: study protocol"
        )
    main = next(iter(latents))
    return Evaluation(_metrics(latents, own), _record(task, about, main, latents, own), predictions)


def write_evaluation(evaluation: Evaluation, test_labels: Tensor, metrics: Path, scores: Path) -> None:
    """Write the metrics, and ``scores`` with the suffixes .json and .npz."""
    write_json(metrics, evaluation.metrics)
    write_json(scores.with_name(f"{scores.name}.json"), evaluation.record)
    arrays = {name: values.numpy() for name, values in evaluation.predictions.items()}
    write_arrays(scores.with_name(f"{scores.name}.npz"), {"labels": test_labels.numpy(), **arrays})


def _latent(task: _Task, name: str, train: Tensor, test: Tensor) -> tuple[dict[str, Any], Tensor]:
    """The numbers of one latent and its predicted test classes [M]; the test images are scored once."""
    data, linear, device = task.data, task.linear, task.machine.device
    classes, label = len(data.classes), f"{task.variant}: {name}"
    train, test, labels = train.to(device), test.to(device), data.train_labels.to(device)
    fitting, validation = data.fitting.to(device), data.validation.to(device)
    probe = fit_probe(
        train,
        labels,
        fitting,
        validation,
        classes,
        epochs=linear.epochs,
        batch_size=linear.batch_size,
        seed=task.seed,
        label=f"{label}, probe",
    )
    near = {"k": task.knn.k, "temperature": task.knn.temperature, "classes": classes}
    near_validation = knn_scores(train[fitting], labels[fitting], train[validation], **near)
    near_test = knn_scores(train, labels, test, **near).cpu()
    if linear.mode == "finetune":
        scores = finetuned_scores(
            task.method, name, probe, data, task.recipe, linear, task.machine, task.seed, f"{label}, fine-tuning"
        )
    else:
        scores = probe.scores(test).cpu()
    numbers = {
        "top1": accuracy(scores, data.test_labels),
        "top5": accuracy(scores, data.test_labels, 5),
        "knn": accuracy(near_test, data.test_labels),
        "validation_probe": probe.validation_top1,
        "validation_knn": accuracy(near_validation, labels[validation]),
    }
    rounded = {key: round(value, 2) for key, value in numbers.items()}
    found = {**rounded, **asdict(probe.setting), "width": train.shape[1]}
    if is_binary(test):
        code = code_numbers(train.cpu(), data.train_labels, test.cpu(), data.test_labels, classes)
        found["code"] = {key: round(value, 4) for key, value in code.items()}
    return found, scores.argmax(1)


def _metrics(latents: dict[str, dict[str, Any]], own: study.Study | None) -> dict[str, Any]:
    """The main latent's numbers under the same keys for every variant; several latents also by name."""
    shown = {
        name: {key: numbers[key] for key in METRICS}
        | {key: numbers["code"][key] for key in CODE_METRICS if "code" in numbers}
        for name, numbers in latents.items()
    }
    metrics: dict[str, Any] = dict(next(iter(shown.values())))
    metrics["study_top1"] = None if own is None else round(own.top1, 2)
    metrics["study_top5"] = None if own is None else round(own.top5, 2)
    return metrics | (shown if len(shown) > 1 else {})


def _record(
    task: _Task, about: dict[str, Any], main: str, latents: dict[str, dict[str, Any]], own: study.Study | None
) -> dict[str, Any]:
    data = task.data
    return {
        "variant": task.variant,
        "method": about["method"],
        "main": main,
        "seed": task.seed,
        "dataset": data.about["dataset"],
        "classes": data.classes,
        "images": {
            "fitting": len(data.fitting),
            "validation": len(data.validation),
            "train": len(data.train_images),
            "test": len(data.test_images),
        },
        "provenance": {
            "data": about["data"]["checksum"],
            "trained_with": about["versions"],
            "measured_with": {"torch": torch.__version__, "torchvision": torchvision.__version__},
        },
        "linear": asdict(task.linear),
        "knn": asdict(task.knn),
        "grid": {"lr": LEARNING_RATES, "weight_decay": WEIGHT_DECAYS},
        "protocol": _protocol(task, main),
        "latents": latents,
        "study": None
        if own is None
        else {
            "latent": own.latent,
            "top1": round(own.top1, 2),
            "top5": round(own.top5, 2),
            "best_epoch": own.best_epoch,
            "curve": [_rounded(row) for row in own.curve],
        },
    }


def _rounded(row: dict[str, float]) -> dict[str, float]:
    return {key: value if key == "epoch" else round(value, 4) for key, value in row.items()}


def _protocol(task: _Task, main: str) -> dict[str, str]:
    """How each number came about, in words."""
    linear, knn = task.linear, task.knn
    probe = (
        f"multinomial logistic regression on frozen features, computed once in eval mode without augmentation "
        f"and standardized; Adam, cosine, {linear.epochs} epochs, batch {linear.batch_size}; "
        f"best of {len(GRID)} settings (rate {_listed(LEARNING_RATES)}, weight decay {_listed(WEIGHT_DECAYS)}) "
        f"on validation, fitted again with the validation images"
    )
    finetune = (
        f"whole network and linear layer, which starts as the validated probe, trained on all training "
        f"images; Adam {linear.finetune_lr:g}, cosine, {linear.epochs} epochs, batch {linear.batch_size}, "
        f"crops and flips; one network for each latent"
    )
    ending = "; last epoch; test images read once"
    return {
        "linear": (finetune if linear.mode == "finetune" else probe) + ending,
        "knn": f"cosine, k {knn.k}, temperature {knn.temperature:g}, frozen features, all training images",
        "study": f"{linear.study_epochs} epochs on all training images augmented as in pretraining, parameters frozen, "
        f"batch norm moving, Adam {study.LEARNING_RATE:g}, weight decay {study.WEIGHT_DECAY:g}, "
        f"batch {study.BATCH_SIZE}; latent {main} alone; best epoch on the test images, "
        f"for top-1 and top-5 apart; the study also picked its pretraining checkpoint by the best "
        f"test kNN, here it is the last epoch's"
        if linear.study_epochs
        else "not run",
    }


def _listed(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
