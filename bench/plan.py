"""What is measured, of which size, and the ratios that are aimed at."""

from dataclasses import dataclass, field, replace
from typing import Any

from bench.systems import system_params

SECTIONS = {
    "ceiling": "The machine's ceiling",
    "data": "Data path alone",
    "step": "Whole SimCLR step",
    "parts": "What each part of the step gives",
    "systems": "A step of every system",
    "memory": "Memory, and NT-Xent in tiles",
    "embed": "Embedding and nearest neighbours",
    "probe": "Linear probe",
    "tsne": "t-SNE",
    "pipeline": "The whole pipeline",
    "accuracy": "Time to accuracy",
}
NAMES = {
    "ours": "ours",
    "leftthomas": "leftthomas/SimCLR recipe",
    "with_lightly": "lightly",
    "with_kornia": "kornia",
    "with_scikit": "scikit-learn, all threads",
    "ceiling": "matrix products",
    "systems": "ours",
}
PARTS = {
    "parts.fp32": "in fp32",
    "parts.contiguous": "not channels last",
    "parts.one_by_one": "augmented one by one",
    "parts.plain_convolutions": "torch's own convolutions",
    "parts.in_turn": "views in turn",
    "parts.memory_given_back": "freed memory given back",
    "parts.plain_adam": "Adam not fused",
    "parts.one_forward": "both views in one forward (another training)",
    "parts.compiled": "encoder compiled, views in turn",
    "parts.side_by_side": "a training on each processor",
}
CUDA_SECTIONS = ("ceiling", "step", "systems", "accuracy")
CUDA_PARTS = ("parts.started_singly", "parts.compiled")
OTHERS = {
    "parts.started_singly": "kernels started one by one",
    "parts.whole_matrix": "the whole matrix at once",
    "systems.plain_convolutions": "torch's own convolutions",
    "parts.convolutions": "ours, its convolutions alone",
    "pipeline.side_by_side": "variants side by side",
    "pipeline.in_turn": "one stage after the other",
}
PEERS = ("leftthomas", "with_lightly")  # those with a data loader and workers
ACCURACY_TARGET = 4.0


@dataclass(frozen=True)
class Sizes:
    """How large the stand-ins are and how long is measured: batches and images in pictures, times in seconds."""

    train: int = 50_000
    test: int = 10_000
    data_batch: int = 256
    step_batches: tuple[int, int, int] = (256, 128, 64)  # small, resnet18, resnet50
    points: tuple[int, ...] = (5_000, 10_000)
    iterations: int = 1_000
    rows: tuple[int, ...] = (512, 4_096, 16_384)  # of NT-Xent's matrix, where it can be held whole
    most_rows: int = 65_536
    large_batch: tuple[int, int] = (4_096, 128)  # ResNet-18's, and its micro-batches
    demo: tuple[str, ...] = ()  # changes to the preset of that name
    systems: tuple[int, int | None] = (50_000, None)  # training images; batch, None: each system's own
    patch_channels: int = 128  # of VGG-6's first layer, as published; the preset has a quarter
    squares: tuple[int, ...] = (1024, 2048, 4096)
    warm: float = 8.0
    seconds: float = 20.0
    least: int = 3
    sweep_seconds: float = 8.0
    cuda: bool = False
    whole_device: tuple[tuple[str, int], ...] = ()  # encoders, and batches that keep a GPU busy


FULL = Sizes()
CUDA = replace(
    FULL,
    squares=(4096, 8192),
    warm=2.0,
    seconds=4.0,
    sweep_seconds=2.0,
    cuda=True,
    whole_device=(("resnet18", 512), ("resnet50", 512)),
)
QUICK = Sizes(
    train=400,
    test=100,
    data_batch=32,
    step_batches=(8, 4, 4),
    points=(100, 200),
    iterations=250,
    rows=(16,),
    most_rows=32,
    large_batch=(8, 4),
    systems=(4_096, 64),
    patch_channels=32,
    squares=(128,),
    demo=("epochs=1", "linear.epochs=2", "tsne.iterations=250"),
    warm=0.0,
    seconds=0.1,
    least=1,
    sweep_seconds=0.0,
)


