"""What pretraining reads: the shared numbers, the optimizer, the augmentation, the variants.

The defaults are the settings of the study that the project reproduces.
"""

import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lib.params.spec import PARAMS_FILE, join, load_yaml, param, parse
from lib.runtime.errors import UserError, shown

DATASETS = ("cifar10", "cifar100", "mnist", "digits", "images")
LONGEST_NAME = 50  # characters of a variant's name, which names files and rows of tables
SHARED_NUMBERS = ("gamma", "seed")
OWN = ("batch_size", "micro_batch_size", "epochs", "optimizer", "augment")  # that a variant may have for itself


@dataclass(frozen=True)
class Dataset:
    """Which images. ``image_size`` is in pixels.

    ``images_path`` and ``on_bad_image`` (what becomes of an image that cannot be read) are for ``dataset: images``.
    """

    dataset: str = param("cifar10", choices=DATASETS)
    images_path: str = param("")
    on_bad_image: str = param("refuse", choices=("refuse", "skip"))
    image_size: int = param(32, low=8, high=512)
    seed: int = param(0, low=0, high=2**31 - 1)


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
    """SimCLR's recipe for 32x32 images. Probabilities in 0..1; jitter strengths as in torchvision.

    ``crop_pixels``: a square of so many pixels, cut and not resized, takes the place of the resized crop; 0: off.
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


@dataclass(frozen=True)
class Monitor:
    """kNN on the validation split while training: every so many epochs, neighbours, temperature."""

    every: int = param(5, low=1)
    k: int = param(200, low=1)
    temperature: float = param(0.1, above=0)


@dataclass(frozen=True)
class Watch:
    """What DVC watches for one variant beside its method's file: two losses, one more file, a shared number.

    DVC cannot take a list here, so a variant with one loss names it twice, one without a further file names
    ``methods/base``, which every method imports, and one that reads no shared number names ``seed``, which
    every variant reads. ``part`` is a path below lib, without ``.py``. Checked against the method's code.
    """

    loss: str = param(words="the name of a file in lib/losses, without .py")
    term: str = param(words="the name of a file in lib/losses, without .py")
    part: str = param(words="the path of a file below lib, without .py")
    number: str = param(choices=SHARED_NUMBERS)


@dataclass(frozen=True)
class Pretraining:
    """Everything that one variant's pretraining may depend on, resolved."""

    variant: str
    method: str
    options: dict[str, Any]
    watch: Watch
    image_size: int
    encoder: str
    batch_size: int
    micro_batch_size: int
    epochs: int
    seed: int
    gamma: float | None
    optimizer: Optimizer
    augment: Augment
    monitor: Monitor

    def resolved(self) -> dict[str, Any]:
        """As plain values, for provenance and for the checkpoint's fingerprint."""
        return asdict(self)


@dataclass(frozen=True)
class _Shared:
    encoder: str = param("resnet50")
    batch_size: int = param(256, low=2)
    micro_batch_size: int = param(0, low=0)
    epochs: int = param(100, low=0)
    gamma: float = param(0.01, low=0)
    optimizer: Optimizer = field(default_factory=Optimizer)
    augment: Augment = field(default_factory=Augment)
    monitor: Monitor = field(default_factory=Monitor)


def dataset_params(raw: dict[str, Any]) -> Dataset:
    """The dataset's keys of a loaded params.yaml."""
    found = parse(Dataset, {key: raw[key] for key in Dataset.__dataclass_fields__ if key in raw})
    if found.dataset == "images" and not found.images_path:
        raise UserError(
            "params.yaml: images_path is empty; allowed with dataset images: the path of a folder, zip or tar"
        )
    return found


def variant_names(raw: dict[str, Any]) -> list[str]:
    """The variants of a loaded params.yaml, in its order."""
    variants = raw.get("variants")
    if not isinstance(variants, dict) or not variants:
        raise UserError(
            f"params.yaml: variants is {shown(variants)}; allowed: variants must be a block with at least "
            "one variant, a name with its method and watch below it"
        )
    for name in variants:
        if not isinstance(name, str):
            raise UserError(
                f"params.yaml: variants.{shown(name)} is not a usable name; allowed: text, so put it in quotes"
            )
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_]*", name) or len(name) > LONGEST_NAME:
            raise UserError(
                f"params.yaml: {join('variants', name)} is not a usable name; allowed: letters, digits and "
                f"_, at most {LONGEST_NAME}; rename it"
            )
    return list(variants)


