"""What the records of all measurements begin with, and how they are written."""

from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor

from lib.data.store import ImageData
from lib.runtime.files import write_arrays, write_json

LEFT_OUT = "left_out"  # key of the metrics, where images have no labels


def origin(about: dict[str, Any], data: ImageData) -> dict[str, Any]:
    """Which training was measured, on what, and with which versions; ``about`` is the record kept with it."""
    return {
        "variant": about["variant"],
        "method": about["method"],
        "seed": about["pretraining"]["seed"],
        "dataset": data.about["dataset"],
        "provenance": {
            "data": about["data"]["checksum"],
            "trained_with": about["versions"],
            "measured_with": {"torch": torch.__version__, "torchvision": torchvision.__version__},
        },
    }


def said(variant: str, metrics: dict[str, Any]) -> str:
    """One line of a variant's numbers, and of what was left out."""
    shown = [f"{name} {value}" for name, value in metrics.items() if isinstance(value, float)]
    shown += [f"left out: {metrics[LEFT_OUT]}"] if LEFT_OUT in metrics else []
    return f"{variant}: {', '.join(shown)}"


def write_measured(
    metrics: dict[str, Any], record: dict[str, Any], arrays: dict[str, Tensor], metrics_path: Path, path: Path
) -> None:
    """The few numbers for people, and ``path`` with the suffixes .json and .npz for the stages that follow."""
    write_json(metrics_path, metrics)
    write_json(path.with_name(f"{path.name}.json"), record)
    write_arrays(path.with_name(f"{path.name}.npz"), {name: values.numpy() for name, values in arrays.items()})
