"""A trained method as one safetensors file with what is needed to build it again, and back."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torchvision

from lib.files import read_tensors, write_tensors
from lib.methods import build_method
from lib.methods.base import Method, count_parameters, without_gradient
from lib.params.pretraining import Augment, Monitor, Optimizer, Pretraining, Watch

BLOCKS = {"optimizer": Optimizer, "augment": Augment, "monitor": Monitor, "watch": Watch}


def encoder_file(variant: str) -> Path:
    return Path("data/encoders") / f"{variant}.safetensors"


def save_method(path: Path, method: Method, params: Pretraining, data: dict[str, Any]) -> None:
    """Write the method's whole state; ``data`` is the record of the images that it was trained on."""
    about = {
        "variant": params.variant,
        "method": params.method,
        "pretraining": asdict(params),
        "network": method.encoder.about(),
        "parameters": {"encoder": count_parameters(method.encoder), "total": count_parameters(method)},
        "data": data,
        "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__},
    }
    write_tensors(path, method.state_dict(), about)


def load_method(path: Path) -> tuple[Method, dict[str, Any]]:
    """The method in eval mode, fp32, on the CPU, without gradients; and the record kept with it."""
    tensors, about = read_tensors(path)
    stored = about["pretraining"]
    params = Pretraining(**{key: BLOCKS[key](**value) if key in BLOCKS else value for key, value in stored.items()})
    with torch.random.fork_rng(devices=[]):
        method = build_method(params)
    method.load_state_dict(tensors)
    return without_gradient(method), about
