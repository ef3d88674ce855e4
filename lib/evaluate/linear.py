"""Everything that the linear stage measures of one trained method, as numbers and one record."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lib.data.store import ImageData
from lib.evaluate.centroid import code_numbers
from lib.evaluate.codes import is_binary
from lib.evaluate.features import extract_with_projections, latent_names, one_latent, without_logits
from lib.evaluate.finetune import finetuned_logits
from lib.evaluate.knn import knn_scores
from lib.evaluate.labels import few_labels
from lib.evaluate.probe import Probe, fit_probe
from lib.evaluate.record import LEFT_OUT, origin, write_measured
from lib.evaluate.scores import accuracy
from lib.evaluate.study import study_protocol
from lib.methods.base import Method, Named
from lib.params.evaluation import MANY_CLASSES, STUDY_EPOCHS, Knn, Linear
from lib.params.pretraining import Pretraining
from lib.runtime.errors import UserError
from lib.runtime.machine import Machine

CODE_METRICS = ("probe_raw", "centroid", "usage_entropy")  # of a latent that is a binary code

Numbers = dict[str, dict[str, Any]]  # by latent or projection


@dataclass(frozen=True)
class Evaluation:
    """``metrics``: percent, rounded; the entropy of a code's use is a share. ``record``: what tables and charts read.
    ``predictions``: [M] of the main latent, by its name."""

    metrics: dict[str, Any]
    record: dict[str, Any]
    predictions: dict[str, Tensor]


def evaluate(
    method: Method, about: dict[str, Any], data: ImageData, linear: Linear, knn: Knn, machine: Machine
) -> Evaluation:
    """Probe (or fine-tune), nearest neighbors and the study's protocol; ``method`` is left as it is.

    Projections are scored beside latents, but by the frozen probe alone: fine-tuning moves what they come from.
    ``about`` is the record kept with the trained method. A ``knn.k`` above the fitting split is a UserError.
    Without labels all is left out.
    """
    if not data.classes:
        return _without_labels(method, about, data, linear, knn, machine)
    if knn.k > len(data.fitting):
        raise UserError(
            f"params.yaml: knn.k is {knn.k}; allowed: at most {len(data.fitting)}, the images of the fitting split"
        )
    params = Pretraining.from_json(about["pretraining"])
    splits = data.train_images, data.test_images
    print(f"{params.variant}: latents of {len(splits[0])} training and {len(splits[1])} test images", flush=True)
    title = f"{params.variant}: latents"
    tuned = linear.mode == "finetune"
    train, test = (
        extract_with_projections(method, images, data.mean, data.std, machine, not tuned, title) for images in splits
    )
    latents, projections = Numbers(), Numbers()
    predictions: Named = {}
    for name in latent_names(train["latents"], method.halves):
        features = one_latent(train["latents"], name), one_latent(test["latents"], name)
        numbers, probe, logits = _score(*features, data, knn, machine.device, f"{params.variant}: {name}, probe")
        if tuned:
            logits = finetuned_logits(method, name, probe, data, params, linear, machine)
        latents[name] = {**_accuracies(logits, data), **numbers}
        if not predictions:  # of the main latent
            predictions = {name: logits.argmax(1)}
            few = few_labels(method, name, *features, data, params, linear, machine)
    for name, values in without_logits(train["projections"], about["supervised"], len(data.classes)).items():
        features = values, test["projections"][name]
        numbers, _, logits = _score(*features, data, knn, machine.device, f"{params.variant}: {name}, probe")
        projections[name] = {**_accuracies(logits, data), **numbers}
    study = study_protocol(method, data, params, linear.study_epochs, machine) if linear.study_epochs else None
    scores = {"main": next(iter(latents)), "latents": latents, "projections": projections, "study": study}
    theirs = study if linear.study_epochs == STUDY_EPOCHS else None
    metrics = _metrics(latents, projections, theirs, len(data.classes))
    if few:  # who did not ask has the files as they were
        scores["few_labels"] = few
        metrics["labels"] = {share: found["top1"] for share, found in few.items()}
    return Evaluation(metrics, _record(about, data, linear, knn) | scores, predictions)


def _without_labels(
    method: Method, about: dict[str, Any], data: ImageData, linear: Linear, knn: Knn, machine: Machine
) -> Evaluation:
    """The names and widths of latents and projections, every number missing, and what was left out."""
    few = extract_with_projections(method, data.test_images[:2], data.mean, data.std, machine)
    latents = {name: one_latent(few["latents"], name) for name in latent_names(few["latents"], method.halves)}
    keys = ("top1", "top5", "knn", "validation_probe", "validation_knn", "strength")

    def missing(named: Named) -> Numbers:
        return {name: {**dict.fromkeys(keys), "width": values.shape[1]} for name, values in named.items()}

    main = next(iter(latents))
    scores = {"latents": missing(latents), "projections": missing(few["projections"]), "study": None}
    metrics = {LEFT_OUT: "probe, kNN and the study's protocol, because the images have no labels"}
    record = {**_record(about, data, linear, knn), "main": main, **scores, **metrics}
    return Evaluation(metrics, record, {main: data.test_labels})


def write_evaluation(evaluation: Evaluation, test_labels: Tensor, metrics: Path, scores: Path) -> None:
    """Write the metrics, and ``scores`` with the suffixes .json and .npz."""
    arrays = {"labels": test_labels, **evaluation.predictions}
    write_measured(evaluation.metrics, evaluation.record, arrays, metrics, scores)


def _accuracies(logits: Tensor, data: ImageData) -> dict[str, float]:
    return {f"top{k}": round(accuracy(logits, data.test_labels, k), 2) for k in (1, 5)}


def _score(
    train: Tensor, test: Tensor, data: ImageData, knn: Knn, device: str, label: str
) -> tuple[dict[str, Any], Probe, Tensor]:
    """The numbers of one latent or projection [N, D] and [M, D], its probe, and its logits of [M, D]: [M, C]."""
    classes = len(data.classes)
    train, test, labels = train.to(device), test.to(device), data.train_labels.to(device)
    fitting, validation = data.fitting.to(device), data.validation.to(device)
    probe = fit_probe(train, labels, fitting, validation, classes, label)
    # Validation images have fitting images alone as neighbors, test images all training images.
    settings = knn.k, knn.temperature, classes
    near_validation = knn_scores(train[fitting], labels[fitting], train[validation], *settings)
    near_test = knn_scores(train, labels, test, *settings).cpu()
    numbers: dict[str, Any] = {
        "knn": round(accuracy(near_test, data.test_labels), 2),
        "validation_probe": round(probe.validation_top1, 2),
        "validation_knn": round(accuracy(near_validation, labels[validation]), 2),
        "strength": probe.strength,
        "strength_at_end": probe.at_end,
        "width": train.shape[1],
    }
    if is_binary(test):
        raw = fit_probe(train, labels, fitting, validation, classes, f"{label} of the code as it is", standardize=False)
        code = {"probe_raw": accuracy(raw.logits(test).cpu(), data.test_labels)}
        code |= code_numbers(train.cpu(), data.train_labels, test.cpu(), data.test_labels, classes)
        numbers["code"] = {key: round(value, 4) for key, value in code.items()}
    return numbers, probe, probe.logits(test).cpu()


def _metrics(latents: Numbers, projections: Numbers, study: dict[str, Any] | None, classes: int) -> dict[str, Any]:
    """The main latent's numbers and the study's under the same keys for every variant; then other latents by name,
    then projections by name."""
    keys = ("top1", "top5", "knn") if classes >= MANY_CLASSES else ("top1", "knn")
    metrics = {
        name: {key: numbers[key] for key in keys}
        | {key: numbers["code"][key] for key in CODE_METRICS if "code" in numbers}
        for name, numbers in {**latents, **projections}.items()
    }
    main = metrics.pop(next(iter(metrics)))
    return {**main, **{f"study_{key}": study[key] if study else None for key in ("top1", "top5")}, **metrics}


def _record(about: dict[str, Any], data: ImageData, linear: Linear, knn: Knn) -> dict[str, Any]:
    """Where the numbers come from; what they mean is in docs/reading-the-table.md."""
    splits = {"fitting": data.fitting, "validation": data.validation, "train": data.train_labels}
    return {
        **origin(about, data),
        "classes": data.classes,
        "images": {name: len(images) for name, images in splits.items()} | {"test": len(data.test_labels)},
        "linear": {key: value for key, value in asdict(linear).items() if key != "labels"},
        "knn": asdict(knn),
    }
