"""Convolutions of small maps against torch's own, and what of torch's work they leave out."""

import copy
from itertools import product

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from lib.encoders import build_encoder, small_maps
from lib.encoders.small_maps import SmallMapConv2d, with_small_maps
from lib.encoders.vgg6 import VGG6
from lib.methods import build_method
from tests.examples import pretraining

SIDES = (1, 2, 3, 4, 5)
SQUARE = [(size, stride, padding) for size, stride, padding in product((1, 2, 3, 4), (1, 2, 3), (0, 1, 2))]
UNLIKE = [((1, 3), (1, 2), (0, 1)), ((3, 2), (2, 1), (1, 1)), (7, 1, 3), (5, 2, 2), (2, 1, 3), ((5, 3), (3, 1), (3, 0))]


@pytest.fixture
def always(monkeypatch):
    """Whatever the number of images and channels."""
    monkeypatch.setattr(small_maps, "ASSEMBLY", 0)
    monkeypatch.setattr(small_maps, "THIN", 1)


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
    plain = nn.Conv2d(*sizes, **more).to(memory_format=torch.channels_last)
    return plain, with_small_maps(copy.deepcopy(plain))


def passes(module, images, slope=None):
    """The output and the gradients of images and parameters, as autograd hands them on."""
    images = images.detach().clone().requires_grad_()
    outputs = module(images)
    torch.manual_seed(1)
    slope = torch.randn(outputs.shape, dtype=outputs.dtype) if slope is None else slope
    wanted = [images, *module.parameters()]
    return [outputs.detach(), *torch.autograd.grad(outputs, wanted, slope, allow_unused=True)]


def alike(plain, small, images, **tolerance):
    for one, other in zip(passes(plain, images), passes(small, images), strict=True):
        assert (one is None) == (other is None)  # what takes no part
        if one is not None:
            torch.testing.assert_close(other, one, **tolerance)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size, stride, padding", [*SQUARE, *UNLIKE])
@pytest.mark.parametrize("assembly", [0, 10**9])
def test_values_and_gradients_are_those_of_torch(assembly, size, stride, padding, bias, always, monkeypatch):
    """By both ways: no linear layer is worth 10**9."""
    monkeypatch.setattr(small_maps, "ASSEMBLY", assembly)
    plain, small = pair(3, 5, size, stride, padding, bias=bias, dtype=torch.float64)
    met = 0
    for count, height, width in product((0, 1, 2), SIDES, SIDES):
        images = torch.randn(count, 3, height, width, dtype=torch.float64)
        if all(side + 2 * edge >= length for side, length, edge in
               zip((height, width), plain.kernel_size, plain.padding)):
            alike(plain, small, images, rtol=1e-10, atol=1e-10)
            met += 1
    assert met


def test_every_way_is_taken_by_some_of_them(always):
    """By the gradients that are left to torch: none, the images', and those of 5x5 maps, of which all are."""
    for side, asked in [(1, []), (2, []), (4, [(True, False, False)]), (5, [(True, True, True)])]:
        _, small = pair(4, 6, 3, padding=1)
        with Asked() as seen:
            passes(small, torch.randn(8, 4, side, side))
        assert seen.masks == asked


@pytest.mark.parametrize("side", [1, 2, 4])
def test_in_bf16_it_is_as_exact_as_torch(side, always):
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
        assert 0 < far[1] < 1.2 * far[0] + 1e-4


@pytest.mark.parametrize("side", [2, 4])
def test_gradients_come_channels_last(side, always):
    _, small = pair(4, 6, 3, padding=1)
    images = torch.randn(8, 4, side, side).to(memory_format=torch.channels_last)
    output, to_images, to_weight, _ = passes(small, images)
    assert all(found.is_contiguous(memory_format=torch.channels_last) for found in (output, to_images, to_weight))


@pytest.mark.parametrize("side, links", [(1, 1), (2, 16)])
def test_only_places_that_exist_are_multiplied(side, links, always):
    _, small = pair(4, 6, 3, padding=1)
    with FlopCounterMode(display=False) as counted:
        small(torch.randn(8, 4, side, side, requires_grad=True)).sum().backward()
    assert counted.get_total_flops() == 3 * 2 * 8 * links * 4 * 6  # forward, to the images, to the weights


def test_the_gradient_of_weights_multiplies_what_the_kernel_has_on_the_map(always):
    _, small = pair(4, 6, 3, padding=1)
    with FlopCounterMode(display=False) as counted:
        small(torch.randn(8, 4, 4, 4, requires_grad=True)).sum().backward()
    products = {name: count for name, count in counted.get_flop_counts()["Global"].items() if "mm" in str(name)}
    assert list(products.values()) == [2 * 8 * 100 * 4 * 6]  # of 144 products 44 would be with padding


@pytest.mark.parametrize("count, side, worth", [(9, 1, False), (10, 1, True), (63, 2, False), (64, 2, True)])
def test_a_linear_layer_is_assembled_where_enough_images_use_it(count, side, worth):
    _, small = pair(32, 32, 3, padding=1)
    with Asked() as seen:
        passes(small, torch.randn(count, 32, side, side))
    assert seen.masks == ([] if worth else [(True, False, False)])


