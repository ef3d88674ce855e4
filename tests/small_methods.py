"""One small variant for every method and form of it: parameters, the built method, embeddings, a few steps."""

from dataclasses import fields
from typing import Any

import torch

from lib.methods import build_method
from lib.methods.base import DataFacts, Method, Named
from lib.params.pretraining import Augment, Monitor, Optimizer, Pretraining

PATCHES = {"method": "patch_filters", "augment": Augment(crop_pixels=8, grayscale=0.0)}
TWO_LAYERS = {**PATCHES, "layers": 2, "augment": Augment(crop_pixels=15, grayscale=0.0)}
ALL: dict[str, dict[str, Any]] = {
    "simclr": {"method": "simclr"},
    "joint": {"method": "simclr", "term": "pull"},
    "push": {"method": "simclr", "term": "push"},
    "dual": {"method": "simclr", "term": "pull", "latents": "halves"},
    "supervised": {"method": "supervised"},
    "barlow_twins": {"method": "barlow_twins"},
    "vicreg": {"method": "vicreg"},
    "byol": {"method": "byol"},
    "moco": {"method": "moco", "queue": 32},
    "moco_v1": {"method": "moco", "head": "linear", "queue": 32, "temperature": 0.07, "symmetric": False},
    "moco_groups": {"method": "moco", "queue": 64, "norm_rows": 4, "shuffle": True},
    "cmc": {"method": "cmc"},
    "cmc_bank": {"method": "cmc", "form": "bank", "negatives": 32},
    "cmc_nce": {"method": "cmc", "form": "nce", "negatives": 32},
    "cpc": {"method": "cpc", "channels": 8},
    "hinge_cpc": {"method": "cpc", "channels": 8, "loss": "hinge"},
    "clapp": {"method": "cpc", "channels": 8, "loss": "hinge", "local": True},
    "kwta": {"method": "kwta"},
    "kwta_supervised": {"method": "kwta", "positives": "class"},
    "patch_filters": PATCHES,
    "patch_filters_two": TWO_LAYERS,
}


VARIANTS = ALL


def pretraining(variant: str, **changes: Any) -> Pretraining:
    """One of `VARIANTS`. ``changes`` are shared numbers or options of its method."""
    shared = {
        "image_size": 16,
        "encoder": "small",
        "batch_size": 16,
        "micro_batch_size": 0,
        "epochs": 2,
        "seed": 0,
        "gamma": 0.01,
        "optimizer": Optimizer(),
        "augment": Augment(grayscale=0.0),
        "monitor": Monitor(),
    }
    both = {**shared, **VARIANTS[variant], **changes}
    known = {field.name for field in fields(Pretraining)}
    options = {key: value for key, value in both.items() if key not in known}
    return Pretraining(variant=variant, options=options, **{key: both[key] for key in both if key in known})


def built(variant: str, seed: int = 0, images: int = 64, **changes: Any) -> Method:
    """Ready to train on so many images, of two classes."""
    params = pretraining(variant, **changes)
    torch.manual_seed(seed)
    method = build_method(params)
    method.setup(DataFacts(torch.full((3,), 0.4), torch.full((3,), 0.2), images, 2, params.batch_size))
    return method.train()


def views(count: int = 8, size: int = 16, seed: int = 1) -> list[torch.Tensor]:
    stream = torch.Generator().manual_seed(seed)
    return [torch.randn(count, 3, size, size, generator=stream) for _ in range(2)]


def embedded(method: Method, count: int = 8, seed: int = 1) -> Named:
    """What ``loss`` reads, of random views."""
    images = views(count, method.params.augment.crop_pixels or method.params.image_size, seed)
    beside = {"indices": torch.arange(count), "labels": torch.arange(count) % 2}
    return {**method.embed(images[: method.views]), **{name: beside[name] for name in method.needs}}


def optimizer_of(method: Method) -> torch.optim.Optimizer:
    return torch.optim.Adam([weight for weight in method.parameters() if weight.requires_grad], lr=1e-3)


def train(method: Method, optimizer: torch.optim.Optimizer, steps: range, of: int = 6) -> None:
    """Steps by number, of ``of`` in all; what is random in one depends on its number alone."""
    for step in steps:
        torch.manual_seed(step)
        optimizer.zero_grad()
        method.loss(embedded(method, method.params.batch_size, seed=step))[0].backward()
        optimizer.step()
        method.after_step(step, of)
