"""What is random in a view: one row of numbers for each image, drawn on the CPU before any pixel is touched.

Nothing here or in `lib.views.augment` makes the host wait for a GPU: which images are jittered, in which order, which
turn gray is settled in numbers, and every image goes through the same operations, some of which change nothing.

B images of H x W pixels, views of h x w; four color operations, in four slots of time.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lib.params.pretraining import Augment
from lib.runtime.seeds import send
from lib.views.blur import SIGMA
from lib.views.crop import positions

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
UNCHANGED = (1.0, 0.0, 0.0)  # weights of a blend: all of the image, nothing gray
CROP_TRIES = 10
RATIO = (3 / 4, 4 / 3)
# torchvision's threshold of 128 for whole gray levels lies between 127 and 128; here the inversion has no jump at it
SOLARIZED, NOT_SOLARIZED = 0.5, 2.0


@dataclass(frozen=True)
class PackedParams:
    """The parameters of B views in one table, so that one copy brings them to a device.

    Attributes:
        numbers: float32 [B, h + w + 20]: where the view's rows and columns look in the source, the weights of three
            blends before the hue and three after it (each as one that changes nothing where it is not its turn), the
            turn of the hue, whether gray; with blur or solarization [B, h + w + 22], the blur's sigma and from where on
            pixels are inverted.
        config: what they were drawn from; an operation that it never asks for is left out.
        size, source: height and width of the views and of the images.
    """

    numbers: Tensor
    config: Augment
    size: tuple[int, int]
    source: tuple[int, int]

    def __len__(self) -> int:
        return len(self.numbers)

    def rows(self, selection: slice) -> "PackedParams":
        return replace(self, numbers=self.numbers[selection])

    def parts(self) -> tuple[Tensor, ...]:
        """down [B, h], across [B, w], blend [B, 2, 3, 3], hue [B], gray [B]; perhaps sigma and threshold, [B] each."""
        height, both = self.size[0], sum(self.size)
        down, across, blend, rest = self.numbers.tensor_split([height, both, both + 18], 1)
        return down, across, blend.unflatten(1, (2, 3, 3)), *rest.unbind(1)


@dataclass(frozen=True)
class AugmentationParams:
    """The parameters of B views as torchvision has them, on the CPU.

    Attributes:
        box: int64 [B, 4], top, left, height, width of the crop in pixels.
        flip, jitter, gray, solarize: bool [B].
        factors: float32 [B, 4], of brightness, contrast, saturation (1 changes nothing) and hue (0 does).
        order: int64 [B, 4], the operation in each slot of time.
        sigma: float32 [B], of the blur in pixels; 0: none.
        config: what they were drawn from.
        size, source: height and width of the views and of the images.
    """

    box: Tensor
    flip: Tensor
    jitter: Tensor
    gray: Tensor
    factors: Tensor
    order: Tensor
    sigma: Tensor
    solarize: Tensor
    config: Augment
    size: tuple[int, int]
    source: tuple[int, int]

    def __len__(self) -> int:
        return len(self.flip)

    def rows(self, selection: slice | Tensor) -> "AugmentationParams":
        """Those of some images of the batch."""
        tensors: Any = {name: value[selection] for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors)

    def to(self, device: torch.device | str) -> PackedParams:
        """Packed and sent to a device, for which nothing waits."""
        hue = self.factors[:, HUE:] * self.jitter[:, None]
        parts = [*self._positions(), self._blends(), hue, self.gray[:, None]]
        if self.config.blur or self.config.solarize:
            parts += [self.sigma[:, None], torch.where(self.solarize, SOLARIZED, NOT_SOLARIZED)[:, None]]
        numbers = torch.cat(parts, 1).float()
        return PackedParams(send(numbers, device), self.config, self.size, self.source)

    def _positions(self) -> tuple[Tensor, Tensor]:
        """[B, h] and [B, w]: the crop's, from right to left where the view is mirrored."""
        top, left, height, width = self.box.unbind(1)
        across = positions(left, width, self.size[1])
        return positions(top, height, self.size[0]), torch.where(self.flip[:, None], across.flip(1), across)

    def _blends(self) -> Tensor:
        """[B, 2 * 3 * 3]: before and after the hue, three blends, weights of the image, its gray values, their mean.

        Brightness keeps f of the image; contrast and saturation add 1 - f of their gray.
        """
        factor = self.factors.gather(1, self.order)
        rest = 1 - factor
        weights = torch.stack([factor, rest * (self.order == SATURATION), rest * (self.order == CONTRAST)], 2)
        # The hue's slot parts the other three, which keep their order, into those before it and those after.
        slot, place = (self.order == HUE).int().argmax(1)[:, None], torch.arange(3)
        weights = weights.gather(1, (place + (place >= slot))[:, :, None].expand(-1, -1, 3))  # [B, 3, 3]
        turns = torch.stack([place < slot, place >= slot], 1) & self.jitter[:, None, None]  # [B, 2, 3]
        return torch.where(turns[..., None], weights[:, None], torch.tensor(UNCHANGED)).flatten(1)