@pytest.mark.parametrize("sizes, more", [((3, 64, 3), {"padding": 1}), ((64, 16, 3), {"padding": 1}), ((64, 64, 1), {}),
                                         ((64, 64, 3), {})])
def test_gradients_of_thin_layers_and_those_without_padding_are_torchs(sizes, more):
    _, small = pair(*sizes, **more)
    with Asked() as seen:
        passes(small, torch.randn(2, sizes[0], 4, 4))
    assert seen.masks == [(True, True, True)]


@pytest.mark.parametrize("side", [1, 2, 4])
def test_what_needs_no_gradient_gets_none(side, always):
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


@pytest.mark.parametrize("side", [1, 2, 3])
def test_second_derivatives(side, always):
    _, small = pair(2, 2, 3, padding=1, dtype=torch.float64)
    images = torch.randn(2, 2, side, side, dtype=torch.float64, requires_grad=True)

    def output(images, weight, bias):
        return torch.func.functional_call(small, {"weight": weight, "bias": bias}, images)

    assert torch.autograd.gradgradcheck(output, (images, small.weight, small.bias))


@pytest.mark.parametrize("wrong, dtype", [((2, 5, 4, 4), torch.float32), ((2, 4, 4), torch.float32),
                                          ((2, 4, 4, 4), torch.bfloat16), ((2, 4, 4, 4), torch.int64),
                                          ((2, 5, 1, 1), torch.float32), ((2, 4, 2, 2), torch.bfloat16)])
def test_what_torch_refuses_is_refused_in_its_words(wrong, dtype, always):
    plain, small = pair(4, 6, 3, padding=1)
    said = []
    for module in (plain, small):
        with pytest.raises(RuntimeError) as refusal:
            module(torch.ones(wrong, dtype=dtype))
        said.append(str(refusal.value))
    assert said[0] == said[1]


@pytest.mark.parametrize("side", [2, 4])
def test_under_autocast_weights_in_float64_are_refused_as_torch_does(side, always):
    said = []
    for module in pair(4, 6, 3, padding=1, dtype=torch.float64):
        with pytest.raises(RuntimeError) as refusal, torch.autocast("cpu", dtype=torch.bfloat16):
            module(torch.ones(2, 4, side, side))
        said.append(str(refusal.value))
    assert said[0] == said[1]


def test_a_kernel_larger_than_the_padded_map_is_refused_in_torchs_words(always):
    with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
        pair(4, 6, 5, padding=1)[1](torch.ones(2, 4, 2, 2))


def test_float64_stays_float64_under_autocast(always):
    for side in (1, 2, 4):
        plain, small = pair(4, 6, 3, padding=1, dtype=torch.float64)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            alike(plain, small, torch.randn(2, 4, side, side, dtype=torch.float64), rtol=1e-10, atol=1e-10)


def test_one_image_without_a_batch(always):
    plain, small = pair(3, 5, 3, padding=1)
    image = torch.randn(3, 2, 2)
    assert torch.equal(small(image), plain(image))


@pytest.mark.parametrize("side", [2, 4])
def test_a_compiled_network_has_torchs_convolution(side, always, monkeypatch):
    plain, small = pair(4, 6, 3, padding=1)
    for name in ("linear_layer", "weight_gradient"):
        monkeypatch.setattr(small_maps, name, lambda *given: pytest.fail("not torch's"))
    alike(plain, torch.compile(small, backend="aot_eager", fullgraph=True), torch.randn(8, 4, side, side))


@pytest.mark.parametrize("more", [{"groups": 2}, {"dilation": 2}, {"padding_mode": "circular"}, {"padding": "same"}])
def test_others_stay_as_they_are(more):
    assert type(pair(4, 4, 3, **{"padding": 1, **more})[1]) is nn.Conv2d
    assert type(with_small_maps(nn.ConvTranspose2d(4, 4, 3))) is nn.ConvTranspose2d


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


@pytest.mark.parametrize("pixels", [16, 32])
@pytest.mark.parametrize("encoder", ["resnet18", "small"])
def test_a_network_has_the_gradient_that_it_had(encoder, pixels):
    torch.manual_seed(0)
    plain = build_encoder(encoder).double()
    small = with_small_maps(copy.deepcopy(plain))
    alike(plain, small, torch.randn(3, 3, pixels, pixels, dtype=torch.float64), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("pixels, linear", [(16, 4), (32, 2), (64, 1)])
def test_vgg6_has_the_codes_and_the_gradient_that_it_had(pixels, linear, local, monkeypatch):
    """49 patches of an image: enough for linear layers, with biases, before ReLUs in place."""
    class Codes(VGG6):
        def forward(self, images):
            return torch.cat([layer.flatten(1) for layer in super().forward(images)], 1)

    torch.manual_seed(0)
    plain = Codes(32, False, local).double()
    small = with_small_maps(copy.deepcopy(plain))
    images = torch.randn(6, 3, pixels, pixels, dtype=torch.float64)
    layer, calls = small_maps.linear_layer, []
    monkeypatch.setattr(small_maps, "linear_layer", lambda *given: calls.append(given) or layer(*given))
    alike(plain, small, images, rtol=1e-8, atol=1e-8)
    assert len(calls) == linear
