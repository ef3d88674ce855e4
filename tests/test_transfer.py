"""Classifiers that start from learned filters: arms, what stays and what learns, the file for other images."""

import dataclasses
import math

import pytest
import torch

from lib.data.store import ImageData
from lib.evaluate.transfer import Arm, Classifier, arms, compare, filters_file, first_layer, given_filters
from lib.evaluate.transfer import summary as summarized
from lib.params.evaluation import Transfer
from lib.runtime.errors import UserError
from lib.runtime.files import read_tensors, write_tensors
from lib.views.augment import normalize
from tests.examples import CPU, images

SHORT = Transfer(epochs=2, batch_size=16)
FOUR = ["scratch", "random, frozen", "learned, frozen", "learned, fine-tuned"]
SCALING = {"mean": torch.tensor([0.5, 0.45, 0.3]), "std": torch.tensor([0.25, 0.3, 0.1])}  # other than `images` has


def drawn_layer(seed: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=draw) / 10 for name, shape in (("weight", (256, 3, 6, 6)), ("bias", 256))
    }


def scaled(data: ImageData) -> ImageData:
    return dataclasses.replace(data, about={**data.about, **{name: row.tolist() for name, row in SCALING.items()}})


def seen(arm: Arm, data: ImageData, params: Transfer, patch: pytest.MonkeyPatch) -> tuple[list, list]:
    """The inputs that an arm's classifier gets: while it trains, and while it is measured."""
    training, measured, forward = [], [], Classifier.forward

    def noted(network: Classifier, batch: torch.Tensor) -> torch.Tensor:
        (training if network.training else measured).append(batch.clone())
        return forward(network, batch)

    with patch.context() as patched:
        patched.setattr(Classifier, "forward", noted)
        compare([arm], data, params, CPU, 0, "a")
    return training, measured


OWN = drawn_layer(1)


@pytest.fixture(scope="module")
def outcomes():
    return compare(arms(OWN, None), images(size=16), SHORT, CPU, 0, "patch_filters")


@pytest.fixture
def source(outcomes, tmp_path):
    """A filters file of other images."""
    write_tensors(tmp_path / "f.safetensors", filters_file(OWN, outcomes, scaled(images(size=16))), {})
    return tmp_path / "f.safetensors"


def test_frozen_arms_keep_their_filters_bit_by_bit_and_the_others_move(outcomes):
    assert sum(weight.numel() for weight in Classifier(32, 10).parameters()) == 7_769_866, "as the source's"
    found = {outcome.name: outcome.layer for outcome in outcomes}
    assert all(torch.equal(found["learned, frozen"][name], OWN[name]) for name in OWN)
    assert not torch.equal(found["learned, fine-tuned"]["weight"], OWN["weight"])
    assert not torch.equal(found["scratch"]["weight"], found["random, frozen"]["weight"])


def test_the_same_arm_twice_is_the_same_run(outcomes):
    (again,) = compare([Arm(FOUR[3], OWN, True)], images(size=16), SHORT, CPU, 0, "a")
    assert again.curve == outcomes[3].curve and torch.equal(again.layer["weight"], outcomes[3].layer["weight"])


def test_filters_move_from_a_hundred_classes_to_ten(tmp_path):
    """The form of CIFAR-100 -> CIFAR-10: five arms; a file is about its own images, whatever the run started from."""
    many, few, other = scaled(images(count=200, classes=100)), images(count=80, classes=10), drawn_layer(2)
    params = Transfer(epochs=1, batch_size=64)
    moved = filters_file(other, compare(arms(other, None)[:1], many, params, CPU, 0, "a"), many)
    write_tensors(tmp_path / "many", moved, {})
    found = arms(OWN, tmp_path / "many")
    assert [arm.name for arm in found] == [*FOUR, "classifier's, fine-tuned"] and found[-1].learns
    given = given_filters(found)
    assert list(given) == ["learned", "classifier's"] and torch.equal(given["learned"], other["weight"])
    assert torch.equal(given["classifier's"], moved["scratch.weight"])
    outcomes = compare(found[::4], few, params, CPU, 0, "a")
    written = filters_file(OWN, outcomes, few)
    expected = {"learned.weight": OWN["weight"], "scratch.weight": outcomes[0].layer["weight"]}
    for name, tensor in (expected | {"mean": few.mean, "std": few.std}).items():
        assert torch.equal(written[name], tensor), name
    assert not torch.equal(outcomes[1].layer["weight"], moved["scratch.weight"])
    assert list(summarized(outcomes)["scratch"]) == ["first_epoch", "last_epoch", "test_top1"]


