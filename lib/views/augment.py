"""From uint8 images and their draws to views: crop, flip, color jitter, grayscale, normalize.

B images of H x W pixels, views of h x w. Every view is computed from its own row of draws. Images that need the same
steps are taken together on a CPU: sorted by the slot in which hue comes, each image meets each of its four
color operations once, in its own order, and nothing is selected by a mask. The runs are cut so that a run
stays in the cache through all of its steps. On a CUDA device all images go through all steps, and the
draws say which change nothing: a few large kernels instead of many small ones, the same for every batch.
"""

import torch
from torch import Tensor

from lib.views.color import blend_, gray, turn_hue_
from lib.views.crop import resample
from lib.views.draws import NO_JITTER, Draws, Plan, Run, Table, draw

__all__ = ["Draws", "Plan", "Table", "augment", "draw", "normalize"]

CPU_PIXELS = 64 * 32 * 32  # per run


def augment(images: Tensor, draws: Draws | Plan | Table, mean: Tensor, std: Tensor) -> Tensor:
    """The views of ``images``, computed where the images are; the host waits for nothing.

    Args:
        images: uint8 [B, 3, H, W].
        draws: what `draw` returned for B images of H x W, or its ``.to(device)``.
        mean, std: [3], of pixels in 0..1, on the images' device (from elsewhere they are copied each time).

    Returns:
        float32 [B, 3, h, w], normalized; of the images' size, unless the recipe cuts squares.

    Raises:
        ValueError: the draws are for another number or size of images.
    """
    ready = draws.to(images.device) if isinstance(draws, Draws) else draws
    drawn = (len(ready), 3, *ready.source)
    if images.shape != drawn:
        raise ValueError(f"images of shape {tuple(images.shape)}, draws for {drawn}")
    scale, shift = _scale_and_shift(images, mean, std)
    with torch.autocast(images.device.type, enabled=False):
        if isinstance(ready, Table):
            return _together(images, ready).mul_(scale).add_(shift)
        views = torch.empty(*drawn[:2], ready.down.shape[1], ready.across.shape[1], device=images.device)
        size = max(1, CPU_PIXELS // images.shape[2:].numel())
        for run in (part for whole in ready.runs for part in whole.split(size)):
            view = _view(images, ready, run).mul_(scale).add_(shift)
            views.index_copy_(0, ready.rows[run.start : run.stop], view)
    return views


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] to float32: the transform of images that are not augmented."""
    scale, shift = _scale_and_shift(images, mean, std)
    return (images * (scale / 255)).add_(shift)


def _scale_and_shift(images: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    mean, std = (value.to(images.device, torch.float32)[:, None, None] for value in (mean, std))
    return 1 / std, -mean / std


def _view(images: Tensor, plan: Plan, run: Run) -> Tensor:
    """One run's views in 0..1, in sorted order."""
    part = slice(run.start, run.stop)
    view = resample(images.index_select(0, plan.rows[part]), plan.down[part], plan.across[part])
    if run.group != NO_JITTER:
        for slot in range(4):
            if slot != run.group:
                blend_(view, plan.blend[part, slot])
            elif plan.turns:
                turn_hue_(view, plan.hue[part])
    if run.gray:
        view[: run.gray] = gray(view[: run.gray])[:, None]
    return view


def _together(images: Tensor, table: Table) -> Tensor:
    """All views in 0..1, in the images' order."""
    down, across, blend, hue, grays = table.parts()
    view, recipe = resample(images, down, across), table.recipe
    for half in range(2 if recipe.jitter else 0):
        if half and recipe.hue:
            turn_hue_(view, hue)
        for number in range(3):
            blend_(view, blend[:, half, number])
    if recipe.grayscale:
        view = torch.where(grays[:, None, None, None] > 0, gray(view)[:, None], view)
    return view
