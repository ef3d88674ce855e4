"""What the report knows of one variant: the one reader of the files that earlier stages wrote."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pandas

from lib.params.evaluation import STUDY_EPOCHS
from lib.params.pretraining import Optimizer, Pretraining
from lib.report.dose import term_dose
from lib.runtime.errors import UserError
from lib.runtime.files import read_about, read_arrays, read_json, require_file

SPACES = ("latent", "projection")  # what a row of numbers is of
STUDY = ("study_top1", "study_top5", "study_epochs")
KINDS = ("trained with labels", "trained without labels", "untrained")  # ceilings, what is compared, floors
BITS = ("episode_bits", "concept_bits")
FEW = "labels_"  # and the share: a column
# of the curve's last epoch, where images have no labels
UNLABELED = {"effective_rank": "Effective rank", "other_view": "Other view's reciprocal rank, %"}
# of binary codes
CODE = ("active", "probe_raw", "centroid", "centroid_code", "usage_entropy", "pattern_entropy", "unused")


@dataclass(frozen=True, eq=False)  # arrays cannot be compared as one
class Record:
    """One variant. ``rows``: its numbers, one row per latent, the main one first, then one per projection; ``kind``:
    one of `KINDS`; ``network``: what tells its encoder from others, before any training.

    ``confusion`` [C, C]: test images by class, of the main latent's probe: rows are the actual class, columns the
    predicted. ``curve`` has a row per epoch. ``data``: the checksum of the images.
    """

    variant: str
    pretraining: Pretraining
    kind: str
    network: tuple[object, ...]
    rows: list[dict[str, Any]]
    classes: list[str]
    confusion: numpy.ndarray
    curve: pandas.DataFrame
    data: str

    def as_json(self) -> dict[str, Any]:
        """Plain values; what is missing is null."""
        curve = self.curve.astype(object).where(self.curve.notna(), None).to_dict("list")
        arrays = {"confusion": self.confusion.tolist(), "curve": curve}
        return {**vars(self), "pretraining": self.pretraining.as_json(), "network": [*self.network], **arrays}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Record":
        """Back from `as_json`; other keys are left alone. A KeyError, TypeError or ValueError: of another version."""
        counts = numpy.array(stored["confusion"], dtype=int).reshape((len(stored["classes"]),) * 2)
        curve = pandas.DataFrame(stored["curve"]).astype({"epoch": int, "loss": float})
        KINDS.index(stored["kind"])  # a ValueError for any other
        typed: dict[str, Any] = {"pretraining": Pretraining.from_json(stored["pretraining"])}
        typed |= {"network": tuple(stored["network"]), "confusion": counts, "curve": curve}
        return cls(**{**{key: stored[key] for key in cls.__dataclass_fields__}, **typed})


Groups = dict[str, list[Record]]  # replicates, which differ in their seed alone, by the name of the first of them


def replicates(records: Iterable[Record]) -> Groups:
    """The groups in the order of their first variants."""
    groups: Groups = {}
    for record in records:
        groups.setdefault(record.pretraining.replicate_key(), []).append(record)
    return {members[0].variant: members for members in groups.values()}


def ranked(groups: Groups) -> Groups:
    """Ceilings first, floors last, and within each kind by the main latent's mean accuracy, if there are labels."""

    def place(name: str) -> tuple[int, float]:
        members = groups[name]
        return KINDS.index(members[0].kind), -float(numpy.mean([record.rows[0]["top1"] or 0 for record in members]))

    return {name: groups[name] for name in sorted(groups, key=place)}


def objectives(groups: Groups) -> dict[tuple[str, ...], list[str]]:
    """The names whose losses can be compared, by their objective: the method, its loss, the first part of that."""
    families: dict[tuple[str, ...], list[str]] = {}
    for name, (first, *_) in groups.items():
        words = (first.pretraining.method, first.pretraining.options.get("loss"), first.curve.columns[2])
        families.setdefault(tuple(dict.fromkeys(word for word in words if word)), []).append(name)
    return families


def mean_curve(members: Sequence[Record], column: str) -> pandas.DataFrame:
    """``mean`` and ``std`` over seeds by epoch, where there are any; no rows for a column that is not measured."""
    every = pandas.concat([record.curve for record in members])
    return every.reindex(columns=["epoch", column]).groupby("epoch")[column].agg(["mean", "std"]).dropna(subset="mean")


