"""The linear stage's one function: what it measures, what it leaves alone, the study's protocol, fine-tuning."""

import json

import pytest
import torch

from lib.evaluate import linear as linear_stage
from lib.evaluate import study
from lib.evaluate.batches import augmented_batches
from lib.evaluate.features import extract
from lib.evaluate.finetune import finetuned_scores
from lib.evaluate.knn import knn_scores
from lib.evaluate.linear import evaluate, write_evaluation
from lib.evaluate.probe import fit_probe
from lib.evaluate.study import study_protocol
from lib.params.evaluation import Knn, Linear
from lib.params.pretraining import Augment
from lib.runtime.errors import UserError
from lib.runtime.files import read_arrays, read_json
from tests.evaluate_fakes import MACHINE, about, same_state, state, tiny_data, tiny_method

LINEAR = Linear(epochs=10, batch_size=32, study_epochs=2)
KNN = Knn(k=10)
KEYS = ["top1", "top5", "knn", "study_top1", "study_top5"]


def run(latents=("h",), linear=LINEAR, seed=0):
    method = tiny_method(latents)
    return method, evaluate(method, about(seed=seed), tiny_data(), linear, KNN, MACHINE)


@pytest.mark.parametrize("mode", ["probe", "finetune"])
def test_network_is_left_as_it_was(mode):
    method, data = tiny_method(), tiny_data()
    before = state(method)
    evaluate(method, about(), data, Linear(mode=mode, epochs=2, batch_size=32, study_epochs=1), KNN, MACHINE)
    assert same_state(method, before)
    assert not method.training and not any(p.requires_grad for p in method.parameters())


def test_features_are_computed_once():
    method, _ = run(linear=Linear(epochs=5, batch_size=32, study_epochs=0))
    assert method.images == 150 + 60


def test_one_latent_metrics_and_record():
    _, found = run()
    assert list(found.metrics) == KEYS
    assert found.metrics["top1"] > 60 and found.metrics["knn"] > 45 and found.metrics["study_top1"] > 34
    assert found.metrics["top5"] == 100.0
    latent = found.record["latents"]["h"]
    assert latent["width"] == 8 and {"validation_probe", "validation_knn", "weight_decay", "lr"} <= set(latent)
    assert found.record["images"] == {"fitting": 135, "validation": 15, "train": 150, "test": 60}
    assert [row["epoch"] for row in found.record["study"]["curve"]] == [1, 2]
    agreement = (found.predictions["h"] == tiny_data().test_labels).double().mean().item()
    assert found.metrics["top1"] == pytest.approx(100 * agreement, abs=0.005)


def test_several_latents():
    _, found = run(("upper", "lower"))
    names = ["upper", "lower", "both", "mean"]
    assert list(found.metrics) == KEYS + names
    assert list(found.metrics["both"]) == ["top1", "top5", "knn"]
    assert found.metrics["top1"] == found.metrics["upper"]["top1"]
    assert found.record["main"] == "upper" and found.record["study"]["latent"] == "upper"
    assert {name: numbers["width"] for name, numbers in found.record["latents"].items()} == {
        "upper": 8,
        "lower": 8,
        "both": 16,
        "mean": 8,
    }
    assert list(found.predictions) == names
    assert "latent upper alone" in found.record["protocol"]["study"]
    assert "picked its pretraining checkpoint by the best test kNN" in found.record["protocol"]["study"]


def test_study_can_be_left_out():
    _, found = run(linear=Linear(epochs=2, batch_size=32, study_epochs=0))
    assert found.metrics["study_top1"] is None and found.metrics["study_top5"] is None
    assert found.record["study"] is None and found.record["protocol"]["study"] == "not run"


def test_same_seed_same_numbers():
    assert run()[1].record == run()[1].record
    assert run()[1].record["study"] != run(seed=1)[1].record["study"]


def test_test_images_choose_nothing():
    """Shuffled test labels change what is reported on test, and no choice."""
    data = tiny_data()
    shuffled = tiny_data()
    shuffled.test_labels.copy_(data.test_labels.flip(0))
    linear = Linear(epochs=5, batch_size=32, study_epochs=0)
    honest, other = (evaluate(tiny_method(), about(), d, linear, KNN, MACHINE) for d in (data, shuffled))
    for key in ("validation_probe", "validation_knn", "weight_decay", "lr"):
        assert honest.record["latents"]["h"][key] == other.record["latents"]["h"][key]
    assert torch.equal(honest.predictions["h"], other.predictions["h"])


