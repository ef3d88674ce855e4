"""What the report knows of one variant: the one reader of the files that earlier stages wrote."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pandas

from lib.params.pretraining import Optimizer, Pretraining
from lib.runtime.errors import UserError
from lib.runtime.files import read_about, read_arrays, read_json, require_file

KINDS = ("trained with labels", "trained without labels", "untrained")  # ceilings, what is compared, floors
CODE = ("active", "centroid", "centroid_code", "usage_entropy", "pattern_entropy", "unused")  # of binary codes


@dataclass(frozen=True)
class Record:
    """One variant. ``rows``: its numbers, one row per latent, the main one first; ``kind``: one of `KINDS`.

    ``labels`` [M] and ``predictions`` [M] are of the test images and the main latent; ``curve`` has a row per epoch.
    """

    variant: str
    pretraining: Pretraining
    kind: str
    rows: list[dict[str, Any]]
    classes: list[str]
    labels: numpy.ndarray
    predictions: numpy.ndarray
    curve: pandas.DataFrame


Groups = dict[str, list[Record]]  # replicates, which differ in their seed alone, by the name of the first of them


def replicates(records: Iterable[Record]) -> Groups:
    """The groups in the order of their first variants."""
    groups: Groups = {}
    for record in records:
        groups.setdefault(record.pretraining.replicate_key(), []).append(record)
    return {members[0].variant: members for members in groups.values()}


def ranked(groups: Groups) -> Groups:
    """Ceilings first, floors last, and within each kind by the mean accuracy of the main latent."""

    def place(name: str) -> tuple[int, float]:
        members = groups[name]
        return KINDS.index(members[0].kind), -float(numpy.mean([record.rows[0]["top1"] for record in members]))

    return {name: groups[name] for name in sorted(groups, key=place)}


def read_record(variant: str, root: Path = Path()) -> Record:
    """Everything about ``variant`` below ``root``; a UserError says that a file is missing, damaged or older."""
    scores = read_json(root / f"data/scores/{variant}.json")
    arrays = read_arrays(root / f"data/scores/{variant}.npz")
    about = read_about(root / f"data/encoders/{variant}.safetensors")
    curve = root / f"plots/curves/{variant}.csv"
    require_file(curve)
    try:
        params = Pretraining.from_json(about["pretraining"])
        rows = [_row(variant, latent, scores, about, params) for latent in scores["latents"]]
        kind = KINDS[2 if not params.epochs else 0 if about["supervised"] else 1]
        labels, predictions = arrays["labels"], arrays[rows[0]["latent"]]
        return Record(variant, params, kind, rows, scores["classes"], labels, predictions, pandas.read_csv(curve))
    except (KeyError, TypeError) as error:
        what = f"the files of variant {variant} under data/ are of another version ({error})"
        raise UserError(f"{what}; dvc repro -f linear@{variant}") from None


def _row(variant: str, latent: str, scores: Any, about: Any, params: Pretraining) -> dict[str, Any]:
    """The columns of results.csv but for the group; accuracies in percent; what does not apply is None."""
    numbers, data = scores["latents"][latent], about["data"]
    study = (scores["study"] if latent == next(iter(scores["latents"])) else None) or {}
    return {
        "variant": variant,
        "latent": latent,
        "seed": params.seed,
        **{key: numbers[key] for key in ("top1", "top5", "knn")},
        "validation_top1": numbers["validation_probe"],
        "validation_knn": numbers["validation_knn"],
        "study_top1": study.get("top1"),
        "study_top5": study.get("top5"),
        "study_epochs": scores["linear"]["study_epochs"] if study else None,
        "probe_strength": numbers["strength"],
        "mode": scores["linear"]["mode"],
        "dataset": f"images ({data['source']})" if data["dataset"] == "images" else data["dataset"],
        "train_images": scores["images"]["train"],
        "test_images": scores["images"]["test"],
        "classes": len(scores["classes"]),
        "encoder": about.get("encoder") or params.encoder,
        "epochs": params.epochs,
        "batch_size": params.batch_size if params.epochs else None,
        "gamma": params.gamma,
        "optimizer": _optimizer(params.optimizer) if params.epochs else None,
        "parameters": about["parameters"]["total"],
        "width": numbers["width"],
        **{key: numbers.get("code", {}).get(key) for key in CODE},
    }


def _optimizer(optimizer: Optimizer) -> str:
    """For example ``adam 0.001, cosine, 1 warm-up epoch``."""
    words = f"{optimizer.name} {optimizer.lr:g}, {optimizer.schedule}"
    if optimizer.warmup_epochs:
        words += f", {optimizer.warmup_epochs:g} warm-up epoch{'' if optimizer.warmup_epochs == 1 else 's'}"
    return words


def confusion_counts(records: Sequence[Record]) -> numpy.ndarray:
    """Test images [C, C] of the main latent's probe, summed: rows are the actual class, columns the predicted."""
    counts = numpy.zeros((len(records[0].classes),) * 2, dtype=int)
    for record in records:
        numpy.add.at(counts, (record.labels, record.predictions), 1)
    return counts


def percent_of_actual(counts: numpy.ndarray) -> numpy.ndarray:
    """`confusion_counts` [C, C] as percent of each actual class; zeros for a class without test images."""
    return 100 * counts / counts.sum(1, keepdims=True).clip(1)
