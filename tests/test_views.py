"""Views against torchvision, operation by operation on the same drawn numbers."""

from dataclasses import replace

import numpy
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms import functional as tv
from torchvision.transforms.functional import InterpolationMode

from lib.params.pretraining import Augment
from lib.runtime.seeds import generator
from lib.views import augment as augment_module
from lib.views.augment import augment, draw, normalize
from lib.views.color import blend_, gray, turn_hue_
from lib.views.crop import resample

MEAN, STD = torch.tensor([0.49, 0.48, 0.45]), torch.tensor([0.25, 0.24, 0.26])
PLAIN = torch.zeros(3), torch.ones(3)
NOTHING = Augment(crop_scale_min=1, crop_scale_max=1, flip=0, jitter=0, grayscale=0)
TOLERANCE = 1e-5  # of pixels in 0..1: 1/400 of a gray level


class NoReading(TorchDispatchMode):
    """Refuses the operations whose result, or whose result's shape, the host must fetch."""

    READS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal", "bincount")

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.overloadpacket.__name__
        masks = name == "index" and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
        assert not masks and not any(read in name for read in self.READS), name
        return operation(*args, **(kwargs or {}))


def some_images(count: int, height: int = 32, width: int = 32, seed: int = 0) -> torch.Tensor:
    """Noise, smooth ramps, gray, black, white and saturated colors."""
    images = torch.randint(0, 256, (count, 3, height, width), generator=torch.Generator().manual_seed(seed))
    ramp = torch.linspace(0, 255, width).long()
    images[1::4] = ramp
    images[1::4, 1] = ramp.flip(0)
    images[2::8] = images[2::8, :1]
    images[3] = 0
    images[4] = 255
    images[5] = torch.tensor([255, 0, 0])[:, None, None]
    return images.to(torch.uint8)


def drawn(recipe: Augment, count: int, height: int = 32, width: int = 32, seed: int = 0):
    return draw(recipe, generator(seed, "test"), count, height, width)


def colors_by_torchvision(image, factors, order):
    steps = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue]
    for operation in order.tolist():
        image = steps[operation](image, factors[operation].item())
    return image


def view_by_torchvision(image, draws, index):
    """The slow twin: one image, float tensor or PIL, the recipe as torchvision would run it."""
    view = tv.resized_crop(image, *draws.box[index].tolist(), draws.size, InterpolationMode.BILINEAR, antialias=True)
    view = tv.hflip(view) if draws.flip[index] else view
    view = colors_by_torchvision(view, draws.factors[index], draws.order[index]) if draws.jitter[index] else view
    return tv.rgb_to_grayscale(view, 3) if draws.gray[index] else view


def positions(draws):
    plan = draws.to("cpu")
    back = plan.rows.argsort()
    return plan.down[back], plan.across[back]


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("size", [(32, 32), (17, 40), (40, 17)])
def test_crop_resize_and_flip_agree_with_torchvision(size, antialias):
    images, draws = some_images(64, *size), drawn(replace(NOTHING, crop_scale_min=0.02, flip=0.5), 64, *size)
    result = resample(images, *positions(draws))
    for index, image in enumerate(images):
        box = draws.box[index].tolist()
        expected = tv.resized_crop(image / 255, *box, size, InterpolationMode.BILINEAR, antialias=antialias)
        expected = tv.hflip(expected) if draws.flip[index] else expected
        assert torch.allclose(result[index], expected, rtol=0, atol=TOLERANCE)


def test_a_crop_sees_nothing_outside_its_box():
    draws = drawn(replace(NOTHING, crop_scale_min=0.05, crop_scale_max=0.5), 32)
    images = torch.full((32, 3, 32, 32), 255, dtype=torch.uint8)
    for index, (top, left, height, width) in enumerate(draws.box.tolist()):
        images[index, :, top : top + height, left : left + width] = 100
    assert torch.allclose(resample(images, *positions(draws)), torch.tensor(100 / 255), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("operation", "column"), [("brightness", None), ("contrast", 2), ("saturation", 1)])
