"""A method's file is only taken for the network that it was saved from."""

import pytest
import torch
from torch import nn

from lib.encoders.small import SmallResNet
from lib.methods import build_method
from lib.methods.export import FINGERPRINT, _agree, fixed_images, load_method, save_method
from lib.runtime.errors import UserError
from lib.runtime.files import read_tensors, write_tensors
from tests.examples import params_file, pretraining

VARIANTS = list(params_file()["variants"])


@pytest.fixture
def file(tmp_path):
    params = pretraining("simclr")
    torch.manual_seed(0)
    method = build_method(params).train()
    method.latents(torch.randn(8, 3, 16, 16))  # moves the running statistics away from their start
    path = tmp_path / "simclr.safetensors"
    save_method(path, method, params, {"checksum": "c"})
    return path


def refusal(path) -> str:
    with pytest.raises(UserError) as error:
        load_method(path)
    text = str(error.value)
    assert text.startswith(f"{path} does not fit the network that this code builds from it: ") and "\n" not in text
    assert text.endswith("take back the change, or dvc repro -f pretrain@simclr")
    return text


def test_the_file_as_it_was_saved_passes(file):
    _, about = load_method(file)
    assert about["data"] == {"checksum": "c"}


def test_another_stem_cannot_pass(file, monkeypatch):
    plain = SmallResNet.__init__

    def other(self, *given):
        plain(self, *given)
        self.conv1 = nn.Conv2d(3, 64, kernel_size=4, stride=2, padding=2, bias=False)

    monkeypatch.setattr(SmallResNet, "__init__", other)
    monkeypatch.setattr(SmallResNet, "about", lambda self: read_tensors(file)[1]["network"])  # not even noted down
    assert "the latents h of the fixed images differ" in refusal(file)


def test_a_turned_unit_of_a_binary_code_passes_and_another_code_does_not():
    codes = (torch.arange(200).view(1, 200) % 20 == torch.arange(4).view(4, 1)).float()  # 10 active units in each
    turned = codes.clone()
    turned[0, 0], turned[0, 1] = 0, 1
    assert _agree(turned, codes) and not _agree(codes.roll(1, 1), codes)
    assert not _agree(codes * 0, codes) and not _agree(codes + 0.01, codes * 0.5)


def test_another_padding_that_is_noted_down_cannot_pass(file, monkeypatch):
    plain = SmallResNet.about
    monkeypatch.setattr(SmallResNet, "about", lambda self: {**plain(self), "padding_mode": "reflect"})
    assert "encoder small was {" in refusal(file) and "reflect" in refusal(file)


def test_another_padding_inside_cannot_pass(file, monkeypatch):
    plain = SmallResNet.__init__

    def other(self, *given):
        plain(self, *given)
        self.stages[1].conv1.padding_mode = "circular"
        self.stages[1].conv1._reversed_padding_repeated_twice = [1, 1, 1, 1]

    monkeypatch.setattr(SmallResNet, "__init__", other)
    assert "the latents h of the fixed images differ" in refusal(file)


def test_a_part_of_the_weights_cannot_pass(file):
    tensors, about = read_tensors(file)
    del tensors["encoder.conv1.weight"]
    write_tensors(file, tensors, about)
    assert "Error(s) in loading state_dict" in refusal(file)


@pytest.mark.parametrize("name", ["encoder.conv1.weight", "encoder.bn1.running_var", "encoder.widen.0.weight"])
def test_weights_left_at_their_start_cannot_pass(file, name):
    tensors, about = read_tensors(file)
    torch.manual_seed(1)
    tensors[name] = build_method(pretraining("simclr")).state_dict()[name]
    write_tensors(file, tensors, about)
    assert "the latents h of the fixed images differ" in refusal(file)


def test_what_rounds_otherwise_on_another_machine_passes(file):
    tensors, about = read_tensors(file)
    tensors["encoder.conv1.weight"] = tensors["encoder.conv1.weight"] * (1 + 1e-6)
    write_tensors(file, tensors, about)
    load_method(file)


def test_a_file_without_its_fingerprint_cannot_pass(file):
    tensors, about = read_tensors(file)
    write_tensors(file, {name: rows for name, rows in tensors.items() if not name.startswith(FINGERPRINT)}, about)
    assert "its latents are h" in refusal(file)


def test_a_record_of_other_settings_cannot_pass(file):
    tensors, about = read_tensors(file)
    about["pretraining"]["encoder"] = "resnet18"
    write_tensors(file, tensors, about)
    assert "Error(s) in loading state_dict" in refusal(file)


def test_fixed_images_differ_in_every_direction():
    images = fixed_images(16)
    assert images.shape == (4, 3, 16, 16) and torch.equal(images, fixed_images(16))
    flat = images.flatten(0, 1)
    for other in (flat.flip(1), flat.flip(2), flat.mT, flat.roll(1, 2), flat.roll(1, 0)):
        assert (flat - other).abs().amax((1, 2)).min() > 0.1
