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
    evaluation.linear_params(raw)
    evaluation.knn_params(raw)
    evaluation.tsne_params(raw)
