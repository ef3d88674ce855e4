"""Galleries without near-duplicates, and images of known similarity, of which codes keep a known part."""

import math
from itertools import pairwise

import numpy
import pytest
import torch

from lib.evaluate import galleries as gallery_code
from lib.evaluate.cues import cues
from lib.evaluate.galleries import look_alikes, make_galleries, near_duplicates
from lib.evaluate.memory import pixels_8x8
from lib.params.pretraining import Augment
from lib.runtime.errors import UserError
from lib.views.augment import normalize as view_of
from tests.examples import tiny_data
from tests.memory_toys import MEAN, STD, measured

# --- galleries


def test_near_duplicates_against_a_slow_twin(monkeypatch):
    stream = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (20, 3, 16, 16), generator=stream, dtype=torch.uint8)
    images[7] = images[3]
    images[12] = (images[3].float() * 0.7 + 20).to(torch.uint8)  # darker and flatter: the same picture
    images[15] = (images[4].float() * 0.5 + images[5].float() * 0.5).to(torch.uint8)
    others = torch.cat([images[9:10], torch.randint(0, 256, (5, 3, 16, 16), generator=stream, dtype=torch.uint8)])
    close = numpy.corrcoef(images.flatten(1).double().numpy()) > 0.99
    expected = [any(close[i, j] for j in range(i)) for i in range(20)]
    assert sum(expected) == 2
    for crowded in (64, -1):  # pair by pair, and all at once
        monkeypatch.setattr(gallery_code, "CROWDED", crowded)
        assert near_duplicates(images).tolist() == expected
        assert near_duplicates(images, others).nonzero().flatten().tolist() == [9]


def test_galleries_are_halves_of_classes_without_near_duplicates():
    data = tiny_data(150, 61)
    data.test_images[3] = data.test_images[0]  # of one class
    data.test_images[6] = data.train_images[5]
    galleries = make_galleries(data.train_images, data.train_labels, data.test_images, data.test_labels, most=8)
    assert galleries.near_duplicates == {"test": 1, "train": 1}
    assert [block.stop - block.start for block in galleries.blocks] == [8] * 6 and galleries.sizes.tolist() == [8] * 48
    assert not {3, 6} & set(galleries.images.tolist()) and len(set(galleries.images.tolist())) == 48
    for number, block in enumerate(galleries.blocks):
        assert set(galleries.half[block].tolist()) == {number % 2}
        assert galleries.labels[block].tolist() == data.test_labels[galleries.images[block]].tolist()
        assert set(galleries.labels[block].tolist()) == {number // 2}
        pixels = data.test_images[galleries.images[block]]
        assert torch.equal(galleries.look_alikes[number], look_alikes(pixels))
        nearest = numpy.corrcoef(pixels.flatten(1).double().numpy()) - 2 * numpy.eye(8)
        assert galleries.look_alikes[number][:, 0].tolist() == nearest.argmax(1).tolist()
    usual = make_galleries(data.train_images, data.train_labels, data.test_images, data.test_labels)
    assert usual.sizes.tolist() == [9] * 18 + [10] * 40


def test_a_class_with_one_image_has_no_gallery_and_none_at_all_is_refused():
    data = tiny_data(150, 60)
    labels = data.test_labels.clone()
    labels[labels == 2] = 1
    labels[0] = 2
    galleries = make_galleries(data.train_images, data.train_labels, data.test_images, labels)
    assert set(galleries.labels.tolist()) == {0, 1}
    with pytest.raises(UserError, match="^no class has two test images that differ"):
        make_galleries(data.train_images, data.train_labels, data.test_images[:3], torch.arange(3))
    two = make_galleries(data.train_images, data.train_labels, data.test_images[:6], torch.arange(6) % 3)
    assert two.sizes.tolist() == [1] * 6 and [tuple(each.shape) for each in two.look_alikes] == [(1, 0)] * 6


# --- images of known similarity


def quadrants(count: int, seed: int):
    """Images of 16x16 noisy pixels whose four quadrants are each dark or bright, and these four bits."""
    stream = torch.Generator().manual_seed(seed)
    bits = torch.randint(0, 2, (count, 4), generator=stream)
    bright = (60 + 130 * bits.view(count, 1, 2, 2)).repeat_interleave(8, 2).repeat_interleave(8, 3)
    noise = torch.randint(-50, 51, (count, 3, 16, 16), generator=stream)
    return (bright + noise).to(torch.uint8), bits


def code_of(views, kept: int):
    """The first ``kept`` factors as a latent reads them from pixels, and a unit that is the same for all."""
    means = torch.nn.functional.avg_pool2d(views, 8).mean(1).flatten(1)[:, :kept]  # [n, kept]
    return torch.cat([(means > 0).float(), torch.full((len(views), 1), 0.3)], 1)


def test_bits_rise_with_the_factors_that_a_code_keeps_and_only_with_them():
    """Of exact factors, e is how many images of the gallery they leave: counted, not computed."""
    (train, _), (images, bits) = quadrants(300, 1), quadrants(240, 2)
    train_labels, labels = torch.arange(300) % 3, torch.arange(240) % 3
    galleries = make_galleries(train, train_labels, images, labels)
    assert galleries.near_duplicates == {"test": 0, "train": 0} and len(galleries.images) == 240
    half = torch.full((3,), 0.49), torch.full((3,), 0.25)
    found = []
    for kept in range(5):
        noise = cues("noise_0.1", images, galleries.images, Augment(), *half)
        stored, asked = (code_of(view_of(each, *half), kept) for each in (train, images))
        cued = torch.cat([code_of(views, kept) for views in noise])
        memory = measured(stored, train_labels, asked, cued, galleries, kind="noise")
        same = []
        for block in galleries.blocks:
            rows = [tuple(row[:kept]) for row in bits[galleries.images[block]].tolist()]
            same += [math.log2(len(rows) / rows.count(row)) for row in rows]
        found.append(memory.numbers("noise")["episode_bits"])
        assert found[-1] == pytest.approx(sum(same) / len(same), abs=0.02)
        assert abs(memory.numbers("noise")["concept_bits"]) < 0.1  # which tell nothing of the class
    assert found[0] == 0 and all(more > less + 0.7 for less, more in pairwise(found))


def test_pixels_find_what_look_alikes_differ_in():
    (train, _), (images, _) = quadrants(120, 1), quadrants(120, 2)
    labels = torch.arange(120) % 2
    galleries = make_galleries(train, labels, images, labels)
    views = torch.cat(list(cues("noise_0.5", images, galleries.images, Augment(), MEAN, STD)))
    stored = [pixels_8x8(view_of(each, MEAN, STD)) for each in (train, images)]
    memory = measured(stored[0], labels, stored[1], pixels_8x8(views), galleries, kind="noise")
    numbers = memory.numbers("noise")
    assert numbers["episode_bits"] > 0.95 * math.log2(30) and numbers["recall21"] > 0.95
    gains = list(numbers["gain_by_rank"].values())
    assert gains[0] < gains[-1] <= 1  # those that look alike are the harder ones
