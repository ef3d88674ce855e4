"""Cues: degraded images by which a memory is asked for what it holds, the same for every variant.

A kind is a family and an amount, such as ``occlusion_25``. What is random in a cue depends on the image's index in its
split, the family and the draw alone: neither on a variant nor on which other images are asked for.

B images of S x S pixels.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from lib.params.pretraining import Augment
from lib.runtime.seeds import generator
from lib.views.augment import augment as augmented
from lib.views.augment import draw, normalize

TRAINED = "trained"  # the family of augmentations that training used
UNSEEN = ("occlusion_25", "occlusion_50", "rotation_15", "shift_4", "noise_0.1")  # no variant trains on these
OCCLUSIONS = (0.0, 12.5, 25.0, 37.5, 50.0, 62.5, 75.0)  # percent of the image, of the curve
CURVE = tuple(f"occlusion_{share:g}" for share in OCCLUSIONS)
DIRECTIONS = torch.tensor([[0, 1], [1, 0], [0, -1], [-1, 0]])
SEED = 0  # fixed: another training seed must not move what variants are compared on
BATCH = 512  # images


def cues(
    kind: str,
    images: Tensor,
    indices: Tensor,
    config: Augment,
    mean: Tensor,
    std: Tensor,
    number: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[Tensor]:
    """Batches of normalized views, float32 [b, 3, S, S] on ``device``: the cues of ``images[indices]``, in that order.

    Args:
        kind: `TRAINED`, or one of `UNSEEN` and `CURVE`, or another amount of these families.
        images: uint8 [N, 3, S, S], a whole split; indices: int64 [K] of it.
        config: what `TRAINED` draws from; squares that are cut out and not resized count as resized crops.
        mean, std: [3], of pixels in 0..1.
        number: of the draw; every draw is another cue of the same image.
    """
    family, _, amount = kind.partition("_")
    count, _, size, _ = images.shape
    stream = generator(SEED, f"cue {family}", number)
    mean, std = mean.to(device), std.to(device)
    if family == TRAINED:
        params = draw(replace(config, crop_pixels=0), stream, count, size, size)
    table = torch.rand(count, 2, generator=stream)
    for batch in indices.split(BATCH):
        pixels, chance = images[batch].to(device), table[batch].to(device)
        if family == TRAINED:
            yield augmented(pixels, params.rows(batch), mean, std)
            continue
        views = normalize(pixels, mean, std)
        if family == "occlusion":
            yield occlude(views, chance, float(amount) / 100)
        elif family == "rotation":
            yield rotate(views, torch.where(chance[:, 0] < 0.5, -float(amount), float(amount)))
        elif family == "shift":
            yield shift(views, int(amount) * DIRECTIONS.to(device)[(4 * chance[:, 0]).long()])
        elif family == "noise":
            # a stream for each image: one for all would depend on how many come before
            noise = [torch.randn(3, size, size, generator=generator(SEED, kind, number, i)) for i in batch.tolist()]
            yield views + float(amount) * torch.stack(noise).to(device) / std[:, None, None]
        else:
            raise ValueError(f"no kind of cue {kind!r}")


def occlude(views: Tensor, place: Tensor, share: float) -> Tensor:
    """Hide a square that covers exactly ``share`` of each view [B, 3, S, S] behind the training mean, which is 0.

    ``place`` [B, 2], in 0..1: where its upper left corner is, from one end of what is possible to the other. Pixels
    under its lower and right edge are hidden in part, where its side is no whole number.
    """
    size = views.shape[-1]
    side = size * share**0.5
    start = (place * (int(size - side) + 1)).floor()[:, :, None]  # [B, 2, 1]
    pixel = torch.arange(size, device=views.device)
    covered = ((pixel + 1).minimum(start + side) - pixel.maximum(start)).clamp(0, 1)  # [B, 2, S]
    return views * (1 - covered[:, 0, :, None] * covered[:, 1, None, :])[:, None]


def rotate(views: Tensor, degrees: Tensor) -> Tensor:
    """Views [B, 3, S, S] turned counterclockwise by ``degrees`` [B], bilinear; beyond the edges they are mirrored."""
    angle = degrees.deg2rad()
    cosine, sine, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    matrix = torch.stack([cosine, -sine, zero, sine, cosine, zero], 1).view(-1, 2, 3)
    grid = functional.affine_grid(matrix, list(views.shape), align_corners=False)
    return functional.grid_sample(views, grid, padding_mode="reflection", align_corners=False)


def shift(views: Tensor, pixels: Tensor) -> Tensor:
    """Views [B, 3, S, S] moved down and to the right by ``pixels`` int64 [B, 2]; the edges are filled by mirroring."""
    size = views.shape[-1]
    source = torch.arange(size, device=views.device) - pixels[:, :, None]  # [B, 2, S]
    source = size - 1 - (size - 1 - source.abs()).abs()
    down, across = source[:, 0, None, :, None], source[:, 1, None, None, :]
    moved = views.gather(2, down.expand(-1, 3, -1, size))
    return moved.gather(3, across.expand(-1, 3, size, -1))
