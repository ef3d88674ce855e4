"""Made-up runs: the files that the stages before the report leave for one variant."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pandas
import torch
from matplotlib.figure import Figure

from lib.params.pretraining import Pretraining, Shared
from lib.report.records import Record, read_record
from lib.report.results import write_results
from lib.runtime.files import write_arrays, write_json, write_table, write_tensors

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
TEST_IMAGES = 400
DRAWN = 2 * numpy.arange(200) + numpy.arange(200) % 2  # test images in a plane: not the first ones, and of all classes
CODE = {"centroid": 33.217, "centroid_code": 30.5, "active": 26, "usage_entropy": 0.6123, "pattern_entropy": 13.0071}
CODE |= {"unused": 12.5, "probe_raw": 35.25}


def write_run(
    root: Path,
    variant: str,
    method: str = "simclr",
    *,
    seed: int = 0,
    epochs: int = 12,
    wrong: float = 0.3,
    latents: tuple[str, ...] = ("h",),
    projections: tuple[str, ...] = (),
    parts: tuple[str, ...] = ("nt_xent",),
    loss: float = 5.0,
    dataset: str = "cifar10",
    checksum: str = "c0ffee",
    classes: list[str] = CLASSES,
    study: int = 50,
    distance: float = 8.9,
    encoder_parameters: int = 1_361_000,
    mode: str = "probe",
    supervised: bool = False,
    code: dict[str, float] | None = None,
    few: dict[str, dict] | None = None,
    bits: tuple[float, float] | None = None,
    **pretraining: Any,
) -> None:
    """``wrong``: the share of test images that the main latent's probe gets wrong; ``study``: the protocol's epochs."""
    draw = numpy.random.default_rng([seed, *variant.encode()])
    labels = numpy.arange(TEST_IMAGES) % len(classes)
    predictions, numbers = {}, {}
    for number, name in enumerate((*latents, *projections)):
        miss = draw.random(TEST_IMAGES) < wrong + 0.05 * number
        predictions[name] = numpy.where(miss, draw.integers(0, len(classes), TEST_IMAGES), labels)
        top1 = round(100 * float((predictions[name] == labels).mean()), 2)
        numbers[name] = {"top1": top1, "top5": 97.25, "knn": top1 - 8.5, "validation_probe": top1 + 1}
        numbers[name] |= {"validation_knn": top1 - 8, "strength": 0.01, "width": 512}
    if code:
        numbers[latents[0]]["code"] = code
    scores = {
        "classes": classes,
        "images": {"fitting": 900, "validation": 100, "train": 1000, "test": TEST_IMAGES},
        "linear": {"mode": mode, "study_epochs": study},
        "latents": {name: numbers[name] for name in latents},
        "projections": {name: numbers[name] for name in projections},
        "study": {"top1": numbers[latents[0]]["top1"] - 4, "top5": 98.0} if study else None,
    }
    write_json(root / f"data/scores/{variant}.json", scores | ({"few_labels": few} if few else {}))
    memory = {"cues": {"trained": dict(zip(("episode_bits", "concept_bits"), bits or (5.0 + seed, 1.25)))}}
    spaces = {"latents": dict.fromkeys(latents, memory), "projections": dict.fromkeys(projections, memory)}
    write_json(root / f"data/memory/{variant}.json", spaces)
    write_arrays(root / f"data/scores/{variant}.npz", {"labels": labels, latents[0]: predictions[latents[0]]})
    own = {"encoder": "small", "gamma": None, "options": {}, "image_size": 32, "epochs": epochs, "seed": seed}
    params = Pretraining(variant, method, **{**vars(Shared()), **own, **pretraining})
    about = {
        "pretraining": params.as_json(),
        "supervised": supervised,
        "encoder": params.encoder,
        "parameters": {"encoder": encoder_parameters, "total": 24_615_616},
        "data": {"dataset": dataset, "source": "folder mine", "checksum": checksum},
    }
    write_tensors(root / f"data/encoders/{variant}.safetensors", {"weight": torch.zeros(1)}, about)
    epoch = numpy.arange(1, epochs + 1) if epochs else numpy.zeros(1, dtype=int)
    curve = {"epoch": epoch, "loss": loss * (1 + 0.5 / (1 + epoch) + 0.02 * draw.random(len(epoch)))}
    curve |= dict.fromkeys(parts, curve["loss"])
    curve |= {"distance": distance + 1.0 * (epoch < epochs)} if "distance" in parts else {}
    near = 100 * (1 - wrong) * (1 - 0.4 / (1 + epoch)) + draw.random(len(epoch))
    curve |= {"embedding_std": 0.7, "knn": numpy.where(epoch % 3 == 0, near, numpy.nan), "lr": 0.001}
    if not epochs:
        curve["loss"] = numpy.nan
    write_table(root / f"plots/curves/{variant}.csv", pandas.DataFrame(curve))
    shown = {"labels": labels[DRAWN], "indices": DRAWN, "classes": numpy.array(classes)}
    planes = {name: draw.normal(size=(200, 2)) + 3 * labels[DRAWN, None] for name in latents}
    write_arrays(root / f"data/tsne/{variant}.npz", {**planes, **shown})


def write_runs(root: Path, runs: dict[str, dict[str, Any]]) -> list[Record]:
    """`write_run` of each by its name and settings; their records."""
    for variant, settings in runs.items():
        write_run(root, variant, **settings)
    return [read_record(variant, root) for variant in runs]


HALVES = ("upper", "lower", "both", "mean")
PARTS = ("nt_xent", "distance")
PULL = {"term": "pull", "temperature": 0.5}
RUNS = {
    "simclr": {},
    "untrained": {"epochs": 0, "wrong": 0.6},
    "simclr_1": {"seed": 1},
    "dual": {"latents": HALVES, "parts": PARTS, "gamma": 0.01, "wrong": 0.4, "options": PULL},
    "simclr_2": {"seed": 2},
    "supervised": {"method": "supervised", "supervised": True, "parts": ("cross_entropy",), "loss": 1.5, "wrong": 0.1},
    "vicreg": {"method": "vicreg", "parts": ("invariance",), "loss": 22.0, "wrong": 0.2},
}
WRITTEN = ["metrics/results.csv", "metrics/results.md", "plots/tsne/overview.png", "plots/dose/dose.csv"]
WRITTEN += [f"plots/{name}.{end}" for name in ("accuracy", "confusion", "curves", "plane") for end in ("csv", "png")]


def written(root: Path, runs: dict[str, dict]) -> Path:
    write_runs(root, runs)
    write_results(SimpleNamespace(variants=dict.fromkeys(runs)), root)
    return root


def titles(figure: Figure) -> list[str]:
    return [axes.get_title("left") for axes in figure.axes if axes.get_visible()]
