"""What pretraining reads: the images, the shared numbers, the optimizer, the augmentation, the variants.

The defaults are the settings of the study that the project reproduces.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from lib.params.spec import T, join, nearest, not_allowed, param, parse
from lib.runtime.errors import UserError, shown

DATASETS = ("cifar10", "cifar100", "mnist", "digits", "images")
LONGEST_NAME = 50  # characters of a variant's name, which names files and rows of tables
UNTRAINED = ("batch_size", "micro_batch_size", "optimizer")  # what a variant of 0 epochs does not read


@dataclass(frozen=True)
class Dataset:
    """Which images. ``image_size`` is in pixels.

    ``images_path`` and ``on_bad_image`` (what becomes of an image that cannot be read) are for ``dataset: images``.
    """

    dataset: str = param("cifar10", choices=DATASETS)
    images_path: str = param("data/pictures")
    on_bad_image: str = param("refuse", choices=("refuse", "skip"))
    image_size: int = param(32, low=8, high=512)


@dataclass(frozen=True)
class Optimizer:
    """``lr`` is the peak rate; ``momentum`` is Adam's beta1; ``warmup_epochs`` rise linearly from zero; ``trust`` is
    the share of a weight's length that LARS moves it by at ``lr`` 1."""

    name: str = param("adam", choices=("adam", "sgd", "lars"))
    lr: float = param(1e-3, above=0)
    weight_decay: float = param(1e-6, low=0)
    momentum: float = param(0.9, low=0, high=0.9999)
    schedule: str = param("constant", choices=("constant", "cosine"))
    warmup_epochs: float = param(0.0, low=0)
    trust: float = param(0.001, above=0, high=1)


@dataclass(frozen=True)
class Augment:
    """SimCLR's augmentation for 32x32 images. Probabilities in 0..1; jitter strengths as in torchvision.

    ``crop_pixels``: a square of so many pixels, cut and not resized, takes the place of the resized crop; 0: off.
    ``blur``, ``solarize``: off (0) as in SimCLR's code for CIFAR-10; other methods' recipes have them.
    """

    crop_pixels: int = param(0, low=0, high=512)
    crop_scale_min: float = param(0.08, above=0, high=1)
    crop_scale_max: float = param(1.0, above=0, high=1)
    flip: float = param(0.5, low=0, high=1)
    jitter: float = param(0.8, low=0, high=1)
    brightness: float = param(0.4, low=0, high=1)
    contrast: float = param(0.4, low=0, high=1)
    saturation: float = param(0.4, low=0, high=1)
    hue: float = param(0.1, low=0, high=0.5)
    grayscale: float = param(0.2, low=0, high=1)
    blur: float = param(0.0, low=0, high=1)
    solarize: float = param(0.0, low=0, high=1)


@dataclass(frozen=True)
class Monitor:
    """kNN on the validation split while training: every so many epochs, neighbors, temperature."""

    every: int = param(5, low=1)
    k: int = param(200, low=1)
    temperature: float = param(0.1, above=0)


@dataclass(frozen=True)
class Shared:
    """What all variants share and any may set for itself.

    ``augment_second`` lies over ``augment`` for second views. ``calibrate_batchnorm``: at the end BatchNorm's running
    statistics are those of one pass over the training images.
    """

    encoder: str = param("resnet50")
    batch_size: int = param(256, low=2)
    micro_batch_size: int = param(0, low=0)
    epochs: int = param(100, low=0)
    gamma: float = param(0.01, low=-1000, high=1000)
    seed: int = param(0, low=0, high=2**31 - 1)
    calibrate_batchnorm: bool = param(True)
    optimizer: Optimizer = field(default_factory=Optimizer)
    augment: Augment = field(default_factory=Augment)
    augment_second: Augment = field(default_factory=Augment)
    monitor: Monitor = field(default_factory=Monitor)


SHARED = tuple(each.name for each in fields(Shared))
BLOCKS = {"optimizer": Optimizer, "augment": Augment, "augment_second": Augment, "monitor": Monitor}


@dataclass(frozen=True)
class Pretraining:
    """Everything that one variant's pretraining depends on beside data and code.

    ``options`` are the method's own. ``encoder`` and ``gamma`` are None where the method does not read them,
    ``augment_second`` where both views have one recipe. ``rule`` is the digest of the rule that will judge the run
    (`lib.params.verdict`), None where no rule names it.
    """

    variant: str
    method: str
    options: dict[str, Any]
    image_size: int
    encoder: str | None
    batch_size: int
    micro_batch_size: int
    epochs: int
    seed: int
    gamma: float | None
    calibrate_batchnorm: bool
    optimizer: Optimizer
    augment: Augment
    monitor: Monitor
    augment_second: Augment | None = None
    rule: str | None = None

    @property
    def recipes(self) -> tuple[Augment, Augment]:
        """Of the first view and of the second."""
        return self.augment, self.augment_second or self.augment

    def as_json(self) -> dict[str, Any]:
        """Plain values, without what the variant does not read."""
        unread = () if self.epochs else UNTRAINED
        return {key: value for key, value in asdict(self).items() if value is not None and key not in unread}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Pretraining":
        """Back from `as_json`, or from a variant's file, which has the digests of its code too.

        A KeyError or TypeError says that what is stored is of another version.
        """
        usual: dict[str, Any] = {key: getattr(Shared(), key) for key in UNTRAINED}
        own = {key: BLOCKS[key](**value) if key in BLOCKS else value for key, value in stored.items() if key != "code"}
        return cls(**{"encoder": None, "gamma": None, **usual, **own})

    def replicate_key(self) -> str:
        """Equal for variants that differ in their seed alone, the replicates of one experiment."""
        return json.dumps({**self.as_json(), "variant": "", "seed": 0, "rule": ""}, sort_keys=True)


