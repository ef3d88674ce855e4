"""A trained method as one safetensors file with what is needed to build it again, and back.

The file also holds its own fingerprint: latents and projections of four fixed images. Loading computes them again, so
that weights which do not belong to the network that this code builds cannot pass for it: another stem or padding,
another pooling, another head, a part of the weights. No code is in the file, and none that it names is run but the
project's own.
"""

from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor

from lib.methods import build_method
from lib.methods.base import Method, count_parameters, without_gradient
from lib.params.pretraining import Pretraining
from lib.runtime.errors import UserError
from lib.runtime.files import read_tensors, write_tensors

FINGERPRINT = "fingerprint."  # before the names of latents and projections
TOLERANCE = 1e-3  # of the largest value; other machines round otherwise
FLIPPED = 0.1  # of the active units of a binary code

Named = dict[str, Tensor]


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
    nothing after it runs again. dvc.lock holds the version (`lib.trace`).
    """
    encoder: Any = method.encoder
    about = {
        "variant": params.variant,
        "method": params.method,
        "pretraining": params.as_json(),
        "encoder": encoder.name,
        "network": encoder.about(),
        "supervised": "labels" in method.needs,
        "parameters": {"encoder": count_parameters(encoder), "total": count_parameters(method)},
        "data": data,
        "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__},
    }
    state = {name: tensor.detach().cpu() for name, tensor in method.state_dict().items()}
    write_tensors(path, {**state, **_fingerprint(_rebuilt(params, state), params.image_size)}, about)


def load_method(path: Path) -> tuple[Method, dict[str, Any]]:
    """The method in eval mode, fp32, on the CPU, without gradients; and the record kept with it.

    Raises:
        UserError: the network that this code builds from the file is not the one that was saved.
    """
    tensors, about = read_tensors(path)
    saved = {name: rows for name, rows in tensors.items() if name.startswith(FINGERPRINT)}
    try:
        params = Pretraining.from_json(about["pretraining"])
        method = _rebuilt(params, {name: rows for name, rows in tensors.items() if name not in saved})
        now = _fingerprint(method, params.image_size)
    except (UserError, LookupError, TypeError, ValueError, AttributeError, ImportError, RuntimeError) as error:
        raise _another(path, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from None
    if now.keys() != saved.keys():
        raise _another(path, f"its latents and projections are {', '.join(now)}".replace(FINGERPRINT, ""))
    encoder: Any = method.encoder
    if about.get("network") != encoder.about():
        raise _another(path, f"its encoder was {about.get('network')} and is {encoder.about()}")
    for name, rows in now.items():
        if rows.shape != saved[name].shape or not _agree(rows, saved[name]):
            raise _another(path, f"{name.removeprefix(FINGERPRINT)} of the fixed images differ")
    return method, about


def _agree(rows: Tensor, saved: Tensor) -> bool:
    """Whether two outputs [4, D] are one but for rounding, which may turn a unit of a binary code."""
    if ((saved == 0) | (saved == 1)).all():
        return bool((rows != saved).sum() <= FLIPPED * saved.sum())
    return bool((rows - saved).abs().max() <= TOLERANCE * saved.abs().max())


def _rebuilt(params: Pretraining, state: Named) -> Method:
    with torch.random.fork_rng(devices=[]):
        method = build_method(params)
        method.load_state_dict(state)
    without_gradient(method)
    return method


def _fingerprint(method: Method, size: int) -> Named:
    """``fingerprint.latents.h``, ``fingerprint.projections.z`` and so on, of the fixed images: [4, D] each."""
    with torch.no_grad():
        latents = method.latents(fixed_images(size))
        outputs = {"latents": latents, "projections": method.project(latents)}
    return {f"{FINGERPRINT}{kind}.{name}": rows for kind, named in outputs.items() for name, rows in named.items()}


def _another(path: Path, why: str) -> UserError:
    return UserError(
        f"{path} does not fit the network that this code builds from it: {why}; the code or the file was "
        f"changed after it was written: take back the change, or dvc repro -f pretrain@{path.stem}"
    )