def draw(config: Augment, generator: torch.Generator, count: int, height: int, width: int) -> AugmentationParams:
    """Draw the views of ``count`` images of ``height`` x ``width`` pixels, each on its own.

    Distributions are torchvision's RandomResizedCrop(ratio=(3/4, 4/3)), RandomHorizontalFlip,
    RandomApply([ColorJitter]), RandomGrayscale, RandomApply([GaussianBlur]) and RandomSolarize; RandomCrop in place of
    the first where the config has ``crop_pixels``. Image i takes the i-th row of one table of uniform numbers, so that
    a longer batch begins with the parameters of a shorter one. The ``generator`` is fresh.
    """
    table = torch.rand(count, 2 * CROP_TRIES + 13, generator=generator, dtype=torch.float64)
    tries, place, coins, factors, order = table.split([2 * CROP_TRIES, 2, 3, 4, 4], 1)
    flip, jitter, gray = (coins < torch.tensor([config.flip, config.jitter, config.grayscale])).unbind(1)
    pixels, source = config.crop_pixels, (height, width)
    return AugmentationParams(
        _squares(pixels, place, source) if pixels else _boxes(config, tries, place, source),
        flip,
        jitter,
        gray,
        _factors(config, factors),
        order.argsort(1),
        *_blur_and_solarize(config, generator, count),
        config,
        (pixels, pixels) if pixels else source,
        source,
    )


def _blur_and_solarize(config: Augment, generator: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
    """sigma float32 [B] and solarize bool [B], from a stream of their own: all else is as it is without them."""
    if not (config.blur or config.solarize):
        return torch.zeros(count), torch.zeros(count, dtype=torch.bool)
    stream = torch.Generator().manual_seed(generator.initial_seed() + 1)
    blurred, place, solarized = torch.rand(count, 3, generator=stream, dtype=torch.float64).unbind(1)
    sigma = SIGMA[0] + place * (SIGMA[1] - SIGMA[0])
    return (sigma * (blurred < config.blur)).float(), solarized < config.solarize


def _squares(pixels: int, place: Tensor, source: tuple[int, int]) -> Tensor:
    """[B, 4]: boxes of ``pixels`` x ``pixels`` anywhere in the image."""
    free = torch.tensor(source, dtype=place.dtype) - pixels + 1
    return torch.cat([(place * free).floor(), torch.full_like(place, pixels)], 1).long()


def _boxes(config: Augment, tries: Tensor, place: Tensor, source: tuple[int, int]) -> Tensor:
    """[B, 4]: the first of ten boxes that fits the image, or the largest central one."""
    area, ratio = tries.chunk(2, 1)
    low, high = (math.log(value) for value in RATIO)
    area = math.prod(source) * (config.crop_scale_min + area * (config.crop_scale_max - config.crop_scale_min))
    ratio = (low + ratio * (high - low)).exp()
    sizes = torch.stack([(area / ratio).sqrt().round(), (area * ratio).sqrt().round()], 2)  # [B, tries, 2]
    limit = torch.tensor(source, dtype=sizes.dtype)
    fits = ((sizes > 0) & (sizes <= limit)).all(2)
    size = sizes[torch.arange(len(sizes)), fits.int().argmax(1)]
    box = torch.cat([(place * (limit - size + 1)).floor(), size], 1).long()
    return torch.where(fits.any(1)[:, None], box, torch.tensor(_central_box(*source)))


def _central_box(height: int, width: int) -> list[int]:
    ratio = width / height
    crop_height = round(width / RATIO[0]) if ratio < RATIO[0] else height
    crop_width = round(height * RATIO[1]) if ratio > RATIO[1] else width
    return [(height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width]


def _factors(config: Augment, uniform: Tensor) -> Tensor:
    strength = [config.brightness, config.contrast, config.saturation]
    low = torch.tensor([max(0.0, 1 - value) for value in strength] + [-config.hue], dtype=uniform.dtype)
    high = torch.tensor([1 + value for value in strength] + [config.hue], dtype=uniform.dtype)
    return (low + uniform * (high - low)).float()