def test_neighbours_must_fit_in_the_fitting_split():
    with pytest.raises(UserError) as error:
        evaluate(tiny_method(), about(), tiny_data(), LINEAR, Knn(k=136), MACHINE)
    assert str(error.value) == "params.yaml: knn.k is 136; allowed: at most 135, the images of the fitting split"


def test_written_files(tmp_path):
    _, found = run(("upper", "lower"))
    data = tiny_data()
    write_evaluation(found, data.test_labels, tmp_path / "metrics/v.1.json", tmp_path / "data/scores/v.1")
    assert read_json(tmp_path / "metrics/v.1.json") == found.metrics
    assert read_json(tmp_path / "data/scores/v.1.json") == json.loads(json.dumps(found.record))
    arrays = read_arrays(tmp_path / "data/scores/v.1.npz")
    assert list(arrays) == ["labels", "upper", "lower", "both", "mean"]
    assert arrays["both"].dtype == "int64" and arrays["labels"].tolist() == data.test_labels.tolist()


def test_study_moves_batch_norm_of_its_copy_and_no_parameter(monkeypatch):
    method, data = tiny_method(), tiny_data()
    networks = []
    train_epoch = study._train_epoch

    def spy(network, *rest):
        networks.append(network)
        loss = train_epoch(network, *rest)
        assert network.training
        return loss

    monkeypatch.setattr(study, "_train_epoch", spy)
    found = study_protocol(method, data, Augment(), 3, MACHINE, 0)
    moved, own = dict(networks[0].named_buffers()), dict(method.named_buffers())
    assert not torch.equal(moved["encoder.1.running_mean"], own["encoder.1.running_mean"])
    assert moved["encoder.1.num_batches_tracked"] == own["encoder.1.num_batches_tracked"] + 3
    assert all(torch.equal(a, b) for a, b in zip(networks[0].parameters(), method.parameters()))
    assert found.top1 == max(row["top1"] for row in found.curve)
    assert found.curve[found.best_epoch - 1]["top1"] == found.top1


def test_study_learns():
    found = study_protocol(tiny_method(), tiny_data(train=600), Augment(crop_scale_min=0.5), 30, MACHINE, 0)
    assert found.top1 > 50 and found.curve[-1]["loss"] < found.curve[0]["loss"]


def test_study_layer_has_the_default_initialisation_and_no_global_state():
    before = torch.random.get_rng_state()
    first = study._linear(2000, 10, 0)
    torch.manual_seed(1)
    again = study._linear(2000, 10, 0)
    torch.random.set_rng_state(before)
    assert torch.equal(first.weight, again.weight)
    bound = 2000**-0.5
    assert first.weight.abs().max() <= bound
    assert first.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)


def test_study_settings_are_the_studys(monkeypatch):
    adams, calls = [], []

    class Adam(torch.optim.Adam):
        def __init__(self, parameters, **settings):
            adams.append((parameters := list(parameters), settings))
            super().__init__(parameters, **settings)

    def spy(*tensors, **settings):
        calls.append((tensors, settings))
        return augmented_batches(*tensors, **settings)

    monkeypatch.setattr(torch.optim, "Adam", Adam)
    monkeypatch.setattr(study, "augmented_batches", spy)
    data, recipe = tiny_data(), Augment(hue=0.05)
    study_protocol(tiny_method(), data, recipe, 2, MACHINE, 7)
    ((parameters, settings),) = adams
    assert settings == {"lr": 1e-3, "weight_decay": 1e-6}
    assert [tuple(parameter.shape) for parameter in parameters] == [(3, 8), (3,)]
    assert [call[1] for call in calls] == [
        {"batch_size": 256, "seed": 7, "purpose": "study", "epoch": epoch} for epoch in (1, 2)
    ]
    for tensors, _ in calls:
        assert torch.equal(tensors[0], data.train_images) and torch.equal(tensors[1], data.train_labels)
        assert tensors[4] == recipe


