"""Which test images compete in a memory, and how alike they look; the same for all variants.

Legend: K images, M of them in a gallery, P pixel values of an image.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lib.runtime.chunks import chunks
from lib.runtime.errors import UserError
from lib.runtime.seeds import generator

MOST = 500  # images of a gallery
NEAR_DUPLICATE = 0.99  # correlation of pixels
SEED = 0  # fixed: another training seed must not move what is reported
REDUCED = 8  # blocks of pixels across an image, for a first look at near-duplicates
ROUNDING = 1e-5
CROWDED = 64  # possible near-duplicates of an image, from which on a product of all is faster than one by one


@dataclass(frozen=True)
class Galleries:
    """Test images by class and half: a gallery is one half of one class, and a cue's image competes with the others.

    Attributes:
        images: int64 [K], of the test split, gallery by gallery: class 0's two, class 1's two, and so on.
        labels: int64 [K].
        half: int64 [K], 0 or 1.
        blocks: the slices of the K that are galleries; both halves of a class have the same size.
        look_alikes: for each block int64 [M, M - 1], positions in it of the other images, by falling similarity.
        near_duplicates: test images left out because another one, or a training image, is nearly the same.
    """

    images: Tensor
    labels: Tensor
    half: Tensor
    blocks: list[slice]
    look_alikes: list[Tensor]
    near_duplicates: dict[str, int]

    @property
    def sizes(self) -> Tensor:
        """int64 [K]: of the gallery that an image is in."""
        return torch.cat([torch.full((block.stop - block.start,), block.stop - block.start) for block in self.blocks])


def make_galleries(
    train_images: Tensor, train_labels: Tensor, test_images: Tensor, test_labels: Tensor, most: int = MOST
) -> Galleries:
    """Two galleries of every class, of at most ``most`` images, drawn by a seed of their own without near-duplicates.

    Images uint8 [N, 3, S, S]. Of near-duplicates in the test split the first stays; an image like a training image
    goes, and so does one of a class that training does not have. A UserError says that no class has two images.
    """
    repeated = near_duplicates(test_images)
    stored = near_duplicates(test_images, train_images)
    kept = ~(repeated | stored) & torch.isin(test_labels, train_labels)
    images, blocks, start = [], [], 0
    for label in test_labels.unique().tolist():
        members = torch.nonzero(kept & (test_labels == label)).flatten()
        order = torch.randperm(len(members), generator=generator(SEED, "memory galleries", label))
        size = min(most, len(members) // 2)
        for half in range(2 if size else 0):
            images.append(members[order[half * size : (half + 1) * size]].sort().values)
            blocks.append(slice(start, start + size))
            start += size
    if not images:
        raise UserError("no class has two test images that differ, which a memory is measured on; give more of them")
    chosen = torch.cat(images)
    halves = torch.cat([torch.full((len(part),), number % 2) for number, part in enumerate(images)])
    return Galleries(
        images=chosen,
        labels=test_labels[chosen],
        half=halves,
        blocks=blocks,
        look_alikes=[look_alikes(test_images[part]) for part in images],
        near_duplicates={"test": int(repeated.sum()), "train": int((stored & ~repeated).sum())},
    )


def look_alikes(images: Tensor) -> Tensor:
    """Of each of M images the others, from the most correlated pixels to the least: int64 [M, M - 1]."""
    pixels = unit_pixels(images)
    similarity = pixels @ pixels.T
    similarity.fill_diagonal_(torch.inf)
    return similarity.argsort(dim=1, descending=True, stable=True)[:, 1:]


def unit_pixels(images: Tensor) -> Tensor:
    """Centered and L2-normalized pixels of each image, whose dot product is their correlation: float32 [M, P]."""
    pixels = images.flatten(1).float()
    return functional.normalize(pixels - pixels.mean(1, keepdim=True))


def near_duplicates(images: Tensor, others: Tensor | None = None) -> Tensor:
    """Which images have pixels that correlate above `NEAR_DUPLICATE` with one of ``others``: bool [N].

    Without ``others``: with one of the images before them.
    """
    # Unit vectors u and v that correlate above r are less than 2 (1 - r) apart, squared, and so are their projections
    # onto any directions, such as means over blocks: most pairs are told apart by these few numbers.
    before = others is None
    others = images if others is None else others
    rows, columns = _reduced(images), _reduced(others)
    rows = torch.cat([rows, rows.square().sum(1, keepdim=True) / -2, torch.ones(len(rows), 1)], 1)
    columns = torch.cat([columns, torch.ones(len(columns), 1), columns.square().sum(1, keepdim=True) / -2], 1)
    found = torch.zeros(len(images), dtype=torch.bool)
    for part in chunks(len(rows), len(columns)):
        close = rows[part] @ columns.T > NEAR_DUPLICATE - 1 - ROUNDING  # minus half the squared distance
        if before:
            close = close.tril(part.start - 1)
        count = int(close.sum())
        if count > CROWDED * len(close):
            _compare_all(images[part], others, part.start if before else None, found[part])
        elif count:
            for pairs in close.nonzero().split(1024):
                first, second = unit_pixels(images[part][pairs[:, 0]]), unit_pixels(others[pairs[:, 1]])
                found[part][pairs[(first * second).sum(1) > NEAR_DUPLICATE, 0]] = True
    return found


def _compare_all(images: Tensor, others: Tensor, start: int | None, found: Tensor) -> None:
    pixels = unit_pixels(images)
    for part in chunks(len(others), others[0].numel()):
        close = pixels @ unit_pixels(others[part]).T > NEAR_DUPLICATE
        found |= (close if start is None else close.tril(start - part.start - 1)).any(1)


def _reduced(images: Tensor) -> Tensor:
    """A projection of `unit_pixels` onto orthonormal directions: means over blocks, as long as what they stand for."""
    side = images.shape[-1] // REDUCED
    used = REDUCED * side
    parts = []
    for part in chunks(len(images), images[0].numel()):
        pixels = unit_pixels(images[part]).view(images[part].shape)[:, :, :used, :used]
        parts.append(functional.avg_pool2d(pixels, side).flatten(1) * side)
    return torch.cat(parts)
