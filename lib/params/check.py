"""Refuse a bad params.yaml as a whole, before a stage starts: a slip in a late stage's block must not
cost the days of an early one. (A method's own options are typed in its file; pretraining checks those
of every variant before it trains the first.) Returns nothing, so it cannot change a result; for that reason it is the
one module that stages import without naming it to DVC."""

from typing import Any

from lib.errors import UserError
from lib.params import evaluation, pretraining

BLOCKS = ("variants", "linear", "knn", "tsne")


def check_params(raw: dict[str, Any]) -> None:
    """Raise UserError, in one line, for the first thing wrong anywhere in a loaded params.yaml."""
    known = {*pretraining.Dataset.__dataclass_fields__, *pretraining._Shared.__dataclass_fields__, *BLOCKS}
    for key in raw:
        if key not in known:
            raise UserError(f"params.yaml: unknown key {key}; allowed here: {', '.join(sorted(known))}")
    pretraining.dataset_params(raw)
    for variant in pretraining.variant_names(raw):
        pretraining.pretraining_params(raw, variant)
    evaluation.knn_params(raw)
    tsne = evaluation.tsne_params(raw)
    if tsne.perplexity >= tsne.points:
        raise UserError(f"params.yaml: tsne.perplexity is {tsne.perplexity:g}; allowed: below tsne.points "
                        f"({tsne.points})")
    _refuse_without_effect(pretraining.dataset_params(raw), evaluation.linear_params(raw))


def _refuse_without_effect(dataset: pretraining.Dataset, linear: evaluation.Linear) -> None:
    """An option that changes nothing is a slip: whoever set it expects otherwise."""
    usual = evaluation.Linear().finetune_lr
    if linear.mode != "finetune" and linear.finetune_lr != usual:
        raise UserError(f"params.yaml: linear.finetune_lr is {linear.finetune_lr:g}, which has no effect with "
                        f"linear.mode {linear.mode}; set linear.mode to finetune, or linear.finetune_lr to {usual:g}")
    if dataset.dataset != "images" and dataset.images_path:
        raise UserError(f"params.yaml: images_path is {dataset.images_path!r}, which has no effect with dataset "
                        f"{dataset.dataset}; set dataset to images, or images_path to \"\"")