def test_neighbours_come_from_the_right_split(monkeypatch):
    """Validation images look among the fitting ones alone, test images among all training images."""
    calls = []

    def spy(bank, bank_labels, queries, **settings):
        calls.append((bank, bank_labels, queries, settings))
        return knn_scores(bank, bank_labels, queries, **settings)

    monkeypatch.setattr(linear_stage, "knn_scores", spy)
    method, data = tiny_method(), tiny_data()
    evaluate(method, about(), data, Linear(epochs=1, batch_size=32, study_epochs=0), Knn(k=9, temperature=0.3), MACHINE)
    train, test = (
        extract(method, images, data.mean, data.std, MACHINE)["h"] for images in (data.train_images, data.test_images)
    )
    expected = [
        (train[data.fitting], data.train_labels[data.fitting], train[data.validation]),
        (train, data.train_labels, test),
    ]
    assert len(calls) == 2 and all(call[3] == {"k": 9, "temperature": 0.3, "classes": 3} for call in calls)
    for call, tensors in zip(calls, expected):
        assert [torch.equal(found, wanted) for found, wanted in zip(call, tensors)] == [True] * 3


def batches(data, **changes):
    settings = {"batch_size": 32, "seed": 0, "purpose": "study", "epoch": 1} | changes
    return list(augmented_batches(data.train_images, data.train_labels, data.mean, data.std, Augment(), **settings))


def test_augmented_batches_cover_the_images_once_and_keep_the_short_one():
    data = tiny_data()
    labels = torch.cat([targets for _, targets in batches(data)])
    assert [len(targets) for _, targets in batches(data)] == [32, 32, 32, 32, 22]
    assert labels.bincount().tolist() == [50, 50, 50] and labels.tolist() != data.train_labels.tolist()
    assert [len(targets) for _, targets in batches(data, batch_size=149)] == [149]


def test_augmented_batches_depend_on_seed_purpose_and_epoch_alone():
    data = tiny_data()
    first = batches(data)[2][0]
    torch.rand(10)
    assert torch.equal(first, batches(data)[2][0])
    for change in ({"seed": 1}, {"epoch": 2}, {"purpose": "finetune"}):
        assert not torch.equal(first, batches(data, **change)[2][0])


def test_finetuning_learns_what_the_frozen_network_cannot_see():
    method, data = tiny_method(), tiny_data(train=300, test=150)
    with torch.no_grad():
        weight = method.encoder[0].weight
        weight.copy_(weight.mean(1, keepdim=True).expand_as(weight))  # blind to color, which tells the classes
        method.train().latents(data.train_images.float() / 128 - 1)
        method.eval()
    linear = Linear(mode="finetune", epochs=8, batch_size=32, finetune_lr=1e-2, study_epochs=0)
    found = evaluate(method, about(), data, linear, KNN, MACHINE)
    frozen = evaluate(method, about(), data, Linear(epochs=8, batch_size=32, study_epochs=0), KNN, MACHINE)
    assert frozen.metrics["top1"] < 50 and found.metrics["top1"] > 70
    assert found.metrics["knn"] == frozen.metrics["knn"]


def test_finetuning_starts_at_the_probe():
    method, data = tiny_method(("upper", "lower")), tiny_data()
    with torch.no_grad():
        inputs = (data.train_images.float() / 255 - data.mean[:, None, None]) / data.std[:, None, None]
        test = (data.test_images.float() / 255 - data.mean[:, None, None]) / data.std[:, None, None]
        features = torch.cat(list(method.latents(inputs).values()), 1)
        probe = fit_probe(
            features, data.train_labels, data.fitting, data.validation, 3, epochs=5, batch_size=32, seed=0
        )
        expected = probe.scores(torch.cat(list(method.latents(test).values()), 1))
    still = Linear(mode="finetune", epochs=1, batch_size=150, finetune_lr=1e-12)
    for module in method.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.0
    scores = finetuned_scores(method, "both", probe, data, Augment(), still, MACHINE, 0)
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)


def test_finetuning_lets_gradients_pass_through_the_whole_network(monkeypatch):
    joined = []
    monkeypatch.setattr(type(tiny_method()), "allow_end_to_end_gradient", lambda method: joined.append(method))
    evaluate(
        method := tiny_method(),
        about(),
        tiny_data(),
        Linear(mode="finetune", epochs=1, batch_size=32, study_epochs=0),
        KNN,
        MACHINE,
    )
    assert len(joined) == 1 and joined[0] is not method