def read_record(variant: str, root: Path = Path()) -> Record:
    """Everything about ``variant`` below ``root``; a UserError says that a file is missing, damaged or older."""
    scores = read_json(root / f"data/scores/{variant}.json")
    memory = read_json(root / f"data/memory/{variant}.json")
    arrays = read_arrays(root / f"data/scores/{variant}.npz")
    about = read_about(root / f"data/encoders/{variant}.safetensors")
    curve = root / f"plots/curves/{variant}.csv"
    require_file(curve)
    try:
        params = Pretraining.from_json(about["pretraining"])
        frame = pandas.read_csv(curve)
        shared = _run(scores, about, params) | {"dose": term_dose(params, frame)}
        rows = []
        for space in SPACES:
            for name, numbers in scores[f"{space}s"].items():
                # under the cues of the augmentation of training
                trained = memory[f"{space}s"][name]["cues"]["trained"]
                bits = {"episode_bits": trained["episode_bits"], "concept_bits": trained.get("concept_bits")}
                rows.append({"variant": variant, "latent": name, "space": space, **_numbers(numbers), **bits, **shared})
        rows[0] |= _main_latent(scores) if scores["classes"] else {key: frame[key].iloc[-1] for key in UNLABELED}
        # a floor whose batch norms were not calibrated is none of those that are
        network = (rows[0]["encoder"], about["parameters"]["encoder"], params.calibrate_batchnorm)
        kind = KINDS[2 if not params.epochs else 0 if about["supervised"] else 1]
        counts = numpy.zeros((len(scores["classes"]),) * 2, dtype=int)
        if scores["classes"]:
            numpy.add.at(counts, (arrays["labels"], arrays[rows[0]["latent"]]), 1)
        data = about["data"]["checksum"]
        return Record(variant, params, kind, network, rows, scores["classes"], counts, frame, data)
    except (KeyError, TypeError) as error:
        what = f"the files of variant {variant} under data/ are of another version ({error})"
        raise UserError(f"{what}; dvc repro -f linear@{variant} memory@{variant}") from None


def _numbers(numbers: dict[str, Any]) -> dict[str, Any]:
    """Accuracies in percent of one latent or projection; what does not apply is None."""
    return {
        **{key: numbers[key] for key in ("top1", "top5", "knn")},
        "validation_top1": numbers["validation_probe"],
        "validation_knn": numbers["validation_knn"],
        "probe_strength": numbers["strength"],
        "width": numbers["width"],
        **{key: numbers.get("code", {}).get(key) for key in CODE},
        **dict.fromkeys(STUDY),
    }


def _main_latent(scores: Any) -> dict[str, Any]:
    """The study's protocol, with the study's epochs alone; top-1 by share of the training labels, and its deviation
    over draws, where asked for."""
    found, study = {}, scores["study"]
    if scores["linear"]["study_epochs"] == STUDY_EPOCHS:
        found = {"study_top1": study["top1"], "study_top5": study["top5"], "study_epochs": STUDY_EPOCHS}
    for share, few in scores.get("few_labels", {}).items():
        found |= {f"{FEW}{share}": few["top1"], f"{FEW}{share}_sd": few["sd"]}
    return found


def _run(scores: Any, about: Any, params: Pretraining) -> dict[str, Any]:
    """What all rows of a variant share."""
    data = about["data"]
    return {
        "seed": params.seed,
        "mode": scores["linear"]["mode"],
        "dataset": f"images ({data['source']})" if data["dataset"] == "images" else data["dataset"],
        "train_images": scores["images"]["train"],
        "test_images": scores["images"]["test"],
        "classes": len(scores["classes"]),
        "encoder": about["encoder"],
        "epochs": params.epochs,
        "batch_size": params.batch_size if params.epochs else None,
        "gamma": params.gamma,
        "optimizer": _optimizer(params.optimizer) if params.epochs else None,
        "parameters": about["parameters"]["total"],
    }


def _optimizer(optimizer: Optimizer) -> str:
    """For example ``adam 0.001, cosine, 1 warm-up epoch``."""
    words = f"{optimizer.name} {optimizer.lr:g}, {optimizer.schedule}"
    if optimizer.warmup_epochs:
        words += f", {optimizer.warmup_epochs:g} warm-up epoch{'' if optimizer.warmup_epochs == 1 else 's'}"
    return words


def confusion_counts(records: Sequence[Record]) -> numpy.ndarray:
    """Of replicates, summed."""
    return numpy.sum([record.confusion for record in records], axis=0)


def require_same(path: Path, run: Mapping[str, Any], but: str = "") -> None:
    """A UserError where ``path`` has another run than this, the key ``but`` left aside: which counts is not for a copy
    to say."""
    if path.is_file() and {**read_json(path), but: None} != {**json.loads(json.dumps(run)), but: None}:
        raise UserError(f"{path} is another run of this variant; keep one of the two, and remove the other")


def percent_of_actual(counts: numpy.ndarray) -> numpy.ndarray:
    """Counts [C, C], rows actual, as percent of each actual class; zeros for a class without test images."""
    return 100 * counts / counts.sum(1, keepdims=True).clip(1)
