"""The linear stage's one function: what it measures, what it leaves alone, the study's protocol, fine-tuning."""

import json
from functools import partial

import pytest
import torch

from lib.evaluate import batches, study
from lib.evaluate import linear as linear_stage
from lib.evaluate.batches import augmented_batches, train
from lib.evaluate.codes import k_winners
from lib.evaluate.features import extract, extract_with_projections
from lib.evaluate.finetune import finetuned_logits
from lib.evaluate.knn import knn_scores
from lib.evaluate.linear import evaluate, write_evaluation
from lib.evaluate.probe import fit_probe
from lib.evaluate.scores import accuracy
from lib.evaluate.study import study_protocol
from lib.params.evaluation import Knn, Linear
from lib.params.pretraining import Augment
from lib.runtime.errors import UserError
from lib.runtime.files import read_arrays, read_json
from tests.examples import CPU as MACHINE
from tests.examples import TinyMethod, same_state, state, tiny_data, tiny_method
from tests.examples import tiny_about as about
from tests.examples import tiny_params as pretraining

LINEAR, PROBE, KNN = Linear(study_epochs=2), Linear(study_epochs=0), Knn(k=10)
STUDY = ["study_top1", "study_top5"]


@pytest.fixture(autouse=True)
def few_strengths(monkeypatch):
    """The path is the probe's own affair, and long for tiny images."""
    monkeypatch.setattr(linear_stage, "fit_probe", partial(fit_probe, strengths=(0.1, 0.01)))


def run(latents=("h",), linear=LINEAR, seed=0):
    method = tiny_method(latents)
    return method, evaluate(method, about(seed), tiny_data(), linear, KNN, MACHINE)


def finetuning(**settings):
    return Linear(mode="finetune", finetune_batch_size=32, study_epochs=0, **settings)


@pytest.mark.parametrize("linear", [LINEAR, finetuning(finetune_epochs=2)])
def test_network_is_left_as_it_was(linear):
    method = tiny_method()
    before = state(method)
    evaluate(method, about(), tiny_data(), linear, KNN, MACHINE)
    assert same_state(method, before)
    assert not method.training and not any(p.requires_grad for p in method.parameters())


def test_one_latent_metrics_and_record():
    _, found = run()
    assert list(found.metrics) == ["top1", "knn", *STUDY, "z_h"]
    assert found.metrics["top1"] > 60 and found.metrics["knn"] > 45 and found.record["study"]["top1"] > 34
    latent = found.record["latents"]["h"]
    assert latent["width"] == 8 and latent["top5"] == 100.0 and latent["strength"] in (0.1, 0.01)
    assert latent["strength_at_end"] is True and {"validation_probe", "validation_knn"} <= latent.keys()
    assert found.record["images"] == {"fitting": 135, "validation": 15, "train": 150, "test": 60}
    assert [row["epoch"] for row in found.record["study"]["curve"]] == [1, 2]
    agreement = (found.predictions["h"] == tiny_data().test_labels).double().mean().item()
    assert found.metrics["top1"] == pytest.approx(100 * agreement, abs=0.005)
    assert found.record == run()[1].record and found.record["study"] != run(seed=1)[1].record["study"]


def test_several_latents_have_features_computed_once_and_files_of_numbers(tmp_path):
    method, found = run(("upper", "lower"), PROBE)
    names = ["upper", "lower", "both", "mean"]
    assert method.images == 150 + 60
    assert list(found.metrics) == ["top1", "knn", *STUDY, *names[1:], "z_upper", "z_lower"]
    assert list(found.metrics["both"]) == ["top1", "knn"]
    assert found.metrics["top1"] == found.record["latents"]["upper"]["top1"] and found.record["main"] == "upper"
    assert found.metrics["study_top1"] is None and found.record["study"] is None
    assert [numbers["width"] for numbers in found.record["latents"].values()] == [8, 8, 16, 8]
    labels = tiny_data().test_labels
    write_evaluation(found, labels, tmp_path / "metrics/v.1.json", tmp_path / "data/scores/v.1")
    assert read_json(tmp_path / "metrics/v.1.json") == found.metrics
    assert read_json(tmp_path / "data/scores/v.1.json") == json.loads(json.dumps(found.record))
    arrays = read_arrays(tmp_path / "data/scores/v.1.npz")
    assert set(arrays) == {"labels", "upper"}, "the main latent's alone are read"
    assert arrays["upper"].dtype == "int64" and arrays["labels"].tolist() == labels.tolist()


def test_top5_is_a_metric_of_many_classes_alone():
    latents = {"h": {"top1": 1.0, "top5": 5.0, "knn": 2.0}}
    assert list(linear_stage._metrics(latents, {}, None, 19)) == ["top1", "knn", *STUDY]
    assert list(linear_stage._metrics(latents, {}, None, 20)) == ["top1", "top5", "knn", *STUDY]


