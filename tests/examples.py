"""Small, complete inputs for tests: parameters, images, a machine."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lib.data.store import ImageData
from lib.params.experiment import Experiment, parse_experiment
from lib.params.pretraining import Pretraining
from lib.params.spec import load_yaml
from lib.runtime.machine import Machine

ROOT = Path(__file__).parents[1]
SMALL = {"dataset": "digits", "encoder": "small", "image_size": 16, "batch_size": 16, "epochs": 2,
         "monitor.every": 1, "monitor.k": 5, "optimizer.warmup_epochs": 0.0}  # fmt: skip
SMALL_OPTIONS = {"queue": 32, "norm_rows": 0, "shuffle": False}  # of variants that have them
FORMS: dict[str, tuple[str, dict[str, Any]]] = {  # of variants, by options that no variant of the preset `all` has
    "push": ("joint", {"term": "push"}),
    "moco_groups": ("moco", {"norm_rows": 4, "shuffle": True, "queue": 64}),
    "clapp_asymmetric": ("clapp", {"asymmetric": True}),
    "cmc_nce": ("cmc_bank", {"form": "nce"}),
    "kwta_contrast": ("kwta", {"loss": "contrast"}),
    "kwta_positives": ("kwta", {"loss": "positives"}),
    "kwta_hard": ("kwta", {"training_code": "hard", "triplets": "random"}),
    "patch_filters_map": ("patch_filters", {"max_pool": False}),
}
CPU = Machine(device="cpu", processes=1, threads=1, precision="fp32", checkpoint_minutes=10.0)


def raw_params(preset: str = "all", variants: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """A preset, small enough to train in a second. ``variants`` replace its own; dots in keys are ``__``."""
    raw = load_yaml(ROOT / f"presets/{preset}.yaml")
    if variants is not None:
        raw |= {"variants": variants, "transfer": {}}
    for block in raw["variants"].values() if variants is None else ():  # their own sizes are for real data
        block.pop("batch_size", None)
        block.get("optimizer", {}).pop("warmup_epochs", None)
        block.update({name: value for name, value in SMALL_OPTIONS.items() if name in block})
    for key, value in {**SMALL, **{key.replace("__", "."): value for key, value in changes.items()}}.items():
        block, _, name = key.partition(".")
        if name:
            raw[block][name] = value
        else:
            raw[block] = value
    return raw


def experiment(**changes: Any) -> Experiment:
    return parse_experiment(raw_params(**changes))


def variants() -> list[str]:
    """Every variant of the preset `all`, and the further `FORMS`."""
    return [*raw_params()["variants"], *FORMS]


def pretraining(variant: str, **changes: Any) -> Pretraining:
    """Of a variant of the preset `all` or of one of `FORMS`."""
    variant, options = FORMS.get(variant, (variant, {}))
    params = experiment(**changes).variants[variant]
    return replace(params, options={**params.options, **options})


def images(count: int = 64, size: int = 16, classes: int = 2, seed: int = 0) -> ImageData:
    """Random images with a class-dependent tint, half as many for the test split."""
    stream = torch.Generator().manual_seed(seed)

    def split(number: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.arange(number) % classes
        pixels = torch.randint(0, 200, (number, 3, size, size), generator=stream, dtype=torch.uint8)
        pixels[:, 0] += (labels * (50 // classes)).to(torch.uint8)[:, None, None]
        return pixels, labels

    train, test = split(count), split(count // 2)
    validation = torch.arange(0, count, 8)
    about = {
        "dataset": "random",
        "source": "random",
        "checksum": f"random {count} {size} {classes} {seed}",
        "classes": [f"class {index}" for index in range(classes)],
        "image_size": size,
        "mean": [0.4, 0.4, 0.4],
        "std": [0.2, 0.2, 0.2],
        "counts": {"train": count, "validation": len(validation), "test": count // 2},
    }
    return ImageData(*train, *test, validation, about)
