"""Classifiers that start from learned filters: arms, what stays and what learns, the file for other images."""

import dataclasses
import json
from pathlib import Path

import pandas
import pytest
import torch
from lib.params.check import check_params

from lib.data.store import IMAGES_FILE, ImageData, save_data
from lib.evaluate import transfer
from lib.evaluate.transfer import Arm, Classifier, arms, compare, filters_file, first_layer, given_filters, summary
from lib.methods import build_method
from lib.methods.base import count_parameters
from lib.methods.export import save_method
from lib.params.evaluation import Transfer
from lib.report import figures_transfer
from lib.report.figures_transfer import filters_figure, transfer_figure
from lib.runtime.errors import UserError
from lib.runtime.files import read_tensors, write_tensors
from lib.views.augment import normalize
from stages import transfer as stage
from tests.examples import CPU, ROOT, images, params_file, pretraining

SHORT = Transfer(epochs=2, batch_size=16)
FOUR = ["scratch", "random, frozen", "learned, frozen", "learned, fine-tuned"]
FIVE = [*FOUR, "classifier's, fine-tuned"]
SCALING = {"mean": torch.tensor([0.5, 0.45, 0.3]), "std": torch.tensor([0.25, 0.3, 0.1])}  # other than `images` has


def saved(variant: str, folder: Path, name: str = "m.safetensors", seed: int = 1) -> Path:
    torch.manual_seed(seed)
    params = pretraining(variant)
    save_method(folder / name, build_method(params), params, {"checksum": "c"})
    return folder / name


def scaled(data: ImageData) -> ImageData:
    return dataclasses.replace(data, about={**data.about, **{name: row.tolist() for name, row in SCALING.items()}})


def staged(folder: Path, data: ImageData, seed: int, source: str = "") -> dict[str, torch.Tensor]:
    """Run the stage in a project of its own, with filters of that seed; the filters that it draws."""
    drawn, draw = {}, filters_figure
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for key in ("device", "processes", "precision"):
            patch.setenv(f"ENGRAM_{key.upper()}", str(getattr(CPU, key)))
        patch.setenv("ENGRAM_THREADS", str(torch.get_num_threads()))
        saved("patch_filters", Path("data/encoders"), "patch_filters.safetensors", seed)
        save_data(IMAGES_FILE, data)
        patch.setattr(figures_transfer, "filters_figure", lambda found, name: drawn.update(found) or draw(found, name))
        stage.main(params_file(transfer__source=source, transfer__epochs=2, transfer__batch_size=16), "patch_filters")
    return {name: torch.from_numpy(weights) for name, weights in drawn.items()}


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


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    return first_layer(saved("patch_filters", tmp_path_factory.mktemp("own")), "patch_filters")


@pytest.fixture(scope="module")
def outcomes(own):
    return compare(arms(own, None), images(size=16), SHORT, CPU, 0, "patch_filters")


def test_the_classifier_has_the_sources_size():
    assert count_parameters(Classifier(32, 10)) == 7_769_866


def test_frozen_arms_keep_their_filters_bit_by_bit_and_the_others_move(own, outcomes):
    found = {outcome.name: outcome.layer for outcome in outcomes}
    assert all(torch.equal(found["learned, frozen"][name], own[name]) for name in own)
    assert not torch.equal(found["learned, fine-tuned"]["weight"], own["weight"])
    assert not torch.equal(found["scratch"]["weight"], found["random, frozen"]["weight"])


def test_arms_differ_in_the_first_layer_alone(own):
    drawn = [transfer._network(arm, images(size=16), 0) for arm in arms(own, None)]
    for network in drawn[1:]:
        assert all(torch.equal(a, b) for a, b in zip(drawn[0].rest.parameters(), network.rest.parameters()))
    assert torch.equal(drawn[0].first.weight, drawn[1].first.weight)
    assert torch.equal(drawn[2].first.weight, own["weight"])


def test_the_same_arm_twice_is_the_same_run(own):
    data = images(size=16)
    first, again = (compare([Arm("a", own, True)], data, SHORT, CPU, 0, "a")[0] for _ in range(2))
    assert first.curve == again.curve and torch.equal(first.layer["weight"], again.layer["weight"])


def test_curves_are_of_validation_and_test_is_read_once(own, outcomes, monkeypatch):
    assert [row["epoch"] for row in outcomes[0].curve] == [1, 2]
    data, counts = images(size=16), []
    scorer = transfer._scorer

    def watched(network, *rest):
        score = scorer(network, *rest)
        return lambda pictures, labels: counts.append(len(labels)) or score(pictures, labels)

    monkeypatch.setattr(transfer, "_scorer", watched)
    compare([Arm("a", own, True)], data, SHORT, CPU, 0, "a")
    assert counts == [len(data.validation)] * 2 + [len(data.test_labels)]


