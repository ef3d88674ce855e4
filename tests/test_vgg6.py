"""The encoder of patches and its maps (docs/methods.md, 9): what a code sees, and which codes are predicted."""

import pytest
import torch
from torch.nn import functional

from lib.encoders.vgg6 import CHANNELS, FURTHEST, VGG6, Ahead, pairs, patches, places_ahead
from lib.methods import try_method
from lib.runtime.errors import UserError
from tests.examples import pretraining


def encoder(channels: int = 4, gray: bool = False, local: bool = False) -> VGG6:
    torch.manual_seed(0)
    return VGG6(channels, gray, local)


def pictures(count: int = 2, size: int = 32) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [16, 32, 64])
def test_every_layer_has_a_code_for_each_of_49_patches(size):
    codes = encoder()(pictures(3, size))
    assert [tuple(layer.shape) for layer in codes] == [(3, 7, 7, 4 * factor) for factor in CHANNELS]


def test_at_the_sources_width_it_is_vgg_6():
    with torch.device("meta"):
        full = VGG6(128, gray=True, local=True)
    assert full.widths == (128, 256, 256, 512, 1024, 1024) and full.width == 1024
    assert [layer.in_channels for layer in full.layers] == [1, 128, 256, 256, 512, 1024]


@pytest.mark.parametrize(("size", "pooled"), [(16, (2, 4)), (32, (2, 4, 5)), (64, (2, 4, 5, 6))])
def test_a_code_is_that_of_the_patch_cut_out_by_hand(size, pooled):
    """By hand: patches of a quarter of the image every eighth, each alone through the convolutions."""
    network, images = encoder(), pictures(2, size)
    codes = network(images)
    for row, column in [(0, 0), (3, 5), (6, 6)]:
        top, left = row * size // 8, column * size // 8
        values = images[:, :, top : top + size // 4, left : left + size // 4]
        for number, layer in enumerate(network.layers, 1):
            values = functional.conv2d(values, layer.weight, layer.bias, padding=1).clamp(min=0)
            if number in pooled:
                values = functional.max_pool2d(values, 2)
            torch.testing.assert_close(codes[number - 1][:, row, column], values.mean((2, 3)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("place", [(0, 0), (13, 18), (31, 4), (16, 16)])
def test_a_pixel_changes_the_codes_of_the_patches_that_hold_it_and_no_other(place):
    network, image = encoder().eval(), pictures(1)
    other = image.clone()
    other[0, :, place[0], place[1]] += 5
    holds = torch.tensor(
        [
            [4 * row <= place[0] < 4 * row + 8 and 4 * column <= place[1] < 4 * column + 8 for column in range(7)]
            for row in range(7)
        ]
    )
    with torch.no_grad():
        for before, after in zip(network(image), network(other)):
            moved = (before - after)[0].abs().amax(2)
            assert (moved[holds] > 1e-6).all() and (moved[~holds] < 1e-6).all()


def test_there_is_nothing_in_it_but_convolutions():
    assert {type(module).__name__ for module in encoder().modules()} == {"VGG6", "ModuleList", "Conv2d"}


def test_activations_neither_vanish_nor_explode_before_training():
    sizes = [codes.square().mean().sqrt().item() for codes in encoder(32)(pictures(4))]
    assert all(0.2 < size < 5 for size in sizes), sizes


def test_grey_sees_brightness_alone():
    images = pictures()
    tint = torch.tensor([0.587, -0.2989, 0.0]).view(3, 1, 1)  # of no luma
    for gray in (True, False):
        network = encoder(gray=gray)
        same = torch.allclose(network(images)[-1], network(images + tint)[-1], atol=1e-4)
        assert same == gray


def test_a_layer_that_learns_alone_passes_nothing_down():
    for local in (True, False):
        network = encoder(local=local)
        network(pictures())[-1].sum().backward()
        assert [layer.weight.grad is None for layer in network.layers] == [local] * 5 + [False]


def test_many_images_are_taken_in_parts(monkeypatch):
    network, images = encoder(), pictures(5)
    whole = network(images)
    monkeypatch.setattr("lib.encoders.vgg6.IMAGES_AT_ONCE", 2)
    for codes, expected in zip(network(images), whole):
        torch.testing.assert_close(codes, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("variant", ["cpc", "clapp"])
@pytest.mark.parametrize("size", [8, 20, 30])
def test_a_size_without_a_grid_is_refused(variant, size):
    with pytest.raises(UserError, match=f"image_size is {size}, which has no grid of 7x7 patches; allowed .* 8, at "):
        try_method(pretraining(variant, image_size=size))


def test_it_is_no_encoder_for_all_methods():
    with pytest.raises(UserError, match="encoder is 'vgg6'; allowed: resnet18"):
        pretraining("simclr", encoder="vgg6")


def test_patches_in_the_order_of_images_then_rows():
    images = pictures(2, 16)
    cut = patches(images).unflatten(0, (2, 7, 7))
    assert torch.equal(cut[1, 2, 5], images[1, :, 4:8, 10:14])


def test_predictions_meet_the_codes_of_the_rows_below():
    """Row r + k + 1 from row r: the next row shares pixels and is left out."""
    torch.manual_seed(0)
    codes, ahead = torch.randn(3, 7, 7, 4), Ahead(4, FURTHEST)
    places = places_ahead(FURTHEST)
    assert len(places) == 5 and sum(places) == 105
    both = (rows.split(places, 1) for rows in pairs(ahead(codes), codes.flatten(1), FURTHEST))
    for k, (predicted, there) in enumerate(zip(*both, strict=True), 1):
        assert predicted.shape == there.shape == (3, (7 - k - 1) * 7, 4)
        for row in range(7 - k - 1):
            for column in range(7):
                expected = ahead.maps[k - 1].weight @ codes[2, row, column]
                torch.testing.assert_close(predicted[2, 7 * row + column], expected)
                assert torch.equal(there[2, 7 * row + column], codes[2, row + k + 1, column])


@pytest.mark.parametrize("width", [32, 256])
def test_scores_start_of_the_order_of_one(width):
    torch.manual_seed(0)
    codes = torch.randn(8, 7, 7, width)
    predicted, there = pairs(Ahead(width, 1)(codes), codes.flatten(1), 1)
    assert 0.7 < (predicted * there).sum(2).std().item() < 1.4
