"""Small inputs for tests: every method and form of it, images, embeddings, trainings, a tiny method, a machine."""

from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from lib.core.checkpoint import CheckpointStore
from lib.core.loop import Monitor as LoopMonitor
from lib.core.loop import pretrain
from lib.core.trainer import Pretrainer
from lib.data.store import ImageData, RawDataset, assemble
from lib.methods import build_method, method_names, typed_options
from lib.methods.base import DataFacts, Method, Named
from lib.params.pretraining import Augment, Monitor, Optimizer, Pretraining
from lib.params.spec import load_yaml
from lib.runtime.machine import Machine
from lib.runtime.seeds import generator

ROOT = Path(__file__).parents[1]
CPU = Machine(device="cpu", processes=1, threads=1, precision="fp32", checkpoint_minutes=10.0)
SMALL = {"image_size": 16, "encoder": "small", "batch_size": 16, "epochs": 2}
SHARED = {**SMALL, "micro_batch_size": 0, "seed": 0, "gamma": 0.01, "calibrate_batchnorm": True}
COLOR = {"jitter": 0.0, "grayscale": 0.0}
BYOL = {"method": "byol", "projector_hidden": 128, "predictor_hidden": 128}
MOCO = {"method": "moco", "queue": 32}
CMC = {"method": "cmc", "augment": COLOR}
FILTERS = {"method": "patch_filters", "augment": {**COLOR, "crop_pixels": 8}}
CPC = {"method": "cpc", "channels": 8, "augment": {**COLOR, "crop_scale_min": 1.0}}
VARIANTS: dict[str, dict[str, Any]] = {
    "simclr": {"method": "simclr"},
    "joint": {"method": "simclr", "term": "pull"},
    "push": {"method": "simclr", "term": "push"},
    "lookalikes": {"method": "simclr", "term": "lookalikes", "gamma": 0.5, "neighbors": 4},
    "in_class": {"method": "simclr", "negatives": "class"},
    "dual": {"method": "simclr", "term": "pull", "latents": "halves"},
    "supervised": {"method": "supervised"},
    "vicreg": {"method": "vicreg", "expander": 128},
    "barlow_twins": {"method": "barlow_twins", "expander": 128},
    "byol": BYOL,
    "moco": MOCO,
    "moco_v1": {**MOCO, "head": "linear", "temperature": 0.07, "symmetric": False, "queue": 16},
    "moco_groups": {**MOCO, "norm_rows": 4, "shuffle": True},
    "cmc": CMC,
    "cmc_bank": {**CMC, "form": "bank", "negatives": 32},
    "cmc_nce": {**CMC, "form": "nce", "negatives": 32},
    "cpc": CPC,
    "hinge_cpc": {**CPC, "loss": "hinge"},
    "clapp": {**CPC, "loss": "hinge", "local": True},
    "clapp_asymmetric": {**CPC, "loss": "hinge", "local": True, "asymmetric": True},
    "kwta": {"method": "kwta"},
    "kwta_contrast": {"method": "kwta", "loss": "contrast"},
    "kwta_hard": {"method": "kwta", "training_code": "hard", "triplets": "random"},
    "kwta_supervised": {"method": "kwta", "positives": "class", "triplets": "random"},
    "patch_filters": FILTERS,
    "patch_filters_two": {**FILTERS, "layers": 2, "augment": {**COLOR, "crop_pixels": 15}},
}
OTHERS = set(method_names()) - {block["method"] for block in VARIANTS.values()}
VARIANTS |= {name: {"method": name} for name in sorted(OTHERS)}
SOME = ("simclr", "moco", "cmc_bank", "patch_filters_two", "clapp", "kwta")  # where not all are tried quickly
EACH = [variant if variant in SOME else pytest.param(variant, marks=pytest.mark.slow) for variant in VARIANTS]


def pretraining(variant: str, **changes: Any) -> Pretraining:
    """One of `VARIANTS`; ``changes`` of shared numbers, of blocks as mappings, or of its method's options."""
    both = {**SHARED, **VARIANTS[variant], **changes}
    both["optimizer"] = Optimizer(**changes.get("optimizer", {}))
    both["augment"] = Augment(**{**VARIANTS[variant].get("augment", {}), **changes.get("augment", {})})
    both["monitor"] = Monitor(**{"every": 1, "k": 5, **changes.get("monitor", {})})
    known = {field.name for field in fields(Pretraining)}
    options = {key: both.pop(key) for key in [key for key in both if key not in known]}
    return Pretraining(variant, options=options, **both)


