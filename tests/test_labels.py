"""Few labels: what a draw is, and the probe and fine-tuning on it."""

import json
from dataclasses import asdict, replace

import numpy
import pytest
import torch

from lib.evaluate import finetune
from lib.evaluate import labels as few
from lib.evaluate import linear as linear_stage
from lib.evaluate.features import extract
from lib.evaluate.linear import evaluate
from lib.evaluate.probe import fit_probe
from lib.params.evaluation import LABEL_DRAWS, Knn, Linear
from lib.resolve import check_against_data
from tests.examples import CPU, images, same_state, state, tiny_about, tiny_data, tiny_method
from tests.faults.refusals import refused
from tests.test_params import parsed

PROBE, KNN = Linear(study_epochs=0), Knn(k=10)


@pytest.fixture(autouse=True)
def few_strengths(monkeypatch):
    for module in (few, linear_stage):
        monkeypatch.setattr(
            module, "fit_probe", lambda *given, **more: fit_probe(*given, strengths=(0.1, 0.01), **more)
        )


def test_draws_are_stratified_differ_and_hold_smaller_ones():
    data = tiny_data()
    drawn = {}
    for number in range(LABEL_DRAWS):
        for share, each in ((0.1, 5), (0.5, 25)):
            rows, part = few.label_draw(data, share, number)
            drawn[number, share] = set(rows.tolist())
            assert part.train_labels.bincount().tolist() == [each] * 3 and torch.equal(
                part.train_labels, data.train_labels[rows]
            )
            assert torch.equal(part.train_images, data.train_images[rows])
            held_out = part.train_labels[part.validation].bincount().tolist()
            assert held_out == [max(1, int(each / 10 + 0.5))] * 3 and len(part.fitting) + len(part.validation) == len(
                rows
            )
        assert drawn[number, 0.1] < drawn[number, 0.5]
    assert len({frozenset(rows) for rows in drawn.values()}) == len(drawn)


def test_the_probe_of_a_draw_sees_no_other_image_and_is_reported_with_its_spread(monkeypatch):
    linear, method, data, given, fit = replace(PROBE, labels=(1.0, 0.1)), tiny_method(), tiny_data(), [], few.fit_probe
    monkeypatch.setattr(few, "fit_probe", lambda *each: given.append(each) or fit(*each))
    found = evaluate(method, tiny_about(), data, linear, KNN, CPU)
    features = extract(method, data.train_images, data.mean, data.std, CPU)["h"]
    for number, (inputs, labels, fitting, validation, *_) in enumerate(given):
        rows, _ = few.label_draw(data, 0.1, number)
        assert torch.equal(inputs, features[rows]) and torch.equal(labels, data.train_labels[rows])
        assert sorted([*fitting.tolist(), *validation.tolist()]) == list(range(15))
    numbers = found.record["few_labels"]["0.1"]
    assert list(found.record["few_labels"]) == ["0.1"] and found.metrics["labels"] == {"0.1": numbers["top1"]}
    assert numbers["images"] == 15 and len(numbers["draws"]) == LABEL_DRAWS and len(set(numbers["draws"])) > 1
    assert numbers["top1"] == pytest.approx(numpy.mean(numbers["draws"]), abs=0.01)
    assert numbers["sd"] == pytest.approx(numpy.std(numbers["draws"], ddof=1), abs=0.01)
    assert 40 < numbers["top1"] < found.metrics["top1"]


def test_who_does_not_ask_has_the_files_as_they_were():
    found = evaluate(tiny_method(), tiny_about(), tiny_data(), PROBE, KNN, CPU)
    assert "few_labels" not in found.record and "labels" not in found.metrics
    assert list(found.record["linear"]) == [key for key in asdict(PROBE) if key != "labels"]
    json.dumps(found.record, allow_nan=False)


