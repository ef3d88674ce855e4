"""Small, complete inputs for tests: parameters, images, a machine."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from lib.data.store import ImageData
from lib.params.pretraining import Pretraining, pretraining_params
from lib.params.spec import Loader, load_yaml
from lib.preset import overlay, read_preset
from lib.runtime.machine import Machine

ROOT = Path(__file__).parents[1]
SMALL_OPTIONS = {"queue": 32, "norm_rows": 0, "shuffle": False}  # of variants that have them
FORMS: dict[str, tuple[str, dict[str, Any]]] = {  # of variants, by options that no variant of `params_file` has
    "moco_groups": ("moco", {"norm_rows": 4, "shuffle": True, "queue": 64}),
    "clapp_asymmetric": ("clapp", {"asymmetric": True}),
    "cmc_nce": ("cmc_bank", {"form": "nce"}),
    "kwta_contrast": ("kwta", {"loss": "contrast"}),
    "kwta_positives": ("kwta", {"loss": "positives"}),
    "kwta_hard": ("kwta", {"training_code": "hard", "triplets": "random"}),
    "patch_filters_map": ("patch_filters", {"max_pool": False}),
}
CPU = Machine(device="cpu", processes=1, threads=1, precision="fp32", checkpoint_minutes=10.0)


def study_params() -> dict[str, Any]:
    """params.yaml as a mapping, with the study's settings and variants whatever it holds now."""
    text, _ = overlay((ROOT / "params.yaml").read_text(), read_preset("study", ROOT / "presets"))
    raw = yaml.load(text, Loader=Loader)
    names = load_yaml(ROOT / "presets/study.yaml")["variants"]
    return {**raw, "variants": {name: block for name, block in raw["variants"].items() if name in names}}


def every_variant() -> dict[str, Any]:
    """The study's variants and those that preset ``all`` adds: at least one for every method."""
    added = load_yaml(ROOT / "presets/all.yaml")["variants"]
    return {**study_params()["variants"], **{name: block for name, block in added.items() if "method" in block}}


def params_file(**changes: Any) -> dict[str, Any]:
    """params.yaml with every variant as a mapping, small enough to train in a second; dots in keys are ``__``."""
    raw = {**study_params(), "variants": every_variant()}
    for block in raw["variants"].values():  # their own sizes are for real data
        block.pop("batch_size", None)
        if block.get("epochs"):
            block.pop("epochs")
    small = {
        "dataset": "digits",
        "encoder": "small",
        "image_size": 16,
        "batch_size": 16,
        "epochs": 2,
        "monitor__every": 1,
        "monitor__k": 5,
    }
    for key, value in {**small, **changes}.items():
        block, *names = key.split("__")
        if names:
            raw[block][names[0]] = value
        else:
            raw[block] = value
    for block in raw["variants"].values():
        block.update({name: value for name, value in SMALL_OPTIONS.items() if name in block})
    return raw


def pretraining(variant: str, **changes: Any) -> Pretraining:
    """Of a variant of `params_file` or of one of `FORMS`."""
    variant, options = FORMS.get(variant, (variant, {}))
    params = pretraining_params(params_file(**changes), variant)
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
    about = {
        "dataset": "random",
        "source": "random",
        "checksum": f"random {count} {size} {classes} {seed}",
        "classes": [f"class {index}" for index in range(classes)],
        "image_size": size,
        "mean": [0.4, 0.4, 0.4],
        "std": [0.2, 0.2, 0.2],
        "counts": {"train": count, "test": count // 2},
    }
    return ImageData(*train, *test, torch.arange(0, count, 8), about)
