"""A trained encoder for other libraries: ``python -m lib export simclr`` (docs/export.md).

Writes model.safetensors, the encoder's weights; model.onnx, from normalized images to latents; of a ResNet config.json,
from which timm builds it; and README.md, the model card (`lib.takeaway.model_card`).
"""

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lib.encoders.resnet import BASE, ResNetMap
from lib.encoders.vgg6 import VGG6
from lib.methods.base import Method
from lib.methods.export import encoder_file, fixed_images, load_method
from lib.runtime.errors import UserError
from lib.runtime.files import size, write_bytes, write_json, write_text, writing
from lib.takeaway.model_card import figures, model_card

WEIGHTS, NETWORK, CONFIG, CARD = "model.safetensors", "model.onnx", "config.json", "README.md"
INPUT = "images"  # of the ONNX network


class Latents(nn.Module):
    """A copy of a method as ONNX has it: any number of images to its latents, in their order."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = copy.deepcopy(method)
        for module in self.method.modules():
            if isinstance(module, VGG6):
                module.images_at_once = 2**31  # parts of a given size would bound the number of images

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.method.latents(images).values())


def export_encoder(variant: str, folder: Path) -> list[str]:
    """Write ``folder`` from data/encoders/<variant>.safetensors; returns lines that say what was and was not written.

    Refused before the first write: a folder that holds anything else, a missing package.
    """
    method, about = load_method(encoder_file(variant))
    names = [WEIGHTS, NETWORK, CONFIG, CARD]
    if folder.exists() and (not folder.is_dir() or any(path.name not in names for path in folder.iterdir())):
        raise UserError(f"{folder} holds more than an export ({', '.join(names)}); name another folder with --to")
    network = onnx_network(method, about)
    torchvision_names = is_torchvision(method)
    written = [WEIGHTS, NETWORK, *[CONFIG] * torchvision_names, CARD]
    page = model_card(method, about, torchvision_names, figures(variant))
    write_bytes(folder / WEIGHTS, lambda file: file.write(weights(method)))
    write_bytes(folder / NETWORK, lambda file: file.write(network))
    if torchvision_names:
        write_json(folder / CONFIG, timm_config(method, about))
    else:
        with writing(folder / CONFIG):
            (folder / CONFIG).unlink(missing_ok=True)  # of an earlier export
    write_text(folder / CARD, page)
    lines = [f"written: {folder / name}, {size((folder / name).stat().st_size)}" for name in written]
    if not torchvision_names:
        lines.append(
            f"left out: {CONFIG}, since timm and torchvision have no network like this one ({method.encoder.name})"
        )
    return lines


def is_torchvision(method: Method) -> bool:
    """Whether the encoder is torchvision's ResNet but for its stem, and of its width."""
    encoder = method.encoder
    return isinstance(encoder, ResNetMap) and encoder.base == BASE and encoder.conv1.in_channels == 3


def weights(method: Method) -> bytes:
    """The encoder's parameters and buffers as safetensors; of a ResNet by torchvision's names."""
    from safetensors.torch import save

    return save({name: tensor.contiguous() for name, tensor in method.encoder.state_dict().items()}, {"format": "pt"})


def onnx_network(method: Method, about: dict[str, Any]) -> bytes:
    """ONNX of ``images``, normalized float32 [B, 3, S, S] of any B, to every latent by its name, float32 [B, D].

    Its metadata hold mean and std, of pixels in 0..1, and the variant.
    """
    try:
        import onnx
        import onnxscript  # torch.onnx needs it
    except ImportError as error:
        raise UserError(f"export needs the package {error.name}: pip install onnx onnxscript") from None

    def stable_sort(values: Any, stable: bool = False, dim: int = -1, descending: bool = False) -> Any:
        count: Any = [values.shape[dim]]
        # torch.onnx has none, and binary codes need one; ONNX gives the first of equal values first, too
        return onnxscript.opset18.TopK(values, count, axis=dim, largest=int(descending))

    example = fixed_images(method.params.image_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the exporter's own insides
        program: Any = torch.onnx.export(
            Latents(method),
            (example,),
            input_names=[INPUT],
            output_names=list(method.latents(example)),
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            custom_translation_table={torch.ops.aten.sort.stable: stable_sort},
            dynamo=True,
            verbose=False,
        )
    proto = program.model_proto
    if not proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param:
        raise UserError(f"the latents of {about['variant']} become ONNX for one number of images alone")
    known = {"variant": about["variant"], **{key: json.dumps(about["data"][key]) for key in ("mean", "std")}}
    onnx.helper.set_model_props(proto, known)
    return proto.SerializeToString()


def timm_config(method: Method, about: dict[str, Any]) -> dict[str, Any]:
    """What timm reads from a folder or a hub: architecture, size, normalization; no classifier."""
    data, pixels = about["data"], method.params.image_size
    seen = {"input_size": [3, pixels, pixels], "mean": data["mean"], "std": data["std"]}
    usual = {"interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "center", "fixed_input_size": False}
    names = {"first_conv": "conv1", "classifier": "fc"}
    return {
        "architecture": method.encoder.name,
        "num_classes": 0,
        "num_features": method.encoder.width,
        "global_pool": "avg",
        "pretrained_cfg": {"num_classes": 0, **seen, **usual, **names},
    }