def test_fine_tuning_on_shares_is_reproducible_and_gains_from_labels(monkeypatch):
    """Trained for real: what it was given, what it read of the test images, and what came out, twice."""
    method, data, fitted, read, given = tiny_method(), tiny_data(600, 300), [], [], []
    before, fit, look = state(method), few.fit_probe, finetune.extract
    monkeypatch.setattr(few, "fit_probe", lambda *given, **more: fitted.append(given) or fit(*given, **more))
    monkeypatch.setattr(
        finetune, "extract", lambda network, images, *more: read.append(images) or look(network, images, *more)
    )
    tune = few.finetuned_logits
    monkeypatch.setattr(
        few, "finetuned_logits", lambda *parts: given.append(len(parts[3].train_images)) or tune(*parts)
    )
    settings = {"finetune_epochs": 4, "finetune_batch_size": 32, "finetune_lr": 3e-3}
    linear = Linear(mode="finetune", study_epochs=0, labels=(1.0, 0.02, 0.3), **settings)
    first, again = (evaluate(method, tiny_about(), data, linear, KNN, CPU) for _ in range(2))
    assert same_state(method, before) and first.record == again.record
    assert given == 2 * [*[12] * LABEL_DRAWS, *[180] * LABEL_DRAWS], "the draw alone is trained on"
    # of each of 3 classes 4 and 60 images, a tenth of which, and no other image, chooses the strength
    for place, (features, labels, fitting, validation, *_) in enumerate(fitted):
        each, held_out = ((4, 1), (60, 6))[place // LABEL_DRAWS % 2]
        assert labels.bincount().tolist() == [each] * 3 and len(features) == 3 * each
        assert labels[validation].bincount().tolist() == [held_out] * 3
        assert not set(fitting.tolist()) & set(validation.tolist())
    assert len(fitted) == 2 * 2 * LABEL_DRAWS and len(read) == len(fitted) + 2
    assert all(images is data.test_images for images in read), "once by each network, when it is trained"
    least, more = first.record["few_labels"]["0.02"], first.record["few_labels"]["0.3"]
    for found in (least, more):
        assert len(set(found["draws"])) > 1 and found["sd"] == pytest.approx(
            numpy.std(found["draws"], ddof=1), abs=0.01
        )
    assert 40 < least["top1"] < more["top1"] < first.metrics["top1"] and least["sd"] > more["sd"]


def test_test_images_choose_nothing_in_fine_tuning():
    """Accuracy on all of them is the mean of that on either half: no epoch, no strength is the best for a test set."""
    data, linear = tiny_data(150, 60), Linear(mode="finetune", finetune_epochs=3, study_epochs=0, labels=(1.0, 0.3))

    def draws(rows: slice) -> numpy.ndarray:
        part = replace(data, test_images=data.test_images[rows], test_labels=data.test_labels[rows])
        found = evaluate(tiny_method(), tiny_about(), part, linear, KNN, CPU)
        return numpy.array([found.metrics["top1"], *found.record["few_labels"]["0.3"]["draws"]])

    halves = draws(slice(30)), draws(slice(30, None))
    assert draws(slice(60)) == pytest.approx(sum(halves) / 2, abs=0.01) and (halves[0] != halves[1]).any()


def test_shares_are_a_list_with_all_labels_in_it_and_leave_a_class_two_images():
    assert parsed(linear={"labels": [0.01, 1]}).linear.labels == (0.01, 1.0)
    for labels, words in (
        ([], "labels is []; allowed: a list, each once, of numbers above 0 and at most 1"),
        ([1.0, 1.0], "a list, each once"),
        (0.1, "labels is 0.1; allowed: a list"),
        ([2.0, 1.0], "labels is 2.0; allowed: a number above 0"),
        ([True, 1.0], "labels is True"),
        ([0.1], "labels is [0.1]; allowed: a list with 1.0"),
    ):
        refused(lambda labels=labels: parsed(linear={"labels": labels}), words)
    about = images(40).about
    about["counts"]["per_class"]["train"] = [20, 20]
    experiment = parsed(linear={"labels": [0.05, 1.0]}, batch_size=16)
    refused(lambda: check_against_data(experiment, about), "linear.labels has 0.05; allowed: at least 0.075")
