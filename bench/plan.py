"""What is measured, and of which size."""

from dataclasses import dataclass
from typing import Any

SECTIONS = {
    "step": "A SimCLR step",
    "large": "A SimCLR step of a large batch",
    "data": "Data path alone",
    "loss": "NT-Xent and its memory",
    "embed": "Embedding and nearest neighbors",
    "accuracy": "Time to accuracy",
}
USUAL = {"cpu": ("step", "data", "loss", "embed", "accuracy"), "cuda": ("step", "large", "accuracy")}
NAMES = {
    "ours": "Engram",
    "before": "Engram before",
    "leftthomas": "leftthomas/SimCLR recipe",
    "lightly": "lightly",
    "kornia": "kornia",
    "whole": "the whole matrix at once",
}
# How long is warmed up and measured, in seconds, and in how many calls at least; tiny sizes, to see that all works.
TIMES = {
    "cpu": {"warm": 8.0, "seconds": 20.0, "least": 3},
    "cuda": {"warm": 2.0, "seconds": 4.0, "least": 3},
    "quick": {"warm": 0.0, "seconds": 0.1, "least": 1, "train": 400, "test": 100, "batch": 8, "rows": 32},
}
PICTURES = {"train": 50_000, "test": 10_000, "encoder": "small", "batch": 256}


@dataclass(frozen=True)
class Row:
    """One comparison. ``arms`` are ``module.function`` of this folder, ours first; ``images`` are those of one call,
    where images per second say something."""

    name: str
    arms: tuple[str, ...]
    settings: dict[str, Any]
    images: int = 0


def _steps(*sizes: tuple[str, int]) -> list[Row]:
    arms = ("ours.step", "peers.leftthomas_step", "peers.lightly_step")
    return [
        Row(f"{encoder}, batch {batch}", arms, PICTURES | {"encoder": encoder, "batch": batch}, batch)
        for encoder, batch in sizes
    ]


ROWS = {
    "step": _steps(("small", 256), ("resnet18", 128), ("resnet50", 64)),
    "large": _steps(("resnet18", 512), ("resnet50", 512)),
    "data": [
        Row(
            "two views of 256 images",
            ("ours.data", "peers.leftthomas_data", "peers.lightly_data", "peers.kornia_data"),
            PICTURES,
            256,
        )
    ],
    "loss": [
        *(Row(f"2N = {rows:,}", ("ours.loss", "ours.whole_loss"), {"rows": rows}) for rows in (512, 4_096, 16_384)),
        Row("2N = 65,536", ("ours.loss",), {"rows": 65_536}),  # the whole matrix would be 16 GiB
    ],
    "embed": [Row("60,000 images, small encoder", ("ours.embed", "peers.leftthomas_embed"), PICTURES, 60_000)],
    "accuracy": [Row("55 % validation kNN, small encoder", ("accuracy.ours", "accuracy.leftthomas"), PICTURES)],
}


def name_of(arm: str) -> str:
    """What readers call an arm."""
    module, function = arm.split(".")
    return NAMES.get(function.partition("_")[0]) or NAMES[module]
