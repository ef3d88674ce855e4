"""Classifiers that start from learned filters: arms, what stays and what learns, the file for other images."""

import dataclasses
from pathlib import Path

import pytest
import torch

from lib.errors import UserError
from lib.evaluate import transfer
from lib.evaluate.transfer import Arm, Classifier, arms, compare, filters_file, first_layer, summary
from lib.files import write_tensors
from lib.methods import build_method
from lib.methods.base import count_parameters
from lib.methods.export import save_method
from lib.params.check import check_params
from lib.params.evaluation import Transfer
from lib.report.figures_transfer import filters_figure, transfer_figure
from tests.examples import CPU, images, params_file, pretraining

SHORT = Transfer(epochs=2, batch_size=16)


def saved(variant: str, folder: Path) -> Path:
    torch.manual_seed(1)
    params = pretraining(variant)
    save_method(folder / "m.safetensors", build_method(params), params, {"checksum": "c"})
    return folder / "m.safetensors"


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
    data, seen = images(size=16), []
    scorer = transfer._scorer

    def watched(network, *rest):
        score = scorer(network, *rest)
        return lambda pictures, labels: seen.append(len(labels)) or score(pictures, labels)

    monkeypatch.setattr(transfer, "_scorer", watched)
    compare([Arm("a", own, True)], data, SHORT, CPU, 0, "a")
    assert seen == [len(data.validation)] * 2 + [len(data.test_labels)]


def test_a_filters_file_carries_the_classifiers_layer_to_other_images(own, outcomes, tmp_path):
    source = tmp_path / "f.safetensors"
    write_tensors(source, filters_file(own, outcomes), {})
    others = arms({name: torch.zeros_like(value) for name, value in own.items()}, source)
    assert [arm.name for arm in others][-1] == "classifier's, fine-tuned"
    assert torch.equal(others[2].layer["weight"], own["weight"])
    scratch = next(outcome.layer for outcome in outcomes if outcome.name == "scratch")
    assert torch.equal(others[-1].layer["weight"], scratch["weight"]) and others[-1].learns


def test_the_double_softmax_has_its_floor():
    scores = torch.full((4, 10), -1e4).index_put((torch.arange(4), torch.arange(4)), torch.tensor(1e4))
    assert transfer._loss(scores, torch.arange(4), True).item() == pytest.approx(1.461150, abs=1e-6)
    assert transfer._loss(scores, torch.arange(4), False).item() == 0
    assert transfer._loss(torch.zeros(4, 10), torch.arange(4), True).item() == pytest.approx(2.302585, abs=1e-6)


def test_an_encoder_that_is_no_layer_of_filters_is_refused(tmp_path):
    with pytest.raises(UserError, match="names simclr, whose encoder is small; allowed: variants with the encoder "
                                        "shallow"):
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


@pytest.mark.parametrize("changes, words", [
    ({"transfer": ["simclr"]}, "transfer.variants names simclr, whose encoder is small; allowed: variants with the "
     "encoder shallow"),
    ({"transfer": ["clapp"]}, "transfer.variants names clapp, whose encoder is vgg6; allowed: "),
    ({"transfer": ["patch_filters"], "image_size": 15}, "image_size is 15; allowed with transfer.variants: at least 1"),
])
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
    sheet = filters_figure(own["weight"].numpy(), "patch_filters").axes[0].images[0].get_array()
    assert sheet.shape[:2] == (16 * 7 + 1, 16 * 7 + 1) and 0 <= sheet.min() and sheet.max() <= 1


def test_images_too_small_are_refused(own):
    with pytest.raises(UserError, match="image_size is 8; allowed with transfer.variants: at least 16"):
        compare(arms(own, None), dataclasses.replace(images(size=8)), SHORT, CPU, 0, "patch_filters")