def pretraining_params(raw: dict[str, Any], variant: str) -> Pretraining:
    """What pretraining of ``variant`` reads. Its method's own options are checked by the method."""
    names = variant_names(raw)
    if variant not in names:
        raise UserError(f"params.yaml has no variant {variant!r}; variants: {', '.join(names)}")
    _require_module("encoder", raw.get("encoder", _Shared.encoder), "encoders", holding="\ndef build(")
    block = raw["variants"][variant]
    where = f"variants.{variant}"
    if not isinstance(block, dict) or "method" not in block or "watch" not in block:
        raise UserError(
            f"params.yaml: {where} is {shown(block)}; allowed: it must be a block with at least method and watch"
        )
    _require_module(f"{where}.method", block["method"], "methods", holding="\nMETHOD = ")
    watch = parse(Watch, block["watch"], f"{where}.watch")
    for key in ("loss", "term"):
        _require_module(f"{where}.watch.{key}", getattr(watch, key), "losses", holding="")
    shared, dataset = _shared(raw, block, where), dataset_params(raw)
    if shared.augment.crop_pixels > dataset.image_size:
        raise UserError(
            f"params.yaml: augment.crop_pixels of {variant} is {shared.augment.crop_pixels}; allowed: at "
            f"most image_size ({dataset.image_size})"
        )
    return Pretraining(
        variant=variant,
        method=block["method"],
        options={key: value for key, value in block.items() if key not in ("method", "watch", *OWN)},
        watch=watch,
        image_size=dataset.image_size,
        seed=dataset.seed,
        gamma=shared.gamma if watch.number == "gamma" else None,
        **{
            key: getattr(shared, key)
            for key in ("encoder", "batch_size", "micro_batch_size", "epochs", "optimizer", "augment", "monitor")
        },
    )


def _shared(raw: dict[str, Any], block: dict[str, Any], where: str) -> _Shared:
    """What all variants share, with what the variant's ``block`` sets for itself (`OWN`) laid over it."""
    common = {key: raw[key] for key in _Shared.__dataclass_fields__ if key in raw}
    found = parse(_Shared, common)
    own = {key: block[key] for key in OWN if key in block}
    if own:
        for key in ("optimizer", "augment"):
            if isinstance(own.get(key), dict):
                own[key] = {**common.get(key, {}), **own[key]}
        own = parse(_Shared, own, where)
        found = replace(found, **{key: getattr(own, key) for key in OWN if key in block})

    def place(key: str) -> str:
        return f"{where}.{key}" if key.partition(".")[0] in block else key

    if found.micro_batch_size == 1:
        raise UserError(
            f"params.yaml: {place('micro_batch_size')} is 1; allowed: 0 (the whole batch at once) or at "
            "least 2, because batch norm cannot normalize a single image"
        )
    if found.augment.crop_scale_min > found.augment.crop_scale_max:
        raise UserError(
            f"params.yaml: {place('augment.crop_scale_min')} is {found.augment.crop_scale_min}; "
            f"allowed: at most augment.crop_scale_max ({found.augment.crop_scale_max})"
        )
    if found.epochs and found.optimizer.warmup_epochs > found.epochs:
        raise UserError(
            f"params.yaml: {place('optimizer.warmup_epochs')} is {found.optimizer.warmup_epochs}; "
            f"allowed: at most epochs ({found.epochs})"
        )
    if found.optimizer.name != "lars" and found.optimizer.trust != Optimizer.trust:
        raise UserError(
            f"params.yaml: {place('optimizer.trust')} is {found.optimizer.trust}, which has no effect with "
            f"{found.optimizer.name}; set optimizer.name to lars, or trust to {Optimizer.trust}"
        )
    return found


def _require_module(where: str, name: Any, folder: str, holding: str) -> None:
    """The names of methods, encoders and losses are those of the files in ``folder`` with a text: refuse others."""
    files = (Path(__file__).parents[1] / folder).glob("[a-z]*.py")
    known = sorted(path.stem for path in files if holding in path.read_text())
    if name not in known:
        raise UserError(f"params.yaml: {where} is {shown(name)}; allowed: {', '.join(known)}")


def load_params(path: Path = PARAMS_FILE) -> dict[str, Any]:
    """params.yaml as a mapping, not yet typed."""
    return load_yaml(path)
