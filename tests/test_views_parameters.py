"""Augmentation parameters have torchvision's distributions, image by image, and depend on nothing else."""

import pytest
import torch
from scipy.stats import chisquare, ks_2samp, kstest
from torchvision.transforms import RandomResizedCrop

from lib.params.pretraining import Augment
from lib.runtime.seeds import generator
from lib.views.parameters import draw

COUNT = 20_000
LEAST = 1e-3  # p-value below which a distribution counts as different; the seeds are fixed
NAMES = ("box", "flip", "jitter", "gray", "factors", "order")
BOTH = Augment(blur=0.5, solarize=0.2)


def drawn(config: Augment = Augment(), count: int = COUNT, height: int = 32, width: int = 32, seed: int = 0):
    return draw(config, generator(seed, "test"), count, height, width)


def boxes_by_torchvision(count: int, scale: tuple, height: int, width: int) -> torch.Tensor:
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    return torch.tensor([RandomResizedCrop.get_params(image, scale, (3 / 4, 4 / 3)) for _ in range(count)])


@pytest.mark.parametrize(
    ("scale", "height", "width"), [((0.08, 1.0), 32, 32), ((0.5, 1.0), 24, 48), ((0.9, 1.0), 20, 64)]
)
def test_boxes_have_torchvisions_distribution(scale, height, width):
    """The last case is narrow enough for torchvision to run out of tries often."""
    count = COUNT if height == width else COUNT // 4
    ours = drawn(Augment(crop_scale_min=scale[0], crop_scale_max=scale[1]), count, height, width).box.double()
    theirs = boxes_by_torchvision(count, scale, height, width).double()

    def summaries(boxes: torch.Tensor) -> list[torch.Tensor]:
        top, _, height, width = columns = boxes.unbind(1)
        return [*columns, height * width, width / height, top + height]

    for own, other in zip(summaries(ours), summaries(theirs)):
        assert ks_2samp(own, other, method="asymp").pvalue > LEAST
    deviation = (2 * theirs.var(0) / count).sqrt()
    assert ((ours.mean(0) - theirs.mean(0)).abs() <= 4 * deviation).all()


def test_boxes_are_torchvisions_when_no_try_fits():
    """Nothing of ratio 3/4..4/3 fits: the largest central box of the nearest ratio."""
    for height, width in ((10, 100), (100, 10), (33, 7)):
        expected = boxes_by_torchvision(1, (1.0, 1.0), height, width)[0]
        assert torch.equal(drawn(Augment(crop_scale_min=1.0), 50, height, width).box, expected.expand(50, 4))


@pytest.mark.parametrize("config", [Augment(), Augment(crop_pixels=7)])
def test_boxes_lie_inside_the_image(config):
    for height, width in ((32, 32), (8, 8), (9, 31)):
        top, left, box_height, box_width = drawn(config, 5000, height, width).box.unbind(1)
        assert min(top.min(), left.min()) >= 0 and min(box_height.min(), box_width.min()) >= 1
        assert (top + box_height).max() == height and (left + box_width).max() == width


def test_coins_fall_as_often_as_asked():
    params = drawn(BOTH)
    coins = [params.flip, params.jitter, params.gray, params.sigma > 0, params.solarize]
    for coin, probability in zip(coins, (0.5, 0.8, 0.2, 0.5, 0.2)):
        deviation = (probability * (1 - probability) / COUNT) ** 0.5
        assert abs(coin.float().mean() - probability) < 4 * deviation
    together = torch.corrcoef(torch.stack(coins).float())
    assert (together - torch.eye(5)).abs().max() < 4 / COUNT**0.5
    sigma = params.sigma[params.sigma > 0].double()
    assert kstest((sigma - 0.1) / 1.9, "uniform").pvalue > LEAST


def test_blur_and_solarization_leave_all_other_draws_as_they_are_without_them():
    """Those are of a table of 33 numbers for each image, as they were before there was blur or solarization."""
    without, sizes = drawn(), (32 + 32 + 20, 32 + 32 + 22)
    table = torch.rand(COUNT, 33, generator=generator(0, "test"), dtype=torch.float64)
    assert torch.equal(without.flip, table[:, 22] < 0.5) and torch.equal(without.order, table[:, 29:].argsort(1))
    for config, width in ((Augment(), sizes[0]), (BOTH, sizes[1]), (Augment(solarize=1.0), sizes[1])):
        params = drawn(config)
        assert all(torch.equal(getattr(params, name), getattr(without, name)) for name in NAMES)
        numbers = params.to("cpu").numbers
        assert numbers.shape[1] == width and torch.equal(numbers[:, : sizes[0]], without.to("cpu").numbers)
    assert not without.sigma.any() and not without.solarize.any()


def test_factors_are_uniform_in_torchvisions_ranges_and_orders_equally_frequent():
    params = drawn(Augment(brightness=0.4, contrast=0.3, saturation=1.0, hue=0.1))
    for column, (low, high) in enumerate([(0.6, 1.4), (0.7, 1.3), (0.0, 2.0), (-0.1, 0.1)]):
        assert kstest((params.factors[:, column].double() - low) / (high - low), "uniform").pvalue > LEAST
    assert (torch.corrcoef(params.factors.T) - torch.eye(4)).abs().max() < 4 / COUNT**0.5
    orders, counts = params.order.unique(dim=0, return_counts=True)
    assert len(orders) == 24 and torch.equal(orders.sort(1).values, torch.arange(4).expand(24, 4))
    assert chisquare(counts).pvalue > LEAST
    neutral = drawn(Augment(brightness=0, contrast=0, saturation=0, hue=0), 100).factors
    assert torch.equal(neutral, torch.tensor([1.0, 1.0, 1.0, 0.0]).expand(100, 4))


def test_images_do_not_share_parameters():
    params = drawn()
    assert len(params.factors.unique(dim=0)) == COUNT
    for values in (params.factors, params.box.float(), params.flip[:, None].float()):
        beside = torch.corrcoef(torch.cat([values[:-1], values[1:]], 1).T)
        count = values.shape[1]
        assert beside[:count, count:].abs().max() < 4.5 / COUNT**0.5


def test_parameters_depend_on_the_generator_and_the_place_in_the_batch_alone():
    long, again, short, other = (drawn(BOTH, count, seed=seed) for count, seed in ((64, 0), (64, 0), (10, 0), (64, 1)))
    parts = [long.rows(slice(0, 10)), long.rows(slice(10, None))]
    for name in (*NAMES, "sigma", "solarize"):
        value = getattr(long, name)
        assert torch.equal(value, getattr(again, name)) and not torch.equal(value, getattr(other, name))
        assert torch.equal(value[:10], getattr(short, name))
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), value)
    assert len(short) == 10 and torch.equal(parts[0].to("cpu").numbers, long.to("cpu").numbers[:10])