def test_projections_are_scored_by_the_same_probe_and_neighbors_as_latents():
    method, found = run(linear=PROBE)
    data = tiny_data()
    train, test = (
        extract_with_projections(method, images, data.mean, data.std, MACHINE)["projections"]["z_h"]
        for images in (data.train_images, data.test_images)
    )
    probe = fit_probe(train, data.train_labels, data.fitting, data.validation, 3, strengths=(0.1, 0.01))
    near = knn_scores(train, data.train_labels, test, KNN.k, KNN.temperature, 3)
    expected = [round(accuracy(scores, data.test_labels), 2) for scores in (probe.logits(test), near)]
    numbers = found.record["projections"]["z_h"]
    assert [numbers["top1"], numbers["knn"]] == expected and numbers["width"] == 4
    assert found.metrics["z_h"] == {"top1": expected[0], "knn": expected[1]}


@pytest.mark.parametrize(("supervised", "width", "scored"), [(True, 3, False), (True, 4, True), (False, 3, True)])
def test_a_classifiers_logits_are_no_projection_to_score(supervised, width, scored):
    method = tiny_method()
    method.projector = torch.nn.Linear(8, width).requires_grad_(False)
    found = evaluate(method, about() | {"supervised": supervised}, tiny_data(), PROBE, KNN, MACHINE)
    assert ("z_h" in found.metrics) == scored == ("z_h" in found.record["projections"])


def test_the_studys_protocol_is_reported_with_its_own_epochs_alone(monkeypatch):
    calls = []
    theirs = {"top1": 50.0, "top5": 90.0}
    monkeypatch.setattr(linear_stage, "study_protocol", lambda *given: calls.append(given[3]) or theirs)
    reported = [run(linear=Linear(study_epochs=epochs))[1].metrics["study_top1"] for epochs in (0, 5, 50)]
    assert reported == [None, None, 50.0] and calls == [5, 50]


def test_more_is_said_of_binary_codes_alone():
    class Codes(TinyMethod):
        def latents(self, images):
            h = super().latents(images)["h"]
            return {"h": h, "code": k_winners(h, 3)}

    found = evaluate(Codes().eval().requires_grad_(False), about(), tiny_data(), PROBE, KNN, MACHINE)
    code = found.record["latents"]["code"]["code"]
    assert code["active"] == 3 and 0 < code["centroid"] < 100
    assert 0 < code["probe_raw"] == found.metrics["code"]["probe_raw"] < 100
    assert found.metrics["code"]["centroid"] == code["centroid"]
    assert "code" not in found.record["latents"]["h"] and "centroid" not in found.metrics


def test_test_images_choose_nothing():
    """Shuffled test labels change what is reported on test, and no choice."""
    data, shuffled = tiny_data(), tiny_data()
    shuffled.test_labels.copy_(data.test_labels.flip(0))
    honest, other = (evaluate(tiny_method(), about(), images, PROBE, KNN, MACHINE) for images in (data, shuffled))
    for key in ("validation_probe", "validation_knn", "strength"):
        assert honest.record["latents"]["h"][key] == other.record["latents"]["h"][key]
    assert torch.equal(honest.predictions["h"], other.predictions["h"])


def test_neighbors_come_from_the_right_split_and_must_fit_into_it(monkeypatch):
    """Validation images look among the fitting ones alone, test images among all training images."""
    calls = []
    monkeypatch.setattr(linear_stage, "knn_scores", lambda *inputs: calls.append(inputs) or knn_scores(*inputs))
    method, data = tiny_method(), tiny_data()
    evaluate(method, about(), data, PROBE, Knn(k=9, temperature=0.3), MACHINE)
    train_latents, test_latents = (
        extract(method, images, data.mean, data.std, MACHINE)["h"] for images in (data.train_images, data.test_images)
    )
    expected = [
        (train_latents[data.fitting], data.train_labels[data.fitting], train_latents[data.validation]),
        (train_latents, data.train_labels, test_latents),
    ]
    for call, tensors in zip(calls[:2], expected, strict=True):  # the others are of the projection
        assert call[3:] == (9, 0.3, 3)
        assert all(torch.equal(found, wanted) for found, wanted in zip(call[:3], tensors))
    with pytest.raises(UserError) as error:
        evaluate(method, about(), data, PROBE, Knn(k=136), MACHINE)
    assert str(error.value) == "params.yaml: knn.k is 136; allowed: at most 135, the images of the fitting split"


def test_study_learns_and_moves_batch_norm_of_its_copy_and_no_parameter(monkeypatch):
    method, networks = tiny_method(), []
    monkeypatch.setattr(study, "train", lambda network, *rest: networks.append(network) or train(network, *rest))
    found = study_protocol(method, tiny_data(train=600), pretraining(crop_scale_min=0.5), 30, MACHINE)
    moved, own = dict(networks[0].named_buffers()), dict(method.named_buffers())
    assert not torch.equal(moved["encoder.1.running_mean"], own["encoder.1.running_mean"])
    assert moved["encoder.1.num_batches_tracked"] == own["encoder.1.num_batches_tracked"] + 3 * 30
    assert all(torch.equal(a, b) for a, b in zip(networks[0].parameters(), method.parameters()))
    curve = [row["top1"] for row in found["curve"]]
    assert found["top1"] == max(curve) > 50 and found["best_epoch"] == 1 + curve.index(max(curve))
    assert found["curve"][-1]["loss"] < found["curve"][0]["loss"]


