"""Everything that the memory stage measures of one trained method: episode and concept bits, by latent and cue."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from lib.data.store import ImageData
from lib.evaluate.bits import LatentMemory
from lib.evaluate.codes import is_binary
from lib.evaluate.cues import CURVE, OCCLUSIONS, TRAINED, UNSEEN, cues
from lib.evaluate.features import embed_views, extract_with_projections, latent_names, one_latent, without_logits
from lib.evaluate.galleries import Galleries, make_galleries
from lib.evaluate.record import LEFT_OUT, origin, write_measured
from lib.evaluate.willshaw import recalls
from lib.methods.base import Method, Named
from lib.params.evaluation import Memory
from lib.params.pretraining import Augment
from lib.runtime.machine import Machine
from lib.runtime.progress import StepProgress

UNSEEN_CUES = 2000  # images that are asked for their class by cues that no variant trains on: it costs most
SHORT = ("episode_bits", "concept_bits")


@dataclass(frozen=True)
class MemoryEvaluation:
    """``metrics``: a few bits of the main latent. ``record``: everything, as plain values. ``arrays``: per image."""

    metrics: dict[str, Any]
    record: dict[str, Any]
    arrays: dict[str, Tensor]


def measure_memory(
    method: Method, about: dict[str, Any], data: ImageData, augment: Augment, memory: Memory, machine: Machine
) -> MemoryEvaluation:
    """Store training images, and read cues of test images from every latent and projection.

    ``augment`` is the shared block of params.yaml, so that all variants meet the same cues, and ``about`` the record
    kept with the trained method. A UserError says that no class has two test images. Without labels all images are of
    one class, and of episodes alone.
    """
    data = _in_classes(data)
    galleries = make_galleries(data.train_images, data.train_labels, data.test_images, data.test_labels)
    label, supervised = about["variant"], about["supervised"]
    latents, projections = measure_galleries(method, data, galleries, augment, memory, machine, label, supervised)
    main, z = next(iter(latents)), next(iter(projections), None)
    record = {
        **_record(about, data, galleries, memory),
        "main": main,
        "latents": {name: _latent_record(measured) for name, measured in latents.items()},
        "projections": {name: _latent_record(measured) for name, measured in projections.items()},
    }
    metrics = _metrics(record["latents"][main], record["projections"].get(z))
    if not data.classes:
        metrics |= {LEFT_OUT: "concept bits, because the images have no labels"}
    return MemoryEvaluation(metrics, record, _arrays(latents[main].plain, galleries))


def _in_classes(data: ImageData) -> ImageData:
    """Without labels all images are of one class."""
    labels = {name: getattr(data, name).clamp(min=0) for name in ("train_labels", "test_labels")}
    return data if data.classes else replace(data, **labels)


def write_memory(evaluation: MemoryEvaluation, metrics: Path, record: Path) -> None:
    """Write the metrics, and ``record`` with the suffixes .json and .npz."""
    write_measured(evaluation.metrics, evaluation.record, evaluation.arrays, metrics, record)


@dataclass(frozen=True)
class Measured:
    """One latent: its memory, the same in the whitened metric (not of a code), and what a Willshaw memory recalls."""

    plain: LatentMemory
    whitened: LatentMemory | None
    width: int
    willshaw: list[dict[str, Any]] | None


def measure_galleries(
    method: Method,
    data: ImageData,
    galleries: Galleries,
    augment: Augment,
    memory: Memory,
    machine: Machine,
    label: str = "memory",
    supervised: bool = False,
) -> tuple[dict[str, Measured], dict[str, Measured]]:
    """Every latent and every projection by name. Projections, and the whitened control, meet the trained cues alone.

    The cues' latents exist for one draw of one kind at a time.
    """
    print(f"{label}: latents of {len(data.train_images)} training and {len(data.test_images)} test images", flush=True)
    splits = data.train_images, data.test_images
    train, test = (
        extract_with_projections(method, images, data.mean, data.std, machine, title=f"{label}: latents")
        for images in splits
    )

    def measured(kind: str, name: str) -> Measured:
        store, images = partial(one_latent, train[kind], name), one_latent(test[kind], name)
        binary, inputs = is_binary(images), (store, data.train_labels, images, galleries)
        has_control = kind == "latents" and not binary
        return Measured(
            LatentMemory(*inputs, device=machine.device),
            LatentMemory(*inputs, whitened=True, device=machine.device) if has_control else None,
            images.shape[1],
            recalls(images) if binary else None,
        )

    latents = {name: measured("latents", name) for name in latent_names(train["latents"], method.halves)}
    shown = without_logits(train["projections"], supervised, len(data.classes))
    projections = {name: measured("projections", name) for name in shown}
    others = (*UNSEEN, *(kind for kind in CURVE if kind not in UNSEEN))
    asked = [*((TRAINED, number) for number in range(memory.draws)), *((kind, 0) for kind in others)]
    with StepProgress(f"{label}: cues", len(asked)) as progress:
        for kind, number in asked:
            views = cues(kind, data.test_images, galleries.images, augment, data.mean, data.std, number, machine.device)
            if kind == CURVE[0]:  # nothing is hidden, so that these latents are at hand
                found = {"latents": {name: rows[galleries.images] for name, rows in test["latents"].items()}}
            else:
                found = embed_views(method, views, len(galleries.images), machine, project=kind == TRAINED)
            for name, each in latents.items():
                units = one_latent(found["latents"], name)
                each.plain.read(kind, units, None if kind == TRAINED else UNSEEN_CUES)
                if each.whitened and kind == TRAINED:
                    each.whitened.read(kind, units)
            for name, each in projections.items() if kind == TRAINED else ():
                each.plain.read(kind, found["projections"][name])
            progress.advance()
    return latents, projections


def _latent_record(measured: Measured) -> dict[str, Any]:
    plain, whitened = measured.plain, measured.whitened
    record: dict[str, Any] = {
        "width": measured.width,
        "cues": {kind: plain.numbers(kind) for kind in plain.readings},
        "variance": plain.readings[TRAINED].variance,
        "whitened": whitened.numbers(TRAINED) if whitened else None,
        "willshaw": measured.willshaw,
    }
    if set(CURVE) <= plain.readings.keys():
        record["occlusion"] = [
            {"percent": share, **_short(record["cues"][kind])} for share, kind in zip(OCCLUSIONS, CURVE)
        ]
    return {key: value for key, value in record.items() if value is not None}


def _metrics(main: dict[str, Any], z: dict[str, Any] | None) -> dict[str, Any]:
    """Episode and concept bits of the main latent, under the trained cues first; of its projection; whitened."""
    trained = main["cues"][TRAINED]
    others = {kind: main["cues"][kind] for kind in UNSEEN}
    others |= {"whitened": main["whitened"]} if "whitened" in main else {}
    others |= {"z": z["cues"][TRAINED]} if z else {}
    return {
        **{key: trained[key] for key in (*SHORT, "recall21") if key in trained},
        **{name: _short(numbers) for name, numbers in others.items()},
    }


def _short(numbers: dict[str, Any]) -> dict[str, Any]:
    return {key: numbers[key] for key in SHORT if key in numbers}


def _arrays(memory: LatentMemory, galleries: Galleries) -> dict[str, Tensor]:
    """Bits of each image, float32 [K], nan where it was not asked for its class; ``images``: rows of the test split."""
    bits = {
        f"{question}_{kind}": values.float()
        for kind in (TRAINED, *UNSEEN)
        for question, values in memory.bits(kind).items()
    }
    arrays = {"images": galleries.images, "labels": galleries.labels, "half": galleries.half, **bits}
    return {name: values for name, values in arrays.items() if values.dim()}  # concept bits have none without labels


def _record(about: dict[str, Any], data: ImageData, galleries: Galleries, memory: Memory) -> dict[str, Any]:
    """What was measured on; what the numbers mean is in docs/reading-the-table.md."""
    sizes, shares = galleries.sizes, data.train_labels.bincount() / len(data.train_labels)
    return {
        **origin(about, data),
        "images": {"stored": len(data.train_labels), "test": len(data.test_labels), "cued": len(sizes)},
        "near_duplicates": galleries.near_duplicates,
        "gallery": {"smallest": int(sizes.min()), "largest": int(sizes.max())},
        "possible": {
            "episode_bits": round(sizes.double().log2().mean().item(), 4),
            **({"concept_bits": round(_entropy(shares[galleries.labels]), 4)} if data.classes else {}),
        },
        "draws": memory.draws,
    }


def _entropy(shares: Tensor) -> float:
    """Bits that would be won by naming each image's class, whose share of the store is given, for certain."""
    return -shares.double().log2().mean().item()


def pixel_landmark(data: ImageData, augment: Augment, memory: Memory, machine: Machine) -> dict[str, Any]:
    """What a variant's record holds of a latent, of images reduced to 8x8 pixels: no floor, but where pixels stand."""
    pixels: Any = Pixels()
    data = _in_classes(data)
    galleries = make_galleries(data.train_images, data.train_labels, data.test_images, data.test_labels)
    latents, _ = measure_galleries(pixels, data, galleries, augment, memory, machine, "8x8 pixels")
    return _latent_record(latents["pixels"])


class Pixels(nn.Module):
    """A landmark in place of a method: its latent is the image itself, reduced to 8x8 pixels."""

    halves = False

    def latents(self, images: Tensor) -> Named:
        return {"pixels": pixels_8x8(images)}

    def project(self, latents: Named) -> Named:
        return {}


def pixels_8x8(images: Tensor) -> Tensor:
    """Means over blocks: [N, 3, S, S] -> float32 [N, 192]."""
    return functional.adaptive_avg_pool2d(images.float(), 8).flatten(1)
