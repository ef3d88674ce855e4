"""Classifiers that start from learned filters: arms, what stays and what learns, the file for other images."""

import dataclasses
import json
from pathlib import Path

import pandas
import pytest
import torch
import yaml
from torch.nn import functional

from lib.data.store import IMAGES_FILE, ImageData, save_data
from lib.evaluate.transfer import Arm, Classifier, _network, arms, compare, filters_file, first_layer, summary
from lib.params.evaluation import Transfer
from lib.report.figures_transfer import filters_figure, transfer_figure
from lib.runtime.errors import UserError
from lib.runtime.files import read_tensors, write_tensors
from lib.views.augment import normalize
from stages import transfer as stage
from tests.examples import CPU, images, raw_params

SHORT = Transfer(epochs=2, batch_size=16)
OWN_ARMS = ["scratch", "scratch, normalized pixels", "random, frozen", "learned, frozen", "learned, fine-tuned"]
ALL_ARMS = [*OWN_ARMS, "classifier's, fine-tuned"]


def drawn_layer(seed: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=draw) / 10 for name, shape in (("weight", (256, 3, 6, 6)), ("bias", 256))
    }


def seen(arm: Arm, data: ImageData, params: Transfer, patch: pytest.MonkeyPatch) -> tuple[list, list]:
    """The inputs that an arm's classifier gets: while it trains, and while it is measured."""
    training, measured, forward = [], [], Classifier.forward
    with patch.context() as patched:
        patched.setattr(
            Classifier,
            "forward",
            lambda network, batch: (
                (training if network.training else measured).append(batch.clone()) or forward(network, batch)
            ),
        )
        compare([arm], data, params, CPU, 0, "a")
    return training, measured


def white_to_train_on() -> ImageData:
    data = images(size=16)
    return dataclasses.replace(data, train_images=torch.full_like(data.train_images, 255))


OWN = drawn_layer(1)


@pytest.fixture(scope="module")
def outcomes():
    return compare(arms(OWN, None), images(size=16), SHORT, CPU, 0, "patch_filters")


@pytest.fixture
def source(outcomes, tmp_path):
    """A filters file of other images."""
    write_tensors(tmp_path / "f.safetensors", filters_file(OWN, outcomes), {})
    return tmp_path / "f.safetensors"


def test_the_classifier_has_the_sources_size():
    assert sum(weight.numel() for weight in Classifier(32, 10).parameters()) == 7_769_866


def test_frozen_arms_keep_their_filters_bit_by_bit_and_the_others_move(outcomes):
    found = {outcome.name: outcome.layer for outcome in outcomes}
    assert all(torch.equal(found["learned, frozen"][name], OWN[name]) for name in OWN)
    assert not torch.equal(found["learned, fine-tuned"]["weight"], OWN["weight"])
    assert not torch.equal(found["scratch"]["weight"], found["random, frozen"]["weight"])


def test_arms_differ_in_the_first_layer_alone_and_repeat(outcomes):
    drawn = [_network(arm, images(size=16), 0) for arm in arms(OWN, None)]
    for network in drawn[1:]:
        assert all(torch.equal(a, b) for a, b in zip(drawn[0].rest.parameters(), network.rest.parameters()))
    assert torch.equal(drawn[0].first.weight, drawn[1].first.weight)
    assert torch.equal(drawn[0].first.weight, drawn[2].first.weight)
    assert torch.equal(drawn[3].first.weight, OWN["weight"])
    again = compare(arms(OWN, None)[4:], images(size=16), SHORT, CPU, 0, "a")[0]
    assert again.curve == outcomes[4].curve and torch.equal(again.layer["weight"], outcomes[4].layer["weight"])
    assert outcomes[1].curve != outcomes[0].curve  # what normalizing alone does


def staged(folder: Path, data: ImageData, layer: dict[str, torch.Tensor], source: str) -> dict[str, torch.Tensor]:
    """Run the stage in a project of its own; the filters file that it writes."""
    folder.mkdir()
    params = raw_params(transfer__source=source, transfer__epochs=1, transfer__batch_size=64)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for key in ("device", "threads", "precision"):
            patch.setenv(f"ENGRAM_{key.upper()}", str(getattr(CPU, key)))
        tensors = {f"encoder.conv1.{name}": values for name, values in layer.items()}
        write_tensors(Path("data/encoders/patch_filters.safetensors"), tensors, {"encoder": "shallow"})
        save_data(IMAGES_FILE, data)
        Path("params.yaml").write_text(yaml.safe_dump(params))
        stage.main("patch_filters")
        written, about = read_tensors(Path("data/filters/patch_filters.safetensors"))
    assert about == {"variant": "patch_filters", "data": data.about["checksum"]}
    return written


@pytest.mark.slow
def test_the_stage_moves_filters_from_a_hundred_classes_to_ten(tmp_path):
    """The form of CIFAR-100 -> CIFAR-10: one more arm; a file is about its own images alone."""
    first, second, other = tmp_path / "first", tmp_path / "second", drawn_layer(2)
    moved = staged(first, images(count=200, classes=100), OWN, source="")
    file = first / "data/filters/patch_filters.safetensors"
    written = staged(second, images(count=80, classes=10), other, source=str(file))
    for folder, names in ((first, OWN_ARMS), (second, ALL_ARMS)):
        assert list(json.loads((folder / "metrics/transfer/patch_filters.json").read_text())) == names
        curves = pandas.read_csv(folder / "plots/transfer/patch_filters.csv")
        assert curves["arm"].tolist() == names and curves["epoch"].tolist() == [1] * len(names)
        assert curves["validation_top1"].between(0, 100).all() and curves["loss"].between(0, 10).all()
        assert all((folder / f"plots/{kind}/patch_filters.png").is_file() for kind in ("filters", "transfer"))
    assert torch.equal(moved["learned.weight"], OWN["weight"])
    assert torch.equal(written["learned.weight"], other["weight"])
    assert not torch.equal(written["scratch.weight"], moved["scratch.weight"])


