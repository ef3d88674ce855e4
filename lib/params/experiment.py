"""params.yaml as one typed object: everything in it is checked, whatever stage asks."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.params import evaluation, pretraining
from lib.params.evaluation import Knn, Linear, Transfer, Tsne
from lib.params.pretraining import Augment, Dataset, Pretraining, Shared
from lib.params.spec import PARAMS_FILE, load_yaml, unknown_key
from lib.runtime.errors import UserError, shown

OTHERS = ("variants", "linear", "knn", "tsne", "transfer")
JITTERS = ("brightness", "contrast", "saturation", "hue")
CROPS = ("crop_scale_min", "crop_scale_max")


@dataclass(frozen=True)
class Experiment:
    """``variants`` by name; the keys that each sets for itself are ``own``. A method's options are not yet typed."""

    dataset: Dataset
    shared: Shared
    variants: dict[str, Pretraining]
    own: dict[str, frozenset[str]]
    linear: Linear
    knn: Knn
    tsne: Tsne
    transfer: Transfer
    transfer_variants: tuple[str, ...]


def read_experiment(path: Path = PARAMS_FILE) -> Experiment:
    """All of params.yaml.

    Raises:
        UserError: the first thing wrong anywhere in it.
    """
    return parse_experiment(load_yaml(path))


def parse_experiment(raw: Mapping[str, Any]) -> Experiment:
    """A loaded params.yaml, typed. An option that would have no effect is refused."""
    known = {*Dataset.__dataclass_fields__, *Shared.__dataclass_fields__, *OTHERS}
    for key in raw:
        if key not in known:
            raise unknown_key(key, known)
    names = pretraining.variant_names(raw)
    experiment = Experiment(
        dataset=pretraining.dataset_params(raw),
        shared=pretraining.shared_params(raw),
        variants={name: pretraining.pretraining_params(raw, name) for name in names},
        own={name: frozenset(raw["variants"][name]) for name in names},
        linear=evaluation.linear_params(raw),
        knn=evaluation.knn_params(raw),
        tsne=evaluation.tsne_params(raw),
        transfer=evaluation.transfer_params(raw),
        transfer_variants=evaluation.transfer_variants(raw, names),
    )
    _check(experiment, raw)
    return experiment


def _check(experiment: Experiment, raw: Mapping[str, Any]) -> None:
    dataset, tsne, linear, usual = experiment.dataset, experiment.tsne, experiment.linear, Dataset()
    if experiment.transfer_variants:
        evaluation.check_transfer_size(dataset.image_size)
    if tsne.perplexity >= tsne.points:
        raise UserError(
            f"params.yaml: tsne.perplexity is {tsne.perplexity:.12g}; allowed: below tsne.points ({tsne.points})"
        )
    for key in ("images_path", "on_bad_image"):
        if dataset.dataset != "images":
            require_default(
                key, getattr(dataset, key), getattr(usual, key), f"dataset {dataset.dataset}", "set dataset to images"
            )
    for key in ("finetune_epochs", "finetune_batch_size", "finetune_lr") if linear.mode != "finetune" else ():
        where, remedy = f"linear.mode {linear.mode}", "set linear.mode to finetune"
        require_default(f"linear.{key}", getattr(linear, key), getattr(Linear(), key), where, remedy)
    _check_augment(experiment, raw)


def _check_augment(experiment: Experiment, raw: Mapping[str, Any]) -> None:
    """Strengths of a jitter that never comes, sizes of a crop that squares replace; shared or a variant's own.

    Fine-tuning and the study's protocol crop whatever pretraining does.
    """
    crops_later = experiment.linear.mode == "finetune" or experiment.linear.study_epochs > 0
    variants = list(experiment.variants.values())
    blocks = [("augment", raw.get("augment", {}), variants)]
    blocks += [
        (f"variants.{each.variant}.augment", raw["variants"][each.variant].get("augment", {}), [each])
        for each in variants
    ]
    for where, block, readers in blocks:
        unread: list[tuple[tuple[str, ...], str, str]] = []
        if not any(reader.augment.jitter > 0 for reader in readers):
            unread.append((JITTERS, "augment.jitter 0", "set augment.jitter above 0"))
        if not crops_later and all(reader.augment.crop_pixels for reader in readers):
            unread.append(
                (CROPS, "augment.crop_pixels above 0 and linear.study_epochs 0", "set augment.crop_pixels to 0")
            )
        for names, without, remedy in unread:
            for name in names:
                usual = getattr(Augment(), name)
                require_default(f"{where}.{name}", float(block.get(name, usual)), usual, without, remedy)


def require_default(key: str, value: Any, usual: Any, where: str, remedy: str) -> None:
    """An option that changes nothing is a slip: whoever set it to other than ``usual`` expects otherwise."""
    if value != usual:
        given = f"{value:g}" if isinstance(usual, float) else shown(value)
        raise UserError(
            f"params.yaml: {key} is {given}, which has no effect with {where}; {remedy}, or {key} to {usual}"
        )