def test_pixels_are_scaled_as_those_were_that_the_filters_learned_from(source, monkeypatch):
    """In training, the black around an image included, and where it is measured: validation after each epoch, test
    once at the end."""
    data = images(size=16)
    data = dataclasses.replace(data, train_images=torch.full_like(data.train_images, 255))
    for arm in (arms(OWN, source)[index] for index in (0, 2, 4)):
        mean, std = SCALING.values() if arm.layer else (data.mean, data.std)
        training, measured = seen(arm, data, SHORT, monkeypatch)
        validation, test = (
            normalize(part, mean, std) for part in (data.train_images[data.validation], data.test_images)
        )
        for found, expected in zip(measured, (validation, validation, test), strict=True):
            assert torch.equal(found, expected), arm.name
        black, white = (end(torch.cat(training), (0, 2, 3)) for end in (torch.amin, torch.amax))
        assert torch.allclose(black, -mean / std) and torch.allclose(white, (1 - mean) / std), arm.name


@pytest.mark.parametrize(
    ("name", "tensor", "shape"),
    [
        *(("mean", None, "3"), ("std", torch.ones(1), "3"), ("scratch.bias", None, "256")),
        ("learned.weight", torch.ones(256, 3, 5, 5), "256x3x6x6"),
    ],
)
def test_a_file_that_no_transfer_wrote_is_refused(source, name, tensor, shape):
    tensors = {**read_tensors(source)[0], name: tensor}
    write_tensors(source, {key: values for key, values in tensors.items() if values is not None}, {})
    with pytest.raises(UserError, match=f"no tensor {name} of shape {shape}; name a file that the stage transfer"):
        arms(OWN, source)


def test_an_encoder_that_is_no_layer_of_filters_is_refused(tmp_path):
    tensors = {f"encoder.conv1.{name}": values for name, values in OWN.items()}
    for encoder in ("shallow", "small"):
        write_tensors(tmp_path / encoder, tensors, {"encoder": encoder})
    assert torch.equal(first_layer(tmp_path / "shallow", "patch_filters")["weight"], OWN["weight"])
    words = "names simclr, whose encoder is small; allowed: variants with the encoder shallow"
    with pytest.raises(UserError, match=words):
        first_layer(tmp_path / "small", "simclr")


def test_the_last_third_has_a_tenth_of_the_rate(monkeypatch):
    rates, step = [], torch.optim.Adam.step
    noted = lambda adam, *rest: rates.append(adam.param_groups[0]["lr"]) or step(adam, *rest)  # noqa: E731
    monkeypatch.setattr(torch.optim.Adam, "step", noted)
    compare([Arm("a", OWN, True)], images(size=16), Transfer(epochs=6, batch_size=32, lr=0.002), CPU, 0, "a")
    assert rates == pytest.approx([0.002] * 8 + [0.0002] * 4)


def test_the_double_softmax_is_trained_with_where_it_is_asked_for():
    """From the same weights on: with the slip no loss is below its floor, without it two classes are soon learned."""
    slip, plain = (
        [row["loss"] for row in compare([Arm("a", OWN, True)], images(size=16), params, CPU, 0, "a")[0].curve]
        for params in (Transfer(epochs=4, batch_size=16, double_softmax=asked) for asked in (True, False))
    )
    assert min(slip) > math.log(1 + 1 / math.e) > plain[-1]
