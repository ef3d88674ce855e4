"""Refuse a bad params.yaml as a whole, before a stage starts: a slip in a late stage's block must not
cost the days of an early one. (A method's own options are typed in its file; pretraining checks those
of every variant before it trains the first.) Returns nothing, so it cannot change a result; for that reason it is the
one module that stages import without naming it to DVC."""

from typing import Any

from lib.errors import UserError, shown
from lib.params import evaluation, pretraining
from lib.params.spec import unknown_key

BLOCKS = ("variants", "linear", "knn", "tsne", "transfer")
EMPTY = '""'  # as params.yaml writes it
JITTERS = ("brightness", "contrast", "saturation", "hue")


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
    evaluation.transfer_variants(raw, pretraining.variant_names(raw))
    if tsne.perplexity >= tsne.points:
        raise UserError(f"params.yaml: tsne.perplexity is {tsne.perplexity:.12g}; allowed: below tsne.points "
                        f"({tsne.points})")
    usual, images, mode = pretraining.Dataset(), dataset.dataset == "images", linear.mode
    _effective("images_path", dataset.images_path, usual.images_path, images, f"dataset {dataset.dataset}",
               "set dataset to images")
    _effective("on_bad_image", dataset.on_bad_image, usual.on_bad_image, images, f"dataset {dataset.dataset}",
               "set dataset to images")
    _effective("linear.finetune_lr", linear.finetune_lr, evaluation.Linear().finetune_lr, mode == "finetune",
               f"linear.mode {mode}", "set linear.mode to finetune")
    _check_jitters(raw, variants)
    gamma = raw.get("gamma", pretraining._Shared().gamma)
    _effective("gamma", gamma, pretraining._Shared().gamma, any(variant.gamma is not None for variant in variants),
               "these variants", "set a variant's method to one that reads it")


def _check_jitters(raw: dict[str, Any], variants: list[pretraining.Pretraining]) -> None:
    """Strengths of a jitter that never comes, in the shared block or in a variant's own."""
    usual, remedy = pretraining.Augment(), "set augment.jitter above 0"
    blocks = [("augment", raw.get("augment", {}), any(variant.augment.jitter > 0 for variant in variants))]
    blocks += [(f"variants.{variant.variant}.augment", raw["variants"][variant.variant].get("augment", {}),
                variant.augment.jitter > 0) for variant in variants]
    for where, block, jitters in blocks:
        for name in JITTERS:
            value = float(block.get(name, getattr(usual, name)))
            _effective(f"{where}.{name}", value, getattr(usual, name), jitters, "augment.jitter 0", remedy)


def _effective(key: str, value: Any, usual: Any, effective: bool, where: str, remedy: str) -> None:
    """An option that changes nothing is a slip: whoever set it to other than ``usual`` expects otherwise."""
    if effective or value == usual:
        return
    is_number = isinstance(usual, float)
    given = f"{value:g}" if is_number else shown(value)
    raise UserError(f"params.yaml: {key} is {given}, which has no effect with {where}; {remedy}, or {key} to "
                    f"{f'{usual:g}' if is_number else usual or EMPTY}")
