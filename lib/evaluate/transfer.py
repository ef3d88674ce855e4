"""What a first layer of filters is worth: a small classifier that starts from it (docs/methods.md, 13).

The same classifier, drawn from the same numbers but for its first layer, is trained in several arms. Pixels are in 0..1
as the filters learned from them; one arm from scratch has them normalized, which tells how much of an early
lead is the scaling of the input. Validation accuracy is measured after every epoch and chooses nothing; the test images
are read once, at the end.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lib.data.store import ImageData
from lib.encoders.shallow import FILTERS, SIZE, map_side
from lib.evaluate.batches import augmented_batches, train
from lib.evaluate.scores import accuracy
from lib.params.evaluation import FILTERS_ENCODER, Transfer
from lib.params.pretraining import Augment
from lib.runtime.errors import UserError
from lib.runtime.files import read_tensors
from lib.runtime.machine import Machine, autocast
from lib.runtime.progress import EpochLines
from lib.runtime.seeds import generator
from lib.views.augment import normalize

PADDING = 4  # black pixels around an image that is cropped
HIDDEN = 512
BATCH = 512  # images that are scored at a time
LAYER = {"weight": (FILTERS[0], 3, SIZE[0], SIZE[0]), "bias": (FILTERS[0],)}

Layer = dict[str, Tensor]


@dataclass(frozen=True)
class Arm:
    """Where the first layer starts (None: random), whether it learns, whether pixels are normalized or in 0..1."""

    name: str
    layer: Layer | None
    learns: bool
    normalized: bool = False


@dataclass(frozen=True)
class Outcome:
    """Percent: validation after every epoch, beside its mean loss; test after the last; the first layer at the end."""

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
            *(nn.MaxPool2d(2), nn.BatchNorm2d(FILTERS[0]), nn.ReLU(inplace=True)),
            *(nn.Conv2d(*FILTERS, SIZE[1]), nn.MaxPool2d(2), nn.BatchNorm2d(FILTERS[1]), nn.ReLU(inplace=True)),
            *(nn.Flatten(), nn.Linear(FILTERS[1] * side * side, HIDDEN), nn.ReLU(inplace=True)),
            *(nn.BatchNorm1d(HIDDEN), nn.Linear(HIDDEN, classes)),
        )

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] -> logits [B, C]."""
        return self.rest(self.first(images))


def first_layer(path: Path, variant: str) -> Layer:
    """The filters in a variant's model file; a UserError if its encoder is not one layer of them."""
    tensors, about = read_tensors(path)
    if about["encoder"] != FILTERS_ENCODER:
        raise UserError(
            f"params.yaml: transfer.variants names {variant}, whose encoder is {about['encoder']}; "
            f"allowed: variants with the encoder {FILTERS_ENCODER}"
        )
    return _read(tensors, LAYER, path, "pretrain", "encoder.conv1.")


def arms(own: Layer, source: Path | None) -> list[Arm]:
    """The arms to compare; the layers in ``source``, a filters file of other images, replace ``own``."""
    learned, more = own, []
    if source:
        tensors = read_tensors(source)[0]
        if "mean" in tensors:
            raise UserError(f"{source} has filters of normalized pixels; write it anew with this version")
        learned, scratch = (_read(tensors, LAYER, source, "transfer", where) for where in ("learned.", "scratch."))
        more = [Arm("classifier's, fine-tuned", scratch, True)]
    return [
        Arm("scratch", None, True),
        Arm("scratch, normalized pixels", None, True, normalized=True),
        Arm("random, frozen", None, False),
        Arm("learned, frozen", learned, False),
        Arm("learned, fine-tuned", learned, True),
        *more,
    ]


def given_filters(found: list[Arm]) -> dict[str, Tensor]:
    """The filters [F, 3, k, k] that arms start from and that are not random, by whose they are."""
    return {arm.name.split(",")[0]: arm.layer["weight"] for arm in found if arm.layer is not None}


