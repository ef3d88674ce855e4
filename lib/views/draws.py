"""What is random in a view: one row of numbers per image, drawn on the CPU before any pixel is touched.

Everything that would make the host wait for the device is settled here: which images are jittered, in
which order, which turn gray. For a CPU `Draws.to` sorts the images by that, so that `lib.views.augment` works on
contiguous runs whose sizes the host already knows. For a CUDA device it makes a `Table`, whose shape is the same
for every batch: there, starting a kernel costs more than what it computes for nothing.

B images of H x W pixels, views of h x w; four color operations, in four slots of time.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lib.params.pretraining import Augment
from lib.runtime.seeds import send
from lib.views.crop import positions

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
UNCHANGED = (1.0, 0.0, 0.0)  # a blend: all of the image, nothing gray
NO_JITTER = 4  # the group of images without jitter; groups 0..3 have hue in that slot
CROP_TRIES = 10
RATIO = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class Run:
    """Images ``start:stop`` of the sorted batch: hue in slot ``group``; the first ``gray`` turn gray."""

    start: int
    stop: int
    group: int
    gray: int

    def split(self, size: int) -> "list[Run]":
        """The same images in runs of at most ``size``."""
        return [
            Run(start, min(start + size, self.stop), self.group, min(max(self.gray - (start - self.start), 0), size))
            for start in range(self.start, self.stop, size)
        ]


@dataclass(frozen=True)
class Plan:
    """Draws made ready for a CPU: the same numbers, sorted by run.

    Attributes:
        rows: int64 [B], the image at each sorted position.
        down, across: float32 [B, h] and [B, w], where the view's pixels look in the source.
        blend: float32 [B, 4, 3], per slot the weights of the image, of its gray values, of their mean.
        hue: float32 [B], the turn of the hue, in turns.
        runs: what each contiguous part needs.
        turns: whether any hue is turned.
        source: height and width of the images.
    """

    rows: Tensor
    down: Tensor
    across: Tensor
    blend: Tensor
    hue: Tensor
    runs: list[Run]
    turns: bool
    source: tuple[int, int]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Table:
    """Draws made ready for a device on which all images go through all steps: shapes are those of every batch.

    Attributes:
        numbers: float32 [B, h + w + 20]: down, across, blend (2 x 3 x 3), hue, whether gray. The three blends of
            `Plan` are there twice, for before and after the hue, each as one that changes nothing where it is not
            its turn; so are all of an image without jitter, whose hue does not turn.
        recipe: what was drawn from; what it never does is left out.
        size, source: height and width of the views and of the images.
    """

    numbers: Tensor
    recipe: Augment
    size: tuple[int, int]
    source: tuple[int, int]

    def __len__(self) -> int:
        return len(self.numbers)

    def parts(self) -> tuple[Tensor, ...]:
        """down [B, h], across [B, w], blend [B, 2, 3, 3], hue [B], gray [B]."""
        down, across, blend, rest = self.numbers.split([*self.size, 18, 2], 1)
        return down, across, blend.unflatten(1, (2, 3, 3)), *rest.unbind(1)


@dataclass(frozen=True)
class Draws:
    """Every random number of B views, on the CPU.

    Attributes:
        box: int64 [B, 4], top, left, height, width of the crop in pixels.
        flip, jitter, gray: bool [B].
        factors: float32 [B, 4], of brightness, contrast, saturation (1 changes nothing) and hue (0 does).
        order: int64 [B, 4], the operation in each slot of time.
        recipe: what they were drawn from.
        size: height and width of the views.
        source: height and width of the images.
    """

    box: Tensor
    flip: Tensor
    jitter: Tensor
    gray: Tensor
    factors: Tensor
    order: Tensor
    recipe: Augment
    size: tuple[int, int]
    source: tuple[int, int]

    def __len__(self) -> int:
        return len(self.flip)

    def rows(self, selection: slice) -> "Draws":
        """The draws of some images of the batch; cut before moving to a device."""
        tensors = {name: value[selection] for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors)

    def to(self, device: torch.device | str) -> Plan | Table:
        """What the device works with; nothing waits for it."""
        if torch.device(device).type == "cuda":
            table = self.table()
            return replace(table, numbers=send(table.numbers, device))
        return self._plan()

    def table(self) -> Table:
        """The draws in fixed places, on the CPU."""
        slot, place = (self.order == HUE).int().argmax(1)[:, None], torch.arange(3)  # of the hue; of the blends
        blend = self._blend().gather(1, (place + (place >= slot))[:, :, None].expand(-1, -1, 3))  # without the hue's
        turns = torch.stack([place < slot, place >= slot], 1) & self.jitter[:, None, None]  # [B, 2, 3]
        blend = torch.where(turns[..., None], blend[:, None], torch.tensor(UNCHANGED)).flatten(1)
        hue = self.factors[:, HUE:] * self.jitter[:, None]
        numbers = [*self._positions(), blend, hue, self.gray[:, None]]
        return Table(torch.cat([part.float() for part in numbers], 1), self.recipe, self.size, self.source)

    def _plan(self) -> Plan:
        """Sorted by run, on the CPU."""
        group = torch.where(self.jitter, (self.order == HUE).int().argmax(1), NO_JITTER)
        key = 2 * group + (~self.gray).long()
        rows = key.argsort(stable=True)
        numbers = torch.cat([*self._positions(), self._blend().flatten(1), self.factors[:, HUE:]], 1)[rows]
        down, across, blend, hue = numbers.float().split([*self.size, 12, 1], 1)
        return Plan(
            rows,
            down,
            across,
            blend.unflatten(1, (4, 3)),
            hue[:, 0],
            _runs(key.bincount(minlength=2 * (NO_JITTER + 1)).tolist()),
            bool(self.factors[:, HUE].any()),
            self.source,
        )

    def _positions(self) -> tuple[Tensor, Tensor]:
        """[B, h] and [B, w]: the crop's, from right to left where the view is mirrored."""
        top, left, height, width = self.box.unbind(1)
        across = positions(left, width, self.size[1])
        return positions(top, height, self.size[0]), torch.where(self.flip[:, None], across.flip(1), across)

    def _blend(self) -> Tensor:
        """[B, 4, 3]: brightness keeps f of the image; contrast and saturation add 1 - f of their gray."""
        factor = self.factors.gather(1, self.order)
        rest = 1 - factor
        return torch.stack([factor, rest * (self.order == SATURATION), rest * (self.order == CONTRAST)], 2)


