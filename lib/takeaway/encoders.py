"""Encoders from anywhere as one kind of function: timm, torchvision, a file of ours, ONNX, or a user's own function.

Nothing is fetched from a hub, and nothing unpickled: weights are safetensors, or a torch file of tensors alone.
"""

import importlib
import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from lib.params.spec import nearest
from lib.runtime.errors import UserError, one_line, shown
from lib.runtime.files import read_about
from lib.takeaway import ENCODERS

SEED = 0  # of the weights that are drawn here


@dataclass(frozen=True)
class Encoder:
    """``encode`` takes float32 [B, 3, S, S], RGB in 0..1 less ``mean`` over ``std``, and returns [B, D].

    ``weights`` says in words where they are from; ``fresh``: they are drawn here. ``size``: the S that it is made for.
    """

    encode: Callable[[Tensor], Any]
    name: str = "encoder"
    weights: str = "weights as given"
    mean: Sequence[float] = (0.0, 0.0, 0.0)
    std: Sequence[float] = (1.0, 1.0, 1.0)
    size: int | None = None
    fresh: bool = False


def find_encoder(name: str, weights: Path | None = None) -> Encoder:
    """The encoder that ``name`` names (`ENCODERS`), with the ``weights`` of a file where it is a library's.

    A UserError says in one line what is wrong with the name, the file or a package.
    """
    kind, _, rest = name.partition(":")
    if kind in LIBRARIES and rest:
        return LIBRARIES[kind](name, rest, weights)
    if weights:
        raise UserError(f"--weights is {weights}; allowed: with timm:NAME and torchvision:NAME alone, not with {name}")
    if kind == "callable" or kind.endswith(".py"):
        module, _, function = (rest if kind == "callable" else name).rpartition(":")
        if not module or not function:
            raise UserError(f"{name} names no function; give it after a colon, as in my_model.py:encode")
        return _function(name, module, function)
    path = Path(name)
    if path.suffix in (".safetensors", ".onnx"):
        if not path.is_file():
            raise UserError(f"{path} does not exist; name a file that does")
        return _ours(path) if path.suffix == ".safetensors" else _onnx(path)
    raise UserError(f"{shown(name)} names no encoder; allowed: {ENCODERS}; nothing is fetched from a hub")


def _timm(name: str, model_name: str, weights: Path | None) -> Encoder:
    timm: Any = _package("timm", name)
    plain, _, tag = model_name.partition(".")
    if not timm.is_model(plain):
        raise UserError(f"timm has no model {shown(plain)}{nearest(plain, timm.list_models())}; name another")
    if tag and not weights:
        how = f"give them as --weights FILE, or name timm:{plain} for freshly initialized ones"
        raise UserError(f"{name}: the weights {tag} are on a hub, and nothing is fetched; {how}")
    model = _built(lambda: timm.create_model(model_name, num_classes=0), name)
    config = timm.data.resolve_model_data_config(model)
    heads = model.pretrained_cfg.get("classifier") or ()
    said = _load(model, weights, (heads,) if isinstance(heads, str) else tuple(heads), name)
    return Encoder(model, name, said, config["mean"], config["std"], config["input_size"][-1], not weights)


