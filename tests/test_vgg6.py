"""The encoder of patches (docs/methods.md, 9): what a code sees, layers that learn alone, sizes."""

from itertools import product

import pytest
import torch
from torch.nn import functional

from lib.encoders.vgg6 import CHANNELS, VGG6, patches
from tests.examples import normal


def encoder(channels: int = 4, gray: bool = False, local: bool = False) -> VGG6:
    torch.manual_seed(0)
    return VGG6(channels, gray, local)


def test_at_the_sources_width_it_is_vgg_6_and_nothing_but_convolutions():
    with torch.device("meta"):
        full = VGG6(128, gray=True, local=True)
    assert full.widths == [128, 256, 256, 512, 1024, 1024] and full.width == 1024 and full.name == "vgg6"
    assert [layer.in_channels for layer in full.layers] == [1, 128, 256, 256, 512, 1024]
    assert {type(module).__name__ for module in full.modules()} == {"VGG6", "ModuleList", "Conv2d"}


@pytest.mark.parametrize(("size", "pooled"), [(16, (2, 4)), (32, (2, 4, 5)), (64, (2, 4, 5, 6))])
def test_a_code_is_that_of_the_patch_cut_out_by_hand(size, pooled):
    """By hand: patches of a quarter of the image every eighth, each alone through the convolutions, so that no pixel
    beside a patch has a say in its code."""
    network, images = encoder(), normal(2, 3, size, size)
    codes, cut = network(images), patches(images).unflatten(0, (2, 7, 7))
    assert [tuple(layer.shape) for layer in codes] == [(2, 7, 7, 4 * factor) for factor in CHANNELS]
    for row, column in product(range(7), range(7)):
        top, left = row * size // 8, column * size // 8
        values = images[:, :, top : top + size // 4, left : left + size // 4]
        assert torch.equal(cut[:, row, column], values)
        for number, layer in enumerate(network.layers, 1):
            values = functional.conv2d(values, layer.weight, layer.bias, padding=1).clamp(min=0)
            if number in pooled:
                values = functional.max_pool2d(values, 2)
            torch.testing.assert_close(codes[number - 1][:, row, column], values.mean((2, 3)), atol=1e-5, rtol=1e-4)


def test_activations_neither_vanish_nor_explode_before_training():
    sizes = [codes.square().mean().sqrt().item() for codes in encoder(32)(normal(4, 3, 32, 32))]
    assert all(0.2 < size < 5 for size in sizes), sizes


@pytest.mark.parametrize("gray", [True, False])
def test_gray_sees_brightness_alone(gray):
    images, network = normal(2, 3, 32, 32), encoder(gray=gray)
    tint = torch.tensor([0.587, -0.2989, 0.0]).view(3, 1, 1)  # of no luma
    assert torch.allclose(network(images)[-1], network(images + tint)[-1], atol=1e-4) == gray


@pytest.mark.parametrize("local", [True, False])
def test_a_layer_that_learns_alone_passes_nothing_down(local):
    network = encoder(local=local)
    network(normal(2, 3, 16, 16))[-1].sum().backward()
    assert [layer.weight.grad is None for layer in network.layers] == [local] * 5 + [False]


def test_many_images_are_taken_in_parts():
    network, images = encoder(), normal(5, 3, 16, 16)
    whole = network(images)
    network.images_at_once = 2
    for codes, expected in zip(network(images), whole):
        torch.testing.assert_close(codes, expected, atol=1e-6, rtol=1e-5)
