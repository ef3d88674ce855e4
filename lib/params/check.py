"""Refuse a bad params.yaml as a whole, before a stage starts: a slip in a late stage's block must not
cost the days of an early one. (A method's own options are typed in its file; pretraining checks those
of every variant before it trains the first.) Returns nothing, so it cannot change a result; for that reason it is the
one module that stages import without naming it to DVC."""

from typing import Any

from lib.params import evaluation, pretraining
from lib.params.spec import unknown_key
from lib.runtime.errors import UserError, shown

BLOCKS = ("variants", "linear", "knn", "tsne", "transfer")
EMPTY = '""'  # as params.yaml writes it
JITTERS = ("brightness", "contrast", "saturation", "hue")
CROPS = ("crop_scale_min", "crop_scale_max")


def check_params(raw: dict[str, Any]) -> None:
    """Raise UserError, in one line, for the first thing wrong anywhere in a loaded params.yaml."""
    known = {*pretraining.Dataset.__dataclass_fields__, *pretraining._Shared.__dataclass_fields__, *BLOCKS}
    for key in raw:
        if key not in known:
            raise unknown_key(key, known)
    dataset = pretraining.dataset_params(raw)
    variants = [pretraining.pretraining_params(raw, variant) for variant in pretraining.variant_names(raw)]
    evaluation.knn_params(raw)
    linear, tsne = evaluation.linear_params(raw), evaluation.tsne_params(raw)
    evaluation.transfer_params(raw)
    _check_transfer(raw, variants, dataset.image_size)
    if tsne.perplexity >= tsne.points:
        raise UserError(
            f"params.yaml: tsne.perplexity is {tsne.perplexity:.12g}; allowed: below tsne.points ({tsne.points})"
        )
    usual, images, mode = pretraining.Dataset(), dataset.dataset == "images", linear.mode
    _effective(
        "images_path",
        dataset.images_path,
        usual.images_path,
        images,
        f"dataset {dataset.dataset}",
        "set dataset to images",
    )
    _effective(
        "on_bad_image",
        dataset.on_bad_image,
        usual.on_bad_image,
        images,
        f"dataset {dataset.dataset}",
        "set dataset to images",
    )
    _effective(
        "linear.finetune_lr",
        linear.finetune_lr,
        evaluation.Linear().finetune_lr,
        mode == "finetune",
        f"linear.mode {mode}",
        "set linear.mode to finetune",
    )
    _check_augment(raw, variants, linear)
    gamma = raw.get("gamma", pretraining._Shared().gamma)
    _effective(
        "gamma",
        gamma,
        pretraining._Shared().gamma,
        any(variant.gamma is not None for variant in variants),
        "these variants",
        "set a variant's method to one that reads it",
    )


def _check_augment(raw: dict[str, Any], variants: list[pretraining.Pretraining], linear: evaluation.Linear) -> None:
    """Strengths of a jitter that never comes, sizes of a crop that squares replace; shared or a variant's own.

    Fine-tuning and the study's protocol crop whatever pretraining does.
    """
    crops_later = linear.mode == "finetune" or linear.study_epochs > 0
    blocks = [("augment", raw.get("augment", {}), variants)]
    blocks += [
        (f"variants.{variant.variant}.augment", raw["variants"][variant.variant].get("augment", {}), [variant])
        for variant in variants
    ]
    for where, block, readers in blocks:
        _check_strengths(
            where,
            block,
            JITTERS,
            any(reader.augment.jitter > 0 for reader in readers),
            "augment.jitter 0",
            "set augment.jitter above 0",
        )
        _check_strengths(
            where,
            block,
            CROPS,
            crops_later or any(not reader.augment.crop_pixels for reader in readers),
            "augment.crop_pixels above 0 and linear.study_epochs 0",
            "set augment.crop_pixels to 0",
        )


def _check_strengths(
    where: str, block: dict[str, Any], names: tuple[str, ...], effective: bool, without: str, remedy: str
) -> None:
    usual = pretraining.Augment()
    for name in names:
        value = float(block.get(name, getattr(usual, name)))
        _effective(f"{where}.{name}", value, getattr(usual, name), effective, without, remedy)


def _check_transfer(raw: dict[str, Any], variants: list[pretraining.Pretraining], image_size: int) -> None:
    """Filters can be moved to a classifier from one encoder alone.

    Which encoder a variant has is read from its watch block; the stage transfer looks into the trained file.
    """
    chosen = evaluation.transfer_variants(raw, [variant.variant for variant in variants])
    for variant in variants:
        encoder = variant.watch.part.removeprefix("encoders/") if "encoders/" in variant.watch.part else variant.encoder
        if variant.variant in chosen and encoder != evaluation.FILTERS_ENCODER:
            raise UserError(
                f"params.yaml: transfer.variants names {variant.variant}, whose encoder is {encoder}; "
                f"allowed: variants with the encoder {evaluation.FILTERS_ENCODER}"
            )
    if chosen:
        evaluation.check_transfer_size(image_size)


def _effective(key: str, value: Any, usual: Any, effective: bool, where: str, remedy: str) -> None:
    """An option that changes nothing is a slip: whoever set it to other than ``usual`` expects otherwise."""
    if effective or value == usual:
        return
    is_number = isinstance(usual, float)
    given = f"{value:g}" if is_number else shown(value)
    raise UserError(
        f"params.yaml: {key} is {given}, which has no effect with {where}; {remedy}, or {key} to "
        f"{f'{usual:g}' if is_number else usual or EMPTY}"
    )