def raw_params(preset: str = "all", variants: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """A preset, small enough to train in a second. ``variants`` replace its own; dots in keys are ``__``."""
    raw = load_yaml(ROOT / f"presets/{preset}.yaml")
    if variants is not None:
        raw |= {"variants": variants, "transfer": {}}
    for block in raw["variants"].values() if variants is None else ():  # their own sizes are for real data
        block.pop("batch_size", None)
        block.get("optimizer", {}).pop("warmup_epochs", None)
        block |= {"queue": 32, "norm_rows": 0, "shuffle": False} if block["method"] == "moco" else {}
    usual = {
        **SMALL,
        "gamma": 0.01,
        "dataset": "digits",
        "monitor__every": 1,
        "monitor__k": 5,
        "optimizer__warmup_epochs": 0.0,
    }
    for key, value in {**usual, **changes}.items():
        block, _, name = key.rpartition("__")
        (raw[block] if block else raw)[name] = value
    return raw


def images(count: int = 64, size: int = 16, classes: int = 2, seed: int = 0) -> ImageData:
    """Random images with a class-dependent tint, half as many for the test split."""
    stream, sets = torch.Generator().manual_seed(seed), []
    for number in (count, count // 2):
        labels = torch.arange(number) % classes
        pixels = torch.randint(0, 200, (number, 3, size, size), generator=stream, dtype=torch.uint8)
        pixels[:, 0] += (labels * (50 // classes)).to(torch.uint8)[:, None, None]
        sets += [pixels, labels]
    about = {"dataset": "random", "source": "random", "checksum": f"random {count} {size} {classes} {seed}"}
    about |= {"classes": [f"class {index}" for index in range(classes)], "image_size": size}
    validation = torch.arange(0, count, 8)
    counts = {"train": count, "validation": len(validation), "test": count // 2}
    counts |= {"per_class": {"test": sets[3].bincount(minlength=classes).tolist()}}
    about |= {"mean": [0.4] * 3, "std": [0.2] * 3, "counts": counts}
    return ImageData(*sets, validation, about)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def directions(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Of length 1 along the last axis."""
    return nn.functional.normalize(normal(*shape, seed=seed, dtype=dtype), dim=-1)


def natural(count: int, size: int, seed: int = 0) -> Tensor:
    """Random images [B, 3, S, S] in 0..1 with the statistics of photographs as far as patches of them are concerned:
    smooth (amplitudes fall as frequency^-1.5), mostly gray, each of a contrast of its own (log-normal)."""
    noise = normal(count, 3, size, size, seed=seed)
    noise = 3**0.5 * noise.mean(1, keepdim=True) + 0.3 * noise
    line = torch.fft.fftfreq(size)
    frequency = (line[:, None].square() + line.square()).sqrt().clamp(min=1 / size)
    smooth = torch.fft.ifft2(torch.fft.fft2(noise) / frequency**1.5).real
    contrast = (0.5 * normal(count, 1, 1, 1, seed=seed + 1)).exp()
    return (0.47 + 0.22 * contrast * smooth / smooth.std()).clamp(0, 1)


def normalized(images: Tensor) -> tuple[Tensor, DataFacts]:
    """Images [B, 3, S, S] by their own mean and std [3], as a training has them, and these."""
    mean, std = images.mean((0, 2, 3)), images.std((0, 2, 3))
    return (images - mean[:, None, None]) / std[:, None, None], DataFacts(mean, std, len(images), 2, len(images))


def views(count: int = 8, size: int = 16, seed: int = 1) -> list[Tensor]:
    return [*normal(2, count, 3, size, size, seed=seed)]


def built(variant: str, seed: int = 0, images: int = 64, **changes: Any) -> Method:
    """The same weights in every call; ready to train on so many images, of two classes, or 0: not set up."""
    params = pretraining(variant, **changes)
    torch.manual_seed(seed)
    method = build_method(params)
    if images:
        method.setup(DataFacts(torch.full((3,), 0.4), torch.full((3,), 0.2), images, 2, params.batch_size))
    return method.train()


def embedded(method: Method, count: int = 8, seed: int = 1) -> Named:
    """What ``loss`` reads, of random views."""
    both = views(count, method.params.augment.crop_pixels or method.params.image_size, seed)
    beside = {"indices": torch.arange(count), "labels": torch.arange(count) % 2}
    return {**method.embed(both[: method.views]), **{name: beside[name] for name in method.needs}}


@dataclass
class Training:
    """Steps of one method by Adam, without augmentation; what is random in a step depends on its number alone."""

    method: Method
    lr: float = 1e-3
    steps: int = 8
    done: int = 0
    optimizer: torch.optim.Adam = field(init=False)

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.Adam(self.method.parameters(), self.lr)

    def step(self, *given: Tensor, **needed: Tensor) -> float:
        """The loss before the step on views [B, 3, S, S], with the ``needed`` indices or labels; or on random ones."""
        torch.manual_seed(self.done)
        random = () if given else embedded(self.method, self.method.params.batch_size, seed=self.done)
        total, _ = self.method.loss({**self.method.embed(list(given)), **needed} if given else random)
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()
        self.method.after_step(self.done, self.steps)
        self.done += 1
        return total.item()


def spelled_out(params: Pretraining) -> Pretraining:
    """With every option of its method, as `resolve` writes them."""
    return replace(params, options=asdict(typed_options(params)))


def trainer(variant: str = "simclr", machine: Machine = CPU, prepare=None, data=None, **changes: Any) -> Pretrainer:
    """A training of one of `VARIANTS`, its method first changed by ``prepare``."""
    params = pretraining(variant, **changes)
    torch.manual_seed(generator(params.seed, "initial weights").initial_seed())
    method = build_method(params)
    if prepare:
        prepare(method)
    return Pretrainer(method, data or images(), params, machine)


def trained(training: Pretrainer, curve: Path, monitor: LoopMonitor) -> Named:
    """What is learned in a training to its end, whose checkpoints lie beside its curve."""
    store = CheckpointStore(training.params.variant, "key", root=curve.parent)
    with store.held():
        pretrain(training, store, curve, monitor)
    return training.method.state_dict()


class TinyMethod(nn.Module):
    """A convolution with batch norm; one latent, or the two halves of its map; counts the images of its passes."""

    def __init__(self, latents: tuple[str, ...] = ("h",)) -> None:
        super().__init__()
        self.names, self.halves, self.images = latents, len(latents) > 1, 0
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.projector = nn.Linear(8, 4)

    def allow_end_to_end_gradient(self) -> None:
        """Gradients pass already."""

    def latents(self, images: Tensor) -> Named:
        self.images += len(images)
        halves = nn.functional.adaptive_avg_pool2d(self.encoder(images), (len(self.names), 1))
        return {name: halves[:, :, row, 0] for row, name in enumerate(self.names)}

    def project(self, latents: Named) -> Named:
        return {f"z_{name}": self.projector(h) for name, h in latents.items()}


def tiny_method(latents: tuple[str, ...] = ("h",), seed: int = 0) -> TinyMethod:
    """As a trained method comes from its file: eval mode, no gradients, moved batch norm statistics."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        method = TinyMethod(latents)
        with torch.no_grad():
            method.latents(torch.randn(64, 3, 8, 8))
    method.images = 0
    return method.eval().requires_grad_(False)


def tiny_data(train: int = 150, test: int = 60, seed: int = 0) -> ImageData:
    """Noisy 8x8 pictures whose class is the channel that is a little brighter; class names by color."""
    draw, arrays = numpy.random.default_rng(seed), []
    for labels in (numpy.arange(train) % 3, numpy.arange(test) % 3):
        values = draw.normal(110, 45, (len(labels), 3, 8, 8))
        values[numpy.arange(len(labels)), labels] += 22
        arrays += [values.clip(0, 255).astype(numpy.uint8), labels]
    return assemble("images", RawDataset(*arrays, ["red", "green", "blue"], "drawn for the tests"))


def tiny_params(seed: int = 0, **augment: Any) -> Pretraining:
    usual = pretraining("simclr", image_size=8, batch_size=32, epochs=1, seed=seed, encoder=None, gamma=None)
    return replace(usual, variant="tiny", method="tiny", augment=Augment(**augment), monitor=Monitor())


def tiny_about(seed: int = 0) -> dict[str, Any]:
    """The record kept with the trained method."""
    known = {"pretraining": tiny_params(seed).as_json(), "data": {"checksum": "of the images"}}
    return {"variant": "tiny", "method": "tiny", "supervised": False, "versions": {"torch": "2"}, **known}


def state(method: nn.Module) -> Named:
    return {name: tensor.clone() for name, tensor in method.state_dict().items()}


def same_state(method: nn.Module, before: Named) -> bool:
    return all(torch.equal(tensor, before[name]) for name, tensor in method.state_dict().items())
