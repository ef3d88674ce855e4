"""Variants, images and a machine for the tests of the training core: every method, small enough for a CPU."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lib.data.store import ImageData
from lib.params.pretraining import Augment, Monitor, Optimizer, Pretraining
from lib.runtime.machine import Machine

ROOT = Path(__file__).parents[1]
CPU = Machine(device="cpu", processes=1, threads=1, precision="fp32", checkpoint_minutes=10.0)
PATCHES: dict[str, Any] = {"crop_scale_min": 1.0, "jitter": 0.0, "grayscale": 0.0}
COLOR: dict[str, Any] = {"jitter": 0.0, "grayscale": 0.0}
# method, options, augmentation
VARIANTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "simclr": ("simclr", {}, {}),
    "joint": ("simclr", {"term": "pull"}, {}),
    "dual": ("simclr", {"term": "pull", "latents": "halves"}, {}),
    "supervised": ("supervised", {}, {}),
    "vicreg": ("vicreg", {"expander": 128}, {}),
    "barlow_twins": ("barlow_twins", {"expander": 128}, {}),
    "byol": ("byol", {"projector_hidden": 128, "predictor_hidden": 128}, {}),
    "moco": ("moco", {"queue": 32}, {}),
    "moco_groups": ("moco", {"queue": 32, "norm_rows": 4, "shuffle": True}, {}),
    "cmc": ("cmc", {}, COLOR),
    "cmc_bank": ("cmc", {"form": "bank"}, COLOR),
    "cmc_nce": ("cmc", {"form": "nce"}, COLOR),
    "patch_filters": ("patch_filters", {}, {**COLOR, "crop_pixels": 8}),
    "patch_filters_two": ("patch_filters", {"layers": 2}, {**COLOR, "crop_pixels": 15}),
    "cpc": ("cpc", {"channels": 8}, PATCHES),
    "hinge_cpc": ("cpc", {"loss": "hinge", "local": False, "channels": 8}, PATCHES),
    "clapp": ("cpc", {"loss": "hinge", "local": True, "channels": 8}, PATCHES),
    "clapp_asymmetric": ("cpc", {"loss": "hinge", "local": True, "asymmetric": True, "channels": 8}, PATCHES),
    "kwta": ("kwta", {}, {}),
    "kwta_contrast": ("kwta", {"loss": "contrast"}, {}),
    "kwta_hard": ("kwta", {"training_code": "hard", "triplets": "random"}, {}),
    "kwta_supervised": ("kwta", {"positives": "class", "triplets": "random"}, {}),
}

SOME = ("simclr", "moco", "cmc_bank", "patch_filters_two", "clapp", "kwta")  # where not all are tried quickly
EACH = [variant if variant in SOME else pytest.param(variant, marks=pytest.mark.slow) for variant in VARIANTS]


def pretraining(variant: str, **changes: Any) -> Pretraining:
    """One of `VARIANTS`, trained for 2 epochs of 16 images a step; ``changes`` of any field, blocks as mappings."""
    method, options, augment = VARIANTS[variant]
    blocks = {
        "optimizer": (Optimizer(), {}),
        "augment": (Augment(), augment),
        "monitor": (Monitor(), {"every": 1, "k": 5}),
    }
    params: dict[str, Any] = {
        "image_size": 16,
        "encoder": "small",
        "batch_size": 16,
        "micro_batch_size": 0,
        "epochs": 2,
        "seed": 0,
        "gamma": 0.01,
    }
    for name, (usual, own) in blocks.items():
        params[name] = replace(usual, **{**own, **changes.pop(name, {})})
    options = {**options, **changes.pop("options", {})}
    return Pretraining(variant, method, options, **{**params, **changes})


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
