"""What the stages after pretraining read: probe, nearest neighbours, t-SNE."""

from dataclasses import dataclass
from typing import Any

from lib.params.spec import param, parse


@dataclass(frozen=True)
class Linear:
    """The linear probe. ``study_epochs: 0`` leaves out the study's own protocol."""

    mode: str = param("probe", choices=("probe", "finetune"))
    epochs: int = param(50, low=1)
    batch_size: int = param(256, low=1)
    finetune_lr: float = param(1e-4, above=0, high=1)
    study_epochs: int = param(50, low=0)


@dataclass(frozen=True)
class Knn:
    """Weighted nearest neighbours in cosine similarity."""

    k: int = param(200, low=1)
    temperature: float = param(0.1, above=0)


@dataclass(frozen=True)
class Tsne:
    """t-SNE of test latents; ``points`` are the first of a fixed draw, the same for all variants."""

    points: int = param(5000, low=4)
    perplexity: float = param(30.0, low=1)
    iterations: int = param(1000, low=250)
    seed: int = param(0, low=0, high=2**31 - 1)


def linear_params(raw: dict[str, Any]) -> Linear:
    return parse(Linear, raw.get("linear", {}), "linear")


def knn_params(raw: dict[str, Any]) -> Knn:
    return parse(Knn, raw.get("knn", {}), "knn")


def tsne_params(raw: dict[str, Any]) -> Tsne:
    return parse(Tsne, raw.get("tsne", {}), "tsne")