@dataclass(frozen=True)
class Row:
    """One comparison. ``arms`` are ``module.function`` of this folder, ours first; ``targets`` by arm."""

    section: str
    name: str
    unit: str
    arms: tuple[str, ...]
    settings: dict[str, Any]
    images: int = 0  # images that one unit of work takes, where images per second say something
    targets: dict[str, float] = field(default_factory=dict)


def rows(sizes: Sizes, sections: list[str]) -> list[Row]:
    """The rows of the chosen sections, in the order of `SECTIONS`; accuracy, which is run apart, has none."""
    return [
        row
        for section in SECTIONS
        if section in sections and section in _SECTION_ROWS
        for row in _SECTION_ROWS[section](sizes)
    ]


def _common(sizes: Sizes, encoder: str, batch: int) -> dict[str, Any]:
    return {
        "train": sizes.train,
        "test": sizes.test,
        "encoder": encoder,
        "batch": batch,
        "warm": sizes.warm,
        "seconds": sizes.seconds,
        "least": sizes.least,
    }


def _ceiling(sizes: Sizes) -> list[Row]:
    settings = {
        "sizes": sizes.squares,
        "warm": 0.5 if sizes.warm else 0.0,
        "seconds": 2.0 if sizes.warm else 0.0,
        "least": sizes.least,
    }
    return [Row("ceiling", "square matrix products", "TFLOP/s", ("ceiling.measure",), settings)]


def _data(sizes: Sizes) -> list[Row]:
    batch = sizes.data_batch
    return [
        Row(
            "data",
            f"two views of {batch} images",
            "one batch",
            ("ours.data", "leftthomas.data", "with_lightly.data", "with_kornia.data"),
            _common(sizes, "small", batch),
            batch,
            {"leftthomas.data": 10.0, "with_kornia.data": 4.0},
        )
    ]


def _step(sizes: Sizes) -> list[Row]:
    goals = {"small": 2.8, "resnet18": 3.0, "resnet50": 2.5}
    arms = ("ours.step", "leftthomas.step", "with_lightly.step", CUDA_PARTS[0] if sizes.cuda else "parts.convolutions")
    beside = [
        Row(
            "step",
            f"{encoder}, batch {batch}",
            "one step",
            arms,
            _common(sizes, encoder, batch),
            batch,
            {f"{peer}.step": goal for peer in PEERS},
        )
        for (encoder, goal), batch in zip(goals.items(), sizes.step_batches, strict=True)
    ]
    alone = [
        Row(
            "step",
            f"{encoder}, batch {batch}",
            "one step",
            ("ours.step", *CUDA_PARTS),
            _common(sizes, encoder, batch),
            batch,
        )
        for encoder, batch in sizes.whole_device
    ]
    return [*beside, *alone]


def _parts(sizes: Sizes) -> list[Row]:
    simclr = [
        Row(
            "parts",
            f"{encoder}, batch {batch}",
            "one step",
            ("ours.step", *PARTS),
            _common(sizes, encoder, batch),
            batch,
        )
        for encoder, batch in zip(("small", "resnet18"), sizes.step_batches)
    ]
    (train, given), channels = sizes.systems, sizes.patch_channels
    batch = given or system_params()["cpc"].batch_size
    settings = {
        "variant": "cpc",
        "options": {"channels": channels},
        "train": train,
        "test": sizes.test,
        "batch": batch,
        "warm": sizes.warm / 4,
        "seconds": sizes.seconds / 4,
        "least": sizes.least,
    }
    return [
        *simclr,
        Row(
            "parts",
            f"cpc, VGG-6 from {channels} channels, batch {batch}",
            "one step",
            ("systems.system", "systems.plain_convolutions"),
            settings,
            batch,
        ),
    ]


def _systems(sizes: Sizes) -> list[Row]:
    times = {"warm": sizes.warm / 4, "seconds": sizes.seconds / 4, "least": sizes.least}
    train, given = sizes.systems
    batches = {variant: given or params.batch_size for variant, params in system_params().items()}
    return [
        Row(
            "systems",
            variant,
            "one step",
            ("systems.system",),
            {"variant": variant, "train": train, "test": sizes.test, "batch": batch, **times},
            batch,
        )
        for variant, batch in batches.items()
    ]


