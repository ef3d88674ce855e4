"""The model card of an exported encoder: all of it comes from the encoder's file, its method and what was measured."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from lib.evaluate.record import LEFT_OUT
from lib.methods.base import Method, pool
from lib.methods.export import encoder_file, fixed_images
from lib.preset import flat
from lib.runtime.files import read_json
from lib.trace import as_locked

# Of each stage that measures: its metrics, its whole record, how it measures.
STAGES = {
    "linear": (
        "metrics/{}.json",
        "data/scores/{}.json",
        """\
`top1` is percent of {images[test]} test images, read once, by `linear.mode: {linear[mode]}` (a probe is a logistic
regression on frozen, standardized latents, whose L2 strength {images[validation]} validation images choose); `knn` is
by the {knn[k]} nearest of {images[train]} training images in cosine. `study_top1`, if it is there, is the study's own
protocol, whose best epoch the test images choose.""",
    ),
    "memory": (
        "metrics/memory/{}.json",
        "data/memory/{}.json",
        """\
Bits are what a memory of {images[stored]} training images tells of {images[cued]} degraded test images: which of its
class it was (`episode_bits`, at most {possible[episode_bits]}), and its class (`concept_bits`, at most
{possible[concept_bits]}); first under the augmentation of training, {draws} draws each, then by cues that no training
has. `recall21`, if it is there, is the share of cues that are nearer to their own image than to its 20 nearest
look-alikes. `whitened` is a control in another metric, and what begins with `z` is of the projection.""",
    ),
}
STEM = "model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()"
# Four lines each, which tests/test_export_model.py runs as they stand in the card.
RESNET = f"""\
With torchvision:

```python
model = torchvision.models.{{architecture}}(num_classes=1)
{STEM}
model.fc = nn.Identity()
model.load_state_dict(safetensors.torch.load_file("model.safetensors"))
features = model.eval()(images)
```

With timm:

```python
model = timm.create_model("local-dir:.")  # the architecture of config.json
{STEM}
timm.models.load_checkpoint(model, "model.safetensors")
features = model.eval()(images)
```

The stem comes first because it is that of small images, 3x3 with stride 1 and no max-pooling, which neither library has
by itself: timm's `pretrained=True` ends with an error about the shape of conv1. `features` is {{features}}.

"""
ONNX = """\
With ONNX Runtime:

```python
session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
({outputs},) = session.run(None, {{"images": images.numpy()}})
```
"""
CARD = """\
---
{head}---

# {variant} ({encoder}, method {method})

An image encoder of {count:,} parameters, {trained}, exported from Engram. `model.safetensors` has its weights{names};
`model.onnx` takes any number of images to {shapes}.

## Use

`images` are float32 [B, 3, {size}, {size}], RGB in 0..1, less the mean {mean}, divided by {std}.

{use}
## Data

{dataset} ({source}): {counts[train]:,} training images, of which {counts[validation]:,} are for validation, and
{counts[test]:,} test images, {classes}. sha256 of pixels and labels: `{checksum}`.

## Objective

Options of its method: {options}. From the method's own file, which names pages of Engram:

```text
{objective}
```

## Parameters

{parameters}

## Figures

{figures}

## Limits

- This is one training with one seed. The figures do not tell how another seed would do.
- Its images were {size} x {size} pixels, of one data set. Nothing here tells how it does on other images or sizes.
- Latents keep what images and augmentation favor, their biases too. They are made for research on representations, not
  for decisions about people.

## License

The code is under the MIT license. Terms of the images may bind the weights: see to them before you pass these on.
"""


def model_card(method: Method, about: Mapping[str, Any], torchvision_names: bool, measured: str) -> str:
    """Markdown. ``about`` is the record kept with the encoder; ``measured`` is what `figures` returned."""
    data, params, encoder = about["data"], about["pretraining"], method.encoder
    latents = method.latents(fixed_images(method.params.image_size))
    head: dict[str, Any] = {"tags": ["engram", about["method"]], "pipeline_tag": "image-feature-extraction"}
    head |= {"library_name": "timm"} if torchvision_names else {}
    use = ONNX.format(outputs=", ".join(latents))
    if torchvision_names:
        name, first = next(iter(latents.items()))
        whole = pool(encoder(fixed_images(method.params.image_size)))
        same = first.shape == whole.shape and torch.allclose(first, whole, atol=1e-5)
        features = f"the latent `{name}`" if same else "the mean of the whole map, which is none of the latents"
        use = RESNET.format(architecture=encoder.name, features=features) + use
    options = ", ".join(f"{key}: {value}" for key, value in params["options"].items())
    rest = {key: value for key, value in params.items() if key not in ("variant", "options")}
    return CARD.format(
        head=yaml.safe_dump(head),
        variant=about["variant"],
        encoder=encoder.name,
        method=about["method"],
        count=about["parameters"]["encoder"],
        trained=f"trained with{'' if about['supervised'] else 'out'} labels" if params["epochs"] else "**not trained**",
        names=", by torchvision's names" if torchvision_names else f" for Engram's own network `{encoder.name}` alone",
        shapes=", ".join(f"`{latent}` [B, {values.shape[1]}]" for latent, values in latents.items()),
        size=method.params.image_size,
        mean=", ".join(f"{value:.4f}" for value in data["mean"]),
        std=", ".join(f"{value:.4f}" for value in data["std"]),
        use=use,
        dataset=data["dataset"],
        source=data["source"],
        counts=data["counts"],
        classes=f"of {len(data['classes'])} classes" if data["classes"] else "without labels",
        checksum=data["checksum"],
        objective=str(sys.modules[type(method).__module__].__doc__).strip(),
        options=options or "none",
        parameters=_table(rest | {f"{name} (version)": version for name, version in about["versions"].items()}),
        figures=measured,
    )


def figures(variant: str) -> str:
    """What the stages linear and memory measured, as a table, where dvc.lock says that it was on these weights."""
    rows: dict[str, Any] = {}
    protocols = []
    for stage, (metrics, record, protocol) in STAGES.items():
        files = [Path(name.format(variant)) for name in (metrics, record)]
        if as_locked(f"{stage}@{variant}", (encoder_file(variant), *files)):
            measured = read_json(files[0])
            left_out = measured.pop(LEFT_OUT, None)
            rows |= flat(measured)
            protocols.append(f"Left out: {left_out}." if left_out else protocol.format(**read_json(files[1])))
        else:
            protocols.append(f"What {stage} measures is not known of these weights: dvc repro {stage}@{variant}.")
    return "\n\n".join([*[_table(rows)] * bool(rows), *protocols])


def _table(values: Mapping[str, Any]) -> str:
    """Of names and values, those of blocks by name.key; what is None is left out."""
    lines = [f"| {name} | {value} |" for name, value in flat(values) if value is not None]
    return "\n".join(["| | |", "|---|---:|", *lines])