def compare(
    found: list[Arm], data: ImageData, params: Transfer, machine: Machine, seed: int, label: str
) -> list[Outcome]:
    return [_train(arm, data, params, machine, seed, f"{label}, {arm.name}") for arm in found]


def filters_file(own: Layer, outcomes: list[Outcome]) -> dict[str, Tensor]:
    """What a run with other images can start from: the layer learned from these images and the classifier's from
    scratch. Nothing of a source is in it."""
    scratch = next(outcome.layer for outcome in outcomes if outcome.name == "scratch")
    return {f"{name}.{key}": layer[key] for name, layer in (("learned", own), ("scratch", scratch)) for key in LAYER}


def summary(outcomes: list[Outcome]) -> dict[str, Any]:
    """By arm, percent: validation after the first and the last epoch, test after the last."""
    table = {}
    for outcome in outcomes:
        first, last = outcome.curve[0]["validation_top1"], outcome.curve[-1]["validation_top1"]
        table[outcome.name] = {"first_epoch": first, "last_epoch": last, "test_top1": outcome.test_top1}
    return table


def _read(tensors: Layer, names: dict[str, tuple[int, ...]], path: Path, stage: str, where: str = "") -> Layer:
    """The tensors ``where``.name, by name and of the right shape."""
    for name, shape in names.items():
        if tensors.get(where + name, torch.empty(0)).shape != shape:
            wanted = f"tensor {where}{name} of shape {'x'.join(map(str, shape))}"
            raise UserError(f"{path} holds no {wanted}; name a file that the stage {stage} wrote")
    return {name: tensors[where + name] for name in names}


def _train(arm: Arm, data: ImageData, params: Transfer, machine: Machine, seed: int, label: str) -> Outcome:
    network = _network(arm, data, seed).to(machine.device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam([weight for weight in network.parameters() if weight.requires_grad], lr=params.lr)
    scaling = (data.mean, data.std) if arm.normalized else (torch.zeros(3), torch.ones(3))

    def logits(inputs: Tensor) -> Tensor:
        with autocast(machine):
            return network(inputs).float()

    def top1(images: Tensor, labels: Tensor) -> float:
        network.eval()
        with torch.no_grad():
            parts = [logits(normalize(part.to(machine.device), *scaling)).cpu() for part in images.split(BATCH)]
        return round(accuracy(torch.cat(parts), labels), 2)

    # in nats; the source's slip, for ten classes, has 1.461 as floor
    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(logits.softmax(1) if params.double_softmax else logits, labels)

    # With a black border a crop of the images' size shifts an image by up to four pixels each way.
    padded = functional.pad(data.train_images[data.fitting], [PADDING] * 4)
    images = padded, data.train_labels[data.fitting], *scaling
    config = Augment(crop_pixels=data.about["image_size"], jitter=0.0, grayscale=0.0)
    batches = augmented_batches(images, config, machine.device, params.batch_size, seed, "transfer")
    lines, curve = EpochLines(label, params.epochs), []
    for epoch, mean in train(network, logits, optimizer, batches, params.epochs, loss):
        validation = top1(data.train_images[data.validation], data.train_labels[data.validation])
        curve.append({"epoch": epoch, "loss": mean, "validation_top1": validation})
        lines.epoch(epoch, loss=mean, top1=validation)
        for group in optimizer.param_groups:  # the last third has a tenth of the rate
            group["lr"] = params.lr * (1 if 3 * epoch < 2 * params.epochs else 0.1)
    layer = {name: getattr(network.first, name).detach().cpu().contiguous() for name in LAYER}
    return Outcome(arm.name, curve, top1(data.test_images, data.test_labels), layer)


def _network(arm: Arm, data: ImageData, seed: int) -> Classifier:
    """The same numbers for every arm, but for a layer that is given."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, "transfer weights").initial_seed())
        network = Classifier(data.about["image_size"], len(data.classes))
    if arm.layer is not None:
        network.first.load_state_dict(arm.layer)
    network.first.requires_grad_(arm.learns)
    return network
