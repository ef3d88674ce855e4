"""A method's file is only taken for the network that it was saved from, and runs no code but the project's own."""

import pytest
import torch
from torch import nn

from lib.encoders.small import SmallResNet
from lib.methods import build_method
from lib.methods.export import FINGERPRINT, _agree, fixed_images, load_method, save_method
from lib.runtime.errors import UserError
from lib.runtime.files import read_tensors, write_tensors
from tests.examples import EACH, pretraining


def saved(folder, variant: str = "simclr"):
    params = pretraining(variant)
    torch.manual_seed(0)
    method = build_method(params).train()
    method.latents(torch.randn(8, 3, 16, 16))  # moves the running statistics away from their start
    path = folder / f"{variant}.safetensors"
    save_method(path, method, params, {"checksum": "c"})
    return path


@pytest.fixture
def file(tmp_path):
    return saved(tmp_path)


def refusal(path) -> str:
    with pytest.raises(UserError) as error:
        load_method(path)
    text = str(error.value)
    assert text.startswith(f"{path} does not fit the network that this code builds from it: ") and "\n" not in text
    assert text.endswith("take back the change, or dvc repro -f pretrain@simclr")
    return text


@pytest.mark.parametrize("variant", EACH)
def test_a_file_gives_back_what_was_saved(variant, tmp_path):
    path, params = saved(tmp_path, variant), pretraining(variant)
    method, about = load_method(path)
    assert about["pretraining"] == params.as_json() and about["encoder"] == method.encoder.name
    assert about["supervised"] == ("labels" in method.needs) and about["data"] == {"checksum": "c"}
    assert not method.training and not any(weight.requires_grad for weight in method.parameters())
    state = {name: tensor for name, tensor in read_tensors(path)[0].items() if not name.startswith(FINGERPRINT)}
    assert state.keys() == method.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in method.state_dict().items())


def another_stem(encoder):
    encoder.conv1 = nn.Conv2d(3, 64, kernel_size=4, stride=2, padding=2, bias=False)


def another_padding(encoder):
    encoder.stages[1].conv1.padding_mode = "circular"
    encoder.stages[1].conv1._reversed_padding_repeated_twice = [1, 1, 1, 1]


@pytest.mark.parametrize("change", [another_stem, another_padding])
def test_another_network_of_the_same_weights_cannot_pass(change, file, monkeypatch):
    """Neither by what it computes nor by what it says of itself."""
    plain, about = SmallResNet.__init__, read_tensors(file)[1]["network"]
    monkeypatch.setattr(SmallResNet, "__init__", lambda self, *args: (plain(self, *args), change(self))[0])
    monkeypatch.setattr(SmallResNet, "about", lambda self: about)
    assert "latents.h of the fixed images differ" in refusal(file)
    monkeypatch.setattr(SmallResNet, "about", lambda self: {**about, "padding_mode": "reflect"})
    assert "its encoder was {" in refusal(file) and "reflect" in refusal(file)


def test_a_turned_unit_of_a_binary_code_passes_and_another_code_does_not():
    codes = (torch.arange(200).view(1, 200) % 20 == torch.arange(4).view(4, 1)).float()  # 10 active units in each
    turned = codes.clone()
    turned[0, 0], turned[0, 1] = 0, 1
    assert _agree(turned, codes) and not _agree(codes.roll(1, 1), codes)
    assert not _agree(codes * 0, codes) and not _agree(codes + 0.01, codes * 0.5)


def test_what_rounds_otherwise_on_another_machine_passes(file):
    tensors, about = read_tensors(file)
    tensors["encoder.conv1.weight"] = tensors["encoder.conv1.weight"] * (1 + 1e-6)
    write_tensors(file, tensors, about)
    load_method(file)


def restart(name: str):
    """A weight left at its start, as of another seed."""

    def change(tensors, about):
        torch.manual_seed(1)
        tensors[name] = build_method(pretraining("simclr")).state_dict()[name]

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (restart("encoder.conv1.weight"), "latents.h of the fixed images differ"),
        (restart("encoder.bn1.running_var"), "latents.h of the fixed images differ"),
        (restart("projector.3.bias"), "projections.z of the fixed images differ"),
        (lambda tensors, about: tensors.pop("encoder.conv1.weight"), "Error(s) in loading state_dict"),
        (lambda tensors, about: tensors.pop(FINGERPRINT + "latents.h"), "its latents and projections are latents.h"),
        (lambda tensors, about: about["pretraining"].update(encoder="resnet18"), "Error(s) in loading state_dict"),
        (lambda tensors, about: about["pretraining"].update(encoder="../../strange"), "ModuleNotFoundError"),
        (lambda tensors, about: about["pretraining"].update(method="os.path"), "no method is named 'os.path'"),
        (lambda tensors, about: about["pretraining"].pop("augment"), "missing 1 required"),
        (lambda tensors, about: about.clear(), "KeyError: 'pretraining'"),
    ],
)
def test_a_file_that_was_changed_cannot_pass(change, words, file):
    tensors, about = read_tensors(file)
    change(tensors, about)
    write_tensors(file, tensors, about)
    assert words in refusal(file)


def test_fixed_images_differ_in_every_direction():
    images = fixed_images(16)
    assert images.shape == (4, 3, 16, 16) and torch.equal(images, fixed_images(16))
    flat = images.flatten(0, 1)
    for other in (flat.flip(1), flat.flip(2), flat.mT, flat.roll(1, 2), flat.roll(1, 0)):
        assert (flat - other).abs().amax((1, 2)).min() > 0.1
