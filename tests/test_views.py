"""Views against torchvision's, image by image, on the same drawn numbers."""

from dataclasses import replace

import pytest
import torch
from PIL import ImageFilter
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms import functional as tv
from torchvision.transforms.functional import InterpolationMode

from lib.params.pretraining import Augment
from lib.runtime.seeds import generator
from lib.views import augment as augment_module
from lib.views.augment import AugmentationParams, augment, draw, normalize
from lib.views.blur import KERNEL, blur

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


def some_images(count: int, height: int = 32, width: int = 32) -> torch.Tensor:
    """Noise, smooth ramps, gray, black, white and saturated colors."""
    images = torch.randint(0, 256, (count, 3, height, width), generator=torch.Generator().manual_seed(0))
    ramp = torch.linspace(0, 255, width).long()
    images[1::4] = ramp
    images[1::4, 1] = ramp.flip(0)
    images[2::8] = images[2::8, :1]
    images[3], images[4] = 0, 255
    images[5] = torch.tensor([255, 0, 0])[:, None, None]
    return images.to(torch.uint8)


def drawn(config: Augment, count: int, height: int = 32, width: int = 32, seed: int = 0) -> AugmentationParams:
    return draw(config, generator(seed, "test"), count, height, width)


def view_by_torchvision(image, params, index):
    """The slow twin: one image [3, H, W] in 0..1, augmented as torchvision would."""
    view = tv.resized_crop(image, *params.box[index].tolist(), params.size, InterpolationMode.BILINEAR, antialias=True)
    view = tv.hflip(view) if params.flip[index] else view
    steps = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue]
    for operation in params.order[index].tolist() if params.jitter[index] else ():
        view = steps[operation](view, params.factors[index][operation].item())
    view = tv.rgb_to_grayscale(view, 3) if params.gray[index] else view
    view = tv.gaussian_blur(view, [KERNEL] * 2, params.sigma[index].item()) if params.sigma[index] else view
    return tv.solarize(view, 0.5) if params.solarize[index] else view


STRONG = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.5, "jitter": 1.0, "crop_scale_min": 0.02}
CONFIGS = (STRONG, {}, {"jitter": 0.0}, {"hue": 0.0}, {"grayscale": 0.0}, {"crop_pixels": 9}, {"grayscale": 0.7})
LATE = ({"blur": 0.6}, {"solarize": 0.6}, {"blur": 0.5, "solarize": 0.5, "crop_pixels": 9})


@pytest.mark.parametrize("changes", [*CONFIGS, *LATE])
@pytest.mark.parametrize("size", [(32, 32), (17, 40), (40, 17)])
def test_views_agree_with_torchvision(size, changes):
    images, params = some_images(128, *size), drawn(replace(Augment(), **changes), 128, *size)
    result = augment(images, params, MEAN, STD)
    assert result.dtype == torch.float32 and result.is_contiguous()
    for index, image in enumerate(images):
        expected = tv.normalize(view_by_torchvision(image / 255, params, index), MEAN.tolist(), STD.tolist())
        assert torch.allclose(result[index], expected, rtol=0, atol=TOLERANCE / 0.24)


def test_what_does_nothing_is_normalization_alone():
    images, params = some_images(40), drawn(NOTHING, 40)
    expected = tv.normalize(images / 255, MEAN.tolist(), STD.tolist())
    assert torch.allclose(normalize(images, MEAN, STD), expected, rtol=0, atol=1e-6)
    assert torch.allclose(augment(images, params, MEAN, STD), expected, rtol=0, atol=1e-6)
    idle = drawn(replace(NOTHING, jitter=1, brightness=0, contrast=0, saturation=0, hue=0), 40)
    assert torch.equal(augment(images, idle, *PLAIN), augment(images, params, *PLAIN))


@pytest.mark.parametrize("size", [(32, 32), (7, 40)])
def test_a_blur_is_torchvisions_at_every_width_and_nearly_pils(size):
    """The recipes name PIL's, three passes of a box, which repeats edges where torchvision mirrors them."""
    images, sigma = some_images(64, *size) / 255, torch.linspace(0.1, 2, 64)
    result = blur(images, sigma)
    for image, own, width in zip(images, result, sigma.tolist()):
        torch.testing.assert_close(own, tv.gaussian_blur(image, [KERNEL] * 2, width), rtol=0, atol=TOLERANCE)
    assert torch.equal(blur(images, torch.zeros(64)), images)
    if min(size) == 32:
        for index, width in ((8, 0.5), (16, 1.0), (24, 2.0)):  # noise
            pil = tv.to_pil_image(images[index]).filter(ImageFilter.GaussianBlur(width))
            inside = (slice(None), slice(8, 24), slice(8, 24))
            own = blur(images[index : index + 1], torch.tensor([width]))[0]
            assert (own - tv.to_tensor(pil))[inside].abs().mean() < 2 / 255


def test_what_solarizes_is_pils_on_whole_gray_levels():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    config = replace(NOTHING, solarize=1.0)
    result = augment(levels, drawn(config, 1, 16, 16), *PLAIN)
    assert torch.allclose(255 * result, tv.solarize(levels, 128).float(), rtol=0, atol=1e-3)


def test_views_are_the_same_in_any_chunks_and_within_autocast(monkeypatch):
    images, params = some_images(64), drawn(Augment(), 64)
    before, whole = images.clone(), augment(images, params, MEAN, STD)
    for count in (1, 7, 64):
        monkeypatch.setattr(augment_module, "CPU_PIXELS", count * 32 * 32)
        assert torch.equal(augment(images, params, MEAN, STD), whole)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(augment(images, params, MEAN, STD), whole)
    assert torch.equal(images, before)
    assert not torch.equal(augment(images, drawn(Augment(), 64, seed=1), MEAN, STD), whole)


def test_images_that_do_not_fit_the_parameters_are_refused():
    for images, params in ((some_images(8), drawn(Augment(), 9)), (some_images(8, 32, 28), drawn(Augment(), 8))):
        with pytest.raises(ValueError, match="augmentation parameters for"):
            augment(images, params, MEAN, STD)


def test_the_host_never_reads_a_tensor():
    """What would make a GPU's host wait, forbidden here on the CPU; the parameters are packed before."""
    images, params = some_images(64), drawn(Augment(blur=0.5, solarize=0.5), 64).to("cpu")
    with NoReading():
        augment(images, params, MEAN, STD)
    with pytest.raises(AssertionError), NoReading():
        images[images[:, 0, 0, 0] > 9]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_views_and_never_makes_the_host_wait():
    images, params = some_images(256), drawn(Augment(blur=0.5, solarize=0.5), 256)
    there, mean, std = images.cuda(), MEAN.cuda(), STD.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        views = augment(there, params, mean, std)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.allclose(views.cpu(), augment(images, params, MEAN, STD), rtol=0, atol=1e-4)