def _memory(sizes: Sizes) -> list[Row]:
    times = {"warm": sizes.warm / 4, "seconds": sizes.seconds / 4, "least": sizes.least}
    losses = [
        Row(
            "memory",
            f"NT-Xent and its gradient, 2N = {rows:,}, D = 128",
            "one loss",
            ("ours.nt_xent", "parts.whole_matrix"),
            {"rows": rows, **times},
        )
        for rows in sizes.rows
    ]
    most = Row(
        "memory",
        f"NT-Xent and its gradient, 2N = {sizes.most_rows:,}, D = 128",
        "one loss",
        ("ours.nt_xent_once",),
        {"rows": sizes.most_rows},
    )
    batch, part = sizes.large_batch
    large = Row(
        "memory",
        f"resnet18, batch {batch:,} in micro-batches of {part}",
        "one step",
        ("ours.large_batch",),
        {**_common(sizes, "resnet18", batch), "micro_batch_size": part},
        batch,
    )
    return [*losses, most, large]


def _embed(sizes: Sizes) -> list[Row]:
    count = sizes.train + sizes.test
    return [
        Row(
            "embed",
            f"{count:,} images, small encoder; kNN of {sizes.test:,} among {sizes.train:,}",
            "the whole",
            ("ours.embed", "leftthomas.embed"),
            _common(sizes, "small", sizes.data_batch),
            count,
        )
    ]


def _probe(sizes: Sizes) -> list[Row]:
    return [
        Row(
            "probe",
            f"from {sizes.train:,} images to test scores, small encoder",
            "the whole",
            ("ours.probe", "leftthomas.probe"),
            _common(sizes, "small", sizes.data_batch),
        )
    ]


def _tsne(sizes: Sizes) -> list[Row]:
    return [
        Row(
            "tsne",
            f"{points:,} points of 512 features, {sizes.iterations} iterations",
            "the whole",
            ("ours.tsne", "with_scikit.tsne"),
            {"points": points, "width": 512, "iterations": sizes.iterations},
        )
        for points in sizes.points
    ]


def _pipeline(sizes: Sizes) -> list[Row]:
    settings = {"preset": "demo", "changes": sizes.demo}
    changed = f", {', '.join(sizes.demo)}" if sizes.demo else ""
    return [
        Row(
            "pipeline",
            f"preset demo{changed}, from nothing to the table",
            "the whole",
            ("pipeline.side_by_side", "pipeline.in_turn"),
            settings,
            targets={"pipeline.in_turn": 1.0},
        )
    ]


def name_of(arm: str) -> str:
    """What readers call an arm."""
    return {**PARTS, **OTHERS}.get(arm) or NAMES[arm.split(".")[0]]


_SECTION_ROWS = {
    "ceiling": _ceiling,
    "data": _data,
    "step": _step,
    "parts": _parts,
    "systems": _systems,
    "memory": _memory,
    "embed": _embed,
    "probe": _probe,
    "tsne": _tsne,
    "pipeline": _pipeline,
}


def worker_counts(processors: int) -> list[int]:
    """The data loader's workers that are tried: none, one, one for each processor, two for each; at most 16."""
    return sorted({0, 1, min(16, processors), min(16, 2 * processors)})


def sweep_of(arm: str, settings: dict[str, Any], sizes: Sizes) -> tuple[str, dict[str, Any]] | None:
    """The short measurement that decides an arm's workers: of its step, or of its data path; None without workers."""
    module, function = arm.split(".")
    if module not in PEERS:
        return None
    decides = f"{module}.step" if function == "step" else f"{module}.data"
    # a step's workers depend on the encoder and the batch; a loader's own speed on neither
    encoder, batch = (settings["encoder"], settings["batch"]) if function == "step" else ("small", sizes.data_batch)
    times = {"warm": sizes.sweep_seconds, "seconds": sizes.sweep_seconds, "least": min(2, sizes.least)}
    return decides, {**_common(sizes, encoder, batch), **times}
