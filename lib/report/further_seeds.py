"""Runs of a verdict as further seeds of a record's variants, so that they are not trained twice."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy

from lib.params.experiment import Experiment, read_experiment
from lib.params.pretraining import Pretraining
from lib.params.spec import PARAMS_FILE
from lib.report.records import BITS, SPACES, Record, replicates
from lib.report.verdict import RUNS
from lib.runtime.errors import UserError
from lib.runtime.files import read_json

MEASURED_BY = ("linear", "knn", "memory")  # blocks of params.yaml
# what all rows of a variant share, whatever its seed
SAME = {"latent", "space", "width", "mode", "dataset", "train_images", "test_images", "classes", "encoder", "epochs"}
SAME |= {"batch_size", "gamma", "optimizer", "parameters"}


def further_seeds(records: Sequence[Record], folder: Path, experiment: Experiment) -> list[Record]:
    """The runs of the verdict in ``folder`` that differ from one of ``records`` in their seed alone.

    Known of them are probe, kNN and bits of the main latent and of z, and the dose; curve and confusion are empty. A
    seed that a record has, or a name that ``experiment`` has, is left out. A UserError: measured by other parameters.
    """
    theirs = read_experiment(folder / PARAMS_FILE)
    augments = experiment.shared.augment, theirs.shared.augment  # the memory's cues
    unlike = [key for key in MEASURED_BY if getattr(experiment, key) != getattr(theirs, key)]
    if unlike := unlike or ["augment"] * (augments[0] != augments[1]):
        raise UserError(f"{folder} was measured with another block {unlike[0]} than params.yaml has; leave it out")
    groups = {members[0].pretraining.replicate_key(): members for members in replicates(records).values()}
    found = []
    for path in sorted((folder / RUNS).glob("*.json")):
        run = read_json(path)
        try:
            params = Pretraining.from_json(run["pretraining"])
            members = groups.get(params.replicate_key(), [])
            seeds = {record.pretraining.seed for record in members}
            if members and params.seed not in seeds and params.variant not in experiment.variants:
                found.append(_further(members[0], params, run))
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError(f"{path} is of another version ({error}); leave {folder} out") from None
    return found


def _further(like: Record, params: Pretraining, run: Mapping[str, Any]) -> Record:
    rows = list(_rows(like, params, run))
    confusion, curve = numpy.zeros_like(like.confusion), like.curve[:0]
    known = {"pretraining": params, "rows": rows, "data": run["data"]}
    return replace(like, variant=params.variant, confusion=confusion, curve=curve, **known)


def _rows(like: Record, params: Pretraining, run: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    dosed = like.rows[0]["dose"] is not None
    own = {"variant": params.variant, "seed": params.seed, "dose": 100 * run["lambda"] if dosed else None}
    for space, told, memory in zip(SPACES, (run, run.get("z")), (run["memory"], run["memory"].get("z"))):
        if told and (row := next((row for row in like.rows if row["space"] == space), None)):
            unknown = {key: value if key in SAME else None for key, value in row.items()}
            yield unknown | {key: told[key] for key in ("top1", "knn")} | {key: memory[key] for key in BITS} | own
