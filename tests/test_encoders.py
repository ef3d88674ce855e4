"""Parameter counts of the study's networks, shapes, and weights that move to torchvision and back."""

from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from lib import encoders
from lib.encoders import build_encoder
from lib.encoders.resnet import cifar_stem
from lib.methods import build_method
from lib.methods.base import count_parameters
from tests.examples import normal, pretraining

FILES = Path(encoders.__file__).parent.glob("[a-z]*.py")
ENCODERS = sorted(path.stem for path in FILES if "def build(" in path.read_text())


@pytest.mark.parametrize(
    ("name", "count", "width", "stem"),
    [
        ("resnet50", 23_500_352, 2048, (3, 1, 1)),
        ("resnet18", 11_168_832, 512, (3, 1, 1)),
        ("small", None, 512, (4, 2, 1)),
    ],
)
def test_parameter_counts_the_stem_on_record_and_a_4x4_map_of_32_pixels(name, count, width, stem):
    with torch.device("meta"):
        encoder = build_encoder(name)
        assert encoder(torch.empty(2, 3, 32, 32)).shape == (2, encoder.width, 4, 4)
    assert count in (None, count_parameters(encoder)) and encoder.name == name
    kernels = dict(zip(("stem_kernel", "stem_stride", "stem_padding"), stem))
    assert encoder.about() == {**kernels, "padding_mode": "zeros", "max_pool": False, "width": width}


@pytest.mark.parametrize(("variant", "count"), [("simclr", 24_615_616), ("joint", 24_615_616), ("dual", 25_730_880)])
def test_the_studys_models_have_the_studys_parameters(variant, count):
    with torch.device("meta"):
        method = build_method(pretraining(variant, encoder="resnet50"))
    assert count_parameters(method) == count


def test_resnet18_weights_give_the_same_features_in_torchvision():
    torch.manual_seed(0)
    encoder = build_encoder("resnet18").eval()
    other = torchvision.models.resnet18(num_classes=10)
    other.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    other.maxpool = nn.Identity()
    missing = other.load_state_dict(encoder.state_dict(), strict=False)
    assert set(missing.missing_keys) == {"fc.weight", "fc.bias"} and not missing.unexpected_keys
    other.fc = nn.Identity()
    images = normal(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(encoder(images).mean((2, 3)), other.eval()(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in ENCODERS if name != "sdr"])  # of three channels there is no half
def test_other_inputs_and_widths(name):
    with torch.device("meta"):
        whole, half = build_encoder(name), build_encoder(name, inputs=2, width=0.5)
        expected = whole(torch.empty(2, 3, 32, 32)).shape
        assert half(torch.empty(2, 2, 32, 32)).shape == (2, whole.width // 2, *expected[2:])
    assert half.conv1.weight.shape[1] == 2
    for (one, wide), (other, narrow) in zip(whole.named_parameters(), half.named_parameters()):
        assert one == other and wide.shape[0] == 2 * narrow.shape[0]


@pytest.mark.parametrize(("pixels", "side"), [(32, 10), (28, 8), (8, 2)])
def test_sdr_has_three_filters_and_a_hundred_places(pixels, side):
    encoder, images = build_encoder("sdr").eval(), normal(2, 3, pixels, pixels)
    with torch.no_grad():
        features = encoder(images)
        places = nn.functional.conv2d(images, encoder.conv1.weight).clamp(min=0) / (1 + 1e-5) ** 0.5
    assert count_parameters(encoder) == 3 * 3 * 9 + 6 and features.shape == (2, encoder.width, side, side)
    corner = places[:, :, :3, :3].amax((2, 3))
    torch.testing.assert_close(features[:, :, 0, 0], corner, atol=1e-6, rtol=1e-5)
    assert build_encoder("sdr", inputs=1, width=2).conv1.weight.shape == (6, 1, 3, 3)


def test_at_their_usual_width_the_weights_are_drawn_in_torchvisions_order():
    torch.manual_seed(0)
    encoder = build_encoder("resnet18")
    torch.manual_seed(0)
    cifar_stem(3, 1.0)
    plain = torchvision.models.resnet18()
    for name, weight in encoder.layer4.named_parameters():
        assert torch.equal(weight, plain.layer4.get_parameter(name))