def _torchvision(name: str, model_name: str, weights: Path | None) -> Encoder:
    from torchvision import models

    known = models.list_models(module=models)
    if model_name not in known:
        raise UserError(f"torchvision has no classifier {shown(model_name)}{nearest(model_name, known)}; name another")
    # as torchvision sets it for its own weights of these two, which were trained on images normalized otherwise
    theirs = {"transform_input": True} if weights and model_name in ("googlenet", "inception_v3") else {}
    model = _built(lambda: models.get_model(model_name, weights=None, **theirs), name)
    layers = [place for place, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    if not layers:
        raise UserError(f"{name} ends without a linear classifier to take off; name another model")
    model.set_submodule(layers[-1], nn.Identity())
    seen = models.get_model_weights(model_name).DEFAULT.transforms()  # a record; no weights are read
    said = _load(model, weights, (layers[-1],), name)
    return Encoder(model, name, said, seen.mean, seen.std, seen.crop_size[0], not weights)


LIBRARIES = {"timm": _timm, "torchvision": _torchvision}


def _built(build: Callable[[], Any], name: str) -> Any:
    """A model with the same fresh weights in every call, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        try:
            return build().eval()
        except Exception as error:  # a library's own refusals, of many kinds
            raise UserError(f"{name} cannot be built: {one_line(error)}") from error


def _load(model: nn.Module, path: Path | None, heads: Sequence[str], name: str) -> str:
    """Fill the model from a file, of which its classifier alone may be left over; says where the weights are from."""
    if path is None:
        return f"freshly initialized (seed {SEED})"
    if not path.is_file():
        raise UserError(f"--weights is {path}, which does not exist; name a file that does")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        for key in ("state_dict", "model"):  # as training scripts keep it
            state = state.get(key, state)
        state = {key.removeprefix("module."): values for key, values in state.items() if isinstance(values, Tensor)}
    except Exception as error:  # readers of damaged files raise errors of many kinds; this one names objects by class
        why = "it is damaged, or holds more than tensors by name, which is never unpickled"
        raise UserError(f"{path} cannot be read as weights ({type(error).__name__}): {why}") from None
    state = {key: values for key, values in state.items() if not key.startswith(tuple(f"{head}." for head in heads))}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        why = one_line(error).partition(": ")[2]
        raise UserError(f"{path} has not the weights of {name}: {why[:200]}") from None
    return f"weights of {path.name}"


def _function(name: str, module: str, function: str) -> Encoder:
    try:
        found: ModuleType | None = None
        if module.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(module).stem, module)
            assert spec and spec.loader
            found = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(found)
        else:
            found = importlib.import_module(module)
        encode = getattr(found, function)
    except Exception as error:  # of the user's code, too
        raise UserError(f"{name} cannot be imported: {type(error).__name__}: {one_line(error)}") from error
    if not callable(encode):
        raise UserError(f"{name} is a {type(encode).__name__}; allowed: a function of images [B, 3, S, S]")
    return Encoder(encode, name)


def _ours(path: Path) -> Encoder:
    """A file that `lib.methods.export.save_method` wrote: its method's main latent."""
    from lib.methods.export import load_method

    try:
        read_about(path)
    except UserError:
        how = "name the network of these weights, as in timm:resnet18 --weights FILE, or the model.onnx of an export"
        raise UserError(f"{path} is no encoder of data/encoders; {how}") from None
    method, about = load_method(path)
    data = about["data"]
    return Encoder(
        _MainLatent(method), str(path), "weights of its training", data["mean"], data["std"], data["image_size"]
    )


class _MainLatent(nn.Module):
    def __init__(self, method: Any) -> None:
        super().__init__()
        self.method = method

    def forward(self, images: Tensor) -> Tensor:
        return next(iter(self.method.latents(images).values()))


def _onnx(path: Path) -> Encoder:
    """Its first output; mean, std and size as far as the file has them, as those of ``python -m lib export`` do."""
    onnxruntime: Any = _package("onnxruntime", str(path))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        kept = session.get_modelmeta().custom_metadata_map
        seen = {key: json.loads(kept[key]) for key in ("mean", "std") if key in kept}
    except Exception as error:  # onnxruntime's own classes
        raise UserError(f"{path} is no ONNX network that can be read: {one_line(error)[:200]}") from None
    given, output = session.get_inputs()[0], session.get_outputs()[0].name
    size = given.shape[-1] if isinstance(given.shape[-1], int) else None

    def encode(images: Tensor) -> Any:
        return session.run([output], {given.name: images.cpu().numpy()})[0]

    return Encoder(encode, str(path), "weights of the file", size=size, **seen)


def _package(package: str, what: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UserError(f"{what} needs the package {package}, which is not installed: pip install {package}") from None
