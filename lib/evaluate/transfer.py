"""What a first layer of filters is worth: a small classifier that starts from it (docs/methods.md, 13).

The same classifier, drawn from the same numbers but for its first layer, is trained in several arms: from
scratch; on random filters that stay; on learned filters that stay; on learned filters that go on learning; and,
where a classifier of other images left its first layer, on that. Filters of other images meet pixels normalized as
those were. Validation accuracy is measured after every epoch, and nothing is chosen by it; the test images are
read once, at the end.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lib.data.store import ImageData
from lib.encoders.shallow import FILTERS, SIZE, map_side
from lib.evaluate.batches import augmented_batches
from lib.evaluate.progress import Lines
from lib.evaluate.scores import accuracy
from lib.params.evaluation import FILTERS_ENCODER, Transfer, check_transfer_size
from lib.params.pretraining import Augment
from lib.runtime.errors import UserError
from lib.runtime.files import read_tensors
from lib.runtime.machine import Machine, autocast
from lib.runtime.seeds import generator
from lib.views.augment import normalize

PADDING = 4  # black pixels around an image that is cropped
HIDDEN = 512
LAYER = ("weight", "bias")

Layer = dict[str, Tensor]
Scaling = tuple[Tensor, Tensor]  # mean and std [3] that pixels in 0..1 are normalized with


@dataclass(frozen=True)
class Arm:
    """Where the first layer starts (None: random), whether it learns, and how its pixels are normalized (None: by the
    images' own mean and std)."""

    name: str
    layer: Layer | None
    learns: bool
    scaling: Scaling | None = None


@dataclass(frozen=True)
class Outcome:
    """Percent: validation after every epoch, beside the mean loss of an image in it; test after the last; and the
    first layer at the end."""

    name: str
    curve: list[dict[str, float]]
    test_top1: float
    layer: Layer


class Classifier(nn.Module):
    """Two convolutions with pooling and two linear layers: 7,769,866 parameters for 32x32 images of ten classes."""

    def __init__(self, image_size: int, classes: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, FILTERS[0], SIZE[0])
        side = map_side(image_size, layers=2)
        self.rest = nn.Sequential(
            nn.MaxPool2d(2),
            nn.BatchNorm2d(FILTERS[0]),
            nn.ReLU(inplace=True),
            nn.Conv2d(*FILTERS, SIZE[1]),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(FILTERS[1]),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(FILTERS[1] * side * side, HIDDEN),
            nn.ReLU(inplace=True),
            nn.BatchNorm1d(HIDDEN),
            nn.Linear(HIDDEN, classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] -> logits [B, C]."""
        return self.rest(self.first(images))


def first_layer(path: Path, variant: str) -> Layer:
    """The filters in a variant's model file, if its encoder is one layer of them.

    Raises:
        UserError: another encoder.
    """
    tensors, about = read_tensors(path)
    if about["encoder"] != FILTERS_ENCODER:
        raise UserError(
            f"params.yaml: transfer.variants names {variant}, whose encoder is {about['encoder']}; "
            f"allowed: variants with the encoder {FILTERS_ENCODER}"
        )
    return _layer(tensors, "encoder.conv1", path, "pretrain")


def _layer(tensors: dict[str, Tensor], where: str, path: Path, stage: str) -> Layer:
    found = {name: tensors.get(f"{where}.{name}") for name in LAYER}
    expected = nn.Conv2d(3, FILTERS[0], SIZE[0], device="meta").state_dict()
    for name in LAYER:
        shape = expected[name].shape
        if found[name] is None or found[name].shape != shape:
            raise UserError(
                f"{path} holds no tensor {where}.{name} of shape {'x'.join(map(str, shape))}; name a file "
                f"that the stage {stage} wrote"
            )
    return found


def _scaling(tensors: dict[str, Tensor], path: Path) -> Scaling:
    found = [tensors.get(name, torch.empty(0)) for name in ("mean", "std")]
    if any(values.shape != (3,) or not values.isfinite().all() for values in found) or not (found[1] > 0).all():
        raise UserError(
            f"{path} holds no mean and std of the pixels that its filters learned from; allowed as "
            "transfer.source: a file with both, three finite numbers each, std above 0; run the stage "
            "transfer again where the file was written"
        )
    return found[0].float(), found[1].float()


def arms(own: Layer, source: Path | None) -> list[Arm]:
    """The arms to compare; the layers in ``source``, a filters file of other images, replace ``own``.

    Raises:
        UserError: the file lacks a layer, or what its pixels were normalized with.
    """
    tensors = read_tensors(source)[0] if source else {}
    learned = _layer(tensors, "learned", source, "transfer") if source else own
    scaling = _scaling(tensors, source) if source else None
    found = [
        Arm("scratch", None, True),
        Arm("random, frozen", None, False),
        Arm("learned, frozen", learned, False, scaling),
        Arm("learned, fine-tuned", learned, True, scaling),
    ]
    if source:
        found.append(Arm("classifier's, fine-tuned", _layer(tensors, "scratch", source, "transfer"), True, scaling))
    return found


def given_filters(found: list[Arm]) -> dict[str, Tensor]:
    """The filters [F, 3, k, k] that arms start from and that are not random, by whose they are."""
    return {arm.name.split(",")[0]: arm.layer["weight"] for arm in found if arm.layer is not None}


def compare(
    found: list[Arm], data: ImageData, params: Transfer, machine: Machine, seed: int, label: str
) -> list[Outcome]:
    """Train the classifier once for every arm.

    Raises:
        UserError: images too small for the classifier.
    """
    check_transfer_size(data.about["image_size"])
    return [_train(arm, data, params, machine, seed, f"{label}, {arm.name}") for arm in found]


def filters_file(own: Layer, outcomes: list[Outcome], data: ImageData) -> dict[str, Tensor]:
    """What a run with other images can start from: the layer learned from these images, that of the classifier
    from scratch, and the mean and std that both had their pixels normalized with.

    Nothing of a source is in it, also where the comparison started from one: a file is about its own images.
    """
    scratch = next(outcome.layer for outcome in outcomes if outcome.name == "scratch")
    return {
        **{f"learned.{name}": value for name, value in own.items()},
        **{f"scratch.{name}": value for name, value in scratch.items()},
        "mean": data.mean,
        "std": data.std,
    }


def summary(outcomes: list[Outcome]) -> dict[str, Any]:
    """By arm, percent: validation after the first and the last epoch, test after the last."""
    return {
        outcome.name: {
            "first_epoch": outcome.curve[0]["validation_top1"],
            "last_epoch": outcome.curve[-1]["validation_top1"],
            "test_top1": outcome.test_top1,
        }
        for outcome in outcomes
    }


def _train(arm: Arm, data: ImageData, params: Transfer, machine: Machine, seed: int, label: str) -> Outcome:
    network = _network(arm, data, seed).to(machine.device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam([weight for weight in network.parameters() if weight.requires_grad], lr=params.lr)
    padded = functional.pad(data.train_images[data.fitting], [PADDING] * 4)
    scaling = arm.scaling or (data.mean, data.std)
    train = [tensor.to(machine.device) for tensor in (padded, data.train_labels[data.fitting], *scaling)]
    recipe = Augment(crop_pixels=data.about["image_size"], jitter=0.0, grayscale=0.0)
    score = _scorer(network, scaling, machine)
    lines, curve = Lines(label, params.epochs), []
    for epoch in range(1, params.epochs + 1):
        for group in optimizer.param_groups:
            group["lr"] = params.lr * (1 if 3 * (epoch - 1) < 2 * params.epochs else 0.1)
        network.train()
        total, count = torch.zeros((), device=machine.device), 0
        for inputs, labels in augmented_batches(
            *train, recipe, batch_size=params.batch_size, seed=seed, purpose="transfer", epoch=epoch
        ):
            with autocast(machine):
                scores = network(inputs).float()
            loss = _loss(scores, labels, params.double_softmax)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(labels)
            count += len(labels)
        mean = (total / count).item()
        top1 = score(data.train_images[data.validation], data.train_labels[data.validation])
        curve.append({"epoch": epoch, "loss": mean, "validation_top1": round(top1, 2)})
        lines.epoch(epoch, loss=mean, top1=top1)
    layer = {name: getattr(network.first, name).detach().cpu().contiguous() for name in LAYER}
    return Outcome(arm.name, curve, round(score(data.test_images, data.test_labels), 2), layer)


def _network(arm: Arm, data: ImageData, seed: int) -> Classifier:
    """The same numbers for every arm, but for a layer that is given."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, "transfer weights").initial_seed())
        network = Classifier(data.about["image_size"], len(data.classes))
    if arm.layer is not None:
        network.first.load_state_dict(arm.layer)
    network.first.requires_grad_(arm.learns)
    return network


def _loss(scores: Tensor, labels: Tensor, double_softmax: bool) -> Tensor:
    """Cross entropy in nats; with the source's slip its floor for ten classes is 1.461150."""
    return functional.cross_entropy(scores.softmax(1) if double_softmax else scores, labels)


def _scorer(network: Classifier, scaling: Scaling, machine: Machine) -> Callable[[Tensor, Tensor], float]:
    mean, std = (values.to(machine.device) for values in scaling)

    def score(images: Tensor, labels: Tensor) -> float:
        network.eval()
        with torch.no_grad(), autocast(machine):
            parts = [network(normalize(part.to(machine.device), mean, std)).float().cpu() for part in images.split(512)]
        return accuracy(torch.cat(parts), labels)

    return score