def draw(recipe: Augment, generator: torch.Generator, count: int, height: int, width: int) -> Draws:
    """Draw the views of ``count`` images of ``height`` x ``width`` pixels, each on its own.

    Distributions are torchvision's RandomResizedCrop(ratio=(3/4, 4/3)), RandomHorizontalFlip,
    RandomApply([ColorJitter]) and RandomGrayscale; RandomCrop in place of the first where the recipe has
    ``crop_pixels``. Image i takes the i-th row of one table of uniform
    numbers, so that a longer batch begins with the draws of a shorter one.
    """
    table = torch.rand(count, 2 * CROP_TRIES + 13, generator=generator, dtype=torch.float64)
    tries, place, coins, factors, order = table.split([2 * CROP_TRIES, 2, 3, 4, 4], 1)
    flip, jitter, gray = (coins < torch.tensor([recipe.flip, recipe.jitter, recipe.grayscale])).unbind(1)
    pixels = recipe.crop_pixels
    boxes = _squares(pixels, place, height, width) if pixels else _boxes(recipe, tries, place, height, width)
    return Draws(
        boxes,
        flip,
        jitter,
        gray,
        _factors(recipe, factors),
        order.argsort(1),
        recipe,
        (pixels, pixels) if pixels else (height, width),
        (height, width),
    )


def _squares(pixels: int, place: Tensor, height: int, width: int) -> Tensor:
    """[B, 4]: boxes of ``pixels`` x ``pixels`` anywhere in the image."""
    free = torch.tensor([height - pixels + 1, width - pixels + 1], dtype=place.dtype)
    return torch.cat([(place * free).floor(), torch.full_like(place, pixels)], 1).long()


def _boxes(recipe: Augment, tries: Tensor, place: Tensor, height: int, width: int) -> Tensor:
    """[B, 4]: the first of ten boxes that fits the image, or the largest central one."""
    area, ratio = tries.chunk(2, 1)
    low, high = (math.log(value) for value in RATIO)
    area = height * width * (recipe.crop_scale_min + area * (recipe.crop_scale_max - recipe.crop_scale_min))
    ratio = (low + ratio * (high - low)).exp()
    sizes = torch.stack([(area / ratio).sqrt().round(), (area * ratio).sqrt().round()], 2)  # [B, tries, 2]
    limit = torch.tensor([height, width], dtype=sizes.dtype)
    fits = ((sizes > 0) & (sizes <= limit)).all(2)
    first = fits.int().argmax(1)
    size = sizes[torch.arange(len(sizes)), first]
    box = torch.cat([(place * (limit - size + 1)).floor(), size], 1).long()
    return torch.where(fits.any(1)[:, None], box, torch.tensor(_central_box(height, width)))


def _central_box(height: int, width: int) -> list[int]:
    ratio = width / height
    crop_height = round(width / RATIO[0]) if ratio < RATIO[0] else height
    crop_width = round(height * RATIO[1]) if ratio > RATIO[1] else width
    return [(height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width]


def _factors(recipe: Augment, uniform: Tensor) -> Tensor:
    strength = [recipe.brightness, recipe.contrast, recipe.saturation]
    low = torch.tensor([max(0.0, 1 - value) for value in strength] + [-recipe.hue], dtype=uniform.dtype)
    high = torch.tensor([1 + value for value in strength] + [recipe.hue], dtype=uniform.dtype)
    return (low + uniform * (high - low)).float()


def _runs(counts: list[int]) -> list[Run]:
    """Contiguous runs from the number of images of each key, gray ones first in each group."""
    runs, start = [], 0
    for group, (gray, colored) in enumerate(zip(counts[0::2], counts[1::2])):
        if gray + colored:
            runs.append(Run(start, start + gray + colored, group, gray))
        start += gray + colored
    return runs
