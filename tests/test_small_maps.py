"""Convolutions of small maps against torch's own, and what of torch's work they leave out."""

import copy
from itertools import product

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from lib.encoders import build_encoder
from lib.encoders.small_maps import SmallMapConv2d, without_padding
from lib.methods import build_method
from tests.examples import pretraining

SIDES = (1, 2, 3, 4, 5)


class Asked(TorchDispatchMode):
    """Notes which gradients are asked of torch's convolutions: of the images, the weights, the biases."""

    def __init__(self):
        super().__init__()
        self.masks = []

    def __torch_dispatch__(self, operation, types, given=(), named=None):
        if operation.overloadpacket.__name__ == "convolution_backward":
            self.masks.append(tuple(given[10]))
        return operation(*given, **(named or {}))


def pair(*sizes, **more):
    torch.manual_seed(0)
    plain = nn.Conv2d(*sizes, **more)
    return plain, without_padding(copy.deepcopy(plain))


def passes(module, images, slope=None):
    """The output and the gradients of images and parameters."""
    images = images.detach().clone().requires_grad_()
    outputs = module(images)
    torch.manual_seed(1)
    outputs.backward(torch.randn(outputs.shape, dtype=outputs.dtype) if slope is None else slope)
    return [outputs.detach(), images.grad, *(weight.grad for weight in module.parameters())]


@pytest.mark.parametrize("size, stride, padding, bias",
                         [*product((1, 2, 3, 4), (1, 2, 3), (0, 1, 2), (True, False))])
def test_values_and_gradients_are_those_of_torch(size, stride, padding, bias):
    plain, small = pair(3, 5, size, stride, padding, bias=bias, dtype=torch.float64)
    met = 0
    for height, width in product(SIDES, SIDES):
        if min(height, width) + 2 * padding >= size:
            images = torch.randn(2, 3, height, width, dtype=torch.float64)
            for one, other in zip(passes(plain, images), passes(small, images), strict=True):
                torch.testing.assert_close(other, one, rtol=1e-10, atol=1e-10)
            plain.zero_grad(), small.zero_grad()
            met += 1
    assert met


@pytest.mark.parametrize("side", [1, 2, 4])
def test_in_bf16_it_is_as_exact_as_torch(side):
    plain, small = pair(64, 32, 3, padding=1)
    exact = copy.deepcopy(plain).double()
    images = torch.randn(64, 64, side, side).to(memory_format=torch.channels_last)
    torch.manual_seed(2)
    slope = torch.randn(64, 32, side, side).bfloat16()
    expected = passes(exact, images.double(), slope.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        theirs, ours = passes(plain, images, slope), passes(small, images, slope)
    for truth, one, other in zip(expected, theirs, ours, strict=True):
        assert one.dtype == other.dtype
        far = [(found.double() - truth).norm() / truth.norm() for found in (one, other)]
        assert far[1] < max(1.5 * far[0], 0.005) and far[1] < 0.01


def test_weights_and_gradients_keep_their_layout():
    for side in (2, 4):
        _, small = pair(4, 6, 3, padding=1)
        small.to(memory_format=torch.channels_last)
        images = torch.randn(8, 4, side, side).to(memory_format=torch.channels_last)
        output, to_images, weights, _ = passes(small, images)
        assert all(found.is_contiguous(memory_format=torch.channels_last) for found in (output, to_images, weights))


@pytest.mark.parametrize("side, asked", [(1, []), (2, []), (4, [(True, False, True)]), (5, [(True, True, True)])])
def test_what_is_left_to_torch(side, asked):
    _, small = pair(4, 6, 3, padding=1)
    with Asked() as seen:
        passes(small, torch.randn(8, 4, side, side))
    assert seen.masks == asked


@pytest.mark.parametrize("side, links", [(1, 1), (2, 16)])
def test_only_places_that_exist_are_multiplied(side, links):
    _, small = pair(4, 6, 3, padding=1)
    with FlopCounterMode(display=False) as counted:
        passes(small, torch.randn(8, 4, side, side))
    assert counted.get_total_flops() == 3 * 2 * 8 * links * 4 * 6  # forward, to the images, to the weights


def test_the_gradient_of_weights_multiplies_what_the_kernel_has_seen():
    _, small = pair(4, 6, 3, padding=1)
    with FlopCounterMode(display=False) as counted:
        passes(small, torch.randn(8, 4, 4, 4))
    products = {name: count for name, count in counted.get_flop_counts()["Global"].items() if "mm" in str(name)}
    assert list(products.values()) == [2 * 8 * 100 * 4 * 6]  # of 144 products 44 would be with padding


def test_what_needs_no_gradient_gets_none():
    for side in (1, 2, 4):
        _, small = pair(4, 6, 3, padding=1)
        small.requires_grad_(False)
        images = torch.randn(8, 4, side, side, requires_grad=True)
        small(images).sum().backward()
        assert small.weight.grad is None and images.grad is not None
        small.requires_grad_(True)
        small(images.detach()).sum().backward()
        assert small.weight.grad is not None
        with torch.no_grad():
            assert not small(images).requires_grad


def test_one_image_without_a_batch():
    plain, small = pair(3, 5, 3, padding=1)
    image = torch.randn(3, 2, 2)
    torch.testing.assert_close(small(image), plain(image))


@pytest.mark.parametrize("more", [{"groups": 2}, {"dilation": 2}, {"padding_mode": "circular"}, {"padding": "same"}])
def test_others_stay_as_they_are(more):
    assert type(pair(4, 4, 3, **{"padding": 1, **more})[1]) is nn.Conv2d
    assert type(without_padding(nn.ConvTranspose2d(4, 4, 3))) is nn.ConvTranspose2d


@pytest.mark.parametrize("variant, encoder",
                         [("simclr", "small"), ("simclr", "resnet18"), ("moco", "small"), ("cpc", "small")])
def test_every_convolution_of_a_method_is_one(variant, encoder):
    method = build_method(pretraining(variant, encoder=encoder))
    kinds = {type(module) for module in method.modules() if isinstance(module, nn.Conv2d)}
    assert kinds == {SmallMapConv2d}


def test_an_encoder_by_itself_has_torchs_own():
    """The benchmark's peers build theirs so."""
    kinds = {type(module) for module in build_encoder("small").modules() if isinstance(module, nn.Conv2d)}
    assert kinds == {nn.Conv2d}


@pytest.mark.parametrize("encoder", ["resnet18", "small"])
def test_a_network_has_the_gradient_that_it_had(encoder):
    torch.manual_seed(0)
    plain = build_encoder(encoder).double()
    small = without_padding(copy.deepcopy(plain))
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    for one, other in zip(passes(plain, images), passes(small, images), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-8, atol=1e-10)
