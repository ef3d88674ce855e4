"""Made-up latents, galleries and images, of which the memory's bits are known."""

import torch

from lib.evaluate.bits import LatentMemory
from lib.evaluate.galleries import Galleries
from tests.examples import normal

MEAN, STD = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.3])


def toy_galleries(classes: int = 4, size: int = 16, seed: int = 0) -> Galleries:
    """Two galleries of ``size`` images for each class, image k of the test split at place k, look-alikes at random."""
    count, stream = 2 * classes * size, torch.Generator().manual_seed(seed)
    order = [torch.rand(size, size, generator=stream).fill_diagonal_(2).argsort(1, descending=True)[:, 1:]]
    order += [torch.rand(size, size, generator=stream).fill_diagonal_(2).argsort(1, descending=True)[:, 1:]]
    return Galleries(
        images=torch.arange(count),
        labels=torch.arange(classes).repeat_interleave(2 * size),
        half=torch.arange(2).repeat_interleave(size).repeat(classes),
        blocks=[slice(start, start + size) for start in range(0, count, size)],
        look_alikes=[order[number % 2] for number in range(2 * classes)],
        near_duplicates={},
    )


def measured(store, store_labels, test, cued, galleries, further=(), kind="toy", **options) -> LatentMemory:
    memory = LatentMemory(store, store_labels, test, galleries, **options)
    for each in (cued, *further):
        memory.read(kind, each)
    return memory


def e_and_c(*inputs, **options) -> tuple[float, float]:
    numbers = measured(*inputs, **options).numbers("toy")
    return numbers["episode_bits"], numbers["concept_bits"]


def clusters(galleries: Galleries, within: float = 1.0, noise: float = 0.4, stored: int = 40, seed: int = 0):
    """Latents of classes that differ in some units, of images in others: store and labels, test, cues.

    Differences between images are ``within`` times as large as drawn; cues are off by ``noise``.
    """
    classes = int(galleries.labels.max()) + 1
    width = 12
    centers = 2 * normal(classes, width, seed=seed)
    store_labels = torch.arange(stored * classes) % classes
    store = torch.cat([centers[store_labels], within * normal(len(store_labels), width, seed=seed + 1)], 1)
    count = len(galleries.labels)
    test = torch.cat([centers[galleries.labels], within * normal(count, width, seed=seed + 2)], 1)
    return store, store_labels, test, test + noise * normal(count, 2 * width, seed=seed + 3)


def some_images(count: int = 6, size: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