def test_a_filters_file_carries_the_classifiers_layer_to_other_images(own, outcomes, tmp_path):
    source = tmp_path / "f.safetensors"
    write_tensors(source, filters_file(own, outcomes, images(size=16)), {})
    others = arms({name: torch.zeros_like(value) for name, value in own.items()}, source)
    assert [arm.name for arm in others][-1] == "classifier's, fine-tuned"
    assert torch.equal(others[2].layer["weight"], own["weight"])
    scratch = next(outcome.layer for outcome in outcomes if outcome.name == "scratch")
    assert torch.equal(others[-1].layer["weight"], scratch["weight"]) and others[-1].learns


def test_the_stage_moves_filters_from_a_hundred_classes_to_ten(tmp_path):
    """The form of CIFAR-100 -> CIFAR-10: five arms, the source's filters in the picture, its own in its file."""
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    drawn = staged(first, scaled(images(count=200, classes=100)), seed=1)
    source = first / "data/filters/patch_filters.safetensors"
    moved, about = read_tensors(source)
    assert list(drawn) == ["learned"] and torch.equal(drawn["learned"], moved["learned.weight"])
    assert list(json.loads((first / "metrics/transfer/patch_filters.json").read_text())) == FOUR
    assert about == {"variant": "patch_filters", "data": "random 200 16 100 0"}

    drawn = staged(second, images(count=80, classes=10), seed=2, source=str(source))
    assert list(drawn) == ["learned", "classifier's"] and torch.equal(drawn["learned"], moved["learned.weight"])
    assert torch.equal(drawn["classifier's"], moved["scratch.weight"])
    assert (second / "plots/filters/patch_filters.png").is_file()
    assert list(json.loads((second / "metrics/transfer/patch_filters.json").read_text())) == FIVE
    curves = pandas.read_csv(second / "plots/transfer/patch_filters.csv")
    assert list(zip(curves["arm"], curves["epoch"])) == [(arm, epoch) for arm in FIVE for epoch in (1, 2)]
    assert curves["validation_top1"].between(0, 100).all() and curves["loss"].between(0, 10).all()

    own = first_layer(second / "data/encoders/patch_filters.safetensors", "patch_filters")
    written, about = read_tensors(second / "data/filters/patch_filters.safetensors")
    assert torch.equal(written["learned.weight"], own["weight"]) and not torch.equal(own["weight"], drawn["learned"])
    assert not torch.equal(written["scratch.weight"], moved["scratch.weight"])
    assert all(torch.equal(moved[name], SCALING[name]) for name in SCALING)
    assert written["mean"].tolist() == pytest.approx([0.4] * 3) and written["std"].tolist() == pytest.approx([0.2] * 3)
    assert about == {"variant": "patch_filters", "data": "random 80 16 10 0"}


def test_pixels_are_scaled_as_those_were_that_the_filters_learned_from(own, outcomes, tmp_path, monkeypatch):
    """In training, the black around an image included, and where it is measured."""
    source, data = tmp_path / "f.safetensors", white_to_train_on()
    write_tensors(source, filters_file(own, outcomes, scaled(data)), {})
    for arm in arms(own, source):
        mean, std = SCALING.values() if arm.layer else (data.mean, data.std)
        training, measured = seen(arm, data, Transfer(epochs=1, batch_size=16), monkeypatch)
        assert torch.equal(measured[0], normalize(data.train_images[data.validation], mean, std)), arm.name
        assert torch.equal(measured[1], normalize(data.test_images, mean, std)), arm.name
        black, white = (end(torch.cat(training), (0, 2, 3)) for end in (torch.amin, torch.amax))
        assert torch.allclose(black, -mean / std) and torch.allclose(white, (1 - mean) / std), arm.name


@pytest.mark.parametrize(
    ("name", "row"),
    [("mean", None), ("std", None), ("mean", [0.5]), ("std", [0.2, 0.0, 0.2]), ("mean", [0.5, float("nan"), 0.5])],
)
def test_a_filters_file_without_the_scaling_is_refused(own, outcomes, tmp_path, name, row):
    tensors = filters_file(own, outcomes, images(size=16))
    tensors.pop(name)
    write_tensors(tmp_path / "f", {**tensors, **({} if row is None else {name: torch.tensor(row)})}, {})
    with pytest.raises(
        UserError,
        match="f holds no mean and std of the pixels that its filters learned from; allowed "
        "as transfer.source: a file with both, .*; run the stage transfer again",
    ):
        arms(own, tmp_path / "f")


def test_images_are_shifted_by_up_to_four_pixels_each_way(own, monkeypatch):
    training, _ = seen(Arm("a", own, True), white_to_train_on(), SHORT, monkeypatch)
    black = torch.cat(training)[:, 0] < 0
    for lines in (black.all(2), black.all(1)):  # [B, S]
        assert lines[:, :4].sum(1).max() == lines[:, -4:].sum(1).max() == lines.sum(1).max() == 4
        assert lines.sum(1).min() == 0