def test_study_settings_are_the_studys(monkeypatch):
    adams, calls = [], []

    class Adam(torch.optim.Adam):
        def __init__(self, parameters, **settings):
            parameters = list(parameters)
            adams.append(([parameter.detach().clone() for parameter in parameters], settings))
            super().__init__(parameters, **settings)

    monkeypatch.setattr(torch.optim, "Adam", Adam)
    monkeypatch.setattr(study, "augmented_batches", lambda *given: calls.append(given) or augmented_batches(*given))
    data, params = tiny_data(), pretraining(seed=7, hue=0.05, crop_pixels=4)
    study_protocol(tiny_method(), data, params, 2, MACHINE)
    ((parameters, settings),) = adams
    assert settings == {"lr": 1e-3, "weight_decay": 1e-6}
    assert [tuple(parameter.shape) for parameter in parameters] == [(3, 8), (3,)]
    assert 0.9 * 8**-0.5 < parameters[0].abs().max() <= 8**-0.5  # torch's initialization
    ((images, *given),) = calls
    assert given == [Augment(hue=0.05), "cpu", 256, 7, "study"]
    assert torch.equal(images[0], data.train_images) and torch.equal(images[1], data.train_labels)


def some_batches(epoch=1, size=32, seed=0, purpose="study"):
    data = tiny_data()
    images = data.train_images, data.train_labels, data.mean, data.std
    return list(augmented_batches(images, Augment(), "cpu", size, seed, purpose)(epoch))


def test_augmented_batches_cover_the_images_once_and_depend_on_seed_purpose_and_epoch_alone():
    found = some_batches()
    labels = torch.cat([targets for _, targets in found])
    assert labels.bincount().tolist() == [50, 50, 50] and labels.tolist() != tiny_data().train_labels.tolist()
    assert [len(targets) for _, targets in found] == [32, 32, 32, 32, 22]
    assert [len(targets) for _, targets in some_batches(size=149)] == [149]  # one image alone is left out
    torch.rand(10)
    assert torch.equal(found[2][0], some_batches()[2][0])
    for change in ({"seed": 1}, {"epoch": 2}, {"purpose": "finetune"}):
        assert not torch.equal(found[2][0], some_batches(**change)[2][0])


def test_training_yields_the_mean_loss_of_an_image():
    layer, steps = torch.nn.Linear(2, 2), []
    parts = [(torch.randn(size, 2), torch.zeros(size, dtype=torch.int64)) for size in (3, 1)]
    still = torch.optim.SGD(layer.parameters(), lr=0.0)
    found = list(
        batches.train(layer.eval(), layer, still, lambda _: iter(parts), 2, after_step=lambda: steps.append(1))
    )
    inputs = torch.cat([inputs for inputs, _ in parts])
    expected = torch.nn.functional.cross_entropy(layer(inputs), torch.zeros(4, dtype=torch.int64)).item()
    assert [epoch for epoch, _ in found] == [1, 2] and len(steps) == 4 and layer.training
    assert [loss for _, loss in found] == pytest.approx([expected] * 2, rel=1e-5)


def test_finetuning_learns_what_the_frozen_network_cannot_see():
    method, data = tiny_method(), tiny_data(train=300, test=150)
    with torch.no_grad():
        weight = method.encoder[0].weight
        weight.copy_(weight.mean(1, keepdim=True).expand_as(weight))  # blind to color, which tells the classes
        method.train().latents(data.train_images.float() / 128 - 1)
        method.eval()
    linear = finetuning(finetune_epochs=8, finetune_lr=1e-2)
    found, frozen = (evaluate(method, about(), data, each, KNN, MACHINE) for each in (linear, PROBE))
    assert frozen.metrics["top1"] < 50 and found.metrics["top1"] > 70
    assert found.metrics["knn"] == frozen.metrics["knn"]


def test_finetuning_starts_at_the_probe_and_lets_gradients_pass(monkeypatch):
    allowed = []
    monkeypatch.setattr(TinyMethod, "allow_end_to_end_gradient", lambda method: allowed.append(method))
    method, data = tiny_method(("upper", "lower")), tiny_data()
    features, test = (
        torch.cat(list(extract(method, images, data.mean, data.std, MACHINE).values()), 1)
        for images in (data.train_images, data.test_images)
    )
    probe = fit_probe(features, data.train_labels, data.fitting, data.validation, 3, strengths=[0.01])
    for module in method.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.0
    still = Linear(mode="finetune", finetune_epochs=1, finetune_batch_size=150, finetune_lr=1e-12)
    logits = finetuned_logits(method, "both", probe, data, pretraining(), still, MACHINE)
    torch.testing.assert_close(logits, probe.logits(test), rtol=1e-4, atol=1e-4)
    assert len(allowed) == 1 and allowed[0] is not method