def some_of(kind: type[T], raw: Mapping[str, Any]) -> T:
    """``kind`` from its keys of a loaded params.yaml."""
    return parse(kind, {key: raw[key] for key in kind.__dataclass_fields__ if key in raw})  # type: ignore[attr-defined]


def variant_names(raw: Mapping[str, Any]) -> list[str]:
    """The variants of a loaded params.yaml, in its order. Names are files, rows and parts of commands."""
    variants = raw.get("variants")
    if not isinstance(variants, dict) or not variants:
        allowed = "a block with at least one variant, for example simclr: {method: simclr}"
        raise not_allowed("variants", shown(variants), allowed)
    for name in variants:
        if isinstance(name, bool | None):  # no, on and null, which are words
            raise not_allowed(f"variants.{name}", "not a usable name", "text, so put it in quotes")
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) or len(name) > LONGEST_NAME:
            allowed = f"a letter, then letters, digits and _, at most {LONGEST_NAME}; rename it"
            raise not_allowed(join("variants", str(name)), "not a usable name", allowed)
    return list(variants)


def pretraining_params(raw: Mapping[str, Any], variant: str) -> Pretraining:
    """One variant with the shared numbers under its own. Its method's options are typed by the method."""
    block, where = raw["variants"][variant], f"variants.{variant}"
    if not isinstance(block, dict) or "method" not in block:
        raise not_allowed(where, shown(block), "a block with at least a method")
    _require_module(f"{where}.method", block["method"], "methods", holding="\nMETHOD = ")
    shared, image_size = _shared(raw, block, where), some_of(Dataset, raw).image_size
    encoder_key = f"{where}.encoder" if "encoder" in block else "encoder"
    _require_module(encoder_key, shared.encoder, "encoders", holding="\ndef build(")
    if (pixels := shared.augment.crop_pixels) > image_size:
        raise not_allowed(f"augment.crop_pixels of {variant}", pixels, f"at most image_size ({image_size})")
    options = {key: value for key, value in block.items() if key != "method" and key not in SHARED}
    values = {key: getattr(shared, key) for key in SHARED}
    if shared.augment_second == shared.augment:
        values["augment_second"] = None
    return Pretraining(variant, block["method"], options, image_size, **values)


def _shared(raw: Mapping[str, Any], block: dict[str, Any], where: str) -> Shared:
    """What all variants share, with what the variant's ``block`` sets for itself laid over it."""
    params = some_of(Shared, raw)
    own = {key: block[key] for key in SHARED if key in block}
    for key in BLOCKS.keys() & own.keys():
        if isinstance(own[key], dict):
            own[key] = {**raw.get(key, {}), **own[key]}
    params = replace(params, **{key: getattr(parse(Shared, own, where), key) for key in own})
    recipe = {**raw.get("augment", {}), **own.get("augment", {})}
    recipe |= {**raw.get("augment_second", {}), **own.get("augment_second", {})}
    params = replace(params, augment_second=parse(Augment, recipe))
    optimizer, augment = params.optimizer, params.augment

    def place(key: str) -> str:
        return f"{where}.{key}" if key.partition(".")[0] in block else key

    if params.micro_batch_size == 1:
        why = "because batch norm cannot normalize a single image"
        raise not_allowed(place("micro_batch_size"), 1, f"0 (the whole batch at once) or at least 2, {why}")
    for key, each in (("augment", augment), ("augment_second", params.augment_second)):
        if each.crop_scale_min > each.crop_scale_max:
            allowed = f"at most {key}.crop_scale_max ({each.crop_scale_max})"
            raise not_allowed(place(f"{key}.crop_scale_min"), each.crop_scale_min, allowed)
    if (pixels := params.augment_second.crop_pixels) != augment.crop_pixels:
        allowed = f"that of augment ({augment.crop_pixels}), because both views are of one size"
        raise not_allowed(place("augment_second.crop_pixels"), pixels, allowed)
    if params.epochs and optimizer.warmup_epochs > params.epochs:
        allowed = f"at most epochs ({params.epochs})"
        raise not_allowed(place("optimizer.warmup_epochs"), optimizer.warmup_epochs, allowed)
    if optimizer.name != "lars" and optimizer.trust != Optimizer.trust:
        unread = f"{place('optimizer.trust')} is {optimizer.trust}, which has no effect with {optimizer.name}"
        raise UserError(f"params.yaml: {unread}; set optimizer.name to lars, or trust to {Optimizer.trust}")
    return params


def _require_module(where: str, name: Any, folder: str, holding: str) -> None:
    """The names of methods and encoders are those of the files in ``folder`` with a text: refuse others."""
    files = (Path(__file__).parents[1] / folder).glob("[a-z]*.py")
    known = sorted(path.stem for path in files if holding in path.read_text())
    if name not in known:
        raise not_allowed(where, f"{shown(name)}{nearest(name, known)}", ", ".join(known))