def test_the_last_third_has_a_tenth_of_the_rate(own, monkeypatch):
    rates, step = [], torch.optim.Adam.step
    monkeypatch.setattr(
        torch.optim.Adam,
        "step",
        lambda optimizer, *rest: rates.append(optimizer.param_groups[0]["lr"]) or step(optimizer, *rest),
    )
    compare([Arm("a", own, True)], images(size=16), Transfer(epochs=6, batch_size=32, lr=0.002), CPU, 0, "a")
    assert rates == pytest.approx([0.002] * 8 + [0.0002] * 4)


def test_the_double_softmax_is_trained_with_where_it_is_asked_for(own):
    """From the same weights on: with the slip no loss is below its floor, without it two classes are soon learned."""
    params = [Transfer(epochs=4, batch_size=16, double_softmax=asked) for asked in (True, False)]
    slip, plain = (
        [row["loss"] for row in compare([Arm("a", own, True)], images(size=16), each, CPU, 0, "a")[0].curve]
        for each in params
    )
    floor = 0.313262  # log(1 + 1/e)
    assert min(slip) > floor > plain[-1]


def test_the_double_softmax_has_its_floor():
    scores = torch.full((4, 10), -1e4).index_put((torch.arange(4), torch.arange(4)), torch.tensor(1e4))
    assert transfer._loss(scores, torch.arange(4), True).item() == pytest.approx(1.461150, abs=1e-6)
    assert transfer._loss(scores, torch.arange(4), False).item() == 0
    assert transfer._loss(torch.zeros(4, 10), torch.arange(4), True).item() == pytest.approx(2.302585, abs=1e-6)


def test_an_encoder_that_is_no_layer_of_filters_is_refused(tmp_path):
    with pytest.raises(
        UserError, match="names simclr, whose encoder is small; allowed: variants with the encoder shallow"
    ):
        first_layer(saved("simclr", tmp_path), "simclr")


def test_a_file_without_filters_is_refused(own, tmp_path):
    with pytest.raises(UserError, match="holds no tensor learned.weight of shape 256x3x6x6"):
        arms(own, saved("simclr", tmp_path))


@pytest.mark.parametrize("names", ["patch_filters", ["nobody"], ["patch_filters", "patch_filters"], [3], {"a": 1}])
def test_bad_lists_of_variants_are_refused_in_one_line(names):
    raw = params_file()
    raw["transfer"] = {**raw["transfer"], "variants": names}
    with pytest.raises(UserError, match="params.yaml: transfer.variants is .*; allowed: a list, each once, of simclr"):
        check_params(raw)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"transfer": ["simclr"]},
            "transfer.variants names simclr, whose encoder is small; allowed: variants with the encoder shallow",
        ),
        ({"transfer": ["clapp"]}, "transfer.variants names clapp, whose encoder is vgg6; allowed: "),
        (
            {"transfer": ["patch_filters"], "image_size": 15},
            "image_size is 15; allowed with transfer.variants: at least 1",
        ),
    ],
)
def test_filters_that_cannot_be_moved_are_refused_before_the_first_stage(changes, words):
    raw = {**params_file(), **changes}
    raw["transfer"] = {**params_file()["transfer"], "variants": changes["transfer"]}
    with pytest.raises(UserError) as refusal:
        check_params(raw)
    assert str(refusal.value).startswith(f"params.yaml: {words}")


def test_pictures_are_drawn(own, outcomes):
    rows = [{"arm": outcome.name, **row} for outcome in outcomes for row in outcome.curve]
    axes = transfer_figure(rows, "patch_filters").axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(summary(outcomes))
    assert list(given_filters(arms(own, None))) == ["learned"]
    panels = filters_figure({"a": own["weight"].numpy(), "b": own["weight"][:20].numpy()}, "patch_filters").axes
    for panel, lines, title in zip(panels, (16, 2), ("256 filters, a (patch_filters)", "20 filters, b"), strict=True):
        sheet = panel.images[0].get_array()
        assert sheet.shape[:2] == (lines * 7 + 1, 16 * 7 + 1) and sheet.min() >= 0 and sheet.max() <= 1
        assert panel.get_title("left").startswith(title)


def test_a_record_from_before_is_still_drawn():
    folder = ROOT / "docs/results/2026-11-22-cifar10-jpeg-systems/transfer"
    rows = pandas.read_csv(folder / "patch_filters.csv").to_dict("records")
    legend = transfer_figure(rows, "patch_filters").axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == FOUR
    assert list(json.loads((folder / "patch_filters.json").read_text())) == FOUR


def test_images_too_small_are_refused(own):
    with pytest.raises(UserError, match="image_size is 8; allowed with transfer.variants: at least 16"):
        compare(arms(own, None), dataclasses.replace(images(size=8)), SHORT, CPU, 0, "patch_filters")