def test_pixels_are_in_0_to_1_as_those_were_that_the_filters_learned_from(source, monkeypatch):
    """In training, the black around an image included, and where it is measured: validation after each epoch, test
    once at the end. One arm has them normalized."""
    data = white_to_train_on()
    for arm in (arms(OWN, source)[index] for index in (0, 1, 3, 5)):
        normalized = arm.name == "scratch, normalized pixels"
        mean, std = (data.mean, data.std) if normalized else (torch.zeros(3), torch.ones(3))
        training, measured = seen(arm, data, SHORT, monkeypatch)
        validation, test = (
            normalize(part, mean, std) for part in (data.train_images[data.validation], data.test_images)
        )
        for found, expected in zip(measured, (validation, validation, test), strict=True):
            assert torch.equal(found, expected), arm.name
        black, white = (end(torch.cat(training), (0, 2, 3)) for end in (torch.amin, torch.amax))
        assert torch.allclose(black, -mean / std) and torch.allclose(white, (1 - mean) / std), arm.name


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"learned.weight": torch.ones(256, 3, 5, 5)},
            "holds no tensor learned.weight of shape 256x3x6x6; name a file ",
        ),
        (
            {"scratch.bias": None},
            "holds no tensor scratch.bias of shape 256; name a file that the stage transfer wrote",
        ),
        ({"mean": torch.ones(3), "std": torch.ones(3)}, "filters of normalized pixels"),  # of an older version
    ],
)
def test_a_file_that_this_transfer_did_not_write_is_refused(source, change, words):
    tensors = {**read_tensors(source)[0], **change}
    write_tensors(source, {name: values for name, values in tensors.items() if values is not None}, {})
    with pytest.raises(UserError, match=words):
        arms(OWN, source)


def test_an_encoder_that_is_no_layer_of_filters_is_refused(tmp_path):
    tensors = {f"encoder.conv1.{name}": values for name, values in OWN.items()}
    for encoder in ("shallow", "small"):
        write_tensors(tmp_path / encoder, tensors, {"encoder": encoder})
    assert torch.equal(first_layer(tmp_path / "shallow", "patch_filters")["weight"], OWN["weight"])
    words = "names simclr, whose encoder is small; allowed: variants with the encoder shallow"
    with pytest.raises(UserError, match=words):
        first_layer(tmp_path / "small", "simclr")


def test_images_are_shifted_by_up_to_four_pixels_each_way(monkeypatch):
    training, _ = seen(Arm("a", OWN, True), white_to_train_on(), SHORT, monkeypatch)
    black = torch.cat(training)[:, 0] == 0
    for lines in (black.all(2), black.all(1)):  # [B, S]
        assert lines[:, :4].sum(1).max() == lines[:, -4:].sum(1).max() == lines.sum(1).max() == 4
        assert lines.sum(1).min() == 0


def test_the_last_third_has_a_tenth_of_the_rate(monkeypatch):
    rates, step = [], torch.optim.Adam.step
    monkeypatch.setattr(
        torch.optim.Adam,
        "step",
        lambda optimizer, *rest: rates.append(optimizer.param_groups[0]["lr"]) or step(optimizer, *rest),
    )
    compare([Arm("a", OWN, True)], images(size=16), Transfer(epochs=6, batch_size=32, lr=0.002), CPU, 0, "a")
    assert rates == pytest.approx([0.002] * 8 + [0.0002] * 4)


def test_the_double_softmax_is_trained_with_where_it_is_asked_for():
    """From the same weights on: with the slip no loss is below its floor, without it two classes are soon learned."""
    params = [Transfer(epochs=4, batch_size=16, double_softmax=asked) for asked in (True, False)]
    slip, plain = (
        [row["loss"] for row in compare([Arm("a", OWN, True)], images(size=16), each, CPU, 0, "a")[0].curve]
        for each in params
    )
    right = torch.tensor([[1e4, -1e4]]).softmax(1)
    floor = functional.cross_entropy(right, torch.tensor([0])).item()
    assert floor == pytest.approx(0.313262, abs=1e-6)  # log(1 + 1/e)
    assert min(slip) > floor > plain[-1]


def test_pictures_are_drawn(outcomes):
    rows = [{"arm": outcome.name, **row} for outcome in outcomes for row in outcome.curve]
    axes = transfer_figure(rows, "patch_filters").axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(summary(outcomes)) == OWN_ARMS
    panels = filters_figure({"a": OWN["weight"].numpy(), "b": OWN["weight"][:20].numpy()}, "patch_filters").axes
    for panel, lines, title in zip(panels, (16, 2), ("256 filters, a (patch_filters)", "20 filters, b"), strict=True):
        sheet = panel.images[0].get_array()
        assert sheet.shape[:2] == (lines * 7 + 1, 16 * 7 + 1) and sheet.min() >= 0 and sheet.max() <= 1
        assert panel.get_title("left").startswith(title)
