"""What is drawn has torchvision's distributions, image by image, and depends on nothing else."""

from dataclasses import replace

import pytest
import torch
from lib.views.draws import HUE, Run, draw
from scipy.stats import chisquare, ks_2samp, kstest
from torchvision.transforms import RandomResizedCrop

from lib.params.pretraining import Augment
from lib.runtime.seeds import generator

COUNT = 20_000
LEAST = 1e-3  # p-value below which a distribution counts as different; the seeds are fixed


def drawn(recipe: Augment = Augment(), count: int = COUNT, height: int = 32, width: int = 32, seed: int = 0):
    return draw(recipe, generator(seed, "test"), count, height, width)


def boxes_by_torchvision(count: int, scale: tuple, height: int, width: int) -> torch.Tensor:
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    return torch.tensor([RandomResizedCrop.get_params(image, scale, (3 / 4, 4 / 3)) for _ in range(count)])


@pytest.mark.parametrize(
    ("scale", "height", "width"), [((0.08, 1.0), 32, 32), ((0.5, 1.0), 24, 48), ((0.9, 1.0), 20, 64)]
)
def test_boxes_have_torchvisions_distribution(scale, height, width):
    """The last case is narrow enough for torchvision to run out of tries often."""
    recipe = Augment(crop_scale_min=scale[0], crop_scale_max=scale[1])
    count = COUNT if height == width else COUNT // 4
    ours = drawn(recipe, count, height, width).box.double()
    theirs = boxes_by_torchvision(count, scale, height, width).double()
    for summary in (
        lambda b: b[:, 0],
        lambda b: b[:, 1],
        lambda b: b[:, 2],
        lambda b: b[:, 3],
        lambda b: b[:, 2] * b[:, 3],
        lambda b: b[:, 3] / b[:, 2],
        lambda b: b[:, 0] + b[:, 2],
    ):
        assert ks_2samp(summary(ours), summary(theirs), method="asymp").pvalue > LEAST
    deviation = (2 * theirs.var(0) / count).sqrt()
    assert ((ours.mean(0) - theirs.mean(0)).abs() <= 4 * deviation).all()


def test_boxes_are_torchvisions_when_no_try_fits():
    """Nothing of ratio 3/4..4/3 fits: the largest central box of the nearest ratio."""
    for height, width in ((10, 100), (100, 10), (33, 7)):
        expected = boxes_by_torchvision(1, (1.0, 1.0), height, width)[0]
        box = drawn(Augment(crop_scale_min=1.0), 50, height, width).box
        assert torch.equal(box, expected.expand(50, 4))


def test_boxes_lie_inside_the_image():
    for height, width in ((32, 32), (8, 8), (9, 31)):
        top, left, box_height, box_width = drawn(count=5000, height=height, width=width).box.unbind(1)
        assert min(top.min(), left.min()) >= 0 and min(box_height.min(), box_width.min()) >= 1
        assert (top + box_height).max() <= height and (left + box_width).max() <= width


def test_coins_fall_as_often_as_asked():
    draws = drawn(Augment(flip=0.5, jitter=0.8, grayscale=0.2))
    for coin, probability in ((draws.flip, 0.5), (draws.jitter, 0.8), (draws.gray, 0.2)):
        deviation = (probability * (1 - probability) / COUNT) ** 0.5
        assert abs(coin.float().mean() - probability) < 4 * deviation
    together = torch.corrcoef(torch.stack([draws.flip, draws.jitter, draws.gray]).float())
    assert (together - torch.eye(3)).abs().max() < 4 / COUNT**0.5


def test_factors_are_uniform_in_torchvisions_ranges():
    draws = drawn(Augment(brightness=0.4, contrast=0.3, saturation=1.0, hue=0.1))
    for column, (low, high) in enumerate([(0.6, 1.4), (0.7, 1.3), (0.0, 2.0), (-0.1, 0.1)]):
        assert kstest((draws.factors[:, column].double() - low) / (high - low), "uniform").pvalue > LEAST
    assert (torch.corrcoef(draws.factors.T) - torch.eye(4)).abs().max() < 4 / COUNT**0.5


def test_strength_zero_gives_exactly_the_neutral_factor():
    factors = drawn(Augment(brightness=0, contrast=0, saturation=0, hue=0), 100).factors
    assert torch.equal(factors, torch.tensor([1.0, 1.0, 1.0, 0.0]).expand(100, 4))


def test_all_24_orders_are_equally_frequent():
    orders, counts = drawn().order.unique(dim=0, return_counts=True)
    assert len(orders) == 24 and torch.equal(orders.sort(1).values, torch.arange(4).expand(24, 4))
    assert chisquare(counts).pvalue > LEAST


def test_images_do_not_share_draws():
    draws = drawn()
    assert len(draws.factors.unique(dim=0)) == COUNT
    for values in (draws.factors, draws.box.float(), draws.flip[:, None].float()):
        beside = torch.corrcoef(torch.cat([values[:-1], values[1:]], 1).T)
        count = values.shape[1]
        assert beside[:count, count:].abs().max() < 4.5 / COUNT**0.5


def test_draws_depend_on_the_generator_alone():
    first, again, other = drawn(count=64), drawn(count=64), drawn(count=64, seed=1)
    for name, value in vars(first).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, getattr(again, name))
            assert not torch.equal(value, getattr(other, name))


def test_a_longer_batch_begins_with_the_draws_of_a_shorter_one():
    long, short = drawn(count=64).rows(slice(0, 10)), drawn(count=10)
    assert len(short) == 10
    for name in ("box", "flip", "jitter", "gray", "factors", "order"):
        assert torch.equal(getattr(long, name), getattr(short, name))


def test_rows_put_together_are_the_whole():
    whole = drawn(count=64)
    parts = [whole.rows(slice(0, 1)), whole.rows(slice(1, 40)), whole.rows(slice(40, None))]
    for name in ("box", "flip", "jitter", "gray", "factors", "order"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))


def test_runs_hold_what_the_draws_say():
    draws = drawn(replace(Augment(), jitter=0.6), 200)
    plan = draws.to("cpu")
    assert torch.equal(plan.rows.sort().values, torch.arange(200))
    reached = 0
    for run in (part for whole in plan.runs for part in whole.split(7)):
        assert run.start == reached and 0 < run.stop - run.start <= 7
        rows = plan.rows[run.start : run.stop]
        gray = torch.arange(len(rows)) < run.gray
        assert torch.equal(draws.gray[rows], gray)
        assert torch.equal(draws.jitter[rows], torch.full((len(rows),), run.group < 4))
        if run.group < 4:
            assert (draws.order[rows, run.group] == HUE).all()
        reached = run.stop
    assert reached == 200


def test_a_run_splits_its_gray_images_with_it():
    assert Run(10, 20, 3, 5).split(4) == [Run(10, 14, 3, 4), Run(14, 18, 3, 1), Run(18, 20, 3, 0)]