def test_blends_agree_with_torchvision(operation, column):
    images = some_images(64) / 255
    factors = torch.linspace(0, 2, 64)
    weights = torch.zeros(64, 3)
    weights[:, 0] = factors
    if column is not None:
        weights[:, column] = 1 - factors
    result = blend_(images.clone(), weights)
    for index, image in enumerate(images):
        expected = getattr(tv, f"adjust_{operation}")(image, factors[index].item())
        assert torch.allclose(result[index], expected, rtol=0, atol=TOLERANCE)


def test_hue_agrees_with_torchvision():
    images, turns = some_images(65) / 255, torch.linspace(-0.5, 0.5, 65)
    result = turn_hue_(images.clone(), turns)
    for index, image in enumerate(images):
        assert torch.allclose(result[index], tv.adjust_hue(image, turns[index].item()), rtol=0, atol=TOLERANCE)


def test_hue_turns_the_six_pure_colors_into_each_other():
    circle = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1], [1, 0, 1]]).float()
    for steps in range(-3, 4):
        turned = turn_hue_(circle[:, :, None, None].clone(), torch.full((6,), steps / 6))
        assert torch.allclose(turned[:, :, 0, 0], circle.roll(-steps, 0), rtol=0, atol=1e-6)


def test_gray_agrees_with_torchvision():
    images = some_images(16) / 255
    assert torch.allclose(gray(images)[:, None], tv.rgb_to_grayscale(images), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(32, 32), (20, 28)])
def test_the_whole_recipe_agrees_with_torchvision_on_float_tensors(size):
    images, draws = some_images(256, *size), drawn(Augment(), 256, *size)
    result = augment(images, draws, MEAN, STD)
    assert result.dtype == torch.float32 and result.is_contiguous()
    for index, image in enumerate(images):
        expected = tv.normalize(view_by_torchvision(image / 255, draws, index), MEAN.tolist(), STD.tolist())
        assert torch.allclose(result[index], expected, rtol=0, atol=TOLERANCE / 0.24)


def test_the_whole_recipe_agrees_with_torchvision_on_pictures_to_a_few_grey_levels():
    """PIL cuts down to whole gray levels after each step and keeps hue in 1/255 turns; each factor then
    enlarges what was cut. torchvision's own uint8 tensors differ from its PIL pictures as much (up to 17)."""
    smooth = tv.resize(some_images(200, 5, 5), [32, 32], InterpolationMode.BICUBIC)
    for recipe, mean, most, few in ((Augment(), 1.5, 20, 8), (Augment(jitter=0), 0.5, 1.5, 1.4)):
        draws = drawn(recipe, 200)
        views = [view_by_torchvision(tv.to_pil_image(image), draws, index) for index, image in enumerate(smooth)]
        expected = torch.stack([torch.from_numpy(numpy.array(view)).permute(2, 0, 1) for view in views])
        apart = (255 * augment(smooth, draws, *PLAIN) - expected).abs()
        assert apart.mean() < mean and apart.max() < most and (apart > few).float().mean() < 0.01


def test_a_recipe_that_does_nothing_is_normalisation_alone():
    images = some_images(40)
    draws = drawn(NOTHING, 40)
    assert torch.allclose(augment(images, draws, *PLAIN), images / 255, rtol=0, atol=1e-7)
    assert torch.allclose(augment(images, draws, MEAN, STD), normalize(images, MEAN, STD), rtol=0, atol=1e-6)


def test_strength_zero_leaves_an_operation_out():
    images = some_images(40)
    draws = drawn(replace(NOTHING, jitter=1, brightness=0, contrast=0, saturation=0, hue=0), 40)
    assert torch.equal(augment(images, draws, *PLAIN), augment(images, drawn(NOTHING, 40), *PLAIN))


