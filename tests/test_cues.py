"""What a cue does to an image, kind by kind."""

import math

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as vision

from lib.evaluate import cues as cue_code
from lib.evaluate.cues import CURVE, TRAINED, UNSEEN, cues
from lib.params.pretraining import Augment
from lib.runtime.seeds import generator
from lib.views.augment import augment, draw
from lib.views.augment import normalize as view_of
from tests.memory_toys import MEAN, STD, some_images

# --- cues


def some_cues(kind, indices=None, images=None, number=0, config=Augment()):
    images = some_images() if images is None else images
    indices = torch.arange(len(images)) if indices is None else indices
    return torch.cat(list(cues(kind, images, indices, config, MEAN, STD, number)))


@pytest.mark.parametrize("kind", [TRAINED, *UNSEEN, *CURVE])
def test_a_cue_depends_on_image_kind_and_draw_alone(kind, monkeypatch):
    usual = some_cues(kind)
    torch.rand(3)
    assert usual.shape == (6, 3, 32, 32) and torch.equal(some_cues(kind), usual)
    monkeypatch.setattr(cue_code, "BATCH", 4)
    torch.testing.assert_close(some_cues(kind, torch.tensor([4, 1, 5, 0, 2])), usual[[4, 1, 5, 0, 2]])
    changed = not torch.equal(some_cues(kind, number=1), usual)
    assert changed or kind in ("occlusion_0", "rotation_15")  # six signs may be the same
    assert kind == TRAINED or torch.equal(some_cues(kind, config=Augment(flip=0.0)), usual)


def test_trained_cues_are_of_the_family_that_training_uses():
    images, config = some_images(), Augment(crop_scale_min=0.5)
    params = draw(config, generator(0, "cue trained", 2), 6, 32, 32)
    expected = augment(images, params, MEAN, STD)
    torch.testing.assert_close(some_cues(TRAINED, number=2, config=config), expected)
    squares = some_cues(TRAINED, number=2, config=Augment(crop_scale_min=0.5, crop_pixels=8))
    torch.testing.assert_close(squares, expected)


@pytest.mark.parametrize("size", [8, 16, 32])
@pytest.mark.parametrize("percent", [0, 12.5, 25, 37.5, 50, 62.5, 75])
def test_a_square_of_exactly_its_share_is_the_training_mean(percent, size):
    place = torch.rand(50, 2, generator=torch.Generator().manual_seed(0))
    views = cue_code.occlude(torch.ones(50, 3, size, size), place, percent / 100)
    assert (1 - views).mean((1, 2, 3)).tolist() == pytest.approx([percent / 100] * 50, abs=1e-6)
    hidden = views[0, 0] < 1
    rows, columns = hidden.any(1).sum(), hidden.any(0).sum()
    assert rows == columns == math.ceil(size * (percent / 100) ** 0.5 - 1e-9) and hidden.sum() == rows * columns
    assert percent == 0 or (percent, size) == (75, 8) or len({tuple(v.flatten().tolist()) for v in views}) > 3


def test_a_rotation_is_torchvisions_within_the_image():
    views = view_of(some_images(), MEAN, STD)
    found = some_cues("rotation_15")
    turned = {sign: vision.rotate(views, sign * 15.0, InterpolationMode.BILINEAR) for sign in (-1, 1)}
    inner = slice(8, 24)
    signs = set()
    for place, view in enumerate(found):
        near = {sign: (view - all_[place])[:, inner, inner].abs().max().item() for sign, all_ in turned.items()}
        assert min(near.values()) < 1e-3 < max(near.values())
        signs.add(min(near, key=near.get))
    many = some_cues("rotation_15", images=some_images(40, 8))
    both = [
        torch.allclose(many, cue_code.rotate(view_of(some_images(40, 8), MEAN, STD), torch.full((40,), d)))
        for d in (-15.0, 15.0)
    ]
    assert signs and both == [False, False]  # some of forty turn each way


def test_a_shift_moves_by_four_pixels_and_mirrors_the_edge():
    views, found = view_of(some_images(40, 16), MEAN, STD), some_cues("shift_4", images=some_images(40, 16))
    directions = set()
    for view, moved in zip(views, found):
        padded = torch.nn.functional.pad(view[None], (4, 4, 4, 4), mode="reflect")[0]
        places = {(0, 4): (4, 0), (4, 0): (0, 4), (0, -4): (4, 8), (-4, 0): (8, 4)}
        fits = [way for way, (y, x) in places.items() if torch.equal(padded[:, y : y + 16, x : x + 16], moved)]
        assert len(fits) == 1
        directions.update(fits)
    assert len(directions) == 4


def test_noise_is_a_tenth_of_the_range_of_pixels():
    images = some_images(40)
    noise = (some_cues("noise_0.1", images=images) - view_of(images, MEAN, STD)) * STD[:, None, None]
    assert noise.std().item() == pytest.approx(0.1, rel=0.01) and abs(noise.mean().item()) < 1e-3
    assert not torch.equal(noise[0], noise[1])


def test_an_unknown_kind_is_an_error():
    with pytest.raises(ValueError, match="no kind of cue 'blur_2'"):
        some_cues("blur_2")
