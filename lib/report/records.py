"""What the report knows of one variant: the one reader of the files that earlier stages wrote."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pandas

from lib.runtime.errors import UserError
from lib.runtime.files import read_about, read_arrays, read_json


@dataclass(frozen=True)
class Code:
    """Of a binary code, by `lib.evaluate.centroid.code_numbers`: percent, units, a share, bits, percent."""

    centroid: float
    centroid_code: float
    active: int
    usage_entropy: float
    pattern_entropy: float
    unused: float


@dataclass(frozen=True)
class Latent:
    """Accuracies of one latent in percent, on test images but for ``validation``, the probe's top-1.

    ``lr`` and ``weight_decay`` are the probe's setting that validation chose. ``code`` is missing if it is no code.
    """

    name: str
    top1: float
    top5: float
    knn: float
    validation: float
    lr: float
    weight_decay: float
    width: int
    code: Code | None


@dataclass(frozen=True)
class Study:
    """The study's own protocol: percent in the best of ``epochs`` epochs, picked on the test images."""

    top1: float
    top5: float
    epochs: int


@dataclass(frozen=True)
class Record:
    """One variant. ``labels`` [M] and ``predictions`` [M] are of the test images and the main latent.

    ``grid`` is what the probe's setting was chosen from, by name. ``protocol`` tells in words how the numbers
    came about. ``curve`` has one row per epoch: epoch, loss, its parts, knn, lr, images_per_second, seconds,
    memory_gb, device.
    """

    variant: str
    latents: list[Latent]
    study: Study | None
    linear: dict[str, Any]
    grid: dict[str, list[float]]
    protocol: dict[str, str]
    classes: list[str]
    labels: numpy.ndarray
    predictions: numpy.ndarray
    pretraining: dict[str, Any]
    data: dict[str, Any]
    encoder: str  # the shared one, or the method's own
    parameters: int
    supervised: bool  # whether its encoder learned from labels
    curve: pandas.DataFrame

    @property
    def main(self) -> Latent:
        return self.latents[0]

    @property
    def finetuned(self) -> bool:
        """Whether top-1 and top-5 are of a fine-tuned network; ``validation`` is the frozen probe's in any case."""
        return self.linear["mode"] == "finetune"

    @property
    def test_images(self) -> int:
        return len(self.labels)

    def label(self, latent: Latent) -> str:
        """The variant's name, with the latent's where there are several."""
        return self.variant if len(self.latents) == 1 else f"{self.variant} · {latent.name}"


def read_record(variant: str, root: Path = Path(".")) -> Record:
    """Everything about ``variant`` below the project's folder ``root``."""
    scores = read_json(root / f"data/scores/{variant}.json")
    arrays = read_arrays(root / f"data/scores/{variant}.npz")
    about = read_about(root / f"data/encoders/{variant}.safetensors")
    try:
        return _record(variant, scores, arrays, about, _read_curve(root / f"plots/curves/{variant}.csv"))
    except KeyError as missing:
        raise UserError(
            f"the files of variant {variant} under data/ lack {missing}; "
            f"an older version wrote them: dvc repro -f linear@{variant}"
        ) from None


def _record(
    variant: str,
    scores: dict[str, Any],
    arrays: dict[str, numpy.ndarray],
    about: dict[str, Any],
    curve: pandas.DataFrame,
) -> Record:
    latents = [
        Latent(
            name,
            found["top1"],
            found["top5"],
            found["knn"],
            found["validation_probe"],
            found["lr"],
            found["weight_decay"],
            found["width"],
            Code(**found["code"]) if "code" in found else None,
        )
        for name, found in scores["latents"].items()
    ]
    study = scores["study"]
    return Record(
        variant=variant,
        latents=latents,
        study=Study(study["top1"], study["top5"], len(study["curve"])) if study else None,
        linear=scores["linear"],
        grid=scores["grid"],
        protocol=scores["protocol"],
        classes=scores["classes"],
        labels=arrays["labels"],
        predictions=arrays[latents[0].name],
        pretraining=about["pretraining"],
        data=about["data"],
        encoder=about.get("encoder", about["pretraining"]["encoder"]),
        parameters=about["parameters"]["total"],
        supervised=about.get("supervised", False),
        curve=curve,
    )


def _read_curve(path: Path) -> pandas.DataFrame:
    if not path.is_file():
        raise UserError(f"{path} does not exist; the stage that writes it has not run: dvc repro")
    return pandas.read_csv(path)
