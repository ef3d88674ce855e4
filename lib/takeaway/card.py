"""The memory card of any encoder: ``python -m lib card timm:resnet18 --images FOLDER`` (docs/card.md).

The measures are those of the stages linear and memory, by their own functions: probe and nearest neighbors, episode and
concept bits by cue, by how much is hidden and by how alike the competitors look.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from lib.core.calibration import calibrate_batchnorm
from lib.data.folders import Names, read_folders
from lib.data.split import TEST_SHARE, stratified
from lib.data.store import ImageData, RawDataset, assemble
from lib.evaluate.linear import evaluate
from lib.evaluate.memory import measure_memory, pixel_landmark
from lib.methods.base import Named
from lib.params.evaluation import Knn, Linear, Memory
from lib.params.pretraining import Augment, Pretraining, Shared
from lib.runtime.errors import UserError, one_line
from lib.runtime.files import require_room
from lib.runtime.machine import Machine, read_machine
from lib.takeaway.encoders import Encoder, find_encoder
from lib.takeaway.page import write_card

PIXELS = 2**22  # given to an encoder at a time: 4,096 images of 32 pixels, 83 of 224
SIZES = (8, 512)  # pixels
SHARE = 50  # images for each neighbor that votes, of sets where the 200 of CIFAR-10 would be most of a class
OPTIONS = Names("--images", "--images", "--size", "give --on-bad-image skip")  # in place of keys of params.yaml

Card = dict[str, Any]


def card(
    encode: Callable[[Tensor], Any],
    images: Any,
    labels: Any = None,
    *,
    classes: Sequence[str] | None = None,
    name: str = "encoder",
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
    machine: Machine | None = None,
) -> Card:
    """Measure an encoder; `lib.takeaway.page.write_card` makes a page of what is returned, plain values by name.

    ``encode``: float32 [B, 3, S, S], RGB in 0..1 less ``mean`` over ``std``, to features [B, D]; a module is put into
    eval mode for it. ``images``: uint8 [N, 3, S, S]. ``labels``: integers [N] from 0 on that index ``classes``, or
    None, which leaves out probe, kNN and concept bits. A fifth of each class is held out for test, by a fixed draw.
    A UserError says that there are too few images, or that the encoder does not return [B, D] of finite numbers.
    """
    pixels = numpy.asarray(images)
    known = numpy.zeros(len(pixels), numpy.int64) if labels is None else numpy.asarray(labels).astype(numpy.int64)
    if pixels.dtype != numpy.uint8 or pixels.ndim != 4 or pixels.shape[1:] != (3, *pixels.shape[-1:] * 2):
        raise UserError(f"images are {pixels.dtype} {list(pixels.shape)}; allowed: uint8 [N, 3, S, S]")
    if known.shape != pixels.shape[:1] or not len(known) or known.min() < 0:
        raise UserError(
            f"labels are {list(known.shape)}; allowed: an integer from 0 on for each of {len(pixels)} images"
        )
    names = list(classes or map(str, range(known.max() + 1)))
    if len(names) <= known.max():
        raise UserError(f"classes are {len(names)} names; allowed: one for each label from 0 to {known.max()}")
    test = stratified(known, TEST_SHARE, "test split")
    train = numpy.delete(numpy.arange(len(known)), test)
    raw = RawDataset(pixels[train], known[train], pixels[test], known[test], names, "given as arrays")
    return measure(Encoder(encode, name, mean=mean, std=std), image_data(raw), machine or read_machine(alone=True))


def image_data(raw: RawDataset) -> ImageData:
    """`assemble`; the labels of images of one class tell nothing, and are left out."""
    if len(raw.classes) == 1:
        train, test = (-numpy.ones_like(labels) for labels in (raw.train_labels, raw.test_labels))
        raw = dataclasses.replace(raw, classes=[], train_labels=train, test_labels=test)
    return assemble("images", raw)


def measure(encoder: Encoder, data: ImageData, machine: Machine) -> Card:
    """The card's numbers, and beside them those of images reduced to 8x8 pixels.

    Cues and settings are the defaults of params.yaml, whatever it says, so that cards of the same images compare. Of a
    network that was drawn here BatchNorm first takes its statistics from the images, as a variant of 0 epochs does.
    """
    adapter: Any = Adapter(encoder, data).to(machine.device)
    augment, memory, images = Augment(), Memory(), data.train_images
    # The record that a training of ours would have left: the stages' functions take names and provenance from it.
    params = Pretraining(encoder.name, "none", {}, images.shape[-1], **vars(Shared()))
    about = {"variant": encoder.name, "method": "none", "pretraining": params.as_json(), "supervised": False}
    about |= {"data": data.about, "versions": {}}
    if encoder.fresh:
        calibrate_batchnorm(adapter, images.to(machine.device), data.mean, data.std, params, machine)
    found = measure_memory(adapter, about, data, augment, memory, machine).record
    scores = None
    if len(data.classes) > 1:
        knn = Knn(k=max(1, min(Knn().k, len(data.fitting) // SHARE)))
        measured = evaluate(adapter, about, data, Linear(study_epochs=0), knn, machine).record
        scores = {**measured["latents"]["h"], "k": knn.k, "chance": round(100 / len(data.classes), 2)}
    own: dict[str, Any] = {key: getattr(encoder, key) for key in ("name", "weights", "fresh")}
    own |= {"mean": [*encoder.mean], "std": [*encoder.std], "width": found["latents"]["h"]["width"]}
    return {
        "encoder": own,
        "data": {key: data.about[key] for key in ("source", "checksum", "classes", "image_size")},
        **{key: found[key] for key in ("images", "near_duplicates", "gallery", "possible", "draws")},
        "scores": scores,
        "memory": found["latents"]["h"],
        "pixels": pixel_landmark(data, augment, memory, machine),
        "measured_with": found["provenance"]["measured_with"],
    }


class Adapter(nn.Module):
    """An encoder in place of a method, with one latent ``h``.

    Images come normalized as ``data`` has it and leave by the encoder's own mean and std: all encoders meet the same
    cues.
    """

    halves = False
    scale: Tensor
    shift: Tensor

    def __init__(self, encoder: Encoder, data: ImageData) -> None:
        super().__init__()
        self.name, self.encode = encoder.name, encoder.encode
        mean, std = torch.tensor([*encoder.mean]), torch.tensor([*encoder.std])
        self.register_buffer("scale", (data.std / std).view(3, 1, 1))
        self.register_buffer("shift", ((data.mean - mean) / std).view(3, 1, 1))

    def latents(self, images: Tensor) -> Named:
        parts = images.split(max(1, PIXELS // images[0, 0].numel()))
        return {"h": torch.cat([self._features(part * self.scale + self.shift) for part in parts])}

    def _features(self, images: Tensor) -> Tensor:
        try:
            features = torch.as_tensor(self.encode(images)).float()
        except Exception as error:  # of a library, or of the user's code
            raise UserError(f"{self.name} fails on images {list(images.shape)}: {one_line(error)[:300]}") from error
        if features.ndim != 2 or len(features) != len(images) or not features.shape[1]:
            shape, count = list(features.shape), len(images)
            raise UserError(f"{self.name} returns {shape} of {count} images; allowed: features [{count}, D]")
        if not features.isfinite().all():
            raise UserError(f"{self.name} returns numbers that are not finite; give weights, or pixels, that fit it")
        return features

    def project(self, latents: Named) -> Named:
        return {}


def card_of_pictures(
    encoder: str,
    images: str,
    size: int | None = None,
    on_bad_image: str = "refuse",
    weights: Path | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    to: Path | None = None,
) -> list[str]:
    """Write the card of the encoder that is named so, on the pictures at ``images``; returns lines for the terminal."""
    if not all(map(math.isfinite, (*(mean or ()), *(std or ())))) or any(value <= 0 for value in std or ()):
        raise UserError(
            "--mean and --std are of RGB in 0..1; allowed: three finite numbers each, those of --std above 0"
        )
    machine = read_machine(alone=True)
    found = find_encoder(encoder, weights)
    found = dataclasses.replace(found, mean=mean or found.mean, std=std or found.std)
    size = found.size if size is None else size
    if size is None or not SIZES[0] <= size <= SIZES[1]:
        raise UserError(f"--size is {size}; allowed: {SIZES[0]} to {SIZES[1]}, the pixels that {encoder} takes")
    own = f"{encoder}_{weights.stem}" if weights else encoder  # beside that of fresh weights, its floor
    folder = to or Path("cards") / own.replace("/", "_").replace(":", "_")
    require_room(folder)
    raw = read_folders(images, size, on_bad_image, OPTIONS)
    return write_card(folder, measure(found, image_data(raw), machine))
