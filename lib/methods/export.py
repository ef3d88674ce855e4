"""A trained method as one safetensors file with what is needed to build it again, and back.

The file also holds its own fingerprint: the latents of four fixed images. Loading computes them again, so
that weights which do not belong to the network that this code builds cannot pass for it: another stem or
padding, another pooling, a part of the weights.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor

from lib.methods import build_method
from lib.methods.base import Method, count_parameters, without_gradient
from lib.params.pretraining import Augment, Monitor, Optimizer, Pretraining, Watch
from lib.runtime.errors import UserError
from lib.runtime.files import read_tensors, write_tensors

FINGERPRINT = "fingerprint."  # before the names of the latents
TOLERANCE = 1e-3  # of the largest value; other machines round otherwise
FLIPPED = 0.1  # of the active units of a binary code
BLOCKS = {"optimizer": Optimizer, "augment": Augment, "monitor": Monitor, "watch": Watch}


def encoder_file(variant: str) -> Path:
    return Path("data/encoders") / f"{variant}.safetensors"


def fixed_images(size: int) -> Tensor:
    """Four images [4, 3, S, S] of waves, in the range of normalized pixels; no two rows or channels are alike."""
    line = torch.arange(size, dtype=torch.float64) / size
    place = line[:, None] + 0.37 * line.square()  # [S, 1] + [S]: mirrored and shifted images differ
    phase = torch.arange(12, dtype=torch.float64).view(4, 3, 1, 1)
    return (2 * torch.sin((5 + phase) * place + phase)).float()


def save_method(path: Path, method: Method, params: Pretraining, data: dict[str, Any]) -> None:
    """Write the method's whole state; ``data`` is the record of the images that it was trained on.

    The code's version is not in the file: an edit that changes no number leaves the same bytes, so that
    nothing after it runs again. dvc.lock holds the version (`lib.report.trace`).
    """
    about = {
        "variant": params.variant,
        "method": params.method,
        "pretraining": asdict(params),
        "encoder": method.encoder_name,
        "network": method.encoder.about(),
        "supervised": "labels" in method.needs,
        "parameters": {"encoder": count_parameters(method.encoder), "total": count_parameters(method)},
        "data": data,
        "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__},
    }
    state = {name: tensor.detach().cpu() for name, tensor in method.state_dict().items()}
    latents = _fixed_latents(_rebuilt(params, state), params.image_size)
    write_tensors(path, {**state, **{FINGERPRINT + name: rows for name, rows in latents.items()}}, about)


def load_method(path: Path) -> tuple[Method, dict[str, Any]]:
    """The method in eval mode, fp32, on the CPU, without gradients; and the record kept with it.

    Raises:
        UserError: the network that this code builds from the file is not the one that was saved.
    """
    tensors, about = read_tensors(path)
    try:
        stored = about["pretraining"]
        params = Pretraining(**{key: BLOCKS[key](**value) if key in BLOCKS else value for key, value in stored.items()})
        method = _rebuilt(params, {name: rows for name, rows in tensors.items() if not name.startswith(FINGERPRINT)})
        latents = _fixed_latents(method, params.image_size)
    except (KeyError, TypeError, ValueError, AttributeError, ImportError, RuntimeError) as error:
        raise _another(path, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from None
    expected = {name: rows for name, rows in tensors.items() if name.startswith(FINGERPRINT)}
    if {FINGERPRINT + name for name in latents} != set(expected):
        raise _another(path, f"its latents are {', '.join(latents)}")
    if about.get("network") != method.encoder.about():
        now = f"{about.get('network')} and is {method.encoder.about()}"
        raise _another(path, f"encoder {method.encoder_name} was {now}")
    for name, rows in latents.items():
        saved = expected[FINGERPRINT + name]
        if rows.shape != saved.shape or not _agree(rows, saved):
            raise _another(path, f"the latents {name} of the fixed images differ")
    return method, about


def _agree(rows: Tensor, saved: Tensor) -> bool:
    """Whether two latents [4, D] are one but for rounding, which may turn a unit of a binary code."""
    if ((saved == 0) | (saved == 1)).all():
        return bool((rows != saved).sum() <= FLIPPED * saved.sum())
    return bool((rows - saved).abs().max() <= TOLERANCE * saved.abs().max())


def _rebuilt(params: Pretraining, state: dict[str, Tensor]) -> Method:
    with torch.random.fork_rng(devices=[]):
        method = build_method(params)
        method.load_state_dict(state)
    return without_gradient(method)


def _fixed_latents(method: Method, size: int) -> dict[str, Tensor]:
    with torch.no_grad():
        return method.latents(fixed_images(size))


def _another(path: Path, why: str) -> UserError:
    return UserError(
        f"{path} does not fit the network that this code builds from it: {why}; the code or the file was "
        f"changed after it was written: take back the change, or dvc repro -f pretrain@{path.stem}"
    )
