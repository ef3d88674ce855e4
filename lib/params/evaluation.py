"""What the stages after pretraining read: probe, nearest neighbors, t-SNE, transfer of filters."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lib.params.spec import param, parse
from lib.runtime.errors import UserError, shown


@dataclass(frozen=True)
class Linear:
    """The linear probe, which has no settings of its own, or fine-tuning, which has three.

    ``study_epochs: 0`` leaves out the study's own protocol.
    """

    mode: str = param("probe", choices=("probe", "finetune"))
    finetune_epochs: int = param(50, low=1)
    finetune_batch_size: int = param(256, low=1)
    finetune_lr: float = param(1e-4, above=0, high=1)
    study_epochs: int = param(50, low=0)


@dataclass(frozen=True)
class Knn:
    """Weighted nearest neighbors in cosine similarity."""

    k: int = param(200, low=1)
    temperature: float = param(0.1, above=0)


@dataclass(frozen=True)
class Tsne:
    """t-SNE of test latents; ``points`` are the first of a fixed draw, the same for all variants."""

    points: int = param(5000, low=4)
    perplexity: float = param(30.0, low=1)
    iterations: int = param(1000, low=250)
    seed: int = param(0, low=0, high=2**31 - 1)


FILTERS_ENCODER, SMALLEST_TRANSFER = "shallow", 16  # the encoder whose filters a classifier takes; its images' pixels


@dataclass(frozen=True)
class Transfer:
    """A classifier that starts from learned filters, against others; ``lr`` is a tenth of it in the last third.

    ``source``: a filters file that this stage wrote with other images; empty: the variant's own filters.
    ``double_softmax`` repeats the source's slip, a softmax before the cross entropy.
    """

    source: str = param("")
    epochs: int = param(100, low=1)
    batch_size: int = param(128, low=2)
    lr: float = param(1e-3, above=0, high=1)
    double_softmax: bool = param(False)


def check_transfer_size(image_size: int) -> None:
    """Raise UserError if images are too small for the classifier that starts from filters."""
    if image_size < SMALLEST_TRANSFER:
        raise UserError(
            f"params.yaml: image_size is {image_size}; allowed with transfer.variants: at least {SMALLEST_TRANSFER}"
        )


def transfer_variants(raw: Mapping[str, Any], known: list[str]) -> tuple[str, ...]:
    """The variants whose filters are tried in a classifier: a list of some of ``known``."""
    names = raw.get("transfer", {}).get("variants", []) if isinstance(raw.get("transfer", {}), dict) else []
    if not isinstance(names, list) or any(name not in known for name in names) or len(set(names)) < len(names):
        raise UserError(
            f"params.yaml: transfer.variants is {shown(names)}; allowed: a list, each once, of "
            f"{', '.join(known)}, or [] for none"
        )
    return tuple(names)


def transfer_params(raw: Mapping[str, Any]) -> Transfer:
    return parse(Transfer, raw.get("transfer", {}), "transfer", also=("variants",))


def linear_params(raw: Mapping[str, Any]) -> Linear:
    return parse(Linear, raw.get("linear", {}), "linear")


def knn_params(raw: Mapping[str, Any]) -> Knn:
    return parse(Knn, raw.get("knn", {}), "knn")


def tsne_params(raw: Mapping[str, Any]) -> Tsne:
    return parse(Tsne, raw.get("tsne", {}), "tsne")