def test_normalize_agrees_with_torchvision():
    images = some_images(8)
    expected = tv.normalize(images / 255, MEAN.tolist(), STD.tolist())
    assert torch.allclose(normalize(images, MEAN, STD), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("selection", [slice(0, 16), slice(16, 64), slice(5, 6), slice(1, None, 2), slice(0, 0)])
def test_the_views_of_a_part_are_those_of_the_whole(selection):
    images, draws = some_images(64), drawn(Augment(), 64)
    whole = augment(images, draws, MEAN, STD)
    assert torch.equal(augment(images[selection], draws.rows(selection), MEAN, STD), whole[selection])


def test_runs_of_any_length_give_the_same_views(monkeypatch):
    images, draws = some_images(64), drawn(Augment(), 64)
    whole = augment(images, draws, MEAN, STD)
    for count in (1, 7, 64):
        monkeypatch.setattr(augment_module, "CPU_PIXELS", count * 32 * 32)
        assert torch.equal(augment(images, draws, MEAN, STD), whole)


def test_views_are_the_same_each_time_and_leave_the_images_alone():
    images, draws = some_images(64), drawn(Augment(), 64)
    before = images.clone()
    first = augment(images, draws, MEAN, STD)
    assert torch.equal(augment(images, draws.to("cpu"), MEAN, STD), first)
    assert torch.equal(images, before)
    assert not torch.equal(augment(images, drawn(Augment(), 64, seed=1), MEAN, STD), first)


def test_copies_of_one_image_become_different_views():
    views = augment(some_images(8)[:1].expand(64, -1, -1, -1), drawn(Augment(), 64), MEAN, STD)
    apart = torch.cdist(views.flatten(1), views.flatten(1)) + 1e9 * torch.eye(64)
    assert apart.min() > 0.1


def test_autocast_does_not_coarsen_the_views():
    images, draws = some_images(32), drawn(Augment(), 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = augment(images, draws, MEAN, STD)
    assert torch.equal(inside, augment(images, draws, MEAN, STD))


def test_images_that_do_not_fit_the_draws_are_refused():
    with pytest.raises(ValueError, match="draws for"):
        augment(some_images(8), drawn(Augment(), 9), MEAN, STD)
    with pytest.raises(ValueError, match="draws for"):
        augment(some_images(8, 32, 28), drawn(Augment(), 8), MEAN, STD)


def test_the_host_never_reads_a_tensor():
    """What would make a GPU's host wait, forbidden here on the CPU; the draws are made ready before."""
    images, draws = some_images(64), drawn(Augment(), 64)
    for ready in (draws.to("cpu"), draws.table()):
        with NoReading():
            augment(images, ready, MEAN, STD)
    with pytest.raises(AssertionError), NoReading():
        images[images[:, 0, 0, 0] > 9]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"jitter": 0.0},
        {"hue": 0.0},
        {"grayscale": 0.0},
        {"jitter": 1.0},
        {"crop_pixels": 9},
        {"jitter": 0.5, "grayscale": 0.7},
    ],
)
def test_what_a_gpu_computes_is_what_a_cpu_does(changes):
    """All images through all steps, some of which change nothing, against the sorted runs."""
    images, draws = some_images(200, 24, 40), drawn(replace(Augment(), **changes), 200, 24, 40)
    table = draws.table()
    assert len(table) == 200 and table.numbers.shape == (200, sum(draws.size) + 20)
    masked, sorted_runs = augment(images, table, MEAN, STD), augment(images, draws, MEAN, STD)
    assert masked.shape == sorted_runs.shape and torch.allclose(masked, sorted_runs, rtol=0, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_views_and_never_makes_the_host_wait():
    images, draws = some_images(256), drawn(Augment(), 256)
    there, mean, std = images.cuda(), MEAN.cuda(), STD.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        views = augment(there, draws, mean, std)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.allclose(views.cpu(), augment(images, draws, MEAN, STD), rtol=0, atol=1e-4)
